//! The whole floorgate system on one machine, and its parts for tests.
//!
//! * [`table`]: a DynamoDB-compatible store in a child process; [`dynamo`]: a client for it.
//! * [`broker`]: a stand-in for the cloud's broker; [`proxy`]: a wire to it, or to the table, that can be cut.
//! * [`devices`]: the seed's five devices, simulated, each with a log of what it physically did.
//! * [`daemon`] and [`tools`]: the gateway and the fleet's MCP server, run as what they are, programs; nothing here links them.
//! * [`mcp`]: a client for the tools, as an agent has one; [`issuer`]: its tokens; [`seed_tool`]: the tool of before.

pub mod acts;
pub mod broker;
pub mod builds;
mod child;
pub mod daemon;
pub mod devices;
pub mod dynamo;
mod http;
pub mod issuer;
mod link;
pub mod mcp;
pub mod proxy;
pub mod seed_tool;
pub mod stage;
pub mod switch;
pub mod table;
pub mod tools;
pub mod view;
