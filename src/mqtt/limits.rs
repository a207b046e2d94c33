//! How many messages one device may send: a bucket for each, so that a flooding device costs its neighbours nothing.
//!
//! What happens beyond the limit is decided by whoever asks: the endpoint reads the client more slowly
//! ([`super::Intake::admit`]), a link that carries many devices declares readings lost ([`super::overflow`]).
//!
//! What a broker kept while nobody was connected comes all at once and is no flood: after a connection is made
//! ([`Limits::connected`]) each device may bring in what its rate allows for the time since its last message, at most
//! [`CATCH_UP_MAX`] of it (also after a start, when that time is not known), within [`CATCH_UP_WITHIN`].
//!
//! Bounds: one bucket for each device that is attached and has spoken, at most [`BUCKETS_MAX`]; a device over its limit is
//! logged once in [`LOG_EVERY`].

use std::collections::{BTreeMap, HashMap};
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

/// So much of its rate, and no more, may a device bring in after a connection was made: 72,000 messages by default.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(3_600);
/// What has not been brought in by then is a flood again.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(600);

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

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    pace: Pace,
    told: Option<Instant>,
    /// When it last let a message pass.
    last: Instant,
    /// The connection for which `credit` was given.
    connection: u64,
    /// Messages that may still come beyond the pace.
    credit: u64,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            pace: Pace::new(rate.per_second, rate.burst, now),
            told: None,
            last: now,
            connection: 0,
            credit: 0,
        }
    }

    fn take(&mut self, rate: Rate, caught_up: Option<(u64, Instant)>, now: Instant) -> Result<(), Instant> {
        if self.rate != rate {
            (self.rate, self.pace) = (rate, Pace::new(rate.per_second, rate.burst, now));
        }
        if let Some((connection, _)) = caught_up.filter(|(connection, _)| *connection != self.connection) {
            // Nothing was heard before: how long the broker has been keeping is not known.
            let away =
                if self.connection == 0 { CATCH_UP_MAX } else { now.duration_since(self.last).min(CATCH_UP_MAX) };
            let most = CATCH_UP_MAX.as_secs() * u64::from(rate.per_second);
            self.credit = (self.credit + away.as_secs() * u64::from(rate.per_second)).min(most);
            self.connection = connection;
        }
        let taken = match self.pace.take(now) {
            Err(_) if self.credit > 0 && caught_up.is_some_and(|(_, until)| now < until) => {
                self.credit -= 1;
                Ok(())
            }
            taken => taken,
        };
        if taken.is_ok() {
            self.last = now;
        }
        taken
    }
}

/// The buckets of all devices.
#[derive(Debug)]
pub(super) struct Limits {
    rates: LiveRates,
    buckets: Mutex<HashMap<DeviceId, Bucket>>,
    /// The number of the connection, and until when it may catch up.
    connection: Mutex<Option<(u64, Instant)>>,
}

impl Limits {
    pub(super) fn new(rates: impl Into<LiveRates>) -> Self {
        Self { rates: rates.into(), buckets: Mutex::default(), connection: Mutex::default() }
    }

    /// A connection has been made, and what was kept for it comes now.
    pub(super) fn connected(&self, now: Instant) {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let number = connection.map_or(1, |(number, _)| number + 1);
        *connection = Some((number, now + CATCH_UP_WITHIN));
    }

    /// Takes one message's place; if there is none, the time at which there will be one.
    pub(super) fn take(&self, device: &DeviceId, now: Instant) -> Result<(), Instant> {
        let (rate, connection) =
            (self.rates.of(device), *self.connection.lock().unwrap_or_else(PoisonError::into_inner));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(device) {
            let taken = bucket.take(rate, connection, now);
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
        let mut bucket = Bucket::new(rate, now);
        let taken = bucket.take(rate, connection, now);
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
        let (limits, start) = (Limits::new(rates), Instant::now());
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
        let (limits, start) = (Limits::new(rates.clone()), Instant::now());
        let taken = |device: &str, now| (0..10_000).filter(|_| limits.take(&id(device), now).is_ok()).count();
        assert_eq!((taken("a", start), taken("b", start)), (100, 100));
        rates.replace(Rates { own: [(id("a"), Rate { per_second: 2, burst: 10 })].into(), ..Rates::default() });
        assert_eq!((taken("a", start), taken("b", start)), (10, 0), "nobody else gets a new bucket");
        let later = start + Duration::from_secs(1);
        assert_eq!((taken("a", later), taken("b", later)), (2, 20));
    }

    #[test]
    fn what_a_broker_kept_for_us_is_no_flood() {
        let (limits, start) = (Limits::new(Rates::default()), Instant::now());
        let taken = |most: usize, now| (0..most).take_while(|_| limits.take(&id("a"), now).is_ok()).count();
        limits.connected(start);
        assert_eq!(taken(100_000, start), 72_100, "an hour of its rate: how long it was away is not known");
        let later = start + Duration::from_secs(60);
        limits.connected(later);
        assert_eq!(taken(100_000, later), 100 + 60 * 20);
        let quiet = later + Duration::from_secs(86_400);
        assert_eq!(taken(100_000, quiet), 100, "being silent while connected saves nothing up");
        let again = quiet + Duration::from_secs(86_400);
        limits.connected(again);
        assert_eq!(taken(1_000, again), 1_000);
        assert_eq!(taken(100_000, again + CATCH_UP_WITHIN), 100, "too late");
    }

    #[test]
    fn buckets_that_are_full_again_give_their_place() {
        let (limits, start) = (Limits::new(Rates::default()), Instant::now());
        for n in 0..BUCKETS_MAX {
            limits.take(&id(&format!("D{n}")), start).unwrap();
        }
        limits.take(&id("one-more"), start + Duration::from_secs(1)).unwrap();
        assert_eq!(limits.buckets.lock().unwrap().len(), 1);
    }
}
