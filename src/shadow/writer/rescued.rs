//! After a rescue, and before the next one: memory follows the rebuilt file, backups are taken.

use super::super::rescue::backup::Outcome;
use super::super::rescue::record;
use super::super::words::io;
use super::{StateFile, Writer};
use crate::shadow::StoreError;

impl Writer {
    /// Writes down what was damaged in the other file.
    pub(super) fn note_rescued(&mut self) -> Result<(), StoreError> {
        if self.samples.rescued().is_empty() {
            return Ok(());
        }
        let connection = self.state.begin()?;
        let written = self.samples.rescued().iter().try_for_each(|rescue| record::write(connection, rescue));
        let noted = written.map_err(io("note what was damaged")).and_then(|()| self.commit());
        // Only now: a commit that fails leaves it to the next tick.
        noted.inspect_err(|cause| self.gave_up(cause.clone(), &mut [])).map(|()| self.samples.rescued_noted())
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
                if StateFile::is_failing(&damaged) {
                    tracing::error!(%damaged, "the backup has found damage; state.db is rebuilt");
                    self.gave_up(damaged, &mut []);
                }
            }
        }
    }
}
