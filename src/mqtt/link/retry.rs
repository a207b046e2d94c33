//! When to connect again. Pure: times and random numbers come from the caller.
//!
//! # Rules
//!
//! * Two CONNECTs are never closer than [`LinkConfig::connect_spacing`], counted from the moment the first one had
//!   certainly left (its answer or its failure), so slow name services and handshakes cannot bring two together.
//! * Full jitter ([`Backoff`]), forgotten only after a stable period.
//! * **Our own disk**: while the store takes no message the broker is well, so it is asked again after
//!   [`UNSTORED_WAIT`], however long that lasts.
//! * **A rival.** A broker ends the older of two clients with one id without a word, so two of them would throw each
//!   other out for ever, once a second. [`RIVAL_AFTER`] connections in a row that were accepted and then closed by the
//!   broker, without an error and before they had been stable, count as that: the wait is then drawn from
//!   [`LinkConfig::rival_wait`], and the suspicion stays until a connection lasts. A broker that fails in this very way
//!   gets the same treatment; the wait is short enough to keep "back within [`BACK_WITHIN`]".
//! * **A packet no link can read** ([`super::INCOMING_MAX`]): after [`OVERSIZED_MAX`] connections in a row that one ended,
//!   the session is dropped, once in [`DROP_SPACING`] at most. If that does not help, the packet is retained or published
//!   again and again: the waits are those for a rival, so the link does not turn over faster than its bounds allow.

use std::time::Duration;

use tokio::time::Instant;

use super::{CONNECT_WAIT, LinkConfig, OVERSIZED_MAX};
use crate::backoff::Backoff;

/// Longest ceiling of the wait between two attempts.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// A connection that lasts this long makes earlier failures forgotten.
pub const STABLE_AFTER: Duration = Duration::from_secs(30);
/// So many connections in a row closed without a word look like two clients with one id.
pub const RIVAL_AFTER: u32 = 3;
/// Between these the wait is drawn while another client seems to use our id: shortest and longest.
pub const RIVAL_WAIT: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(45));
/// Between connections that end because the store could not take a message; it need not be the network's back-off.
pub const UNSTORED_WAIT: Duration = Duration::from_secs(2);
/// A session is dropped because of an unreadable packet at most this often: each time costs what the broker kept.
pub const DROP_SPACING: Duration = Duration::from_secs(600);
/// A link is up this long after its broker can be reached again, whatever happened before: one attempt that hangs, the
/// longest wait, and a connection.
pub const BACK_WITHIN: Duration = Duration::from_secs(60);
const _: () = assert!(CONNECT_WAIT.as_secs() + RIVAL_WAIT.1.as_secs() < BACK_WITHIN.as_secs());
const _: () = assert!(CONNECT_WAIT.as_secs() + RECONNECT_MAX.as_secs() < BACK_WITHIN.as_secs());

/// How an accepted connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The broker closed it without a word.
    Closed,
    /// It sent a packet over the limit.
    Oversized,
    /// The store could not take a message of it.
    Unstored,
    /// An error, or given up by us.
    Other,
}

/// The memory behind the next wait.
#[derive(Debug)]
pub(super) struct Retry {
    backoff: Backoff,
    spacing: Duration,
    rival_wait: (Duration, Duration),
    /// When the last CONNECT had left at the latest.
    connect_left: Option<Instant>,
    /// Accepted connections in a row that were closed without a word before they were stable.
    closed: u32,
    /// Connections in a row that an unreadable packet ended.
    oversized: u32,
    /// The last connection ended because a message could not be stored.
    unstored: bool,
    dropped_at: Option<Instant>,
}

impl Retry {
    pub(super) fn new(config: &LinkConfig) -> Self {
        Self {
            backoff: config.backoff.clone(),
            spacing: config.connect_spacing,
            rival_wait: config.rival_wait,
            connect_left: None,
            closed: 0,
            oversized: 0,
            unstored: false,
            dropped_at: None,
        }
    }

    /// The attempt has an answer or failed: its CONNECT left before `now`, if at all.
    pub(super) fn connect_left(&mut self, now: Instant) {
        self.connect_left = Some(now);
    }

    /// Nobody there, or refused: nothing that a rival would bring about.
    pub(super) fn not_accepted(&mut self) {
        self.closed = 0;
    }

    /// An accepted connection ended.
    pub(super) fn ended(&mut self, lasted: Duration, cut: Cut) {
        self.backoff.lasted(lasted);
        let brief = lasted < self.backoff.stable_after();
        self.closed = if brief && cut == Cut::Closed { self.closed.saturating_add(1) } else { 0 };
        self.unstored = cut == Cut::Unstored;
        self.oversized = if cut == Cut::Oversized { self.oversized.saturating_add(1) } else { 0 };
    }

    /// Whether another client seems to use our id.
    pub(super) fn suspects_rival(&self) -> bool {
        self.closed >= RIVAL_AFTER
    }

    /// Whether the next connection is to drop the session for an unreadable packet in it.
    pub(super) fn shall_drop(&self, now: Instant) -> bool {
        self.oversized >= OVERSIZED_MAX && self.dropped_at.is_none_or(|at| now.duration_since(at) >= DROP_SPACING)
    }

