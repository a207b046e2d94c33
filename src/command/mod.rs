//! Commands: from the message that asks for one to exactly one outcome.
//!
//! ```text
//! request ─▶ Admission ─▶ decide ─▶ journal (committed, then acknowledged)
//!                                     │ oldest of each device
//!                                     ▼
//!                  Dispatcher ─▶ decide again ─▶ claim (intent committed) ─▶ Driver ─▶ device
//!                                     ▲                                                 │ answer, state
//!            recovery at start ───────┘            outcome ◀── verify ◀─────────────────┘
//! ```
//!
//! # Guarantees
//!
//! * **Judged by one function.** [`decision::decide`] is pure; it is asked on receipt and again immediately before
//!   dispatch. It names the first objection in a fixed order, and accepts only what the device's profile names.
//! * **Journalled before acknowledged.** [`Admission::admit`] returns after the commit. Refused commands are journalled
//!   too, as ended; only those for unknown devices are not. A redelivery finds the first record; an id that belongs to
//!   another command is `DUPLICATE_ID`.
//! * **Bounded.** At most 8 open commands a device and 200 a gateway; beyond, `QUEUE_FULL`. The journal is the queue:
//!   there is no other, and at most one task a device.
//! * **Never stale.** Nothing is sent from its expiry on: `expires_at`, or 120 s (`reboot`, `recalibrate`) or 900 s
//!   (`update_config`, `set_status`) after it was issued, and never later than 3,600 s after. It is looked at on
//!   receipt, at dispatch, after the intent, and by the driver; while a command waits it is also measured on monotonic
//!   time, so a clock that is put back does not make it younger. More than 60 s ahead of the gateway's clock is
//!   `CLOCK_SKEW`; without a trusted clock nothing from the cloud runs (`CLOCK_UNTRUSTED`).
//! * **Inhibited after damage.** While the journal is in doubt ([`crate::shadow::rescue`]) every command is refused
//!   (`INHIBITED`), on receipt and before dispatch, from the cloud and at the gateway alike; only an operator's
//!   `set_status` goes, which is done here.
//! * **At most once.** The intent is committed before the first byte. What was in progress when the gateway stopped is
//!   sent again only if its profile calls it idempotent and it would be accepted as new; never because of a duplicate,
//!   a wake-up, or a store that failed.
//! * **First in, first out per device, devices side by side.** A device that hangs delays only its own commands, and what
//!   expires behind a running one is called `expired` within a second.
//! * **Done means verified** ([`verify`]). An answer that nothing shows is `succeeded` with `UNVERIFIED`, after 30 s for
//!   a reboot and 5 s for a configuration. What came before the order left proves no reboot, and after a restart of the
//!   gateway only a higher `boot_count` does.
//! * **It ends.** 300 s for `recalibrate`, 180 s for `reboot`, 30 s for `update_config`, or as the profile says (1 s to
//!   3,600 s): then `timed_out`, or `indeterminate` where nobody knows whether it left. An interrupted one is resolved
//!   within what remained of that time at the next start, and 60 s at least ([`recovery::patience`]); one that is sent
//!   again has its timeout anew. Each gets exactly one terminal status.
//! * **A stop takes 2 s at most**, and only where a driver holds an order: its word is the difference between `failed`
//!   and `indeterminate`.
//! * **Looking is bounded.** An execution reads the store 50 times a second at most, however many devices report.
//! * **A store that fails** delays a command and nothing else: it is asked again every second, and an outcome is kept
//!   until it is written.
//!
//! # What it does not do
//!
//! It parses no payload, publishes nothing, and writes no table: `mqtt` hands in a
//! [`Request`](floorgate_model::Request), and outcomes leave through the store's outbox. It never repeats a command by
//! itself after a failure.
//! Cool-downs, budgets, interlocks, approval and quarantine are not here yet; their place is [`decision::RULES`].

pub mod admission;
pub mod decision;
pub mod dispatcher;
mod execution;
mod fresh;
pub mod judge;
pub mod log;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod queue_tests;
pub mod recovery;
pub mod verify;
mod wait;

pub use admission::{Admission, Admitted};
pub use decision::{Decision, Phase, Refusal, Source};
pub use dispatcher::Dispatcher;
pub use judge::Judge;
pub use log::CommandLog;
