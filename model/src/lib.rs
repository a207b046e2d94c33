//! The words both halves of floorgate share.
//!
//! The daemon on the floor and the tools in the cloud must mean the same thing by a device id, a timestamp, a
//! command, a status and a table item; this crate is the one place where each is defined.
//!
//! * [`id`]: device, gateway and command ids, validated once at the edge.
//! * [`timestamp`]: wall-clock time, milliseconds, one 24-byte spelling.
//! * [`reading`]: what a device measured.
//! * [`command`]: the vocabulary of commands and [`command::Request`], a command as it was asked for.
//! * [`execution`]: the life of a command, from `created` to its one terminal status.
//! * [`ledger`]: what became of readings, and why some are lost.
//! * [`profile`]: what each type of device allows, with types and ranges.
//! * [`status`]: what a device is seen to be, and what an administrator says it is.
//! * [`table`]: names of the DynamoDB tables' attributes and the rules for item sizes.
//!
//! It does no I/O, reads no clock and spawns nothing.

pub mod command;
pub mod execution;
pub mod id;
pub mod ledger;
pub mod profile;
pub mod reading;
pub mod status;
pub mod table;
pub mod timestamp;

pub use command::{CommandName, Request};
pub use execution::{ExecutionRecord, ExecutionStatus, Reason};
pub use id::{CommandId, DeviceId, GatewayId};
pub use ledger::{DeviceLedger, Loss, LossReason, LostCounts};
pub use profile::Profile;
pub use reading::{Reading, Readings};
pub use status::{AdminState, DeviceStatus};
pub use timestamp::Timestamp;
