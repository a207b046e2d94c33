//! Turns of commands: journal, claim, finish. Record, effect and announcements share the transaction.

use floorgate_model::{CommandId, DeviceId, ExecutionRecord, ExecutionStatus, Reason};
use serde_json::Map;

use super::fault::Fault;
use super::journal::{self, Execution};
use super::outbox;
use super::refusals;
use super::refused;
use super::terms::{Ending, Journalled, NewExecution, OpenExecution, StoreError};
use super::turn::Turn;
use super::view::Lane;

impl Turn<'_> {
    pub(super) fn journal(&mut self, mut entry: NewExecution) -> Result<Journalled, StoreError> {
        if let Some(known) = journal::find(self.connection, &entry.record.command_id)? {
            return self.journal_again(&known, &entry.record);
        }
        let status = entry.record.status;
        if !matches!(status, ExecutionStatus::Created | ExecutionStatus::Rejected | ExecutionStatus::Expired) {
            let cause = format!("a new execution is created, rejected or expired, not {status}");
            return Err(StoreError::Io { doing: "journal a command", cause });
        }
        if status == ExecutionStatus::Created
            && let Some((reason, message)) = self.not_accepted(&entry.record)?
        {
            entry.record.status = ExecutionStatus::Rejected;
            entry.record.reason = Some(reason);
            entry.record.message = Some(message);
        }
        if let Some(fault @ (Fault::DiskFull | Fault::ReadOnly)) = self.memory.health.reason
            && entry.record.status == ExecutionStatus::Created
        {
            // What little space there is belongs to what runs already.
            refused::refuse(&mut entry.record, fault, self.wall);
            self.memory.counted.commands_refused += 1;
        }
        let refused = entry.record.status.is_terminal();
        if refused {
            entry.record.completed_at.get_or_insert(self.wall);
        } else {
            self.memory.signals.journal = true;
        }
        let bytes = if refused { refusals::bytes(&entry.record) } else { 0 };
        let seq = journal::insert(self.connection, &entry, bytes)?;
        self.memory.refused.journals(&entry.record.command_id);
        let record = entry.record.clone();
        let (checked_parameters, answer, boot_count_before) = (Map::new(), None, None);
        let received_boot = entry.received_boot;
        let open = OpenExecution { record: entry.record, checked_parameters, answer, boot_count_before, received_boot };
        self.moved(&Execution { seq, open })?;
        if refused {
            refusals::keep_few(self.connection, &record.device_id, self.wall)?;
        }
        Ok(Journalled::New(record))
    }

    /// What the store has against a command that the rules accept.
    fn not_accepted(&self, record: &ExecutionRecord) -> Result<Option<(Reason, String)>, StoreError> {
        if let Some(message) = refusals::may_be_forgotten(self.connection, record, self.wall)? {
            return Ok(Some((Reason::RateLimited, message)));
        }
        let full = journal::queue_is_full(self.connection, &record.device_id)?;
        Ok(full.map(|message| (Reason::QueueFull, message)))
    }

    fn journal_again(&mut self, known: &Execution, asked: &ExecutionRecord) -> Result<Journalled, StoreError> {
        let record = known.record().clone();
        let same = record.device_id == asked.device_id
            && record.command == asked.command
            && record.parameters == asked.parameters;
        // Its sender may have written to the table as if it were new or accepted.
        let wall = self.wall;
        if let Some(device) = self.change(&asked.device_id) {
            device.changed_urgently(wall);
            self.memory.signals.states = true;
        }
        if same {
            self.announce(Lane::Result, known.seq)?;
            self.announce(Lane::Table, known.seq)?;
            return Ok(Journalled::Duplicate(record));
        }
        Ok(Journalled::Conflict(record))
    }

    /// Journals what was refused while the journal could not be written. One that stands there open after all was
    /// journalled by a commit that failed in its flush: nothing of it was sent, and it ends as it was told.
    pub(super) fn journal_refused(&mut self, entry: &NewExecution, announced: bool) -> Result<(), StoreError> {
        let record = &entry.record;
        let outcome = match journal::find(self.connection, &record.command_id)? {
            None => self.journal(entry.clone()).map(drop),
            Some(found)
                if found.record().status == ExecutionStatus::Created
                    && found.record().device_id == record.device_id =>
            {
                let ending = Ending {
                    status: record.status,
                    reason: record.reason,
                    message: record.message.clone(),
                    details: None,
                    effect: None,
                };
                self.finish(&record.device_id, &record.command_id, ending).map(drop)
            }
            // It ran, or runs: what was told meanwhile is put right.
            Some(found) => {
                let lanes = [Lane::Result, Lane::Table];
                return lanes.into_iter().try_for_each(|lane| self.announce(lane, found.seq));
            }
        };
        outcome?;
        if let Some(found) = journal::find(self.connection, &record.command_id)?.filter(|_| announced) {
            outbox::withdraw(self.connection, Lane::Result, found.seq)?;
        }
        Ok(())
    }

    pub(super) fn claim(&mut self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let Some(found) = journal::find_on(self.connection, device, id)? else { return Ok(None) };
        let boot_count = self.memory.devices.get(device).and_then(|device| device.view.boot_count);
        if !journal::claim(self.connection, found.seq, self.wall, boot_count)? {
            return Ok(None);
        }
        let Some(claimed) = journal::find_on(self.connection, device, id)? else { return Ok(None) };
        self.moved(&claimed)?;
        Ok(Some(claimed.open))
    }

    pub(super) fn finish(
        &mut self,
        device: &DeviceId,
        id: &CommandId,
        ending: Ending,
    ) -> Result<Option<ExecutionRecord>, StoreError> {
        let Some(found) = journal::find_on(self.connection, device, id)? else { return Ok(None) };
        let (from, to) = (found.record().status, ending.status);
        if from.is_terminal() {
            return Ok(None);
        }
        if !to.is_terminal() || !from.may_become(to) {
            let cause = format!("command {id} is {from} and cannot become {to}");
            return Err(StoreError::Io { doing: "end a command", cause });
        }
        if !journal::finish(self.connection, found.seq, &ending, self.wall)? {
            return Ok(None);
        }
        if let Some(effect) = ending.effect
            && let Some(device) = self.change(device)
        {
            device.affected(effect);
        }
        let Some(ended) = journal::find_on(self.connection, device, id)? else { return Ok(None) };
        self.moved(&ended)?;
        // The next one of this device may go now.
        self.memory.signals.journal = true;
        Ok(Some(ended.open.record))
    }

    pub(super) fn open_execution(
        &self,
        device: &DeviceId,
        id: &CommandId,
    ) -> Result<Option<OpenExecution>, StoreError> {
        let found = journal::find_on(self.connection, device, id)?;
        Ok(found.map(|found| found.open).filter(|open| !open.record.status.is_terminal()))
    }

    /// What every transition does: it shows on the device and is announced on both lanes.
    fn moved(&mut self, execution: &Execution) -> Result<(), StoreError> {
        self.show_execution(execution)?;
        self.announce(Lane::Result, execution.seq)?;
        self.announce(Lane::Table, execution.seq)?;
        self.refresh(&execution.record().device_id.clone());
        Ok(())
    }
}
