//! The shadow: what the gateway knows of its devices and owes to the cloud, in SQLite.
//!
//! # Guarantees
//!
//! * A [`Receipt`] resolves only after the commit with `synchronous=FULL`: what was received is on disk.
//! * One thread owns all writing. Requests that wait while a commit runs go into the next one together. Telemetry
//!   waits for company up to `commit_interval` (default 1 s) or until [`store::COMMIT_BATCH`] messages wait;
//!   everything else commits at once, but for confirmations, which wait up to 1 s (5 s for blocks) for company: they
//!   may be repeated after a crash.
//! * Two files: `state.db` (devices, journal, outbox: small, precious) and `telemetry.db` (samples and blocks: large,
//!   expendable). One file's damage is not the other's, and neither keeps the store from opening: what can be read is
//!   put into a new file, what cannot is told and declared, and commands are inhibited while the journal is in doubt
//!   ([`rescue`]).
//! * Both files with their logs stay within 1.01 times the quota. Sent blocks go first, then the oldest unsent readings
//!   are thinned to minimum, maximum, mean and count, then dropped; results, states and the journal never. Only when
//!   nothing may be given up any more are readings refused ([`StoreError::Full`], [`StoreStats::full`]) and stay with
//!   their senders; everything else goes on, and a second after space returns readings are taken again.
//! * Every reading is accounted for, per device: `accepted = delivered + stored + lost` ([`DeviceView::ledger`],
//!   [`StoreStats::ledger`]), and every loss is a gap record on its way to the history table. A copy of the ledgers in
//!   `state.db`, at most 30 s old, lets the loss of `telemetry.db` itself be counted and declared.
//! * A disk that is full, read-only or failing is a state ([`StoreHealth`]), not an end, neither at the start nor later:
//!   after a failed write or flush nothing of it is called durable, the file is closed and opened anew, commands are
//!   refused, readings stay with their senders, and all is well again within 5 s after the disk is (`writer/mend.rs`).
//! * A command execution gets exactly one terminal status; it and what announces it share a transaction.
//! * Every accepted command's outcome is kept until it is announced; of commands refused on arrival few are kept
//!   (the room's `refusals` says how few), and outcomes are announced before refusals.
//! * `last_telemetry` never moves back in time; a duplicate of (device, device time, content) among the last
//!   256 reports of a device changes nothing.
//! * A block of samples is immutable from the moment it is closed: its key and its bytes never change. The exception are
//!   blocks taken before the gateway knew the time: they are not sent until they have their right times, once for good.
//!
//! # What it does not do
//!
//! It knows no topic, no cloud and no driver, and but for the refusals of a disk that takes no writes it decides about no
//! command. Damage that shows while it runs closes the file; opening it again rebuilds it, as at the start.

mod answers;
mod clock_floor;
mod commands;
mod device;
mod device_rows;
mod fault;
mod files;
mod glance;
mod held;
mod intake;
mod journal;
pub(crate) mod ledgers;
mod log;
mod newer;
mod outbox;
mod refusals;
mod refused;
pub mod report;
mod request;
pub mod rescue;
mod reserve;
mod samples;
mod schema;
mod sessions;
mod state_file;
pub(crate) mod status;
pub mod store;
pub(crate) mod telemetry;
mod terms;
mod turn;
pub mod view;
mod words;
mod writer;

pub use fault::{Fault, StoreHealth};
pub use newer::unless_newer;
pub use report::{Answer, AnswerStatus, FloorReport, StateReport, TelemetryReport};
pub use store::{Config, Store, StoreError, Wakeups};
pub use view::{
    DeviceView, GapRecord, HistoryBlock, Lane, MetricSummary, OutboxEntry, OutboxOrder, StateSnapshot, StoreStats,
};
