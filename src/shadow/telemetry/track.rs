//! One device: which time a sample is kept under, and which block takes it. Pure.
//!
//! Samples in order go to the live block, those that come after newer ones to the late block, so that a backlog packs
//! as well as the present does and never tears the present's block apart. Within a block times strictly increase:
//! a sample whose time is taken moves on by a millisecond.

use std::time::{Duration, Instant};

use floorgate_model::Timestamp;

use super::dedup::Memory;
use super::open_block::{GAP_DISTANCES, OpenBlock};
use super::samples::{Origin, Sample};
use crate::shadow::report::TelemetryReport;

/// A device's clock may be this far ahead of the gateway's; beyond, its time cannot be right.
pub(super) const DEVICE_AHEAD_MAX: Duration = Duration::from_secs(300);
/// 2020-01-01T00:00:00Z: an earlier device time comes from a clock that was never set. Epoch milliseconds.
pub(super) const DEVICE_TIME_MIN: i64 = 1_577_836_800_000;
/// Weight of the past in the usual distance between samples.
const USUAL_WEIGHT: i64 = 8;
/// A time sent that lies this close before the time kept was moved on to be unique; milliseconds.
const MOVED_ON_MAX_MS: i64 = 1_000;

/// Samples of one direction of time: those in order, or those that came late.
#[derive(Debug, Clone, Default)]
pub(super) struct Lane {
    /// The block that gathers them.
    pub(super) block: Option<OpenBlock>,
    /// The last sample's time before it was made unique.
    asked: Option<i64>,
    /// The last sample's time.
    last: Option<i64>,
    /// The usual distance between samples.
    usual_ms: Option<i64>,
}

impl Lane {
    /// Whether the open block takes this sample.
    pub(super) fn takes(&self, sample: &Sample, era: Option<i64>) -> bool {
        self.block.as_ref().is_some_and(|block| block.takes(sample, self.usual_ms, era))
    }

    fn note(&mut self, asked: i64, at: i64) {
        if let Some(distance) = self.last.map(|last| at.saturating_sub(last)).filter(|distance| *distance > 0) {
            self.usual_ms = Some(self.usual_ms.map_or(distance, |usual| {
                let distance = distance.min(usual.saturating_mul(GAP_DISTANCES));
                (usual.saturating_mul(USUAL_WEIGHT - 1).saturating_add(distance)) / USUAL_WEIGHT
            }));
        }
        (self.asked, self.last) = (Some(asked), Some(at));
    }
}

/// What is known of one device.
#[derive(Debug, Clone)]
pub(super) struct Track {
    /// Its row.
    pub(super) row: i64,
    /// The row is in the file.
    pub(super) stored: bool,
    /// The newest time kept.
    pub(super) newest: Option<i64>,
    /// That time before it was made unique.
    pub(super) newest_asked: Option<i64>,
    /// The newest guess ([`super::restamp`]); it says nothing of the times that are known.
    pub(super) newest_guess: Option<i64>,
    /// The last reports; `None` until they are needed.
    pub(super) memory: Option<Memory>,
    /// The block closed last, where the chain of its blocks begins.
    pub(super) last_block: Option<i64>,
    /// The live block closed last, which holds its newest sample.
    pub(super) last_live: Option<i64>,
    /// Samples in order.
    pub(super) live: Lane,
    /// Samples that came after newer ones.
    pub(super) late: Lane,
}

/// Where a sample shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// To the late lane.
    pub(super) late: bool,
    /// Under this time.
    pub(super) at: i64,
}

/// Where a sample was put.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) late: bool,
    /// Its time is a guess still.
    pub(super) era: Option<i64>,
    /// It begins a block, at this time by the monotonic clock.
    pub(super) starts: Option<Instant>,
}

impl Track {
    pub(super) fn new(row: i64) -> Self {
        Self {
            row,
            stored: false,
            newest: None,
            newest_asked: None,
            newest_guess: None,
            memory: None,
            last_block: None,
            last_live: None,
            live: Lane::default(),
            late: Lane::default(),
        }
    }

