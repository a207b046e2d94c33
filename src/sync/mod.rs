//! From the store to DynamoDB: the tables follow the store, never backwards, never with what is not so.
//!
//! # Guarantees
//!
//! * **One direction.** Every write of a state is conditional on its version and its owner; every write of an execution on
//!   the transition; blocks have fixed keys and bytes. Any write may be repeated, reordered or carried out late.
//! * **Own attributes.** The seed's Lambda writes the same items at the same time; only the gateway's attributes are
//!   touched (contract §4), and what a tool wrote optimistically is confirmed or put right with the outcome, once more
//!   2 s after it, because the tool may write later than we, and at every start for the outcomes of the last hour. Where
//!   the device's configuration is unknown, the members a command claimed in it are removed unless it succeeded.
//! * **Current first.** Execution records and urgent states go at once, other states every interval, history beside them;
//!   after an outage history waits for the states.
//! * **No neighbour waits.** A device whose item fails goes behind the others, each in its turn and at a pace of its
//!   own; an item the table will never take is put aside. A missing table of commands hides no outcome.
//! * **One owner of retry**, [`health::Health`]. Bounds: 8 requests in flight a lane, 25 items a batch, 4 batches.
//!
//! # What it does not do
//!
//! It keeps nothing: what is not confirmed to the store is tried again, after a restart too. It knows no MQTT, decides about
//! no command, and reads no file but the shared credentials and, without `ca`, the machine's certificate bundle.

pub mod credentials;
pub mod dynamo;
pub mod health;
mod item;
mod lanes;
mod outage;
pub mod provision;
pub mod source;
pub mod table;
pub mod uploader;

pub use credentials::{CredentialsConfig, CredentialsError, IotConfig};
pub use dynamo::{DynamoConfig, DynamoTable};
pub use health::SyncState;
pub use lanes::Settings;
pub use provision::{check, provision};
pub use source::SyncSource;
pub use table::{CloudTable, SyncError, TableError};
pub use uploader::Uploader;
