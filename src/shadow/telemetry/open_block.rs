//! A block while it gathers samples, and when it is full (contract §4).
//!
//! The size is the one DynamoDB counts for the item that will be made of it: names and values of all attributes, three
//! bytes a list or map, one byte an element. Whatever is not known yet (the gateway's id, the TTL, the count) is
//! counted at its largest, so that the item is never larger than counted.

use std::time::Instant;

use floorgate_model::id::DEVICE_ID_MAX;
use floorgate_model::table::{devices, history, number_size, reading_size};

use super::samples::{Sample, Samples};

/// Bytes of a timestamp.
const TIMESTAMP_BYTES: usize = 24;
/// The largest TTL: the last second of the year 9999.
const TTL_MAX: &str = "253402300799";
/// More samples than fit into any block.
const COUNT_MAX: &str = "1024";
/// What a list or a map costs by itself.
const CONTAINER_BYTES: usize = 3;
/// What an element costs on top of its value.
const ELEMENT_BYTES: usize = 1;
/// An element that is not there: NULL.
const NULL_BYTES: usize = ELEMENT_BYTES + 1;
/// A gap of this length or more closes a block, whatever the usual distance is; milliseconds.
pub(super) const GAP_MIN_MS: i64 = 60_000;
/// A gap of this many usual distances closes a block.
pub(super) const GAP_DISTANCES: i64 = 5;

/// Samples of one device that are not yet in a block of the table.
#[derive(Debug, Clone)]
pub(super) struct OpenBlock {
    /// When the first sample came, by the monotonic clock.
    pub(super) opened: Instant,
    /// It holds samples that came after newer ones.
    pub(super) late: bool,
    /// Its times are a guess still ([`super::restamp`]).
    pub(super) era: Option<i64>,
    samples: Samples,
    item_bytes: usize,
}

impl OpenBlock {
    /// An open block always holds its first sample, however large that is.
    pub(super) fn new(device: &str, late: bool, era: Option<i64>, first: &Sample, opened: Instant) -> Self {
        let marked = if era.is_some() { history::CLOCK.len() + history::UNSYNCHRONISED.len() } else { 0 };
        let item_bytes = empty_item_bytes(device) + marked;
        let mut block = Self { opened, late, era, samples: Samples::default(), item_bytes };
        block.push(first);
        block
    }

    pub(super) fn samples(&self) -> &Samples {
        &self.samples
    }

    pub(super) fn first(&self) -> i64 {
        self.samples.first().unwrap_or_default()
    }

    pub(super) fn last(&self) -> i64 {
        self.samples.last().unwrap_or_default()
    }

    /// Bytes of the item it would make now.
    #[cfg(test)]
    pub(super) fn item_bytes(&self) -> usize {
        self.item_bytes
    }

    /// Whether a sample may be the next one: of the same era, later, within the size, no gap before it.
    pub(super) fn takes(&self, next: &Sample, usual_ms: Option<i64>, era: Option<i64>) -> bool {
        let distance = next.at.saturating_sub(self.last());
        let gap = usual_ms.unwrap_or(0).saturating_mul(GAP_DISTANCES).max(GAP_MIN_MS);
        self.era == era
            && distance > 0
            && distance <= gap
            && self.item_bytes + self.growth(next) <= history::ITEM_BYTES_MAX
    }

    /// Adds the next sample, which the block must take.
    pub(super) fn push(&mut self, next: &Sample) {
        self.item_bytes += self.growth(next);
        self.samples.push(next);
    }

    /// Bytes by which a sample makes the item larger.
    fn growth(&self, next: &Sample) -> usize {
        let offset = next.at.saturating_sub(self.samples.first().unwrap_or(next.at));
        let mut growth = ELEMENT_BYTES + number_size(&offset.to_string());
        let mut known = 0;
        for (name, reading) in next.readings.iter() {
            growth += reading_size(reading);
            if self.samples.columns.contains_key(name) {
                known += 1;
            } else {
                growth += ELEMENT_BYTES + name.len() + CONTAINER_BYTES + NULL_BYTES * self.samples.len();
            }
        }
        growth + NULL_BYTES * (self.samples.columns.len() - known)
    }
}

/// Bytes of the item without any sample.
fn empty_item_bytes(device: &str) -> usize {
    let attributes = [
        (devices::DEVICE_ID, device.len()),
        (history::TIMESTAMP, TIMESTAMP_BYTES),
        (history::END, TIMESTAMP_BYTES),
        (history::COUNT, number_size(COUNT_MAX)),
        (devices::GATEWAY_ID, DEVICE_ID_MAX),
        (history::OFFSETS_MS, CONTAINER_BYTES),
        (history::READINGS, CONTAINER_BYTES),
        (history::EXPIRES_AT, number_size(TTL_MAX)),
    ];
    attributes.iter().map(|(name, value)| name.len() + value).sum()
}