    /// Where a sample shall go that asks for the time `asked`, its device's or the gateway's, and was received at
    /// `received`.
    ///
    /// A newest time that lies further ahead of the receipt than a device's clock may is no time any more: the
    /// gateway's clock was put back, and the present goes on from where it is now. Put back by less, the present moves
    /// on by a millisecond a sample until the clock has caught up; what has the gateway's own time is never late.
    pub(super) fn place(&self, asked: i64, by_device: bool, received: i64) -> Place {
        let ahead = i64::try_from(DEVICE_AHEAD_MAX.as_millis()).unwrap_or(0);
        if self.newest.is_some_and(|newest| newest > received.saturating_add(ahead)) {
            return Place { late: false, at: asked };
        }
        if !by_device && let Some(newest) = self.newest {
            return Place { late: false, at: asked.max(newest.saturating_add(1)) };
        }
        if self.newest_asked.is_none_or(|newest| asked >= newest) {
            let at = self.newest.map_or(asked, |newest| asked.max(newest.saturating_add(1)));
            return Place { late: false, at };
        }
        // The same second again and again in a backlog: each moves on, as it does in the present.
        let follows = self.late.block.is_some() && self.late.asked.is_some_and(|before| asked >= before);
        let after = self.late.last.filter(|_| follows).map_or(asked, |last| last.saturating_add(1));
        Place { late: true, at: asked.max(after) }
    }

    /// Where a sample shall go whose time is a guess: the next one of its kind, unless the guess was put back.
    pub(super) fn place_guess(&self, asked: i64) -> Place {
        let ahead = i64::try_from(DEVICE_AHEAD_MAX.as_millis()).unwrap_or(0);
        let before = self.newest_guess.filter(|guess| *guess <= asked.saturating_add(ahead));
        Place { late: false, at: before.map_or(asked, |guess| asked.max(guess.saturating_add(1))) }
    }

    /// Puts a sample, which asked for the time `asked`, where it belongs: into the open block, or with `starts` into a
    /// new one. Answers the block that this closes.
    pub(super) fn put(
        &mut self,
        device: &str,
        Placed { late, era, starts }: Placed,
        put: &Sample,
        asked: i64,
    ) -> Option<OpenBlock> {
        let lane = self.lane_mut(late);
        lane.note(asked, put.at);
        let closed = match (&mut lane.block, starts) {
            (Some(block), None) => {
                block.push(put);
                None
            }
            (block, starts) => starts.and_then(|now| block.replace(OpenBlock::new(device, late, era, put, now))),
        };
        if era.is_some() {
            self.newest_guess = Some(put.at);
        } else if !late {
            let put_back = self.newest.is_some_and(|newest| put.at <= newest);
            self.newest = Some(put.at);
            self.newest_asked = if put_back { Some(asked) } else { self.newest_asked.max(Some(asked)) };
        }
        closed
    }

    pub(super) fn lane(&self, late: bool) -> &Lane {
        if late { &self.late } else { &self.live }
    }

    fn lane_mut(&mut self, late: bool) -> &mut Lane {
        if late { &mut self.late } else { &mut self.live }
    }

    /// Both open blocks, the late one first.
    pub(super) fn open_blocks(&self) -> impl Iterator<Item = &OpenBlock> {
        self.late.block.iter().chain(self.live.block.iter())
    }

    /// They are rows now.
    pub(super) fn drop_open_blocks(&mut self) {
        (self.late.block, self.live.block) = (None, None);
    }

    /// Time never moves back before this.
    pub(super) fn raise_newest(&mut self, at: i64) {
        self.newest = self.newest.max(Some(at));
        self.newest_asked = self.newest_asked.max(Some(at));
    }
}

/// The time a sample asked for, before it was made unique; as far as the journal can tell.
pub(super) fn asked(sample: &Sample) -> i64 {
    match sample.origin {
        Origin::Replaced(sent) if sent <= sample.at && sample.at - sent < MOVED_ON_MAX_MS => sent,
        _ => sample.at,
    }
}

/// The time a report asks for: the device's if it can be right, else the gateway's. While the gateway's is a guess, a
/// device's cannot be judged by it; that is done once the time is known ([`super::restamp`]).
pub(super) fn time_of(report: &TelemetryReport) -> i64 {
    if report.guess_base_ms.is_some() {
        return report.received_at.as_millis();
    }
    let can_be_right = |time: &Timestamp| {
        *time <= report.received_at.saturating_add(DEVICE_AHEAD_MAX) && time.as_millis() >= DEVICE_TIME_MIN
    };
    report.device_time.filter(can_be_right).unwrap_or(report.received_at).as_millis()
}

/// How the time kept came about.
pub(super) fn origin_of(device_time: Option<i64>, at: i64) -> Origin {
    match device_time {
        None => Origin::Gateway,
        Some(sent) if sent == at => Origin::Device,
        Some(sent) => Origin::Replaced(sent),
    }
}
