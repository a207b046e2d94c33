//! How many messages one device may send: a bucket for each, so that a flooding device costs its neighbours nothing.
//!
//! What happens beyond the limit is decided by whoever asks: the endpoint reads the client more slowly
//! ([`super::Intake::admit`]), a link that carries many devices declares readings lost ([`super::overflow`]).
//!
//! What a broker kept while nobody was connected, or a device while it had no network, comes all at once and is no
//! flood. On a link ([`Limits::connected`]) each device may bring in, beside what it sends now, what its rate allows for
//! the time since its last message, at most [`CATCH_UP_MAX`] of it, within [`CATCH_UP_WITHIN`]. For what was before this
//! start counts what the store knows ([`Silences`]); only of a device it never heard, or where the clock cannot say how
//! long ago, the most is taken. So whoever connects again and again, or makes the gateway start again and again, brings
//! no more than its rate allows in the long run. Where nothing is lost by slowness (the endpoint), nothing is brought
//! in faster.
//!
//! Bounds: one bucket for each device that is attached and has spoken, at most [`BUCKETS_MAX`]; a device over its limit is
//! logged once in [`LOG_EVERY`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use floorgate_model::DeviceId;
use tokio::time::Instant;

use super::pace::Pace;

/// Messages a second of one device unless told.
pub const MESSAGES_PER_SECOND: u32 = 20;
/// Messages of one device at once, after a pause, unless told.
pub const MESSAGE_BURST: u32 = 100;
/// Buckets kept; beyond, those that are full again are forgotten, which changes nothing.
pub const BUCKETS_MAX: usize = 10_000;
/// A device over its limit is logged at most this often.
pub const LOG_EVERY: Duration = Duration::from_secs(60);

/// So much of its rate, and no more, may a device bring in after a silence: 100,000 messages by default. A day of a device
/// that sends one a second is 86,400; whoever sends at its limit has an hour and 23 minutes.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(5_000);
/// What has not been brought in by then is a flood again. A day's messages of a device that sends one a second, taken in
/// faster than the 20 a second that need no exemption, are through in 86,400 / 20 = 4,320 s, however many share the link.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(7_200);

/// What one device may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Messages a second, lasting.
    pub per_second: u32,
    /// Messages at once after a pause.
    pub burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: MESSAGES_PER_SECOND, burst: MESSAGE_BURST }
    }
}

/// What all devices may send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rates {
    /// Those with no limit of their own.
    pub standard: Rate,
    /// Those with one.
    pub own: BTreeMap<DeviceId, Rate>,
}

impl Rates {
    fn of(&self, device: &DeviceId) -> Rate {
        self.own.get(device).copied().unwrap_or(self.standard)
    }
}

/// The rates that count now. Cheap to clone; all clones see a reload at once.
#[derive(Debug, Clone, Default)]
pub struct LiveRates(Arc<RwLock<Rates>>);

impl LiveRates {
    /// Others from now on. A device whose rate changes begins with a full bucket.
    pub fn replace(&self, rates: Rates) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rates;
    }

    fn of(&self, device: &DeviceId) -> Rate {
        self.0.read().unwrap_or_else(PoisonError::into_inner).of(device)
    }
}

impl From<Rates> for LiveRates {
    fn from(rates: Rates) -> Self {
        Self(Arc::new(RwLock::new(rates)))
    }
}

/// How long the devices had been silent at the start; those that are not in it, nobody knows how long.
pub type Silences = HashMap<DeviceId, Duration>;

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    pace: Pace,
    told: Option<Instant>,
    /// When it last let a message pass.
    last: Option<Instant>,
    /// How long it had been silent when it was made, at most [`CATCH_UP_MAX`].
    silent_before: Duration,
    /// Messages that may still come beyond the pace, until then.
    credit: u64,
    credit_until: Instant,
}

impl Bucket {
    fn new(rate: Rate, silent_before: Duration, now: Instant) -> Self {
        let pace = Pace::new(rate.per_second, rate.burst, now);
        Self { rate, pace, told: None, last: None, silent_before, credit: 0, credit_until: now }
    }

