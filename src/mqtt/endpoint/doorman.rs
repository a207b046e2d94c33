//! Counts who stands at the door: connections that have not said CONNECT, and addresses that guess passwords.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Connections that may stand at the door at once, of all addresses; beyond, they are closed at once.
pub const PENDING_MAX: usize = 512;
/// Of one address; beyond, they are closed at once. Addresses of this machine count towards all alone.
pub const PENDING_PER_ADDRESS_MAX: usize = 32;
/// Addresses whose failures are remembered; beyond, the one that failed longest ago is forgotten.
pub const FAILURES_MAX: usize = 1_024;
/// Wait before the answer to the first wrong password; doubles with each further one.
pub const FAILURE_WAIT_FIRST: Duration = Duration::from_millis(250);
/// Longest wait before an answer; shorter than [`super::CONNECT_WAIT`].
pub const FAILURE_WAIT_MAX: Duration = Duration::from_secs(8);
/// After this time without a failure an address has a clean record.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
struct Book {
    pending: usize,
    by_address: HashMap<IpAddr, usize>,
    failures: HashMap<IpAddr, (u32, Instant)>,
}

/// The one at the door. Clones share their book.
#[derive(Debug, Clone, Default)]
pub(super) struct Doorman(Arc<Mutex<Book>>);

/// A place at the door; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    doorman: Doorman,
    address: IpAddr,
}

impl Doorman {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at the door; `None` if too many stand there.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Place> {
        let mut book = self.book();
        let own = book.by_address.get(&address).copied().unwrap_or(0);
        let limit = if address.to_canonical().is_loopback() { PENDING_MAX } else { PENDING_PER_ADDRESS_MAX };
        if book.pending >= PENDING_MAX || own >= limit {
            return None;
        }
        book.pending += 1;
        book.by_address.insert(address, own + 1);
        Some(Place { doorman: self.clone(), address })
    }

    /// Notes a wrong password; how long its answer has to wait.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) -> Duration {
        let mut book = self.book();
        let failures = &mut book.failures;
        failures.retain(|_, (_, last)| now.duration_since(*last) < FAILURE_MEMORY);
        if failures.len() >= FAILURES_MAX && !failures.contains_key(&address) {
            let oldest = failures.iter().min_by_key(|(_, (_, last))| *last).map(|(address, _)| *address);
            oldest.and_then(|address| failures.remove(&address));
        }
        let (count, last) = failures.entry(address).or_insert((0, now));
        *count = count.saturating_add(1);
        *last = now;
        FAILURE_WAIT_FIRST.saturating_mul(1 << (*count - 1).min(10)).min(FAILURE_WAIT_MAX)
    }

    /// Notes a right password: the record is clean.
    pub(super) fn succeeded(&self, address: IpAddr) {
        self.book().failures.remove(&address);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.doorman.book();
        book.pending -= 1;
        if let Some(own) = book.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                book.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn one_address_cannot_take_all_places() {
        let doorman = Doorman::default();
        let places: Vec<_> = std::iter::from_fn(|| doorman.admit(FAR)).collect();
        assert_eq!(places.len(), PENDING_PER_ADDRESS_MAX);
        assert!(doorman.admit(OTHER).is_some());
        drop(places);
        assert!(doorman.admit(FAR).is_some());
        assert_eq!(std::iter::from_fn(|| doorman.admit(HERE).map(std::mem::forget)).count(), PENDING_MAX);
        assert!(doorman.admit(OTHER).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_passwords_wait_longer_each_time_until_a_right_one() {
        let (doorman, now) = (Doorman::default(), Instant::now());
        let waits: Vec<_> = (0..7).map(|_| doorman.failed(FAR, now).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000]);
        assert_eq!(doorman.failed(OTHER, now), FAILURE_WAIT_FIRST);
        doorman.succeeded(FAR);
        assert_eq!(doorman.failed(FAR, now), FAILURE_WAIT_FIRST);
        assert_eq!(doorman.failed(FAR, now + FAILURE_MEMORY), FAILURE_WAIT_FIRST);
    }

    #[test]
    fn only_so_many_failing_addresses_are_remembered() {
        let (doorman, now) = (Doorman::default(), Instant::now());
        for n in 0..5_000_u32 {
            doorman.failed(IpAddr::V4(Ipv4Addr::from_bits(n)), now);
        }
        assert_eq!(doorman.book().failures.len(), FAILURES_MAX);
    }
}
