//! Persistent sessions: the subscriptions of a client that asked to be remembered.
//!
//! A session holds subscriptions and nothing else: no order waits in it (an order for a device that is away is not
//! handed over at all), and watchers get what comes while they are there. It is kept in memory and, through a
//! [`SessionStore`], on disk, so `session_present` is right after a restart too.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::mqtt::BoxFuture;
use crate::shadow::StoreError;

/// Sessions kept. Beyond, the one that has been away longest is forgotten.
pub const SESSIONS_MAX: usize = 1_000;

/// Keeps sessions over a restart. Each entry of a session is the granted QoS, a space, and the filter.
pub trait SessionStore: Send + Sync + 'static {
    /// All sessions: key → entries.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be read.
    fn load(&self) -> BoxFuture<'_, Result<BTreeMap<String, Vec<String>>, StoreError>>;

    /// Keeps a session, or with `None` forgets it.
    ///
    /// # Errors
    /// [`StoreError`] if that is not durable; the session then lasts until the gateway restarts.
    fn save(&self, key: String, entries: Option<Vec<String>>) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Sessions that end with the process.
#[derive(Debug, Default)]
pub struct MemorySessions(Mutex<BTreeMap<String, Vec<String>>>);

impl SessionStore for MemorySessions {
    fn load(&self) -> BoxFuture<'_, Result<BTreeMap<String, Vec<String>>, StoreError>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(std::future::ready(Ok(kept)))
    }

    fn save(&self, key: String, entries: Option<Vec<String>>) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match entries {
            Some(entries) => kept.insert(key, entries),
            None => kept.remove(&key),
        };
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A client's filters with the QoS they were granted.
pub(super) type Subscriptions = BTreeMap<String, u8>;

/// The form in which a session is stored.
pub(super) fn entries(subscriptions: &Subscriptions) -> Vec<String> {
    subscriptions.iter().map(|(filter, qos)| format!("{qos} {filter}")).collect()
}

/// Reads it back; entries of another form are left out.
fn subscriptions(entries: &[String]) -> Subscriptions {
    let read = |entry: &String| match entry.split_once(' ') {
        Some(("0", filter)) => Some((filter.to_owned(), 0)),
        Some(("1", filter)) => Some((filter.to_owned(), 1)),
        _ => None,
    };
    entries.iter().filter_map(read).collect()
}

/// All sessions in memory.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    kept: HashMap<String, Kept>,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    subscriptions: Subscriptions,
    /// Order of last use; the smallest has been away longest.
    used: u64,
}

impl Sessions {
    pub(super) fn restore(stored: &BTreeMap<String, Vec<String>>) -> Self {
        let kept = stored.iter().take(SESSIONS_MAX);
        let kept = kept.map(|(key, list)| (key.clone(), Kept { subscriptions: subscriptions(list), used: 0 }));
        Self { kept: kept.collect(), uses: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Subscriptions> {
        self.kept.get(key).map(|kept| &kept.subscriptions)
    }

    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.kept.remove(key).is_some()
    }

    /// Keeps a session; the key of the one that had to go for it.
    pub(super) fn put(
        &mut self,
        key: &str,
        subscriptions: Subscriptions,
        connected: impl Fn(&str) -> bool,
    ) -> Option<String> {
        self.uses += 1;
        let used = self.uses;
        if let Some(kept) = self.kept.get_mut(key) {
            *kept = Kept { subscriptions, used };
            return None;
        }
        let mut gone = None;
        if self.kept.len() >= SESSIONS_MAX {
            let away = self.kept.iter().min_by_key(|(key, kept)| (connected(key), kept.used));
            gone = away.map(|(key, _)| key.clone());
            gone.as_ref().and_then(|key| self.kept.remove(key));
        }
        self.kept.insert(key.to_owned(), Kept { subscriptions, used });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_back() {
        let held: Subscriptions = [("devices/A/execute".to_owned(), 1), ("a b/#".to_owned(), 0)].into();
        assert_eq!(subscriptions(&entries(&held)), held);
        assert_eq!(subscriptions(&["2 a".to_owned(), "a".to_owned()]), Subscriptions::new());
    }

    #[test]
    fn at_the_limit_the_session_longest_away_is_forgotten() {
        let mut sessions = Sessions::default();
        for n in 0..SESSIONS_MAX {
            assert_eq!(sessions.put(&n.to_string(), Subscriptions::new(), |_| false), None);
        }
        sessions.put("0", Subscriptions::new(), |_| false);
        let gone = sessions.put("new", Subscriptions::new(), |key| key == "1");
        assert_eq!(gone.as_deref(), Some("2"));
        assert_eq!(sessions.len(), SESSIONS_MAX);
        assert!(sessions.get("1").is_some() && sessions.get("2").is_none());
    }
}
