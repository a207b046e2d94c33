//! Commands that are refused while the journal cannot be written, and what is known of the journal meanwhile.
//!
//! # How
//!
//! * A command that comes while `state.db` is out of use ends at once: `rejected`, `INHIBITED`. Its record is kept here and
//!   offered to the result lane from here, so its sender hears of it; then its message may be acknowledged.
//! * The same id again gets the same record. One that the journal has already, as far as is known here
//!   ([`KNOWN_MAX`]), is not refused but left with its sender: it may have run. So is one whose commit failed with an error
//!   of the disk: nobody knows whether it stands there. It comes again when the file is back, and the journal says.
//! * Once the journal can be written, the refusals are written to it before anyone else gets a turn. One that stands there
//!   open after all ends there as it was told.
//! * At most [`REFUSED_MAX`]; beyond, those go that were announced and have expired, else the command stays unacknowledged
//!   with its sender.
//!
//! # What it does not do
//!
//! It does not survive the process. A refusal that was acknowledged and not yet published is then never published; and a
//! command whose acknowledgement got lost with the process may come again, find the journal writable, and run within
//! its life although it was reported as refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use floorgate_model::{CommandId, ExecutionRecord, ExecutionStatus, Reason, Timestamp};

use super::fault::Fault;
use super::terms::{Journalled, NewExecution};
use super::view::OutboxEntry;

/// Refusals that are kept until the journal can take them.
pub(super) const REFUSED_MAX: usize = 1_000;
/// Newest ids of the journal that are known without reading it.
pub(super) const KNOWN_MAX: usize = 1_024;

#[derive(Debug)]
struct Entry {
    execution: NewExecution,
    /// Below zero, so that it is none of the journal's.
    seq: i64,
    announced: bool,
}

/// The refusals.
#[derive(Debug, Default)]
pub(super) struct Refused {
    entries: BTreeMap<CommandId, Entry>,
    last_seq: i64,
    known: BTreeSet<CommandId>,
    order: VecDeque<CommandId>,
    /// Journalled in the open transaction.
    pending: Vec<CommandId>,
    /// Counted since start.
    pub(super) count: u64,
}

/// A refused record says why in the same words wherever it is refused.
pub(super) fn refuse(record: &mut ExecutionRecord, fault: Fault, now: Timestamp) {
    record.status = ExecutionStatus::Rejected;
    record.reason = Some(Reason::Inhibited);
    record.message =
        Some(format!("the gateway cannot write to its disk: {fault}; it takes commands again when it can"));
    record.completed_at = Some(now);
}

impl Refused {
    /// The open transaction journals this id.
    pub(super) fn journals(&mut self, id: &CommandId) {
        self.pending.push(id.clone());
    }

    /// That transaction has ended: its ids stand in the journal, certainly or perhaps, or certainly not.
    pub(super) fn settle(&mut self, perhaps: bool) {
        for id in std::mem::take(&mut self.pending) {
            if perhaps {
                self.know(&id);
            }
        }
    }

    /// The journal has this id.
    pub(super) fn know(&mut self, id: &CommandId) {
        if self.known.insert(id.clone()) {
            self.order.push_back(id.clone());
        }
        while self.order.len() > KNOWN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Refuses a command in memory; `None` if it must stay with its sender.
    pub(super) fn take(&mut self, mut execution: NewExecution, fault: Fault, now: Timestamp) -> Option<Journalled> {
        let id = execution.record.command_id.clone();
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.announced = false;
            let (known, asked) = (&entry.execution.record, &execution.record);
            let same = (&known.device_id, &known.command, &known.parameters)
                == (&asked.device_id, &asked.command, &asked.parameters);
            let record = known.clone();
            return Some(if same { Journalled::Duplicate(record) } else { Journalled::Conflict(record) });
        }
        if self.known.contains(&id) {
            return None;
        }
        if self.entries.len() >= REFUSED_MAX {
            self.entries.retain(|_, entry| !entry.announced || entry.execution.record.expires_at > now);
            if self.entries.len() >= REFUSED_MAX {
                return None;
            }
        }
        if !execution.record.status.is_terminal() {
            refuse(&mut execution.record, fault, now);
        }
        let record = execution.record.clone();
        self.last_seq -= 1;
        self.count += 1;
        self.entries.insert(id, Entry { execution, seq: self.last_seq, announced: false });
        Some(Journalled::New(record))
    }

