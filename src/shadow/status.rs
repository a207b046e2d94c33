//! What a device is seen to be: pure rules over what was heard, when, and what it measured.
//!
//! # Rules
//!
//! * **Offline** after max(3 × sample interval, 15 s) of silence, or at once by the device's last will. The silence
//!   timer counts from the last live sign, and begins anew when floorgate starts, when the floor's broker is back and
//!   when a reboot ends. While the broker is away silence proves nothing; after [`FLOOR_GRACE`] of that, the device is
//!   offline because nobody can know.
//! * **Online** again after [`GOOD_REPORTS`] live reports in a row if it was silent or its last will came (at the first
//!   one if only the broker was away, or if it was never heard), and at once when it says so itself.
//! * **Warning** while a reading exceeds its `alert_threshold_<suffix>` (`_psi` binds to `pressure_psi`; the longest
//!   suffix wins): on after [`SAMPLES_ABOVE`] samples in a row strictly above, off after the reading has stayed at or
//!   below the threshold less its deadband for the profile's delay.
//! * **Rebooting** while a reboot command is in progress, and not a moment longer.
//! * What shows: rebooting over offline over warning over online (maintenance lies over all of them, in
//!   [`super::device`]).
//!
//! # What it does not do
//!
//! It reads no clock (every call brings its `now`), stores nothing and knows no message.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceStatus, Reading, Readings};

/// Silence is never judged sooner than this, however often a device reports.
pub(crate) const SILENCE_MIN: Duration = Duration::from_secs(15);
/// Missed samples that make silence.
pub(crate) const SAMPLES_MISSED: u32 = 3;
/// How long the floor's broker may be away before its devices count as offline.
pub(crate) const FLOOR_GRACE: Duration = Duration::from_secs(60);
/// Live reports in a row that bring a device back after silence.
pub(crate) const GOOD_REPORTS: u8 = 2;
/// Samples in a row above a threshold that raise a warning.
pub(crate) const SAMPLES_ABOVE: u8 = 2;
/// Configuration keys that hold a threshold; what follows is the suffix of the readings it is for.
const THRESHOLD_KEY: &str = "alert_threshold";

/// What the rules need to know of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    /// How often it reports.
    pub(crate) sample_interval: Duration,
    /// Deadband, percent of the threshold.
    pub(crate) deadband_percent: f64,
    /// How long a reading must stay below before its warning ends.
    pub(crate) warning_off_delay: Duration,
    /// Whether it is reached over the floor's broker (the gateway itself is not).
    pub(crate) behind_floor: bool,
}

impl Limits {
    /// Silence of this length means offline.
    pub(crate) fn silence(&self) -> Duration {
        self.sample_interval.saturating_mul(SAMPLES_MISSED).max(SILENCE_MIN)
    }
}

/// One device's observed status. Cheap to clone, so a failed transaction can put the old one back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observer {
    limits: Limits,
    presence: Presence,
    /// The silence timer counts from here.
    timer_from: Instant,
    /// Anything live came since floorgate started.
    heard: bool,
    good: GoodReports,
    floor_away_since: Option<Instant>,
    reboot: Option<String>,
    /// `_psi` → 150.
    thresholds: BTreeMap<String, f64>,
    alarms: BTreeMap<String, Alarm>,
}

