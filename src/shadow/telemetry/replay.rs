//! Opening: what is in the file becomes what was in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Readings, Timestamp};
use rusqlite::Connection;

use super::offer::Offered;
use super::restamp::Eras;
use super::samples::Sample;
use super::segment::{self, Entry, Packer, Tail};
use super::track::{Placed, Track, asked};
use super::{ClosedBlock, TelemetryDb, body, rows, salvage, schema};
use crate::shadow::store::StoreError;

/// So long after a start a block that was open before it is closed.
pub(crate) const REOPENED_WITHIN: Duration = Duration::from_secs(5);

/// The newest sample of each device.
pub(crate) type Newest = BTreeMap<DeviceId, (Timestamp, Readings)>;

pub(super) fn open(
    path: &Path,
    history_retention: Duration,
    now: Instant,
) -> Result<(TelemetryDb, Newest), StoreError> {
    let conn = schema::open(path)?;
    salvage::check(&conn, path)?;
    schema::trust(&conn).map_err(|cause| schema::fault(path, &cause))?;
    read(conn, path, history_retention, now).map_err(|cause| schema::fault(path, &cause))
}

fn read(
    conn: Connection,
    path: &Path,
    history_retention: Duration,
    now: Instant,
) -> rusqlite::Result<(TelemetryDb, Newest)> {
    let (tally, accounts, offered) = (rows::tally(&conn)?, rows::accounts(&conn)?, Offered::read(&conn)?);
    let mut db = TelemetryDb {
        conn,
        path: path.to_owned(),
        history_retention,
        tracks: BTreeMap::new(),
        names: BTreeMap::new(),
        closed: Vec::new(),
        tally,
        accounts,
        offered,
        tail: Tail::default(),
        staged: Packer::default(),
        staged_of: BTreeMap::new(),
        before: BTreeMap::new(),
        closed_before: 0,
        unreadable: None,
        sent_from: 0,
        eras: Eras::default(),
    };
    db.replay_eras()?;
    db.replay_devices()?;
    db.replay_journal(now)?;
    let newest = db.newest_samples()?;
    Ok((db, newest))
}

impl TelemetryDb {
    fn replay_eras(&mut self) -> rusqlite::Result<()> {
        let eras = rows::eras(&self.conn)?;
        self.eras.highest = eras.iter().map(|era| era.id).chain(rows::newest_era(&self.conn)?).max().unwrap_or(0);
        self.eras.known = eras.into_iter().map(|era| (era.id, era)).collect();
        // A block holds no more than a minute.
        let newest = rows::newest_provisional(&self.conn)?;
        let age = i64::try_from(super::BLOCK_AGE_MAX.as_millis()).unwrap_or(0);
        self.eras.newest_kept = newest.map(|first| first.saturating_add(age));
        (self.eras.blocks, self.eras.samples) = rows::count_provisional(&self.conn)?;
        Ok(())
    }

    fn replay_devices(&mut self) -> rusqlite::Result<()> {
        for row in rows::devices(&self.conn)? {
            // A name that is no id was damaged; its blocks cannot be sent, its row number stays used.
            let Ok(device) = DeviceId::new(&row.name) else { continue };
            self.names.insert(row.row, device.clone());
            let track = Track {
                stored: true,
                newest: row.newest,
                newest_asked: row.newest_asked,
                last_block: row.last_block,
                last_live: row.last_live,
                ..Track::new(row.row)
            };
            self.tracks.insert(device, track);
        }
        Ok(())
    }

    /// Places every sample of the journal where it was placed first. What is damaged is left out.
    fn replay_journal(&mut self, now: Instant) -> rusqlite::Result<()> {
        // How old an open block is, nobody noted. One that counted as new would never be closed by a gateway that starts
        // again every minute.
        let opened = now.checked_sub(super::BLOCK_AGE_MAX.saturating_sub(REOPENED_WITHIN)).unwrap_or(now);
        let pages = rows::pages(&self.conn, self.tally.epoch)?;
        for (page, page_body) in pages {
            let (segments, used) = segment::segments(&page_body);
            for entry in segments.into_iter().filter_map(segment::unpack).flatten() {
                self.replace(&entry, opened);
            }
            self.tail = Tail { page, body: page_body.get(..used).unwrap_or_default().to_vec() };
        }
        self.closed_before = self.closed.len();
        Ok(())
    }

    fn replace(&mut self, entry: &Entry, opened: Instant) {
        self.eras.highest = self.eras.highest.max(entry.era.unwrap_or(0));
        let Some(device) = self.names.get(&entry.device) else { return };
        let Some(track) = self.tracks.get_mut(device) else { return };
        let follows = |block: &super::OpenBlock| block.last() < entry.sample.at && block.era == entry.era;
        let starts = entry.starts_block || !track.lane(entry.late).block.as_ref().is_some_and(follows);
        let placed = Placed { late: entry.late, era: entry.era, starts: starts.then_some(opened) };
        let closed = track.put(device.as_str(), placed, &entry.sample, asked(&entry.sample));
        self.closed.extend(closed.map(|block| ClosedBlock { device: device.clone(), block }));
    }

    fn newest_samples(&self) -> rusqlite::Result<Newest> {
        let mut newest = Newest::new();
        for (device, track) in &self.tracks {
            if let Some(sample) = self.newest_sample(device, track)? {
                newest.insert(device.clone(), (Timestamp::from_millis(sample.at), sample.readings));
            }
        }
        Ok(newest)
    }

    fn newest_sample(&self, device: &DeviceId, track: &Track) -> rusqlite::Result<Option<Sample>> {
        let closed = self.closed.iter().rev().filter(|closed| closed.device == *device).map(|closed| &closed.block);
        if let Some(block) = track.live.block.iter().chain(closed.filter(|block| !block.late)).next() {
            return Ok(block.samples().newest());
        }
        let Some(id) = track.last_live else { return Ok(None) };
        let row = rows::block(&self.conn, id)?;
        let row = row.filter(|row| row.device == track.row);
        Ok(row.and_then(|row| body::decode(row.first, &row.body)?.0.newest()))
    }
}
