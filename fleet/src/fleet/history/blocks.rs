//! Items of the history as samples and gaps (`docs/history.md`). Pure.

use std::time::Duration;

use floorgate_model::Timestamp;
use floorgate_model::table::history;
use serde_json::{Map, Value, json};

use crate::age::{text, time};
use crate::store::Item;

/// One item, read.
#[derive(Debug)]
pub(super) struct Entry {
    key: Timestamp,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Block { offsets: Vec<u64>, readings: Map<String, Value>, unsynchronised: bool },
    Gap { from: Timestamp, to: Timestamp, lost: u64, reason: String, summary: Option<Value> },
}

/// One sample of a block.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) at: Timestamp,
    place: usize,
    readings: &'a Map<String, Value>,
}

impl Entry {
    /// `None` for an item that is neither a block nor a gap record.
    pub(super) fn read(item: &Item) -> Option<Self> {
        let key = time(item, history::TIMESTAMP)?;
        if let Some(lost) = item.get(history::LOST).and_then(Value::as_u64) {
            let from = time(item, history::FROM).unwrap_or(key);
            let to = time(item, history::END).unwrap_or(from);
            let reason = text(item, history::REASON).unwrap_or("unknown").to_owned();
            let summary = item.get(history::SUMMARY).cloned();
            return Some(Self { key, kind: Kind::Gap { from, to, lost, reason, summary } });
        }
        let readings = item.get(history::READINGS)?.as_object()?.clone();
        let offsets = item.get(history::OFFSETS_MS).and_then(Value::as_array);
        // One item a sample is a block of one.
        let offsets = offsets.map_or_else(|| vec![0], |list| list.iter().filter_map(Value::as_u64).collect());
        let unsynchronised = text(item, history::CLOCK) == Some(history::UNSYNCHRONISED);
        Some(Self { key, kind: Kind::Block { offsets, readings, unsynchronised } })
    }

    /// Its key.
    pub(super) fn key(&self) -> Timestamp {
        self.key
    }

    /// The gap it is, if it is one; empty if that lies outside the range.
    pub(super) fn gap(&self, start: Timestamp, end: Timestamp) -> Option<Value> {
        let Kind::Gap { from, to, lost, reason, summary } = &self.kind else { return None };
        if *to < start || *from > end {
            return None;
        }
        let mut gap = json!({"from": from.to_string(), "to": to.to_string(), "lost": lost, "reason": reason});
        if let (Some(summary), Some(members)) = (summary, gap.as_object_mut()) {
            members.insert(history::SUMMARY.to_owned(), summary.clone());
        }
        Some(gap)
    }

    /// As [`Self::gap`], with the key.
    pub(super) fn into_gap(self, start: Timestamp, end: Timestamp) -> Option<(Timestamp, Value)> {
        Some((self.key, self.gap(start, end)?))
    }

    /// The samples of a block; none of a gap.
    pub(super) fn samples(&self) -> impl Iterator<Item = Sample<'_>> {
        let block = match &self.kind {
            Kind::Block { offsets, readings, .. } => Some((offsets, readings)),
            Kind::Gap { .. } => None,
        };
        block.into_iter().flat_map(|(offsets, readings)| {
            offsets.iter().enumerate().map(|(place, offset)| Sample {
                at: self.key.saturating_add(Duration::from_millis(*offset)),
                place,
                readings,
            })
        })
    }

    /// A sample as it is told.
    pub(super) fn told(&self, sample: &Sample<'_>, readings: Map<String, Value>) -> Value {
        let mut told = json!({"timestamp": sample.at.to_string(), "readings": readings});
        if let (Kind::Block { unsynchronised: true, .. }, Some(members)) = (&self.kind, told.as_object_mut()) {
            members.insert(history::CLOCK.to_owned(), history::UNSYNCHRONISED.into());
        }
        told
    }
}

impl<'a> Sample<'a> {
    /// Metric and value, of one metric or of all that this sample has.
    pub(super) fn values(&self, metric: Option<&str>) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let (place, readings) = (self.place, self.readings);
        let columns = readings.iter().filter(move |(name, _)| metric.is_none_or(|metric| metric == name.as_str()));
        columns.filter_map(move |(name, column)| {
            let value = match column {
                Value::Array(cells) => cells.get(place)?,
                // A single value for a single sample.
                value => Some(value).filter(|_| place == 0)?,
            };
            Some((name.as_str(), value)).filter(|_| !value.is_null())
        })
    }

    /// As an object; `None` if there is nothing.
    pub(super) fn readings(&self, metric: Option<&str>) -> Option<Map<String, Value>> {
        let readings: Map<_, _> = self.values(metric).map(|(name, value)| (name.to_owned(), value.clone())).collect();
        (!readings.is_empty()).then_some(readings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: Value) -> Option<Entry> {
        Entry::read(value.as_object().unwrap())
    }

    #[test]
    fn a_block_expands_into_its_samples_and_holes_are_left_out() {
        let block = entry(json!({
            "timestamp": "2026-11-22T10:00:00.000Z", "count": 3, "offsets_ms": [0, 5_000, 10_250],
            "readings": {"pressure_psi": [142.7, null, 143], "temperature_c": [38.2, 38.3, null]},
        }))
        .unwrap();
        let told: Vec<_> =
            block.samples().filter_map(|s| Some((s.at.to_string(), Value::Object(s.readings(None)?)))).collect();
        assert_eq!(told[0], ("2026-11-22T10:00:00.000Z".into(), json!({"pressure_psi": 142.7, "temperature_c": 38.2})));
        assert_eq!(told[1], ("2026-11-22T10:00:05.000Z".into(), json!({"temperature_c": 38.3})));
        assert_eq!(told[2], ("2026-11-22T10:00:10.250Z".into(), json!({"pressure_psi": 143})));
        assert_eq!(block.samples().filter_map(|s| s.readings(Some("pressure_psi"))).count(), 2);
    }

    #[test]
    fn what_is_not_ours_or_torn_does_no_harm() {
        assert!(entry(json!({"timestamp": "yesterday", "readings": {}})).is_none());
        assert!(entry(json!({"timestamp": "2026-11-22T10:00:00Z", "pressure_psi": "142.7"})).is_none());
        let torn =
            entry(json!({"timestamp": "2026-11-22T10:00:00Z", "offsets_ms": [0, "x", 7], "readings": {"a": [1]}}));
        assert_eq!(torn.unwrap().samples().filter_map(|s| s.readings(None)).count(), 1);
        let single = entry(json!({"timestamp": "2026-11-22T10:00:00Z", "readings": {"a": 5}})).unwrap();
        assert_eq!(single.samples().filter_map(|s| s.readings(None)).count(), 1);
    }

    #[test]
    fn a_gap_is_told_where_it_touches_the_range() {
        let gap = entry(json!({
            "timestamp": "2026-11-22T10:00:00.000Z", "from": "2026-11-22T10:00:00.000Z", "end": "2026-11-22T11:00:00.000Z",
            "count": 0, "lost": 240, "reason": "thinned", "summary": {"p": {"min": 1, "max": 2, "mean": 1.5, "count": 240}},
        }))
        .unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let told = gap.gap(at("2026-11-22T10:30:00Z"), at("2026-11-22T12:00:00Z")).unwrap();
        assert_eq!((&told["lost"], &told["reason"]), (&json!(240), &json!("thinned")));
        assert_eq!(told["summary"]["p"]["count"], 240);
        assert!(gap.gap(at("2026-11-22T11:00:01Z"), at("2026-11-22T12:00:00Z")).is_none());
        assert_eq!(gap.samples().count(), 0);
    }
}
