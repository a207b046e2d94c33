//! A run of samples of one device, in columns: what an open block gathers and a closed one holds.

use std::collections::BTreeMap;

use floorgate_model::{Reading, Readings};

/// How the time a sample is kept under came about; with it, the time as the device sent it can be told again, which
/// is what a duplicate is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is the device's.
    Device,
    /// The device sent none.
    Gateway,
    /// The device sent this one (epoch milliseconds), which could not be kept.
    Replaced(i64),
}

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// The time it is kept under, epoch milliseconds.
    pub(super) at: i64,
    /// Where that time comes from.
    pub(super) origin: Origin,
    /// The device's own counter.
    pub(super) seq: Option<u64>,
    /// What was measured.
    pub(super) readings: Readings,
}

impl Sample {
    /// The time as the device sent it.
    pub(super) fn device_time(&self) -> Option<i64> {
        match self.origin {
            Origin::Device => Some(self.at),
            Origin::Gateway => None,
            Origin::Replaced(sent) => Some(sent),
        }
    }
}

/// Samples in columns; every column has one place a sample, and times strictly increase.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Samples {
    /// Times kept, epoch milliseconds.
    pub(super) times: Vec<i64>,
    /// Where each time comes from.
    pub(super) origins: Vec<Origin>,
    /// The device's counters.
    pub(super) seqs: Vec<Option<u64>>,
    /// Metric → one value a sample.
    pub(super) columns: BTreeMap<String, Vec<Option<Reading>>>,
}

impl Samples {
    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    pub(super) fn first(&self) -> Option<i64> {
        self.times.first().copied()
    }

    pub(super) fn last(&self) -> Option<i64> {
        self.times.last().copied()
    }

    pub(super) fn push(&mut self, sample: &Sample) {
        let before = self.len();
        self.times.push(sample.at);
        self.origins.push(sample.origin);
        self.seqs.push(sample.seq);
        for (name, reading) in sample.readings.iter() {
            if let Some(column) = self.columns.get_mut(name) {
                column.push(Some(reading));
            } else {
                let mut column = vec![None; before];
                column.push(Some(reading));
                self.columns.insert(name.to_owned(), column);
            }
        }
        for column in self.columns.values_mut() {
            column.resize(before + 1, None);
        }
    }

    /// The samples one by one, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Sample> {
        (0..self.len()).filter_map(|place| self.get(place))
    }

    /// The newest sample.
    pub(super) fn newest(&self) -> Option<Sample> {
        self.get(self.len().checked_sub(1)?)
    }

    fn get(&self, place: usize) -> Option<Sample> {
        let mut readings = Readings::new();
        for (name, column) in &self.columns {
            if let Some(Some(reading)) = column.get(place) {
                readings.insert(name, *reading).ok()?;
            }
        }
        Some(Sample {
            at: *self.times.get(place)?,
            origin: *self.origins.get(place)?,
            seq: *self.seqs.get(place)?,
            readings,
        })
    }
}