    /// The session has been dropped.
    pub(super) fn dropped(&mut self, now: Instant) {
        (self.oversized, self.dropped_at) = (0, Some(now));
    }

    /// Whether dropping the session did not help against unreadable packets.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.oversized > 0 && self.dropped_at.is_some() && !self.shall_drop(now)
    }

    /// When to try next, with `random` evenly from `0.0..1.0`.
    pub(super) fn next(&mut self, now: Instant, random: f64) -> Instant {
        let unstored = std::mem::take(&mut self.unstored);
        let usual = if unstored { UNSTORED_WAIT } else { self.backoff.next_delay(random) };
        let (least, most) = self.rival_wait;
        let long = self.suspects_rival() || self.is_stuck(now);
        let wait = if long { least + most.saturating_sub(least).mul_f64(random.clamp(0.0, 1.0)) } else { usual };
        let spaced = self.connect_left.map_or(now, |left| left + self.spacing);
        (now + wait).max(spaced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn retry() -> Retry {
        Retry::new(&LinkConfig::new("cloud", "mqtt://h".parse().unwrap(), "GW-1"))
    }

    const BRIEF: Duration = Duration::from_secs(10);

    #[test]
    fn three_quick_closes_in_a_row_look_like_a_rival_until_a_connection_lasts() {
        let (mut retry, now) = (retry(), Instant::now());
        for n in 1..=5 {
            retry.ended(BRIEF, Cut::Closed);
            assert_eq!(retry.suspects_rival(), n >= 3, "{n}");
        }
        let wait = |retry: &mut Retry, random| (retry.next(now, random) - now).as_secs();
        assert_eq!((wait(&mut retry, 0.0), wait(&mut retry, 1.0)), (20, 45));
        retry.ended(STABLE_AFTER, Cut::Closed);
        assert!(!retry.suspects_rival());
        assert!(wait(&mut retry, 1.0) <= 1, "forgotten");
    }

    #[test]
    fn errors_and_refusals_are_no_rival() {
        let mut retry = retry();
        for _ in 0..10 {
            retry.ended(BRIEF, Cut::Closed);
            retry.ended(BRIEF, Cut::Closed);
            retry.not_accepted();
            assert!(!retry.suspects_rival());
            retry.ended(BRIEF, Cut::Closed);
            retry.ended(BRIEF, Cut::Closed);
            retry.ended(BRIEF, Cut::Other);
            assert!(!retry.suspects_rival());
        }
    }

    #[test]
    fn while_our_own_disk_fails_the_broker_is_asked_again_soon() {
        let (mut retry, now) = (retry(), Instant::now());
        for _ in 0..100 {
            retry.ended(BRIEF, Cut::Unstored);
            assert_eq!(retry.next(now, 1.0) - now, UNSTORED_WAIT);
        }
        assert!(retry.next(now, 1.0) - now <= Duration::from_secs(1), "and no back-off has grown");
    }

    #[test]
    fn a_session_is_dropped_once_and_if_that_does_not_help_the_link_slows_down() {
        let (mut retry, now) = (retry(), Instant::now());
        retry.ended(BRIEF, Cut::Oversized);
        assert!(!retry.shall_drop(now) && !retry.is_stuck(now));
        retry.ended(BRIEF, Cut::Oversized);
        assert!(retry.shall_drop(now));
        retry.dropped(now);
        for _ in 0..20 {
            retry.ended(BRIEF, Cut::Oversized);
            assert!(!retry.shall_drop(now) && retry.is_stuck(now));
            assert!(retry.next(now, 0.0) - now >= RIVAL_WAIT.0);
        }
        assert!(retry.shall_drop(now + DROP_SPACING));
    }

    proptest! {
        /// Whatever happens, CONNECTs are a second apart, and no wait is longer than promised.
        #[test]
        fn a_connect_is_never_early_and_a_wait_never_too_long(
            steps in proptest::collection::vec((0u8..5, 0u64..40_000, 0u64..10_000, 0.0f64..1.0), 1..1_000),
        ) {
            let (mut retry, mut now) = (retry(), Instant::now());
            let mut connect_sent = None;
            for (what, lasted, connecting, random) in steps {
                let sent = now + Duration::from_millis(connecting / 2);
                let apart = connect_sent.map(|before| sent - before);
                prop_assert!(apart.is_none_or(|apart| apart >= Duration::from_secs(1)), "{:?}", apart);
                connect_sent = Some(sent);
                now += Duration::from_millis(connecting);
                retry.connect_left(now);
                let lasted = Duration::from_millis(lasted);
                match what {
                    0 => retry.not_accepted(),
                    1 if retry.shall_drop(now) => retry.dropped(now),
                    n => {
                        now += lasted;
                        retry.ended(lasted, [Cut::Closed, Cut::Oversized, Cut::Other][usize::from(n % 3)]);
                    }
                }
                let next = retry.next(now, random);
                prop_assert!(next - now <= RIVAL_WAIT.1);
                now = next;
            }
        }
    }
}