#[derive(Debug, Clone, PartialEq)]
enum Presence {
    Here,
    Away { reason: String, reports_needed: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct GoodReports {
    in_a_row: u8,
    last: Option<Instant>,
}

/// One reading's way into and out of a warning.
#[derive(Debug, Clone, PartialEq, Default)]
struct Alarm {
    above_in_a_row: u8,
    /// `pressure_psi 152.3 > 150`, as it was when the warning was raised: a text that follows every reading would
    /// make every reading an urgent change.
    raised: Option<String>,
    below_since: Option<Instant>,
}

impl Observer {
    /// A device that was never heard.
    pub(crate) fn unheard(limits: Limits, now: Instant) -> Self {
        Self::away(limits, now, "not heard from yet".to_owned(), 1)
    }

    /// A device as it was when floorgate stopped; `offline` tells why it was offline, if it was.
    pub(crate) fn remembered(limits: Limits, now: Instant, offline: Option<String>) -> Self {
        match offline {
            Some(reason) => Self::away(limits, now, reason, GOOD_REPORTS),
            None => Self { presence: Presence::Here, ..Self::unheard(limits, now) },
        }
    }

    fn away(limits: Limits, now: Instant, reason: String, reports_needed: u8) -> Self {
        Self {
            limits,
            presence: Presence::Away { reason, reports_needed },
            timer_from: now,
            heard: false,
            good: GoodReports::default(),
            floor_away_since: None,
            reboot: None,
            thresholds: BTreeMap::new(),
            alarms: BTreeMap::new(),
        }
    }

    /// Other limits from now on; what was observed stays, and is measured by them.
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Raises again, after a restart, what the last known readings do not clear: a warning ends by a reading, not by
    /// a restart.
    pub(crate) fn resume_warning(&mut self, readings: &Readings) {
        for (metric, reading) in readings.iter() {
            let Some(threshold) = self.threshold(metric) else { continue };
            if reading.value() > self.clear_level(threshold) {
                let alarm = Alarm { raised: Some(exceeds(metric, reading, threshold)), ..Alarm::default() };
                self.alarms.insert(metric.to_owned(), alarm);
            }
        }
    }

    /// Takes over the thresholds of a configuration. One that is no number keeps its last good value.
    pub(crate) fn configure(&mut self, configuration: &BTreeMap<String, String>) {
        let mut thresholds = BTreeMap::new();
        for (key, text) in configuration {
            let Some(suffix) = key.strip_prefix(THRESHOLD_KEY).filter(|rest| rest.len() > 1 && rest.starts_with('_'))
            else {
                continue;
            };
            let value = Reading::parse(text).map(Reading::value).or_else(|| self.thresholds.get(suffix).copied());
            thresholds.extend(value.map(|value| (suffix.to_owned(), value)));
        }
        self.thresholds = thresholds;
        let kept: Vec<String> = self.alarms.keys().filter(|m| self.threshold(m).is_some()).cloned().collect();
        self.alarms.retain(|metric, _| kept.contains(metric));
    }

    /// A live report of it: readings, or its word on a command.
    pub(crate) fn reported(&mut self, now: Instant) {
        let in_time = self.good.last.is_some_and(|last| now.saturating_duration_since(last) < self.limits.silence());
        let in_a_row = if in_time { self.good.in_a_row.saturating_add(1) } else { 1 };
        self.good = GoodReports { in_a_row, last: Some(now) };
        self.alive(now);
        if matches!(self.presence, Presence::Away { reports_needed, .. } if in_a_row >= reports_needed) {
            self.presence = Presence::Here;
        }
    }

    /// It says live that it is online.
    pub(crate) fn said_online(&mut self, now: Instant) {
        self.alive(now);
        self.presence = Presence::Here;
    }

    /// Its last will, or its own farewell. A retained one counts only while nothing live was heard since start.
    pub(crate) fn said_offline(&mut self, retained: bool) {
        if !(retained && self.heard) {
            self.leave("it went offline (last will)".to_owned(), GOOD_REPORTS);
        }
    }

    /// Observed offline by someone else: a reboot that did not come back.
    pub(crate) fn declare_offline(&mut self, reason: String) {
        self.leave(reason, GOOD_REPORTS);
    }

    /// The floor's broker is there, or not.
    pub(crate) fn floor_reachable(&mut self, yes: bool, now: Instant) {
        if !self.limits.behind_floor {
            return;
        }
        if yes {
            if self.floor_away_since.take().is_some() {
                self.timer_from = self.timer_from.max(now);
            }
        } else {
            self.floor_away_since.get_or_insert(now);
        }
    }

    /// A reboot command runs (its id), or runs no longer; its end gives the device a whole new silence limit.
    pub(crate) fn reboot(&mut self, running: Option<&str>, now: Instant) {
        if running.is_none() && self.reboot.is_some() {
            self.timer_from = self.timer_from.max(now);
        }
        self.reboot = running.map(str::to_owned);
    }

    /// A sample that is live and the newest: raises and clears warnings.
    pub(crate) fn sample(&mut self, readings: &Readings, now: Instant) {
        for (metric, reading) in readings.iter() {
            let Some(threshold) = self.threshold(metric) else { continue };
            let (clear_level, off_delay) = (self.clear_level(threshold), self.limits.warning_off_delay);
            let alarm = self.alarms.entry(metric.to_owned()).or_default();
            if reading.value() > threshold {
                alarm.above_in_a_row = alarm.above_in_a_row.saturating_add(1);
                alarm.below_since = None;
                if alarm.above_in_a_row >= SAMPLES_ABOVE && alarm.raised.is_none() {
                    alarm.raised = Some(exceeds(metric, reading, threshold));
                }
            } else {
                alarm.above_in_a_row = 0;
                let below = reading.value() <= clear_level;
                alarm.below_since = if below { alarm.below_since.or(Some(now)) } else { None };
            }
            alarm.clear_if_due(now, off_delay);
        }
        self.alarms.retain(|_, alarm| alarm.raised.is_some() || alarm.above_in_a_row > 0);
    }

    /// One step of the timers.
    pub(crate) fn tick(&mut self, now: Instant) {
        for alarm in self.alarms.values_mut() {
            alarm.clear_if_due(now, self.limits.warning_off_delay);
        }
        if matches!(self.presence, Presence::Away { .. }) || self.reboot.is_some() {
            return;
        }
        if let Some(since) = self.floor_away_since {
            if now.saturating_duration_since(since) > FLOOR_GRACE {
                self.leave(format!("the floor's broker is unreachable for over {} s", FLOOR_GRACE.as_secs()), 1);
            }
            return;
        }
        let silence = self.limits.silence();
        if now.saturating_duration_since(self.timer_from) >= silence {
            self.leave(format!("silent for {} s", silence.as_secs()), GOOD_REPORTS);
        }
    }

    /// What it is seen to be, and why.
    pub(crate) fn status(&self) -> (DeviceStatus, Option<String>) {
        if let Some(id) = &self.reboot {
            return (DeviceStatus::Rebooting, Some(format!("reboot {id} is running")));
        }
        if let Presence::Away { reason, .. } = &self.presence {
            return (DeviceStatus::Offline, Some(reason.clone()));
        }
        let raised: Vec<&str> = self.alarms.values().filter_map(|alarm| alarm.raised.as_deref()).collect();
        if raised.is_empty() { (DeviceStatus::Online, None) } else { (DeviceStatus::Warning, Some(raised.join("; "))) }
    }

    /// Silence of this length means offline.
    pub(crate) fn silence(&self) -> Duration {
        self.limits.silence()
    }

    /// Why it is away, if it is, whatever else shows.
    pub(crate) fn away_because(&self) -> Option<&str> {
        match &self.presence {
            Presence::Here => None,
            Presence::Away { reason, .. } => Some(reason),
        }
    }

    fn alive(&mut self, now: Instant) {
        self.heard = true;
        self.timer_from = self.timer_from.max(now);
    }

    fn leave(&mut self, reason: String, reports_needed: u8) {
        self.good = GoodReports::default();
        self.presence = Presence::Away { reason, reports_needed };
    }

    fn threshold(&self, metric: &str) -> Option<f64> {
        let fits = self.thresholds.iter().filter(|(suffix, _)| metric.ends_with(suffix.as_str()));
        fits.max_by_key(|(suffix, _)| suffix.len()).map(|(_, value)| *value)
    }

    fn clear_level(&self, threshold: f64) -> f64 {
        threshold - threshold.abs() * self.limits.deadband_percent / 100.0
    }
}

impl Alarm {
    fn clear_if_due(&mut self, now: Instant, off_delay: Duration) {
        if self.below_since.is_some_and(|since| now.saturating_duration_since(since) >= off_delay) {
            *self = Self::default();
        }
    }
}

fn exceeds(metric: &str, reading: Reading, threshold: f64) -> String {
    format!("{metric} {reading} > {threshold}")
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
