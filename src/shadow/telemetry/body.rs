//! A closed block in few bytes: the `body` of a block's row.
//!
//! ```text
//! format 1 · retention in ms · samples n · n−1 times (distance less the distance before, signed)
//! · origins · counters · columns: name, places, [bitmap of presence], values (less the value before, signed)
//! ```
//!
//! Format 2 is the same of a block whose times are a guess for good ([`super::restamp`]).
//!
//! The first time is the row's own. A column whose values are decimals is written with the places of its longest
//! one; any other is written raw. A sample of two readings that walk by tenths takes about four bytes.

use std::time::Duration;

use floorgate_model::Reading;
use floorgate_model::reading::METRIC_NAME_MAX;

use super::bytes::{self, Cursor};
use super::samples::{Origin, Samples};

/// The layout written here.
const FORMAT: u8 = 1;
/// The same, and some of the times are a guess for good.
const FORMAT_GUESSED: u8 = 2;
/// No block of [`floorgate_model::table::history::ITEM_BYTES_MAX`] bytes holds more samples or columns.
const PLACES_MAX: usize = 1_024;
/// A column with a bitmap of presence.
const SPARSE: u8 = 0x10;
/// Origins or counters: every sample alike, or each on its own.
const ALL_DEVICE: u8 = 0;
const ALL_GATEWAY: u8 = 1;
const NO_COUNTERS: u8 = 0;
const ALL_COUNTED: u8 = 1;
const MIXED: u8 = 2;

/// Writes a block's samples and how long the table shall keep them.
pub(super) fn encode(samples: &Samples, retention: Duration) -> Vec<u8> {
    let mut out = vec![FORMAT];
    bytes::put(&mut out, u64::try_from(retention.as_millis()).unwrap_or(u64::MAX));
    bytes::put_len(&mut out, samples.len());
    put_times(&mut out, &samples.times);
    put_origins(&mut out, samples);
    put_counters(&mut out, &samples.seqs);
    bytes::put_len(&mut out, samples.columns.len());
    for (name, column) in &samples.columns {
        bytes::put_text(&mut out, name);
        put_column(&mut out, column);
    }
    out
}

/// Reads what [`encode`] wrote; `None` if it is damaged or of a format not known here.
pub(super) fn decode(first: i64, body: &[u8]) -> Option<(Samples, Duration)> {
    let mut cursor = Cursor::new(body);
    if !matches!(cursor.byte()?, FORMAT | FORMAT_GUESSED) {
        return None;
    }
    let retention = Duration::from_millis(cursor.number()?);
    let count = cursor.length(PLACES_MAX)?;
    let mut samples = Samples { times: times(&mut cursor, first, count)?, ..Samples::default() };
    samples.origins = origins(&mut cursor, &samples.times)?;
    samples.seqs = counters(&mut cursor, count)?;
    for _ in 0..cursor.length(PLACES_MAX)? {
        let name = cursor.text(METRIC_NAME_MAX)?.to_owned();
        samples.columns.insert(name, column(&mut cursor, count)?);
    }
    cursor.is_empty().then_some((samples, retention))
}

/// Marks what [`encode`] wrote: some of the times are a guess for good.
pub(super) fn mark_guessed(body: &mut [u8]) {
    if let Some(format) = body.first_mut() {
        *format = FORMAT_GUESSED;
    }
}

/// Whether some of a block's times are a guess for good.
pub(super) fn is_guessed(body: &[u8]) -> bool {
    body.first() == Some(&FORMAT_GUESSED)
}

fn put_times(out: &mut Vec<u8>, times: &[i64]) {
    let mut usual = 0;
    for (earlier, later) in times.iter().zip(times.iter().skip(1)) {
        let distance = later.saturating_sub(*earlier);
        bytes::put_signed(out, distance.saturating_sub(usual));
        usual = distance;
    }
}

fn times(cursor: &mut Cursor<'_>, first: i64, count: usize) -> Option<Vec<i64>> {
    let (mut times, mut distance) = (Vec::with_capacity(count), 0_i64);
    let mut at = first;
    for place in 0..count {
        if place > 0 {
            distance = distance.checked_add(cursor.signed()?)?;
            at = at.checked_add(distance).filter(|_| distance > 0)?;
        }
        times.push(at);
    }
    Some(times)
}

