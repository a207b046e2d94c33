//! *Status first*: a command needs that the same operator read the same device's status shortly before.
//!
//! In AWS this is a temporal policy (Dogwood: `formerly within 5m … get_device_status::response`). Here it is a memory of
//! reads that were answered, per operator and device, on the monotonic clock. It lives in this process: after a restart the
//! status has to be read again, which is the safe side. The same holds at the bounds: what is forgotten must be read again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a read of a device's status entitles to send it a command.
pub const STATUS_FIRST_WITHIN: Duration = Duration::from_secs(300);
/// Reads remembered of one operator; beyond, the oldest of that operator is forgotten.
pub(crate) const OPERATOR_READS_MAX: usize = 500;
/// Operators remembered; beyond, whoever read last the longest ago is forgotten.
pub(crate) const OPERATORS_MAX: usize = 1_000;

/// Who read which device's status when.
#[derive(Debug, Default)]
pub struct StatusReads {
    reads: Mutex<HashMap<String, HashMap<String, Instant>>>,
}

impl StatusReads {
    /// This operator was just given this device's status.
    pub fn note(&self, subject: &str, device_id: &str) {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if !reads.contains_key(subject) && reads.len() >= OPERATORS_MAX {
            reads.retain(|_, devices| devices.values().any(is_recent));
            if reads.len() >= OPERATORS_MAX {
                let last = reads.iter().min_by_key(|(_, devices)| devices.values().max().copied());
                let last = last.map(|(subject, _)| subject.clone());
                last.and_then(|subject| reads.remove(&subject));
            }
        }
        let devices = reads.entry(subject.to_owned()).or_default();
        if !devices.contains_key(device_id) && devices.len() >= OPERATOR_READS_MAX {
            devices.retain(|_, at| is_recent(at));
            if devices.len() >= OPERATOR_READS_MAX {
                let oldest = devices.iter().min_by_key(|(_, at)| **at).map(|(device, _)| device.clone());
                oldest.and_then(|device| devices.remove(&device));
            }
        }
        devices.insert(device_id.to_owned(), Instant::now());
    }

    /// Whether this operator read this device's status within [`STATUS_FIRST_WITHIN`].
    pub fn recent(&self, subject: &str, device_id: &str) -> bool {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.get(subject).and_then(|devices| devices.get(device_id)).is_some_and(is_recent)
    }
}

fn is_recent(at: &Instant) -> bool {
    at.elapsed() <= STATUS_FIRST_WITHIN
}
