//! How long to wait before trying again: exponential, full jitter, forgotten only after a stable period.

use std::time::Duration;

/// Full-jitter exponential back-off.
///
/// Each wait is drawn evenly between zero and a ceiling that doubles with every failure up to `max`; this spreads the
/// returns of many gateways after one outage. A success does not reset it at once: a link that connects and drops
/// again would otherwise hammer its broker. Only [`Backoff::stable_after`] of uninterrupted success does.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    stable_after: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits between zero and `base`, then doubling ceilings up to `max`.
    #[must_use]
    pub fn new(base: Duration, max: Duration, stable_after: Duration) -> Self {
        Self { base, max, stable_after, failures: 0 }
    }

    /// 1 s to 60 s, reset after 30 s of stability.
    #[must_use]
    pub fn standard() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(30))
    }

    /// How long a success has to last before failures are forgotten.
    #[must_use]
    pub fn stable_after(&self) -> Duration {
        self.stable_after
    }

    /// The next wait, with `random` evenly from `0.0..1.0`.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// Tells how long the last success lasted; forgets the failures if that was long enough.
    pub fn lasted(&mut self, uptime: Duration) {
        if uptime >= self.stable_after {
            self.failures = 0;
        }
    }

    fn ceiling(&self) -> Duration {
        self.base.saturating_mul(2u32.saturating_pow(self.failures.min(30))).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ceilings_double_to_the_maximum_and_fall_back_only_after_a_stable_period() {
        let mut backoff = Backoff::standard();
        let seconds: Vec<_> = (0..8).map(|_| backoff.next_delay(1.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.lasted(Duration::from_secs(29));
        assert_eq!(backoff.next_delay(1.0).as_secs(), 60);
        backoff.lasted(Duration::from_secs(30));
        assert_eq!(backoff.next_delay(1.0).as_secs(), 1);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_over_the_maximum(failures in 0usize..200, random in 0.0f64..1.0) {
            let mut backoff = Backoff::standard();
            for _ in 0..failures {
                backoff.next_delay(random);
            }
            prop_assert!(backoff.next_delay(random) <= Duration::from_secs(60));
        }
    }
}
