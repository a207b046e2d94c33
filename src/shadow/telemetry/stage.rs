//! Taking a sample into memory.

use std::time::Instant;

use floorgate_model::{DeviceId, Timestamp};

use super::dedup::{Fingerprint, Memory, REPORTS_REMEMBERED};
use super::samples::Sample;
use super::track::{Place, Placed, origin_of, time_of};
use super::{ClosedBlock, Staged, TelemetryDb, body, io, rows};
use crate::shadow::report::TelemetryReport;
use crate::shadow::store::{StoreError, Taken};

impl TelemetryDb {
    /// Takes a sample into memory: folds duplicates, decides its time. Durable only after [`Self::commit`].
    pub(crate) fn stage(&mut self, report: &TelemetryReport, now: Instant) -> Staged {
        let device = &report.device_id;
        self.touch(device);
        let received = report.received_at.as_millis();
        let guess = report.guess_base_ms.and_then(|base| self.guess(base, received));
        let (era, asked) = guess.map_or_else(|| (None, time_of(report)), |(era, guess)| (Some(era), guess));
        let device_time = report.device_time.map(Timestamp::as_millis);
        let fingerprint = Fingerprint::of(device_time, report.seq, &report.readings);
        let memory = self.track_mut(device).memory.get_or_insert_default();
        if memory.knows(fingerprint, device_time.is_some(), report.redelivered) {
            return Staged { taken: Taken::Duplicate, at: Timestamp::from_millis(asked), is_newest: false };
        }
        memory.remember(fingerprint);

        let sample =
            |at| Sample { at, origin: origin_of(device_time, at), seq: report.seq, readings: report.readings.clone() };
        let track = self.track_mut(device);
        let by_device = device_time == Some(asked);
        let Place { mut late, at } =
            if era.is_some() { track.place_guess(asked) } else { track.place(asked, by_device, received) };
        let mut placed = sample(at);
        if late && !self.track_mut(device).late.takes(&placed, era) {
            placed = sample(self.free_key(device, at));
        }
        // Made unique, a late sample may come to lie after the newest: then it is the newest.
        late = late && self.track_mut(device).newest.is_some_and(|newest| placed.at <= newest);
        let starts = !self.track_mut(device).lane(late).takes(&placed, era);
        if starts {
            placed = sample(self.free_key(device, placed.at));
        }
        let track = self.track_mut(device);
        let row = track.row;
        let closed = track.put(device.as_str(), Placed { late, era, starts: starts.then_some(now) }, &placed, asked);
        self.closed.extend(closed.map(|block| ClosedBlock { device: device.clone(), block }));
        self.staged.push(row, (late, era), starts, &placed);
        *self.staged_of.entry(row).or_default() += 1;
        Staged { taken: Taken::Stored, at: Timestamp::from_millis(placed.at), is_newest: !late }
    }

    /// Keeps a device as it is, for a commit that fails, and sees to it that its last reports are remembered.
    fn touch(&mut self, device: &DeviceId) {
        if self.before.contains_key(device) {
            return;
        }
        if self.track_mut(device).memory.is_none() {
            match self.recall(device) {
                Ok(memory) => self.track_mut(device).memory = Some(memory),
                Err(cause) => self.unreadable = Some(cause),
            }
        }
        let track = self.track_mut(device).clone();
        self.before.insert(device.clone(), track);
    }

    /// The last reports of a device, from its blocks: closed ones along their chain, then those not yet written.
    fn recall(&self, device: &DeviceId) -> Result<Memory, StoreError> {
        let Some(track) = self.tracks.get(device) else { return Ok(Memory::default()) };
        let open = track.open_blocks().collect::<Vec<_>>();
        let closed = self.closed.iter().filter(|closed| closed.device == *device).map(|closed| &closed.block);
        let mut newest_first: Vec<Fingerprint> = open
            .into_iter()
            .rev()
            .chain(closed.rev())
            .flat_map(|block| block.samples().iter().rev())
            .map(|sample| fingerprint(&sample))
            .collect();
        let mut next = track.last_block;
        while let Some(id) = next.filter(|_| newest_first.len() < REPORTS_REMEMBERED) {
            let row = rows::block(&self.conn, id).map_err(io("read the last blocks of a device"))?;
            // The chain ends at a block that was shed, or that cannot be read any more.
            let Some(row) = row.filter(|row| row.device == track.row) else { break };
            let Some((samples, _)) = body::decode(row.first, &row.body) else { break };
            newest_first.extend(samples.iter().rev().map(|sample| fingerprint(&sample)));
            next = row.previous.filter(|previous| *previous < id);
        }
        let mut memory = Memory::default();
        newest_first.iter().rev().for_each(|report| memory.remember(*report));
        Ok(memory)
    }

    /// The first time from `at` on under which no block of the device begins.
    fn free_key(&mut self, device: &DeviceId, mut at: i64) -> i64 {
        loop {
            match self.is_key_taken(device, at) {
                Ok(true) => at = at.saturating_add(1),
                Ok(false) => return at,
                Err(cause) => {
                    self.unreadable = Some(io("look up a block")(cause));
                    return at;
                }
            }
        }
    }

    fn is_key_taken(&self, device: &DeviceId, at: i64) -> rusqlite::Result<bool> {
        let Some(track) = self.tracks.get(device) else { return Ok(false) };
        if self.is_open_key(device, at) {
            return Ok(true);
        }
        rows::key_taken(&self.conn, track.row, at)
    }

    /// Whether a block of the device that is not yet written begins at this time.
    pub(super) fn is_open_key(&self, device: &DeviceId, at: i64) -> bool {
        self.unwritten_keys(device).contains(&at)
    }

    /// When the blocks of the device begin that are not yet written; few.
    pub(super) fn unwritten_keys(&self, device: &DeviceId) -> Vec<i64> {
        let closed = self.closed.iter().filter(|closed| closed.device == *device).map(|closed| &closed.block);
        let open = self.tracks.get(device).into_iter().flat_map(super::track::Track::open_blocks);
        open.chain(closed).map(super::OpenBlock::first).collect()
    }
}

fn fingerprint(sample: &Sample) -> Fingerprint {
    Fingerprint::of(sample.device_time(), sample.seq, &sample.readings)
}
