//! What is done about damage: the store never refuses to start for it, and never silently begins from nothing.
pub(in crate::shadow) mod aside;
pub(in crate::shadow) mod backup;
pub(in crate::shadow) mod doubt;
pub(in crate::shadow) mod header;
pub(in crate::shadow) mod life;
pub(in crate::shadow) mod record;
pub(in crate::shadow) mod salvage;
pub(in crate::shadow) mod state;
pub(in crate::shadow) mod witness;

pub use doubt::{INHIBITED_FOR, Inhibition, InhibitionWatch};
pub use record::Rescue;

use std::path::Path;

/// Bytes of what lies beside the two files: backups, and damaged copies.
pub(in crate::shadow) fn bytes_beside(folder: &Path) -> u64 {
    let (state, telemetry) =
        (folder.join(super::schema::STATE_FILE), folder.join(super::samples::TELEMETRY_FILE));
    backup::bytes(&state) + aside::bytes(&state) + aside::bytes(&telemetry)
}