    /// What the result lane has not heard yet, oldest first.
    pub(super) fn peek(&self, limit: usize) -> Vec<OutboxEntry> {
        let mut waiting: Vec<&Entry> = self.entries.values().filter(|entry| !entry.announced).collect();
        waiting.sort_by_key(|entry| -entry.seq);
        let entry =
            |entry: &&Entry| OutboxEntry { seq: entry.seq, record: entry.execution.record.clone(), answer: None };
        waiting.iter().take(limit).map(entry).collect()
    }

    /// The result lane has these.
    pub(super) fn confirm(&mut self, seqs: &[i64]) {
        for entry in self.entries.values_mut() {
            entry.announced |= seqs.contains(&entry.seq);
        }
    }

    /// How many wait for the result lane.
    pub(super) fn waiting(&self) -> usize {
        self.entries.values().filter(|entry| !entry.announced).count()
    }

    /// All of them, to be journalled, oldest first, and whether the result lane has them already.
    pub(super) fn all(&self) -> Vec<(NewExecution, bool)> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| -entry.seq);
        entries.into_iter().map(|entry| (entry.execution.clone(), entry.announced)).collect()
    }

    /// The journal has them.
    pub(super) fn journalled(&mut self) {
        for id in std::mem::take(&mut self.entries).into_keys() {
            self.know(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floorgate_model::{DeviceId, GatewayId};
    use serde_json::Map;

    fn command(n: usize, expires: i64) -> NewExecution {
        let at = Timestamp::from_millis(0);
        let record = ExecutionRecord {
            command_id: CommandId::new(&format!("c{n}")).unwrap(),
            device_id: DeviceId::new("A").unwrap(),
            command: "reboot".to_owned(),
            parameters: Map::new(),
            issuer: None,
            issued_at: at,
            expires_at: Timestamp::from_millis(expires),
            received_at: at,
            status: ExecutionStatus::Created,
            reason: None,
            message: None,
            details: None,
            started_at: None,
            completed_at: None,
            gateway_id: GatewayId::new("GW").unwrap(),
        };
        NewExecution { record, checked_parameters: Map::new(), received_boot: None }
    }

    fn now() -> Timestamp {
        Timestamp::from_millis(1_000)
    }

    #[test]
    fn a_thousand_refusals_are_kept_and_the_next_takes_the_place_of_one_that_was_announced_and_has_expired() {
        let mut refused = Refused::default();
        for n in 0..REFUSED_MAX {
            let expires = if n == 7 { 500 } else { 5_000 };
            assert!(matches!(refused.take(command(n, expires), Fault::DiskFull, now()), Some(Journalled::New(_))));
        }
        assert_eq!(refused.take(command(REFUSED_MAX, 5_000), Fault::DiskFull, now()), None, "it stays with its sender");
        let seventh: Vec<i64> = refused.peek(10)[7..8].iter().map(|entry| entry.seq).collect();
        refused.confirm(&seventh);
        assert!(refused.take(command(REFUSED_MAX, 5_000), Fault::DiskFull, now()).is_some());
        assert_eq!(refused.all().len(), REFUSED_MAX);
    }

    #[test]
    fn the_same_command_again_gets_the_same_refusal_and_what_the_journal_knows_gets_none() {
        let mut refused = Refused::default();
        let Some(Journalled::New(first)) = refused.take(command(1, 5_000), Fault::ReadOnly, now()) else { panic!() };
        assert_eq!((first.status, first.reason), (ExecutionStatus::Rejected, Some(Reason::Inhibited)));
        assert_eq!(refused.take(command(1, 5_000), Fault::ReadOnly, now()), Some(Journalled::Duplicate(first.clone())));
        let mut other = command(1, 5_000);
        other.record.command = "recalibrate".to_owned();
        assert_eq!(refused.take(other, Fault::ReadOnly, now()), Some(Journalled::Conflict(first)));
        refused.know(&CommandId::new("c2").unwrap());
        assert_eq!(refused.take(command(2, 5_000), Fault::ReadOnly, now()), None);
        refused.journalled();
        assert_eq!((refused.all().len(), refused.waiting()), (0, 0));
        assert_eq!(refused.take(command(1, 5_000), Fault::ReadOnly, now()), None);
    }

    #[test]
    fn the_newest_thousand_ids_of_the_journal_are_known() {
        let mut refused = Refused::default();
        for n in 0..=KNOWN_MAX {
            refused.know(&command(n, 0).record.command_id);
        }
        assert!(refused.take(command(0, 5_000), Fault::DiskFull, now()).is_some(), "the oldest is forgotten");
        assert_eq!(refused.take(command(1, 5_000), Fault::DiskFull, now()), None);
    }
}
