//! The samples of one commit in few bytes, and the pages they share.
//!
//! # Layout
//!
//! ```text
//! segment  names: count, texts · samples until the end
//! sample   flags · row of the device · [era] · time (less the time before, signed) · [time as sent, less the time
//!          kept] · [counter] · readings: count, then name and value each
//! page     segments with their length before each, then zeros up to PAGE_BYTES
//! ```
//!
//! Pages are rows that are overwritten in place, again and again: a commit changes exactly one page of the file,
//! where an insert would now and then also change the tree above it, the list of free pages and the file's header.
//! A page belongs to the journal if its epoch is the current one; raising the epoch empties them all.

use floorgate_model::Readings;
use floorgate_model::reading::{METRIC_NAME_MAX, READINGS_MAX};

use super::bytes::{self, Cursor};
use super::samples::{Origin, Sample};

/// Bytes of a page's body: with the row's header they fill one page of 4,096 bytes without overflowing it.
pub(super) const PAGE_BYTES: usize = 4_000;
/// A segment is ended before it outgrows a page. One sample alone may be larger; its row then overflows.
const SEGMENT_BYTES: usize = PAGE_BYTES - 3;
/// A damaged length beyond this is refused.
const NAMES_MAX: usize = PAGE_BYTES;

const LATE: u8 = 1;
const STARTS_BLOCK: u8 = 2;
const COUNTED: u8 = 4;
const GATEWAY_TIME: u8 = 8;
const REPLACED_TIME: u8 = 16;
const GUESSED_TIME: u8 = 32;

/// A sample as the journal holds it: replaying places it exactly where it was placed first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Row of its device.
    pub(super) device: i64,
    /// It came after a newer one.
    pub(super) late: bool,
    /// Its time is a guess still.
    pub(super) era: Option<i64>,
    /// It is the first of a block.
    pub(super) starts_block: bool,
    /// The sample.
    pub(super) sample: Sample,
}

/// Packs samples into segments.
#[derive(Debug, Default)]
pub(super) struct Packer {
    done: Vec<Vec<u8>>,
    names: Vec<String>,
    names_bytes: usize,
    samples: Vec<u8>,
    before: i64,
    count: usize,
}

impl Packer {
    /// Samples taken since the last [`Self::clear`].
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn push(&mut self, device: i64, lane: (bool, Option<i64>), starts_block: bool, sample: &Sample) {
        let (names, names_bytes, samples, before) =
            (self.names.len(), self.names_bytes, self.samples.len(), self.before);
        self.append(device, lane, starts_block, sample);
        self.count += 1;
        if samples > 0 && self.bytes() > SEGMENT_BYTES {
            // Too much: take the sample back, end the segment, begin the next one with it.
            self.names.truncate(names);
            self.names_bytes = names_bytes;
            self.samples.truncate(samples);
            self.before = before;
            self.end_segment();
            self.append(device, lane, starts_block, sample);
        }
    }

    /// All segments, each at most a page long unless a single sample is longer.
    pub(super) fn segments(&mut self) -> &[Vec<u8>] {
        self.end_segment();
        &self.done
    }

    fn bytes(&self) -> usize {
        self.names_bytes + self.samples.len() + 2
    }

    fn end_segment(&mut self) {
        if self.samples.is_empty() {
            return;
        }
        let mut segment = Vec::with_capacity(self.bytes());
        bytes::put_len(&mut segment, self.names.len());
        for name in &self.names {
            bytes::put_text(&mut segment, name);
        }
        segment.append(&mut self.samples);
        self.names.clear();
        (self.names_bytes, self.before) = (0, 0);
        self.done.push(segment);
    }

    fn append(&mut self, device: i64, (late, era): (bool, Option<i64>), starts_block: bool, sample: &Sample) {
        let flag = |yes: bool, flag: u8| if yes { flag } else { 0 };
        let origin = match sample.origin {
            Origin::Device => 0,
            Origin::Gateway => GATEWAY_TIME,
            Origin::Replaced(_) => REPLACED_TIME,
        };
        let flags = flag(late, LATE) | flag(starts_block, STARTS_BLOCK) | flag(era.is_some(), GUESSED_TIME);
        self.samples.push(flags | flag(sample.seq.is_some(), COUNTED) | origin);
        bytes::put(&mut self.samples, device.cast_unsigned());
        if let Some(era) = era {
            bytes::put(&mut self.samples, era.cast_unsigned());
        }
        bytes::put_signed(&mut self.samples, sample.at.wrapping_sub(self.before));
        self.before = sample.at;
        if let Origin::Replaced(sent) = sample.origin {
            bytes::put_signed(&mut self.samples, sent.wrapping_sub(sample.at));
        }
        if let Some(seq) = sample.seq {
            bytes::put(&mut self.samples, seq);
        }
        bytes::put_len(&mut self.samples, sample.readings.len());
        for (name, reading) in sample.readings.iter() {
            let number = self.name(name);
            bytes::put_len(&mut self.samples, number);
            bytes::put_reading(&mut self.samples, reading);
        }
    }

