//! Opening the file of the readings again after the disk failed, or damage was met in it.

use std::path::Path;
use std::time::Instant;

use floorgate_model::Timestamp;

use super::super::fault::Fault;
use super::super::telemetry::{How, NO_ROOM_MAX, RESCUING, TelemetryDb};
use super::super::terms::StoreError;
use super::super::turn::Memory;
use super::{RESCUES_WAITING_MAX, Samples, tell};

/// Free space beyond what there was when a rescue found too little, bytes, before it is tried again.
const MORE_ROOM: u64 = 4 * 1024 * 1024;

/// A rescue that found no space, and when.
#[derive(Debug, Clone)]
pub(super) struct NoRoom {
    since: Instant,
    /// Bytes that were free then. Trying costs as much writing as there is space: not again before there is more.
    free: Option<u64>,
    cause: StoreError,
}

impl NoRoom {
    pub(super) fn after(before: Option<Self>, cause: &StoreError, path: &Path, now: Instant) -> Option<Self> {
        let no_room = matches!(cause, StoreError::Disk { doing: RESCUING, .. });
        let since = before.map_or(now, |before| before.since);
        let free = path.parent().and_then(Fault::free_space);
        no_room.then(|| Self { since, free, cause: cause.clone() })
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= NO_ROOM_MAX
    }

    fn has_more(&self, path: &Path) -> bool {
        let free = path.parent().and_then(Fault::free_space);
        free.zip(self.free).is_none_or(|(free, then)| free > then + MORE_ROOM)
    }
}

impl Samples {
    /// Opens the file again, as at the start, and proves that it takes writes.
    /// `suspect`: it is salvaged whatever its check says.
    pub(in crate::shadow) fn reopen(
        &mut self,
        suspect: bool,
        memory: &Memory,
        now: Instant,
        wall: Timestamp,
    ) -> Result<(), StoreError> {
        fail_point!(BeforeReopen);
        let books_alone = self.no_room.as_ref().is_some_and(|no_room| no_room.is_over(now));
        if let Some(no_room) = self.no_room.as_ref().filter(|no_room| !books_alone && !no_room.has_more(&self.path)) {
            return Err(no_room.cause.clone());
        }
        let how = How::again(suspect, books_alone);
        let opened = TelemetryDb::open_or_rescue(&self.path, self.history_retention, now, wall, how);
        let (db, _, rescued) = opened.inspect_err(|cause| {
            self.no_room = NoRoom::after(self.no_room.take(), cause, &self.path, now);
            self.shut(cause);
        })?;
        self.no_room = None;
        // Whatever comes next: this has happened.
        self.rescued.extend(rescued);
        let surplus = self.rescued.len().saturating_sub(RESCUES_WAITING_MAX);
        self.rescued.drain(..surplus);
        let mut db = db.prove().inspect_err(|cause| self.shut(cause))?;
        db.booted(self.boot_id);
        // A guess is no time to go on from.
        for device in memory.devices.values().filter(|_| self.time_known) {
            if let Some(at) = device.view.last_reading_at {
                db.known_newest(device.id(), at);
            }
        }
        match db.reconcile(&self.known) {
            Ok(losses) => tell(&losses),
            Err(cause) => {
                db.abandon();
                self.shut(&cause);
                return Err(cause);
            }
        }
        self.db = Ok(db);
        Ok(())
    }
}

/// Answers the error of an opening again if it may pass by itself; else it is one.
pub(in crate::shadow) fn passing(cause: StoreError, folder: &Path) -> Result<StoreError, StoreError> {
    let fault = match &cause {
        // SQLite does not say why a file cannot be opened; its folder does.
        StoreError::Open { .. } => Fault::of_folder(folder),
        cause => cause.fault(),
    };
    match fault.filter(|fault| fault.may_pass()) {
        None => Err(cause),
        Some(_) if cause.fault().is_some() => Ok(cause),
        Some(fault) => Ok(StoreError::Disk { doing: "open its files", cause: cause.to_string(), fault }),
    }
}
