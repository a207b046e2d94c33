//! The cloud half of floorgate: what an agent, a person or a script calls to see and to command the fleet.
//!
//! ```text
//!  agent ──▶ door ──▶ Fleet::call(caller, tool, arguments) ──▶ iot-devices, iot-telemetry-history, iot-commands
//!            lambda           │                                                ▲
//!            serve (MCP)      └──▶ devices/{id}/commands ──▶ the gateway ──────┘ its word, by the table
//!            call
//! ```
//!
//! * [`tools`]: the one definition of every tool, shared by all doors and by the AWS template.
//! * [`caller`]: who asks. Only a door makes one, from a verified token or from its surroundings, never from a body.
//! * [`fleet`]: [`Fleet`], which does what a tool says.
//! * [`error`]: [`ToolError`], what is answered instead.
//! * [`identity`], [`policy`]: who asks over HTTP, and what they may.
//! * [`serve`]: the MCP server.
//! * [`lambda`], [`call`]: doors.
//! * [`settings`]: the environment and the flags as valid types.
//!
//! It never links the daemon: both halves meet in the tables, on the command topic and in `floorgate-model`.

mod age;
mod arguments;
pub mod call;
pub mod caller;
pub mod clock;
mod cursor;
pub mod error;
pub mod fleet;
pub mod identity;
pub mod lambda;
pub mod link;
mod names;
pub mod policy;
pub mod serve;
pub mod settings;
pub mod store;
pub mod tools;

pub use caller::Caller;
pub use error::ToolError;
pub use fleet::Fleet;
