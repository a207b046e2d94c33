//! A range in equal intervals, with figures of the samples in each. Pure.

use std::collections::BTreeMap;

use floorgate_model::Timestamp;
use serde_json::{Map, Value, json};

use super::blocks::Sample;

/// The figures of one metric in one interval.
#[derive(Debug, Clone, Copy)]
struct Figures {
    min: f64,
    max: f64,
    mean: f64,
    count: u64,
}

/// Intervals `[start, start + width)`; the last one holds the end of the range too.
#[derive(Debug)]
pub(super) struct Points {
    from: Timestamp,
    to: Timestamp,
    number: u64,
    /// Width, milliseconds.
    width: i64,
    /// By interval and metric; intervals without a sample are not there.
    filled: BTreeMap<u64, (u64, BTreeMap<String, Figures>)>,
}

impl Points {
    /// `number` intervals, or as many as the range has milliseconds.
    pub(super) fn new(from: Timestamp, to: Timestamp, number: u64) -> Self {
        let span = to.as_millis().saturating_sub(from.as_millis()).max(1);
        let wanted = i64::try_from(number).unwrap_or(i64::MAX).clamp(1, span);
        let width = span / wanted + i64::from(span % wanted != 0);
        let number = u64::try_from(span / width + i64::from(span % width != 0)).unwrap_or(1);
        Self { from, to, number, width, filled: BTreeMap::new() }
    }

    /// How many there are.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The interval of a time; the last one for anything later.
    pub(super) fn number_of(&self, at: Timestamp) -> u64 {
        let place = at.as_millis().saturating_sub(self.from.as_millis()).max(0) / self.width;
        u64::try_from(place).unwrap_or(0).min(self.number - 1)
    }

    /// Where an interval begins.
    pub(super) fn start_of(&self, number: u64) -> Timestamp {
        let number = i64::try_from(number.min(self.number)).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.from.as_millis().saturating_add(number.saturating_mul(self.width))).min(self.to)
    }

    /// Counts a sample in, unless its interval lies before `first`.
    pub(super) fn add(&mut self, sample: &Sample<'_>, metric: Option<&str>, first: u64) {
        let number = self.number_of(sample.at);
        // A reading that is no number (beyond DynamoDB's) has no mean.
        let values = sample.values(metric).filter_map(|(name, value)| Some((name, value.as_f64()?)));
        let values: Vec<_> = values.collect();
        if number < first || values.is_empty() {
            return;
        }
        let (count, metrics) = self.filled.entry(number).or_default();
        *count += 1;
        for (name, value) in values {
            match metrics.get_mut(name) {
                Some(figures) => figures.add(value),
                None => {
                    metrics.insert(name.to_owned(), Figures { min: value, max: value, mean: value, count: 1 });
                }
            }
        }
    }

    /// Forgets the intervals from `number` on.
    pub(super) fn cut(&mut self, number: u64) {
        self.filled.split_off(&number);
    }

    /// Numbers of the intervals that are told, in their order.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.filled.keys().copied()
    }

    /// Samples in all intervals.
    pub(super) fn count(&self) -> u64 {
        self.filled.values().map(|(count, _)| count).sum()
    }

    /// As they are told.
    pub(super) fn told(&self) -> Vec<Value> {
        let told = |(number, (_, metrics)): (&u64, &(u64, BTreeMap<String, Figures>))| {
            let metrics: Map<_, _> = metrics.iter().map(|(name, figures)| (name.clone(), figures.told())).collect();
            json!({"from": self.start_of(*number).to_string(), "to": self.start_of(number + 1).to_string(), "metrics": metrics})
        };
        self.filled.iter().map(told).collect()
    }
}

impl Figures {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        // Step by step: a sum of large values could overflow.
        #[expect(clippy::cast_precision_loss, reason = "far fewer samples than 2^53")]
        let count = self.count as f64;
        self.mean += (value - self.mean) / count;
    }

    fn told(&self) -> Value {
        // Twelve digits: the last ones of a running mean are noise.
        let mean = format!("{:.12e}", self.mean).parse().unwrap_or(self.mean);
        json!({"min": self.min, "max": self.max, "mean": mean, "count": self.count})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::history::blocks::Entry;
    use proptest::prelude::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_795_341_600_000 + ms)
    }

    fn block(offsets: &[i64], values: &[f64]) -> Entry {
        let item = json!({"timestamp": at(0).to_string(), "offsets_ms": offsets, "readings": {"p": values}});
        Entry::read(item.as_object().unwrap()).unwrap()
    }

    #[test]
    fn each_interval_has_min_max_mean_and_count_and_empty_ones_are_left_out() {
        let mut points = Points::new(at(0), at(40_000), 4);
        for sample in block(&[0, 5_000, 9_999, 10_000, 40_000], &[1.0, 3.0, 2.0, 7.0, 9.0]).samples() {
            points.add(&sample, None, 0);
        }
        let told = points.told();
        assert_eq!(told.len(), 3);
        assert_eq!(told[0]["metrics"]["p"], json!({"min": 1.0, "max": 3.0, "mean": 2.0, "count": 3}));
        assert_eq!(told[1]["metrics"]["p"]["count"], 1);
        assert_eq!(
            (&told[2]["from"], &told[2]["to"]),
            (&json!(at(30_000).to_string()), &json!(at(40_000).to_string()))
        );
    }

    proptest! {
        #[test]
        fn every_sample_is_in_one_interval_and_no_interval_is_beyond_the_number(
            span in 1_i64..10_000_000, number in 1_u64..500, places in proptest::collection::vec(0.0_f64..=1.0, 1..100)
        ) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "small numbers of a test")]
            let mut offsets: Vec<i64> = places.iter().map(|part| (part * span as f64) as i64).collect();
            offsets.sort_unstable();
            let values: Vec<f64> = (0..offsets.len()).map(|n| f64::from(u32::try_from(n).unwrap())).collect();
            let mut points = Points::new(at(0), at(span), number);
            prop_assert!(points.number() <= number);
            for sample in block(&offsets, &values).samples() {
                points.add(&sample, None, 0);
                let place = points.number_of(sample.at);
                prop_assert!(points.start_of(place) <= sample.at);
                prop_assert!(sample.at < points.start_of(place + 1) || sample.at == at(span));
            }
            prop_assert_eq!(points.count(), offsets.len() as u64);
        }
    }
}