fn put_origins(out: &mut Vec<u8>, samples: &Samples) {
    if samples.origins.iter().all(|origin| *origin == Origin::Device) {
        out.push(ALL_DEVICE);
    } else if samples.origins.iter().all(|origin| *origin == Origin::Gateway) {
        out.push(ALL_GATEWAY);
    } else {
        out.push(MIXED);
        for (origin, at) in samples.origins.iter().zip(&samples.times) {
            put_origin(out, *origin, *at);
        }
    }
}

fn origins(cursor: &mut Cursor<'_>, times: &[i64]) -> Option<Vec<Origin>> {
    match cursor.byte()? {
        ALL_DEVICE => Some(vec![Origin::Device; times.len()]),
        ALL_GATEWAY => Some(vec![Origin::Gateway; times.len()]),
        MIXED => times.iter().map(|at| origin(cursor, *at)).collect(),
        _ => None,
    }
}

fn put_origin(out: &mut Vec<u8>, origin: Origin, at: i64) {
    match origin {
        Origin::Device => out.push(0),
        Origin::Gateway => out.push(1),
        Origin::Replaced(sent) => {
            out.push(2);
            bytes::put_signed(out, sent.wrapping_sub(at));
        }
    }
}

fn origin(cursor: &mut Cursor<'_>, at: i64) -> Option<Origin> {
    match cursor.byte()? {
        0 => Some(Origin::Device),
        1 => Some(Origin::Gateway),
        2 => Some(Origin::Replaced(cursor.signed()?.wrapping_add(at))),
        _ => None,
    }
}

fn put_counters(out: &mut Vec<u8>, seqs: &[Option<u64>]) {
    if seqs.iter().all(Option::is_none) {
        out.push(NO_COUNTERS);
        return;
    }
    let all = seqs.iter().all(Option::is_some);
    out.push(if all { ALL_COUNTED } else { MIXED });
    let mut before = 0;
    for seq in seqs {
        if !all {
            out.push(u8::from(seq.is_some()));
        }
        if let Some(seq) = seq {
            bytes::put_signed(out, seq.wrapping_sub(before).cast_signed());
            before = *seq;
        }
    }
}

fn counters(cursor: &mut Cursor<'_>, count: usize) -> Option<Vec<Option<u64>>> {
    let kind = cursor.byte()?;
    let mut before = 0_u64;
    let mut next = || {
        let there = match kind {
            NO_COUNTERS => false,
            ALL_COUNTED => true,
            _ => cursor.byte()? == 1,
        };
        if there {
            before = before.wrapping_add(cursor.signed()?.cast_unsigned());
        }
        Some(there.then_some(before))
    };
    (0..count).map(|_| next()).collect()
}

fn put_column(out: &mut Vec<u8>, column: &[Option<Reading>]) {
    let there = || column.iter().copied().flatten();
    // A reading that is no short decimal makes the column raw.
    let places = there().try_fold(0, |most, reading| Some(bytes::decimal(reading)?.1.max(most)));
    let scaled: Option<Vec<i64>> =
        places.and_then(|places| there().map(|reading| bytes::scaled(reading, places)).collect());
    let sparse = column.iter().any(Option::is_none);
    let kind = places.filter(|_| scaled.is_some()).unwrap_or(bytes::RAW);
    out.push(if sparse { kind | SPARSE } else { kind });
    if sparse {
        for eight in column.chunks(8) {
            out.push(eight.iter().rev().fold(0, |bits, place| bits << 1 | u8::from(place.is_some())));
        }
    }
    if let Some(scaled) = scaled {
        let mut before = 0;
        for value in scaled {
            bytes::put_signed(out, value - before);
            before = value;
        }
    } else {
        there().for_each(|reading| bytes::put_raw(out, reading));
    }
}

fn column(cursor: &mut Cursor<'_>, count: usize) -> Option<Vec<Option<Reading>>> {
    let kind = cursor.byte()?;
    let bitmap = if kind & SPARSE == 0 { None } else { Some(cursor.take(count.div_ceil(8))?) };
    let places = kind & !SPARSE;
    let mut before = 0_i64;
    let next = |place: usize| {
        if let Some(bitmap) = bitmap
            && bitmap.get(place / 8)? >> (place % 8) & 1 == 0
        {
            return Some(None);
        }
        if places == bytes::RAW {
            return cursor.raw().map(Some);
        }
        before = before.checked_add(cursor.signed()?)?;
        bytes::unscaled(before, places).map(Some)
    };
    (0..count).map(next).collect()
}
