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
//!   expendable). Loss or damage of the second costs history alone: a damaged `telemetry.db` is moved aside at start
//!   and an empty one begun; a damaged `state.db` is an error, because it says which commands have run.
//! * Both files with their logs stay within the quota, but for the commit that reaches it. Sent blocks go first; when
//!   only unsent ones are left, readings are refused ([`StoreError::Full`], [`StoreStats::full`]) and stay with their
//!   senders, everything else goes on, and a second after space returns readings are taken again.
//! * A command execution gets exactly one terminal status; it and what announces it share a transaction.
//! * Every accepted command's outcome is kept until it is announced; of commands refused on arrival few are kept
//!   (the room's `refusals` says how few), and outcomes are announced before refusals.
//! * `last_telemetry` never moves back in time; a duplicate of (device, device time, content) among the last
//!   256 reports of a device changes nothing.
//! * A block of samples is immutable from the moment it is closed: its key and its bytes never change.
//!
//! # What it does not do
//!
//! It knows no topic, no cloud and no driver, starts no retries and decides about no command. It repairs no file, and
//! damage that shows only while it runs is an error until the next start.

mod answers;
mod commands;
mod device;
mod device_rows;
mod files;
mod intake;
mod journal;
mod outbox;
mod refusals;
pub mod report;
mod request;
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

pub use report::{Answer, AnswerStatus, FloorReport, StateReport, TelemetryReport};
pub use store::{Config, Store, StoreError, Wakeups};
pub use view::{DeviceView, HistoryBlock, Lane, OutboxEntry, OutboxOrder, StateSnapshot, StoreStats};
