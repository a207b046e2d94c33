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
//! * At most [`REFUSED_MAX`] of at most [`REFUSED_BYTES_MAX`]; beyond, those go that were announced and have expired, else the command stays unacknowledged
//!   with its sender.
//!
//! # What it does not do
//!
//! It does not survive the process. A refusal that was acknowledged and not yet published is then never published; and a
//! command whose acknowledgement got lost with the process may come again, find the journal writable, and run within
//! its life although it was reported as refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use floorgate_model::{CommandId, ExecutionRecord, ExecutionStatus, Reason, Timestamp};
use serde_json::{Map, Value};

use super::fault::Fault;
use super::terms::{Journalled, NewExecution};
use super::view::OutboxEntry;

/// Refusals that are kept until the journal can take them.
pub(super) const REFUSED_MAX: usize = 1_000;
/// Bytes in memory of these refusals, about. A command has up to 8 KiB, which parsed can be sixteen times as much.
pub(super) const REFUSED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Newest ids of the journal that are known without reading it.
pub(super) const KNOWN_MAX: usize = 1_024;

/// What a refusal takes beside its parameters and its texts, bytes: its record, its id once more, its place in a map.
const ENTRY_BYTES: usize = 1_024;

#[derive(Debug)]
struct Entry {
    execution: NewExecution,
    bytes: usize,
    /// Below zero, so that it is none of the journal's.
    seq: i64,
    announced: bool,
}

/// The refusals.
#[derive(Debug, Default)]
pub(super) struct Refused {
    entries: BTreeMap<CommandId, Entry>,
    /// Of all entries.
    bytes: usize,
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

/// What a value takes in memory, bytes, about.
fn weight(value: &Value) -> usize {
    let within = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(map) => map_weight(map),
    };
    size_of::<Value>() + within
}

fn map_weight(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| size_of::<String>() + key.len() + weight(value)).sum()
}

fn bytes(record: &ExecutionRecord) -> usize {
    let texts = [&record.issuer, &record.message].into_iter().flatten().map(String::len).sum::<usize>();
    let details = record.details.as_ref().map_or(0, map_weight);
    ENTRY_BYTES + texts + details + map_weight(&record.parameters)
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

    /// The journal has these ids, newest first.
    pub(super) fn know_all(&mut self, ids: &[CommandId]) {
        ids.iter().rev().for_each(|id| self.know(id));
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
        if !execution.record.status.is_terminal() {
            refuse(&mut execution.record, fault, now);
        }
        // It is never sent, so what the driver would be given is not kept.
        execution.checked_parameters = Map::new();
        let size = bytes(&execution.record);
        if !self.has_room(size) {
            self.entries.retain(|_, entry| !entry.announced || entry.execution.record.expires_at > now);
            self.bytes = self.entries.values().map(|entry| entry.bytes).sum();
            if !self.has_room(size) {
                return None;
            }
        }
        let record = execution.record.clone();
        self.last_seq -= 1;
        self.count += 1;
        self.bytes += size;
        self.entries.insert(id, Entry { execution, bytes: size, seq: self.last_seq, announced: false });
        Some(Journalled::New(record))
    }

    fn has_room(&self, size: usize) -> bool {
        self.entries.len() < REFUSED_MAX && self.bytes + size <= REFUSED_BYTES_MAX
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
        self.bytes = 0;
        for id in std::mem::take(&mut self.entries).into_keys() {
            self.know(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floorgate_model::{DeviceId, GatewayId};
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
    fn refused_commands_that_are_large_find_no_more_room_than_four_mebibytes() {
        let mut refused = Refused::default();
        // The worst that fits into a command: 8 KiB of smallest values, parsed.
        let large = |n, expires| {
            let mut execution = command(n, expires);
            let values: Value = vec![0; 4_000].into();
            execution.record.parameters.insert("values".to_owned(), values);
            execution.checked_parameters = execution.record.parameters.clone();
            execution
        };
        let kept = (0..REFUSED_MAX).take_while(|n| {
            let expires = if *n == 3 { 500 } else { 5_000 };
            refused.take(large(*n, expires), Fault::DiskFull, now()).is_some()
        });
        let kept = kept.count();
        let each = 4_000 * size_of::<Value>();
        assert!((REFUSED_BYTES_MAX / each / 2..=REFUSED_BYTES_MAX / each).contains(&kept), "{kept} of {each} bytes");
        assert!(refused.all().iter().all(|(kept, _)| kept.checked_parameters.is_empty()));
        let seqs: Vec<i64> = refused.peek(kept).iter().map(|entry| entry.seq).collect();
        refused.confirm(&seqs);
        assert!(refused.take(large(kept, 5_000), Fault::DiskFull, now()).is_some(), "one that has expired makes room");
        assert_eq!(refused.take(large(kept + 1, 5_000), Fault::DiskFull, now()), None);
        refused.journalled();
        assert!(refused.take(large(kept + 2, 5_000), Fault::DiskFull, now()).is_some());
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
