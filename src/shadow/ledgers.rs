//! The copy of the devices' ledgers in `state.db`: what is known of the readings in `telemetry.db`, should that file be
//! lost. Written with the devices' rows, so every 30 s and at every close, never ahead of `telemetry.db`.

use std::collections::BTreeMap;

use floorgate_model::{DeviceId, DeviceLedger, Timestamp};
use rusqlite::{Connection, params};

use super::terms::StoreError;
use super::words::{if_readable, io, json, opt_time, read_json, read_opt_time, read_word};

/// A device's ledger as it was when it was last written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KnownLedger {
    /// Where its readings were.
    pub(crate) ledger: DeviceLedger,
    /// About when the oldest reading that the table did not have was taken.
    pub(crate) oldest: Option<Timestamp>,
    /// When the newest reading was taken.
    pub(crate) newest: Option<Timestamp>,
}

/// Every ledger the file knows.
pub(super) fn all(connection: &Connection) -> Result<BTreeMap<DeviceId, KnownLedger>, StoreError> {
    let cannot = io("read the devices' ledgers");
    let mut statement = connection.prepare("SELECT device_id, ledger, oldest, newest FROM ledger").map_err(&cannot)?;
    let read = |row: &rusqlite::Row<'_>| {
        let known =
            KnownLedger { ledger: read_json(row, 1)?, oldest: read_opt_time(row, 2)?, newest: read_opt_time(row, 3)? };
        Ok((read_word(row, 0)?, known))
    };
    let rows = statement.query_map([], read).map_err(&cannot)?;
    let readable = rows.filter_map(|row| if_readable(row, "the readings of a device").transpose());
    readable.collect::<Result<_, _>>().map_err(&cannot)
}

/// Writes one down.
pub(super) fn save(connection: &Connection, device: &DeviceId, known: &KnownLedger) -> Result<(), StoreError> {
    let cannot = io("write a device's ledger");
    let sql = "INSERT OR REPLACE INTO ledger (device_id, ledger, oldest, newest) VALUES (?1, ?2, ?3, ?4)";
    let mut statement = connection.prepare_cached(sql).map_err(&cannot)?;
    let row = params![device.as_str(), json(&known.ledger), opt_time(known.oldest), opt_time(known.newest)];
    statement.execute(row).map(drop).map_err(&cannot)
}