    fn take(&mut self, rate: Rate, catching_up: bool, now: Instant) -> Result<(), Instant> {
        if self.rate != rate {
            (self.rate, self.pace) = (rate, Pace::new(rate.per_second, rate.burst, now));
        }
        if catching_up {
            self.credit_silence(rate, now);
        }
        let taken = match self.pace.take(now) {
            Err(_) if self.credit > 0 && now < self.credit_until => {
                self.credit -= 1;
                Ok(())
            }
            taken => taken,
        };
        if taken.is_ok() {
            self.last = Some(now);
        }
        taken
    }

    /// What its rate allows for the time it was silent, less the burst that it has anyway. Silences do not add up: who
    /// speaks seldom saves nothing for a flood.
    fn credit_silence(&mut self, rate: Rate, now: Instant) {
        let silent = self.last.map_or(self.silent_before, |last| now.duration_since(last)).min(CATCH_UP_MAX);
        let allowed = silent.as_secs() * u64::from(rate.per_second);
        let credit = allowed.saturating_sub(u64::from(rate.burst));
        let left = if now < self.credit_until { self.credit } else { 0 };
        if credit > left {
            (self.credit, self.credit_until) = (credit, now + CATCH_UP_WITHIN);
        }
    }
}

/// The buckets of all devices.
#[derive(Debug)]
pub(super) struct Limits {
    rates: LiveRates,
    buckets: Mutex<HashMap<DeviceId, Bucket>>,
    /// At the start, which was then.
    silences: (Silences, Instant),
    /// What was kept somewhere may come all at once.
    catching_up: AtomicBool,
}

impl Limits {
    pub(super) fn new(rates: impl Into<LiveRates>, silences: Silences) -> Self {
        Self {
            rates: rates.into(),
            buckets: Mutex::default(),
            silences: (silences, Instant::now()),
            catching_up: AtomicBool::new(false),
        }
    }

    /// A connection to a broker has been made: what was kept comes now, and again after each silence.
    pub(super) fn connected(&self) {
        self.catching_up.store(true, Ordering::Relaxed);
    }

