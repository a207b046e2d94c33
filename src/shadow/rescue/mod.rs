//! What is done about damage: the store never refuses to start for it, and never silently begins from nothing.
//!
//! # Guarantees
//!
//! * **It starts.** Whatever stands in `state.db`, `telemetry.db`, their logs or the witness (bits flipped, pages zeroed,
//!   cut off, emptied, deleted, swapped, a folder in their place, permissions taken away): within 2 s for files as a
//!   test makes them; a large damaged `telemetry.db` takes as long as reading it once ([`salvage`]).
//! * **One file's damage is not the other's.** Each is opened, salvaged and moved aside on its own.
//! * **Nothing is deleted on the spot.** A damaged file goes aside with its log under a dated name ([`aside`]): the
//!   newest two of each file, within the quota; beyond it the oldest go, before any reading does.
//! * **The loss is what was damaged.** Rows are read around unreadable pages. What `state.db` lacks then comes from the
//!   newest verified hourly backup ([`backup`]), what neither has from the devices' retained states and the table's
//!   versions. Readings that are gone are declared lost (`damaged`), so the books balance. The exception: a page that
//!   leads to others (the first page, the inner ones of a large table) takes with it what only it leads to.
//! * **Nothing runs twice.** A journal that may not know all it was asked to do is in doubt: commands are refused with
//!   `INHIBITED` for [`INHIBITED_FOR`] of monotonic time, restarts not counted ([`doubt`]). What had been accepted and
//!   not begun ends as `indeterminate`, `INTERRUPTED`; what was in progress is verified, never sent again.
//! * **No false doubt.** A crash or power cut alone puts nothing in doubt, and neither does damage outside of the
//!   journal, a store that never had a command, a first start, or a folder that is lost as a whole: nothing is left to
//!   tell that from a first start (a new card in an old gateway; see `docs/damage.md`).
//! * **Vanished commits are noticed.** SQLite takes a log that was cut for the whole one; the [`witness`] does not.
//! * **It is told.** In the log, in `status` (what, what was saved, what is lost, where the copy lies, how long
//!   inhibited), and as `store_rescues` and `commands_inhibited_seconds` in the gateway's own readings.
//!
//! Damage met while running is an error for the requests of that moment; a second later the file is rebuilt as here,
//! whatever its check says. A read that fails is tried again for half a minute, and then it is damage, too.
//!
//! # What it does not do
//!
//! It does not read pages that SQLite cannot reach, finds no changed byte inside of a value that still reads as one
//! (SQLite keeps no checksums; an id that changed is found by its index), and does not tell a store that was put back
//! whole, witness and all, from the true one.

pub(in crate::shadow) mod aside;
pub(in crate::shadow) mod backup;
pub(in crate::shadow) mod doubt;
pub(in crate::shadow) mod header;
pub(in crate::shadow) mod life;
pub(in crate::shadow) mod peek;
pub(in crate::shadow) mod progress;
pub(in crate::shadow) mod record;
pub(in crate::shadow) mod salvage;
pub(in crate::shadow) mod state;
pub(in crate::shadow) mod witness;

use std::path::Path;

pub use doubt::{INHIBITED_FOR, Inhibition, InhibitionWatch};
pub use progress::steps;
pub use record::Rescue;

/// Bytes of what lies beside the two files: backups, and damaged copies.
pub(in crate::shadow) fn bytes_beside(folder: &Path) -> u64 {
    let (state, telemetry) = (folder.join(super::schema::STATE_FILE), folder.join(super::samples::TELEMETRY_FILE));
    backup::bytes(&state) + aside::bytes(&state) + aside::bytes(&telemetry)
}
