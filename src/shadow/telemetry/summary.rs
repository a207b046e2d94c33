//! What is left of thinned readings: per metric minimum, maximum, mean and count.
//!
//! ```text
//! metrics n · each: name, count, minimum, maximum, mean (8 bytes)
//! ```

use std::collections::BTreeMap;

use floorgate_model::Reading;
use floorgate_model::reading::{METRIC_NAME_MAX, READINGS_MAX};

use super::bytes::{self, Cursor};
use super::samples::Samples;
use crate::shadow::view::MetricSummary;

/// Metric → its figures.
pub(super) type Summary = BTreeMap<String, MetricSummary>;

/// The figures of a block's samples.
pub(super) fn of(samples: &Samples) -> Summary {
    let mut summary = Summary::new();
    for (metric, column) in &samples.columns {
        for reading in column.iter().flatten() {
            let one = MetricSummary { min: *reading, max: *reading, mean: *reading, count: 1 };
            add(&mut summary, metric, &one);
        }
    }
    summary
}

/// Adds what another one holds.
pub(super) fn merge(summary: &mut Summary, other: &Summary) {
    for (metric, figures) in other {
        add(summary, metric, figures);
    }
}

/// A summary holds [`READINGS_MAX`] metrics; of further ones, which a device would have to invent, only the count of
/// lost readings tells.
fn add(summary: &mut Summary, metric: &str, more: &MetricSummary) {
    if let Some(figures) = summary.get_mut(metric) {
        let count = figures.count.saturating_add(more.count);
        figures.mean = mean(figures, more, count);
        figures.count = count;
        if more.min < figures.min {
            figures.min = more.min;
        }
        if more.max > figures.max {
            figures.max = more.max;
        }
    } else if summary.len() < READINGS_MAX {
        summary.insert(metric.to_owned(), *more);
    }
}

/// Weighted; each part is scaled before they are added, so that no sum leaves the range of a number.
fn mean(one: &MetricSummary, other: &MetricSummary, count: u64) -> Reading {
    #[expect(clippy::cast_precision_loss, reason = "weights of a mean; exact below 2^53 readings")]
    let part = |figures: &MetricSummary| figures.mean.value() * (figures.count as f64 / count as f64);
    Reading::new(part(one) + part(other)).unwrap_or(one.mean)
}

pub(super) fn encode(summary: &Summary) -> Vec<u8> {
    let mut out = Vec::new();
    bytes::put_len(&mut out, summary.len());
    for (metric, figures) in summary {
        bytes::put_text(&mut out, metric);
        bytes::put(&mut out, figures.count);
        bytes::put_reading(&mut out, figures.min);
        bytes::put_reading(&mut out, figures.max);
        bytes::put_raw(&mut out, figures.mean);
    }
    out
}

/// Reads what [`encode`] wrote; `None` if it is damaged.
pub(super) fn decode(body: &[u8]) -> Option<Summary> {
    let mut cursor = Cursor::new(body);
    let mut summary = Summary::new();
    for _ in 0..cursor.length(READINGS_MAX)? {
        let metric = cursor.text(METRIC_NAME_MAX)?.to_owned();
        let count = cursor.number()?;
        let (min, max, mean) = (cursor.reading()?, cursor.reading()?, cursor.raw()?);
        summary.insert(metric, MetricSummary { min, max, mean, count });
    }
    cursor.is_empty().then_some(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(value: f64) -> Reading {
        Reading::new(value).unwrap()
    }

    fn one(value: f64) -> Summary {
        let value = reading(value);
        [("p".to_owned(), MetricSummary { min: value, max: value, mean: value, count: 1 })].into()
    }

    #[test]
    fn merged_figures_are_those_of_all_values_together() {
        let mut all = one(3.0);
        for value in [1.0, 8.0, 4.0] {
            merge(&mut all, &one(value));
        }
        let mut half = one(4.0);
        merge(&mut half, &one(8.0));
        let mut halves = one(1.0);
        merge(&mut halves, &one(3.0));
        merge(&mut halves, &half);
        for summary in [&all, &halves] {
            let figures = summary["p"];
            assert_eq!((figures.min, figures.max, figures.count), (reading(1.0), reading(8.0), 4));
            assert!((figures.mean.value() - 4.0).abs() < 1e-12, "{figures:?}");
        }
    }

    #[test]
    fn the_mean_of_the_largest_numbers_is_a_number() {
        let mut summary = one(f64::MAX);
        merge(&mut summary, &one(f64::MAX));
        merge(&mut summary, &one(-f64::MAX));
        assert!(summary["p"].mean.value().abs() <= f64::MAX);
        assert_eq!(summary["p"].min, reading(-f64::MAX));
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_not() {
        let mut summary = one(142.7);
        merge(&mut summary, &one(1.0 / 3.0));
        summary.insert("q".to_owned(), summary["p"]);
        let body = encode(&summary);
        assert_eq!(decode(&body), Some(summary));
        assert!((0..body.len()).all(|end| decode(&body[..end]).is_none()));
    }

    #[test]
    fn a_summary_holds_only_so_many_metrics() {
        let mut summary = Summary::new();
        for number in 0..READINGS_MAX + 10 {
            let figures = one(1.0)["p"];
            merge(&mut summary, &[(format!("m{number:03}"), figures)].into());
        }
        assert_eq!(summary.len(), READINGS_MAX);
        assert_eq!(decode(&encode(&summary)), Some(summary));
    }
}
