//! Declaring readings lost that are in no block: those never stored, and those that went with a damaged file.

use std::collections::{BTreeMap, BTreeSet};

use floorgate_model::{DeviceId, Loss, LossReason, Timestamp};
use rusqlite::Connection;

use super::books::{self, Books, Flush};
use super::gap::{self, Gap};
use super::offer::Offered;
use super::summary::Summary;
use super::{TelemetryDb, rows};
use crate::shadow::ledgers::KnownLedger;
use crate::shadow::store::StoreError;

/// Records of a lost file had keys right behind the newest reading, and the table may have them; nobody knows how many.
/// The record of that loss gets a key so far behind it, milliseconds.
const BEHIND_LOST_KEYS_MS: i64 = 1_000;

/// A device that something is declared of.
#[derive(Debug, Clone)]
struct Concerned {
    row: i64,
    /// Its row is in the file.
    stored: bool,
    newest: Option<i64>,
    /// Keys of its blocks that are not rows yet.
    unwritten: Vec<i64>,
}

impl TelemetryDb {
    /// Declares readings lost that were taken from their senders and never stored: they count as accepted and as lost,
    /// and a gap record tells of them. Durable when this answers; on an error nothing is declared.
    pub(crate) fn declare_lost(&mut self, losses: &[Loss]) -> Result<(), StoreError> {
        self.declare(losses, &BTreeMap::new(), Flush::Now)
    }

    /// The same, durable with the next [`Self::commit`], which the caller makes at once.
    pub(crate) fn declare_with_commit(&mut self, losses: &[Loss]) -> Result<(), StoreError> {
        self.declare(losses, &BTreeMap::new(), Flush::Later)
    }

    /// Sets the accounts right after this file was lost or put back: `known` is what they were. Every reading that was
    /// accepted, and is neither here nor known as delivered or declared, is declared lost as damaged. Does nothing for
    /// a device whose account here is at least as far as the known one, so it may be called at every start. Answers
    /// what was declared.
    ///
    /// What `known` does not know (it is written now and then) was accepted and is gone without a trace: the figures
    /// are those of the last time it was written.
    pub(crate) fn reconcile(&mut self, known: &BTreeMap<DeviceId, KnownLedger>) -> Result<Vec<Loss>, StoreError> {
        let mut losses = Vec::new();
        let mut behind = BTreeMap::new();
        for (device, known) in known {
            let here = self.ledger(device, &BTreeSet::new())?;
            if known.ledger.accepted <= here.accepted {
                continue;
            }
            behind.insert(device.clone(), known);
            let (delivered, lost) = books::at_least(&here, &known.ledger);
            let accounted = delivered.saturating_add(lost.total()).saturating_add(here.stored);
            let newest = known.newest.or(known.oldest).unwrap_or_else(|| Timestamp::from_millis(0));
            let from = known.oldest.map_or(newest, |oldest| oldest.min(newest));
            let count = known.ledger.accepted.saturating_sub(accounted);
            losses.push(Loss { device_id: device.clone(), from, to: newest, count, reason: LossReason::Damaged });
        }
        if !behind.is_empty() {
            self.declare(&losses, &behind, Flush::Now)?;
        }
        losses.retain(|loss| loss.count > 0);
        Ok(losses)
    }

    /// Writes accounts and gap records. A loss of a device in `behind` was stored once; any other never was.
    fn declare(
        &mut self,
        losses: &[Loss],
        behind: &BTreeMap<DeviceId, &KnownLedger>,
        flush: Flush,
    ) -> Result<(), StoreError> {
        for (device, known) in behind {
            // Time goes on where it was, so that no key comes again.
            if let Some(newest) = known.newest {
                self.known_newest(device, newest);
            }
        }
        let mut concerned = BTreeMap::new();
        for loss in losses {
            let unwritten = self.unwritten_keys(&loss.device_id);
            let track = self.track_mut(&loss.device_id);
            let device = Concerned { row: track.row, stored: track.stored, newest: track.newest, unwritten };
            concerned.insert(loss.device_id.clone(), device);
        }
        let retention_ms = u64::try_from(self.history_retention.as_millis()).unwrap_or(u64::MAX);
        let offered = std::mem::take(&mut self.offered);
        let outcome = self.change(flush, "declare readings lost", |tx, books| {
            for loss in losses {
                let Some(device) = concerned.get_mut(&loss.device_id) else { continue };
                if !device.stored {
                    rows::add_device(tx, device.row, loss.device_id.as_str())?;
                }
                match behind.get(&loss.device_id) {
                    Some(known) => books.account(device.row).restore(&known.ledger, loss.count),
                    None => books.account(device.row).declare(loss.count, loss.reason),
                }
                if behind.contains_key(&loss.device_id) {
                    device.newest = device.newest.map(|newest| newest.saturating_add(BEHIND_LOST_KEYS_MS));
                }
                if loss.count > 0 {
                    tell(tx, books, &offered, loss, device, retention_ms)?;
                }
            }
            let newest = |device: &Concerned| Some((device.row, device.newest?));
            concerned.values().filter_map(newest).try_for_each(|(row, newest)| rows::raise_newest(tx, row, newest))
        });
        self.offered = offered;
        outcome?;
        for (device, now) in concerned {
            self.now_stored(&device, now.newest);
        }
        Ok(())
    }

    /// Its row is in the file, and its time does not move back before `newest`, whatever becomes of what is staged.
    fn now_stored(&mut self, device: &DeviceId, newest: Option<i64>) {
        for tracks in [&mut self.tracks, &mut self.before] {
            if let Some(track) = tracks.get_mut(device) {
                track.stored = true;
                track.newest = track.newest.max(newest);
            }
        }
    }
}

/// Adds a loss to the device's newest record of that reason, or makes one under a key of its own ([`gap`]).
fn tell(
    conn: &Connection,
    books: &mut Books<'_>,
    offered: &Offered,
    loss: &Loss,
    device: &mut Concerned,
    retention_ms: u64,
) -> rusqlite::Result<()> {
    let (from, until) = (loss.from.as_millis(), loss.to.max(loss.from).as_millis());
    let mut key = device.newest.map_or(from, |newest| newest.saturating_add(1));
    // The newest time may have been put back with the clock.
    while device.unwritten.contains(&key) || rows::key_taken(conn, device.row, key)? {
        key = key.saturating_add(1);
    }
    let (lost, reason) = (loss.count, loss.reason);
    let gap = Gap { id: 0, device: device.row, key, from, until, lost, reason, retention_ms, summary: Summary::new() };
    match gap::newest_open(conn, device.row, reason, offered)? {
        Some(mut known) if known.spans_with(&gap, gap::SPAN_MS) => {
            known.widen(from, until, lost);
            gap::update(conn, &known)
        }
        _ => {
            device.newest = Some(key);
            gap::insert(conn, books, &gap)
        }
    }
}
