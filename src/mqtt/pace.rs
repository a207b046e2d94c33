//! How fast one connection or one device may send: a token bucket that delays, and drops nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Tokens come back at `per_second`, up to `burst`; each packet takes one.
#[derive(Debug, Clone)]
pub(in crate::mqtt) struct Pace {
    interval: Duration,
    burst: Duration,
    /// When the bucket will be full again; the time from now until then is what has been taken.
    full_at: Instant,
}

impl Pace {
    /// A full bucket.
    pub(in crate::mqtt) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, burst: interval * burst.max(1), full_at: now }
    }

    /// Whether nothing has been taken for so long that the bucket is full.
    pub(in crate::mqtt) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// Takes a token; if there is none, the time at which there will be one.
    pub(in crate::mqtt) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let after = self.full_at.max(now) + self.interval;
        match after.checked_duration_since(now + self.burst) {
            Some(wait) if !wait.is_zero() => Err(now + wait),
            _ => {
                self.full_at = after;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_packets_come_at_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(200, 400, start);
        assert_eq!((0..1_000).filter(|_| pace.take(start).is_ok()).count(), 400);
        let next = pace.take(start).unwrap_err();
        assert_eq!(next - start, Duration::from_millis(5));
        assert_eq!((0..10).filter(|_| pace.take(next).is_ok()).count(), 1);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1_000).filter(|_| pace.take(later).is_ok()).count(), 199);
    }
}