    fn name(&mut self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names_bytes += name.len() + 1;
            self.names.len() - 1
        })
    }
}

/// Reads one segment; `None` if it is damaged.
pub(super) fn unpack(segment: &[u8]) -> Option<Vec<Entry>> {
    let mut cursor = Cursor::new(segment);
    let names: Vec<&str> =
        (0..cursor.length(NAMES_MAX)?).map(|_| cursor.text(METRIC_NAME_MAX)).collect::<Option<_>>()?;
    let (mut entries, mut before) = (Vec::new(), 0);
    while !cursor.is_empty() {
        let entry = entry(&mut cursor, &names, before)?;
        before = entry.sample.at;
        entries.push(entry);
    }
    Some(entries)
}

fn entry(cursor: &mut Cursor<'_>, names: &[&str], before: i64) -> Option<Entry> {
    let flags = cursor.byte()?;
    let device = cursor.number()?.cast_signed();
    let era = if flags & GUESSED_TIME == 0 { None } else { Some(cursor.number()?.cast_signed()) };
    let at = before.wrapping_add(cursor.signed()?);
    let origin = match flags & (GATEWAY_TIME | REPLACED_TIME) {
        0 => Origin::Device,
        GATEWAY_TIME => Origin::Gateway,
        _ => Origin::Replaced(cursor.signed()?.wrapping_add(at)),
    };
    let seq = if flags & COUNTED == 0 { None } else { Some(cursor.number()?) };
    let mut readings = Readings::new();
    for _ in 0..cursor.length(READINGS_MAX)? {
        let name = names.get(cursor.length(NAMES_MAX)?)?;
        readings.insert(name, cursor.reading()?).ok()?;
    }
    let sample = Sample { at, origin, seq, readings };
    Some(Entry { device, late: flags & LATE != 0, era, starts_block: flags & STARTS_BLOCK != 0, sample })
}

/// Where the journal's next segment goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tail {
    /// Number of the page that is being filled.
    pub(super) page: i64,
    /// What it holds so far, without the zeros.
    pub(super) body: Vec<u8>,
}

impl Tail {
    /// Adds segments; answers the pages that change, each with its whole new body.
    pub(super) fn extend(&mut self, segments: &[Vec<u8>]) -> Vec<(i64, Vec<u8>)> {
        let mut changed = Vec::new();
        for segment in segments {
            let mut framed = Vec::with_capacity(segment.len() + 3);
            bytes::put_len(&mut framed, segment.len());
            framed.extend_from_slice(segment);
            if !self.body.is_empty() && self.body.len() + framed.len() > PAGE_BYTES {
                self.turn_page(&mut changed);
            }
            self.body.append(&mut framed);
        }
        changed.push((self.page, padded(self.body.clone())));
        changed
    }

    fn turn_page(&mut self, changed: &mut Vec<(i64, Vec<u8>)>) {
        let full = std::mem::take(&mut self.body);
        changed.push((self.page, padded(full)));
        self.page += 1;
    }
}

fn padded(mut body: Vec<u8>) -> Vec<u8> {
    body.resize(body.len().max(PAGE_BYTES), 0);
    body
}

/// The segments of a page, and how many bytes they take; what cannot be read ends it.
pub(super) fn segments(body: &[u8]) -> (Vec<&[u8]>, usize) {
    let mut cursor = Cursor::new(body);
    let (mut found, mut used) = (Vec::new(), 0);
    while let Some(length) = cursor.length(body.len()) {
        let Some(segment) = cursor.take(length).filter(|segment| !segment.is_empty()) else { break };
        found.push(segment);
        used = body.len() - cursor.left();
    }
    (found, used)
}
