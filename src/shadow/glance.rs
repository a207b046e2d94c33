//! What can be answered while `state.db` is out of use: from memory alone.

use std::collections::BTreeMap;

use floorgate_model::command::CLOCK_AHEAD_MAX;
use floorgate_model::{DeviceId, ExecutionStatus, Reason, Timestamp};

use super::fault::Fault;
use super::samples::Samples;
use super::terms::{Config, Journalled, NewExecution, StoreError};
use super::turn::{Memory, device, devices, figures};
use super::view::{DeviceView, OutboxEntry, StateSnapshot, StoreStats};

/// A look at the memory, and the refusals that are kept there.
#[derive(Debug)]
pub(super) struct Glance<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) samples: &'a Samples,
    pub(super) config: &'a Config,
    pub(super) wall: Timestamp,
    /// Why the file is out of use.
    pub(super) cause: StoreError,
}

impl Glance<'_> {
    pub(super) fn devices(&self) -> Vec<DeviceView> {
        devices(self.memory, self.samples)
    }

    pub(super) fn device(&self, id: &DeviceId) -> Option<DeviceView> {
        device(self.memory, self.samples, id)
    }

    pub(super) fn stats(&self) -> StoreStats {
        let waiting = u64::try_from(self.memory.refused.waiting()).unwrap_or(u64::MAX);
        figures(self.memory, self.samples, self.config, self.wall, (waiting, None))
    }

    /// Before the file was read once, nobody knows what was sent, so nothing is.
    pub(super) fn peek_states(&self, urgent_only: bool, limit: usize) -> Result<Vec<StateSnapshot>, StoreError> {
        if self.memory.blank_since.is_some() {
            Err(self.cause.clone())
        } else {
            Ok(self.memory.states(urgent_only, limit))
        }
    }

    pub(super) fn confirm_state(&mut self, id: &DeviceId, version: u64) {
        if let Some(device) = self.memory.devices.get_mut(id) {
            device.synced(version);
        }
    }

    /// The command ends here and now, and is journalled when that is possible again.
    pub(super) fn journal(&mut self, mut entry: NewExecution) -> Result<Journalled, StoreError> {
        // Before the file was read once nobody knows what has run. If there is a journal that could not even be looked at,
        // what may have come before this start stays with its sender; only what was certainly issued since is new.
        let begun = self.memory.blank_since.filter(|_| self.memory.unread);
        if begun.is_some_and(|begun| entry.record.issued_at <= begun.saturating_add(CLOCK_AHEAD_MAX)) {
            return Err(self.cause.clone());
        }
        // Before the file was read once nobody knows how the device is: the disk is the reason, not the device.
        if self.memory.blank_since.is_some() && entry.record.reason == Some(Reason::DeviceOffline) {
            entry.record.status = ExecutionStatus::Created;
        }
        // Anything else is over in a moment, or nobody knows what the journal will say: its sender asks again.
        let fault = self.cause.fault().filter(|fault| Fault::may_pass(*fault)).ok_or_else(|| self.cause.clone())?;
        let refused = self.memory.refused.take(entry, fault, self.wall).ok_or_else(|| self.cause.clone())?;
        self.memory.signals.results = true;
        Ok(refused)
    }

    pub(super) fn peek_refused(&self, limit: usize) -> Vec<OutboxEntry> {
        self.memory.refused.peek(limit)
    }

    /// Sessions of clients: none are known before the file was read once; later whoever asks has them already.
    pub(super) fn sessions(&self) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
        if self.memory.blank_since.is_some() { Ok(BTreeMap::new()) } else { Err(self.cause.clone()) }
    }
}
