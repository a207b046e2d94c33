//! Declaring readings lost that are in no block: those never stored, and those that went with a damaged file.

use std::collections::BTreeMap;

use floorgate_model::{DeviceId, Loss, LossReason, Timestamp};

use super::books::{self, Flush};
use super::gap::{self, Gap};
use super::summary::Summary;
use super::{TelemetryDb, rows};
use crate::shadow::ledgers::KnownLedger;
use crate::shadow::store::StoreError;

impl TelemetryDb {
    /// Declares readings lost that were taken from their senders and never stored: they count as accepted and as lost,
    /// and a gap record tells of them. Durable when this answers; on an error nothing is declared.
    pub(crate) fn declare_lost(&mut self, losses: &[Loss]) -> Result<(), StoreError> {
        self.declare(losses, &BTreeMap::new())
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
            let here = self.ledger(device, &std::collections::BTreeSet::new())?;
            if known.ledger.accepted <= here.accepted {
                continue;
            }
            behind.insert(device.clone(), known);
            let (delivered, lost) = books::at_least(&here, &known.ledger);
            let accounted = delivered.saturating_add(lost.total()).saturating_add(here.stored);
            let from = known.oldest.or(known.newest).unwrap_or_else(|| Timestamp::from_millis(0));
            losses.push(Loss {
                device_id: device.clone(),
                from,
                to: known.newest.map_or(from, |newest| newest.max(from)),
                count: known.ledger.accepted.saturating_sub(accounted),
                reason: LossReason::Damaged,
            });
        }
        if !behind.is_empty() {
            self.declare(&losses, &behind)?;
        }
        losses.retain(|loss| loss.count > 0);
        Ok(losses)
    }

    fn declare(&mut self, losses: &[Loss], behind: &BTreeMap<DeviceId, &KnownLedger>) -> Result<(), StoreError> {
        for (device, known) in behind {
            // Time goes on where it was, so that no key comes again.
            if let Some(newest) = known.newest {
                self.known_newest(device, newest);
            }
        }
        // Each device has a row, and no key is given twice in one go.
        let mut rows_of = BTreeMap::new();
        for loss in losses {
            let track = self.track_mut(&loss.device_id);
            rows_of.insert(loss.device_id.clone(), (track.row, track.stored, track.newest));
        }
        let retention_ms = u64::try_from(self.history_retention.as_millis()).unwrap_or(u64::MAX);
        let offered = std::mem::take(&mut self.offered);
        let outcome = self.change(Flush::Now, "declare readings lost", |tx, books| {
            let mut newest: BTreeMap<DeviceId, (i64, Option<i64>)> = BTreeMap::new();
            for loss in losses {
                let Some((row, stored, known_newest)) = rows_of.get(&loss.device_id).copied() else { continue };
                if !stored {
                    rows::add_device(tx, row, loss.device_id.as_str())?;
                }
                if let Some(known) = behind.get(&loss.device_id) {
                    books.account(row).restore(&known.ledger, loss.count);
                } else {
                    books.account(row).declare(loss.count, loss.reason);
                }
                let last = &mut newest.entry(loss.device_id.clone()).or_insert((row, known_newest)).1;
                if loss.count > 0 {
                    let (from, until) = (loss.from.as_millis(), loss.to.max(loss.from).as_millis());
                    let key = last.map_or(from, |newest| newest.saturating_add(1));
                    let (device, lost, reason) = (row, loss.count, loss.reason);
                    let gap =
                        Gap { id: 0, device, key, from, until, lost, reason, retention_ms, summary: Summary::new() };
                    match gap::newest_open(tx, row, reason, &offered)? {
                        Some(mut known) if known.spans_with(&gap, gap::SPAN_MS) => {
                            known.widen(from, until, lost);
                            gap::update(tx, &known)?;
                        }
                        _ => {
                            gap::insert(tx, books, &gap)?;
                            *last = Some(key);
                        }
                    }
                }
            }
            for (row, newest) in newest.values() {
                if let Some(newest) = newest {
                    rows::raise_newest(tx, *row, *newest)?;
                }
            }
            Ok(newest)
        });
        self.offered = offered;
        for (device, (_, newest)) in outcome? {
            self.now_stored(&device, newest);
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
