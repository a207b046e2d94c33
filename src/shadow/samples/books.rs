//! Where the readings are: what was declared lost, and what each device's ledger says.

use std::collections::BTreeMap;
use std::time::Instant;

use floorgate_model::{DeviceId, DeviceLedger, Loss, Timestamp};

use super::super::ledgers::KnownLedger;
use super::super::telemetry::TelemetryDb;
use super::super::terms::StoreError;
use super::super::turn::Memory;
use super::Samples;

impl Samples {
    /// Declares readings lost that were taken from their senders and never stored; what is not attached is left out.
    /// Durable when this answers.
    pub(in crate::shadow) fn declare_lost(
        &mut self,
        mut losses: Vec<Loss>,
        memory: &mut Memory,
        now: Instant,
        wall: Timestamp,
    ) -> Result<(), StoreError> {
        losses.retain(|loss| loss.count > 0 && memory.devices.contains_key(&loss.device_id));
        if losses.is_empty() {
            return Ok(());
        }
        let db = self.db.as_mut().map_err(|cause| cause.clone())?;
        memory.signals.blocks = true;
        if self.waiting.is_empty() {
            let declared = db.declare_lost(&losses);
            return self.checked(declared);
        }
        // The samples among which they came stand before them in the order of acknowledgement: a broker that waits for
        // both would send nothing more until their window ends. So all go together, in one flush.
        let declared = db.declare_with_commit(&losses);
        self.checked(declared)?;
        self.commit(memory, now, wall)
    }

    /// Sets the ledgers right if the file was lost or put back since `known` was written down.
    pub(in crate::shadow) fn reconcile(&mut self, known: &BTreeMap<DeviceId, KnownLedger>) -> Result<(), StoreError> {
        match &mut self.db {
            Ok(db) => {
                let told = db.reconcile(known);
                tell(&self.checked(told)?);
            }
            // When it is back. What it said when it broke is newer than the copy, but for a file that never opened.
            Err(_) => {
                for (device, known) in known {
                    let here = self.known.entry(device.clone()).or_insert_with(|| *known);
                    if here.ledger.accepted < known.ledger.accepted {
                        here.clone_from(known);
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the readings of each device are; like [`Self::stats`], what is confirmed counts as delivered.
    pub(in crate::shadow) fn ledgers(&self) -> BTreeMap<DeviceId, DeviceLedger> {
        let known = || self.known_ledgers().into_iter().map(|(device, known)| (device, known.ledger)).collect();
        let here = self.usable().and_then(|db| db.ledgers(&self.confirmed));
        here.unwrap_or_else(|_| known())
    }

    /// As [`Self::ledgers`], of one device.
    pub(in crate::shadow) fn ledger(&self, device: &DeviceId) -> DeviceLedger {
        let known = || self.known_ledgers().get(device).map(|known| known.ledger).unwrap_or_default();
        let here = self.usable().and_then(|db| db.ledger(device, &self.confirmed));
        here.unwrap_or_else(|_| known())
    }

    /// How many readings the quota has cost since the file was made.
    pub(in crate::shadow) fn given_up(&self) -> u64 {
        self.db.as_ref().map_or(0, TelemetryDb::given_up)
    }

    /// The ledgers as the file has them, or had them when it broke; for the copy in `state.db`.
    pub(in crate::shadow) fn known_ledgers(&self) -> BTreeMap<DeviceId, KnownLedger> {
        self.db.as_ref().map_or_else(|_| self.known.clone(), TelemetryDb::known_ledgers)
    }
}

/// Says what was declared lost.
pub(super) fn tell(losses: &[Loss]) {
    for loss in losses {
        tracing::warn!(
            device_id = %loss.device_id, from = %loss.from, to = %loss.to, count = loss.count, reason = %loss.reason,
            "readings are lost"
        );
    }
}
