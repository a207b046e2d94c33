//! After a rescue, and before the next one: memory follows the rebuilt file, backups are taken.

use super::super::device::Device;
use super::super::journal;
use super::super::rescue::backup::Outcome;
use super::super::rescue::record;
use super::super::words::io;
use super::{StateFile, Writer};
use crate::shadow::StoreError;

impl Writer {
    /// If `state.db` was rebuilt while it was opened again: what memory knows better goes into it, and what the file
    /// knows of the journal counts.
    pub(super) fn after_rescue(&mut self) {
        let Some((_, life)) = self.state.take_rescued() else { return };
        self.doubt.begin(life.doubt_left, life.doubt_why.as_deref().unwrap_or("the journal was damaged"), self.now);
        self.backups.soon(self.now);
        let Ok(connection) = self.state.begin(self.now, self.clock.now()) else { return };
        for device in self.memory.devices.values_mut() {
            device.dirty = true;
            if let Ok((open, _)) = journal::count_open(connection, device.id()) {
                device.view.commands_open = open;
            }
            if let Ok(mut newest) = journal::newest(connection, Some(device.id()), 1) {
                device.view.last_execution = newest.pop();
            }
        }
        let dirty = self.memory.devices.values().map(Device::id).cloned().collect::<Vec<_>>();
        self.memory.touched.extend(dirty);
    }

    /// Writes down what was damaged in the other file.
    pub(super) fn note_rescued(&mut self) -> Result<(), StoreError> {
        let Some(rescue) = self.samples.take_rescued() else { return Ok(()) };
        let connection = self.state.begin(self.now, self.clock.now())?;
        record::write(connection, &rescue).map_err(io("note what was damaged"))?;
        self.commit().inspect_err(|cause| self.gave_up(cause.clone(), &mut []))
    }

    /// One step of the hourly backup. A copy that fails its check means that the file itself is damaged.
    pub(super) fn look_after_backups(&mut self) {
        match self.backups.step(self.now) {
            None => {}
            Some(Outcome::Done) => tracing::debug!("state.db is backed up and the backup is verified"),
            Some(Outcome::Failed(cause)) => {
                tracing::warn!(cause, "state.db could not be backed up; it is tried again in five minutes");
            }
            Some(Outcome::SourceDamaged(cause)) => {
                let path = self.state.path().display().to_string();
                let damaged = StoreError::Damaged { path, cause };
                if StateFile::is_cause(&damaged) {
                    tracing::error!(%damaged, "the backup has found damage; state.db is rebuilt");
                    self.gave_up(damaged, &mut []);
                }
            }
        }
    }
}
