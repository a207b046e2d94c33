//! floorgate: the edge gateway daemon between a factory's devices and an agent's cloud tables.
//!
//! A reading takes three hops, with two queues, one bounded in memory and one on disk:
//!
//! ```text
//! device ──QoS 1──▶ mqtt (link or endpoint) ──Intake──▶ shadow (one writer thread, SQLite) ──blocks──▶ sync ──▶ DynamoDB
//!        ◀─PUBACK──  after the commit        ◀─Receipt─  group commit, synchronous=FULL     ──state──▶
//! ```
//!
//! A command takes four, and its journal is the queue:
//!
//! ```text
//! cloud ──QoS 1──▶ mqtt ──▶ command (decide, journal) ──▶ shadow ──▶ command::dispatcher ──▶ device driver ──▶ device
//!       ◀─PUBACK── after the commit                                    │ intent committed first
//!       ◀─result── mqtt ◀──outbox── shadow ◀──exactly one terminal status
//! ```
//!
//! Who may know whom: `model` nobody; [`shadow`] and [`device`] know `model`; [`mqtt`], [`sync`] and [`command`] know
//! [`shadow`]; only [`gateway`] knows all, and [`doctor`], which looks at all. `tests/architecture.rs` enforces it. Vendor crates stay in their rooms:
//! rumqttc in [`mqtt`], rusqlite in [`shadow`], the AWS SDK in [`sync`].

// First: its macro is for all others.
#[macro_use]
pub mod fail_points;

pub mod backoff;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod device;
pub mod doctor;
pub mod gateway;
pub mod logging;
pub mod memory;
pub mod mqtt;
pub mod shadow;
pub mod sync;
pub mod systemd;
pub mod vitals;
