//! The whole floorgate system on one machine, and its parts for tests.
//!
//! * [`table`]: a DynamoDB-compatible store in a child process; [`dynamo`]: a client for it.
//! * [`broker`]: a stand-in for the cloud's broker; [`proxy`]: a wire to it, or to the table, that can be cut.
//! * [`devices`]: the seed's five devices, simulated, each with a log of what it physically did.
//!
//! Nothing here links the daemon: it is run as what it is, a program.

pub mod acts;
pub mod agent;
pub mod broker;
pub mod builds;
pub mod daemon;
pub mod devices;
pub mod dynamo;
mod link;
pub mod proxy;
pub mod stage;
pub mod switch;
pub mod table;
pub mod view;