    /// Takes one message's place; if there is none, the time at which there will be one.
    pub(super) fn take(&self, device: &DeviceId, now: Instant) -> Result<(), Instant> {
        let (rate, catching_up) = (self.rates.of(device), self.catching_up.load(Ordering::Relaxed));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(device) {
            let taken = bucket.take(rate, catching_up, now);
            if taken.is_err() && bucket.told.is_none_or(|told| now.duration_since(told) >= LOG_EVERY) {
                bucket.told = Some(now);
                let Rate { per_second, burst } = rate;
                drop(buckets);
                tracing::warn!(device_id = %device, per_second, burst, "the device sends more than it may; raise its limit or calm it");
            }
            return taken;
        }
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|_, bucket| !bucket.pace.is_full(now));
        }
        let (silences, start) = &self.silences;
        let before = silences.get(device).map(|silence| *silence + now.saturating_duration_since(*start));
        let mut bucket = Bucket::new(rate, before.unwrap_or(CATCH_UP_MAX), now);
        let taken = bucket.take(rate, catching_up, now);
        buckets.insert(device.clone(), bucket);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    #[test]
    fn each_device_has_its_own_limit_and_a_flood_of_one_takes_nothing_from_another() {
        let rates = Rates { own: [(id("fast"), Rate { per_second: 200, burst: 300 })].into(), ..Rates::default() };
        let (limits, start) = (Limits::new(rates, Silences::new()), Instant::now());
        let taken = |device: &str, now| (0..10_000).filter(|_| limits.take(&id(device), now).is_ok()).count();
        assert_eq!((taken("a", start), taken("fast", start), taken("b", start)), (100, 300, 100));
        let next = limits.take(&id("a"), start).unwrap_err();
        assert_eq!(next - start, Duration::from_millis(50));
        let later = start + Duration::from_secs(1);
        assert_eq!((taken("a", later), taken("fast", later)), (20, 200));
    }

    #[test]
    fn other_rates_count_from_the_next_message_on() {
        let rates = LiveRates::from(Rates::default());
        let (limits, start) = (Limits::new(rates.clone(), Silences::new()), Instant::now());
        let taken = |device: &str, now| (0..10_000).filter(|_| limits.take(&id(device), now).is_ok()).count();
        assert_eq!((taken("a", start), taken("b", start)), (100, 100));
        rates.replace(Rates { own: [(id("a"), Rate { per_second: 2, burst: 10 })].into(), ..Rates::default() });
        assert_eq!((taken("a", start), taken("b", start)), (10, 0), "nobody else gets a new bucket");
        let later = start + Duration::from_secs(1);
        assert_eq!((taken("a", later), taken("b", later)), (2, 20));
    }

    #[test]
    fn what_a_broker_kept_for_us_is_no_flood() {
        let (limits, start) = (Limits::new(Rates::default(), Silences::new()), Instant::now());
        let taken = |most: usize, now| (0..most).take_while(|_| limits.take(&id("a"), now).is_ok()).count();
        limits.connected();
        assert_eq!(taken(2_000_000, start), 100_000, "the most: how long it was away is not known");
        let later = start + Duration::from_secs(60);
        assert_eq!(taken(100_000, later), 60 * 20, "no more than its rate for the time it was silent");
        let again = later + Duration::from_secs(86_400);
        assert_eq!(taken(1_000, again), 1_000);
        for second in 1..CATCH_UP_WITHIN.as_secs() {
            assert_eq!(taken(1, again + Duration::from_secs(second)), 1);
        }
        assert_eq!(taken(200_000, again + CATCH_UP_WITHIN), 100, "what was left is too late");
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_or_makes_it_start_every_few_seconds_brings_no_more_than_its_rate() {
        let (start, mut passed, mut silences) = (Instant::now(), 0, Silences::from([(id("a"), Duration::ZERO)]));
        for _start in 0..20 {
            let limits = Limits::new(Rates::default(), silences);
            for _connection in 0..5 {
                limits.connected();
                tokio::time::advance(Duration::from_secs(7)).await;
                passed += (0..10_000).take_while(|_| limits.take(&id("a"), Instant::now()).is_ok()).count();
            }
            // What the store knows at the next start.
            tokio::time::advance(Duration::from_secs(1)).await;
            silences = [(id("a"), Duration::from_secs(1))].into();
        }
        let allowed = usize::try_from(start.elapsed().as_secs()).unwrap() * 20;
        // A start makes a full bucket, 100 at once; nothing else is beyond the rate.
        assert!(passed <= allowed + 20 * 100, "{passed} passed of {allowed}");
    }

    #[test]
    fn what_the_store_knows_of_a_silence_is_all_that_may_come_after_a_start() {
        let silences = Silences::from([(id("a"), Duration::from_secs(60)), (id("b"), Duration::from_secs(86_400))]);
        let (limits, start) = (Limits::new(Rates::default(), silences), Instant::now());
        limits.connected();
        let taken = |device: &str, now| (0..200_000).take_while(|_| limits.take(&id(device), now).is_ok()).count();
        assert_eq!(taken("a", start), 60 * 20);
        assert_eq!(taken("b", start), 100_000);
        assert_eq!(taken("unknown", start), 100_000);
    }

    #[test]
    fn who_speaks_seldom_saves_nothing_for_a_flood() {
        let (limits, start) = (Limits::new(Rates::default(), Silences::new()), Instant::now());
        limits.connected();
        let mut now = start;
        for _ in 0..10_000 {
            limits.take(&id("a"), now).unwrap();
            now += Duration::from_secs(10);
        }
        let taken = (0..10_000).take_while(|_| limits.take(&id("a"), now).is_ok()).count();
        assert_eq!(taken, 200, "its rate for the last ten seconds");
    }

    #[test]
    fn a_flood_without_a_pause_passes_at_the_limit_once_its_silence_is_used_up() {
        let (limits, start) = (Limits::new(Rates::default(), Silences::new()), Instant::now());
        limits.connected();
        while limits.take(&id("a"), start).is_ok() {}
        let passed = (0..60_000).filter(|n| limits.take(&id("a"), start + Duration::from_millis(*n)).is_ok()).count();
        assert!((1_199..=1_200).contains(&passed), "20 a second: {passed} in a minute");
    }

    #[test]
    fn buckets_that_are_full_again_give_their_place() {
        let (limits, start) = (Limits::new(Rates::default(), Silences::new()), Instant::now());
        for n in 0..BUCKETS_MAX {
            limits.take(&id(&format!("D{n}")), start).unwrap();
        }
        limits.take(&id("one-more"), start + Duration::from_secs(1)).unwrap();
        assert_eq!(limits.buckets.lock().unwrap().len(), 1);
    }
}
