//! How old is what the tables say?
//!
//! A device's item says when its gateway last heard of it. It cannot say that the gateway itself is gone: nobody writes
//! then. So a gateway's own item, renewed every 30 s, is its lease on all its devices: three times that without a
//! renewal, and everything told of them is `stale`. A `lease_until` in the gateway's item counts instead, where there
//! is one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floorgate_model::table::devices;
use floorgate_model::{DeviceId, Timestamp};
use serde_json::Value;

use crate::store::{Item, Store, StoreError};

/// A gateway that has not renewed its own item for this long is silent: three times its interval of 30 s.
pub(crate) const GATEWAY_LEASE: Duration = Duration::from_secs(90);
/// How far a gateway's clock may be ahead of ours.
pub(crate) const AHEAD_MAX: Duration = Duration::from_secs(300);
/// Longest lease that a gateway may name: one that ends later is of a wrong clock, and is none.
const LEASE_MAX: Duration = Duration::from_secs(3_600);
/// When the lease ends, if the gateway says so itself.
pub(crate) const LEASE_UNTIL: &str = "lease_until";

/// AWS IoT's word on whether a gateway is connected: map of `connected` and `at_ms`, written by `deploy/aws`.
pub(crate) const PRESENCE: &str = "presence";
/// Among a gateway's own readings: records of commands that it still has to write to the tables.
const OUTBOX_RECORDS: &str = "outbox_records";

/// What is known of the gateways of some devices.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Items of gateways, by their ids.
    gateways: BTreeMap<String, Item>,
    /// The gateway that each device is attached to now, by the device's id.
    serving: BTreeMap<String, String>,
}

/// A text of an item.
pub(crate) fn text<'a>(item: &'a Item, attribute: &str) -> Option<&'a str> {
    item.get(attribute).and_then(Value::as_str)
}

/// A time of an item, however it is spelled.
pub(crate) fn time(item: &Item, attribute: &str) -> Option<Timestamp> {
    Timestamp::parse(text(item, attribute)?).ok()
}

impl Leases {
    /// Reads the items of the gateways of `items`.
    pub(crate) async fn of(store: &Store, items: &[Item]) -> Result<Self, StoreError> {
        Self::of_and(store, items, BTreeSet::new()).await
    }

    /// Reads the items of the gateways of `items`, and of some more gateways.
    pub(crate) async fn of_and(store: &Store, items: &[Item], mut named: BTreeSet<String>) -> Result<Self, StoreError> {
        let owned = |item, attribute| text(item, attribute).map(str::to_owned);
        let serving = |item| Some((owned(item, devices::DEVICE_ID)?, owned(item, devices::GATEWAY_ID)?));
        let serving: BTreeMap<_, _> = items.iter().filter_map(serving).collect();
        named.extend(serving.values().cloned());
        // What is no id is no key either, and would cost the whole list.
        named.retain(|id| DeviceId::new(id).is_ok());
        let named: Vec<_> = named.into_iter().collect();
        let found = if named.is_empty() { Vec::new() } else { store.gateways(&named).await? };
        let by_id = found.into_iter().filter_map(|item| Some((text(&item, devices::DEVICE_ID)?.to_owned(), item)));
        Ok(Self { gateways: by_id.collect(), serving })
    }

    /// Why what the item says may no longer be so.
    pub(crate) fn stale(&self, item: &Item, now: Timestamp) -> Option<String> {
        let Some(gateway) = text(item, devices::GATEWAY_ID) else {
            return Some("no gateway has ever reported this device".to_owned());
        };
        let Some(own) = self.gateways.get(gateway) else {
            return Some(format!("its gateway {gateway} is not in the table"));
        };
        let seen = time(own, devices::LAST_SEEN_AT);
        let named = time(own, LEASE_UNTIL).filter(|until| *until <= now.saturating_add(LEASE_MAX));
        let until = named.or_else(|| seen.map(|seen| seen.saturating_add(GATEWAY_LEASE)));
        // A gateway with a wrong clock would be fresh for as long as it is ahead.
        if let Some(seen) = seen.filter(|seen| *seen > now.saturating_add(AHEAD_MAX)) {
            return Some(format!(
                "its gateway {gateway} was last heard at {seen}, which is not yet: one clock is wrong"
            ));
        }
        match (until, seen) {
            (Some(until), _) if now <= until => None,
            (_, Some(seen)) => Some(format!("its gateway {gateway} has been silent since {seen}")),
            _ => Some(format!("its gateway {gateway} has never been heard")),
        }
    }

    /// When the gateway of an item was last heard.
    pub(crate) fn gateway_seen(&self, item: &Item) -> Option<Timestamp> {
        time(self.gateways.get(text(item, devices::GATEWAY_ID)?)?, devices::LAST_SEEN_AT)
    }

    /// As of when a gateway had nothing left to tell the tables of any command, if its newest own readings say so.
    ///
    /// Only of a device that is still attached to it: of one that has moved, another gateway may have taken a command up, as
    /// both hear it during the move, and of one that is gone nobody knows.
    pub(crate) fn told_all(&self, device: &str, gateway: &str) -> Option<Timestamp> {
        if self.serving.get(device).map(String::as_str) != Some(gateway) {
            return None;
        }
        let readings = self.gateways.get(gateway)?.get(devices::LAST_TELEMETRY)?.as_object()?;
        let waiting: f64 = text(readings, OUTBOX_RECORDS)?.parse().ok()?;
        time(readings, "timestamp").filter(|_| waiting == 0.0)
    }

    /// Whether AWS IoT sees the gateway of an item connected, and since when; `None` where nobody tells.
    ///
    /// It says whether commands arrive that way at once. Readings go to the tables by another, so it never makes an answer
    /// stale or fresh.
    pub(crate) fn connected(&self, item: &Item) -> Option<(bool, Timestamp)> {
        let presence = self.gateways.get(text(item, devices::GATEWAY_ID)?)?.get(PRESENCE)?;
        Some((presence.get("connected")?.as_bool()?, Timestamp::from_millis(presence.get("at_ms")?.as_i64()?)))
    }

    /// Adds `last_seen_at`, `age_seconds`, `stale` and `stale_reason` to an answer about a device.
    pub(crate) fn tell(&self, item: &Item, now: Timestamp, answer: &mut Item) {
        if let Some(seen) = time(item, devices::LAST_SEEN_AT) {
            answer.insert(devices::LAST_SEEN_AT.to_owned(), seen.to_string().into());
            answer.insert("age_seconds".to_owned(), now.since(seen).as_secs().into());
        }
        let stale = self.stale(item, now);
        answer.insert("stale".to_owned(), stale.is_some().into());
        if let Some(reason) = stale {
            answer.insert("stale_reason".to_owned(), reason.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(value: Value) -> Item {
        value.as_object().unwrap().clone()
    }

    fn leases(gateway: Value) -> Leases {
        Leases {
            gateways: BTreeMap::from([("GW".to_owned(), item(gateway))]),
            serving: BTreeMap::from([("A".to_owned(), "GW".to_owned())]),
        }
    }

    #[test]
    fn a_gateway_holds_its_lease_for_three_of_its_intervals() {
        let device = item(json!({"device_id": "A", "gateway_id": "GW", "last_seen_at": "2026-11-22T10:00:00.000Z"}));
        let seen = Timestamp::parse("2026-11-22T10:00:00Z").unwrap();
        let leases = leases(json!({"last_seen_at": seen.to_string()}));
        assert_eq!(leases.stale(&device, seen.saturating_add(GATEWAY_LEASE)), None);
        let after = leases.stale(&device, seen.saturating_add(GATEWAY_LEASE + Duration::from_millis(1)));
        assert!(after.unwrap().contains("silent since 2026-11-22T10:00:00.000Z"));
    }

    #[test]
    fn a_gateway_whose_clock_is_ahead_is_not_fresh_for_ever() {
        let device = item(json!({"device_id": "A", "gateway_id": "GW"}));
        let now = Timestamp::parse("2026-11-22T10:00:00Z").unwrap();
        let ahead =
            |by: Duration| leases(json!({"last_seen_at": now.saturating_add(by).to_string()})).stale(&device, now);
        assert_eq!(ahead(AHEAD_MAX), None);
        assert!(ahead(AHEAD_MAX + Duration::from_millis(1)).unwrap().contains("clock"));
    }

    #[test]
    fn a_lease_that_the_gateway_names_itself_counts() {
        let device = item(json!({"device_id": "A", "gateway_id": "GW"}));
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let leases = leases(json!({"last_seen_at": "2026-11-22T10:00:00Z", "lease_until": "2026-11-22T10:00:20Z"}));
        assert_eq!(leases.stale(&device, at("2026-11-22T10:00:20Z")), None);
        assert!(leases.stale(&device, at("2026-11-22T10:00:21Z")).is_some());
    }

    #[test]
    fn a_lease_longer_than_an_hour_is_none() {
        let device = item(json!({"device_id": "A", "gateway_id": "GW"}));
        let now = Timestamp::parse("2026-11-22T10:00:00Z").unwrap();
        let until = |by: Duration| {
            leases(json!({"last_seen_at": "2026-11-22T09:00:00Z", "lease_until": now.saturating_add(by).to_string()}))
                .stale(&device, now)
        };
        assert_eq!(until(LEASE_MAX), None);
        assert!(until(LEASE_MAX + Duration::from_millis(1)).is_some());
    }

    #[test]
    fn a_gateway_has_told_all_only_when_its_outbox_is_empty() {
        let at = "2026-11-22T10:00:00.000Z";
        let told = |waiting: Value| {
            leases(json!({"last_telemetry": {"outbox_records": waiting, "timestamp": at}})).told_all("A", "GW")
        };
        assert_eq!(told(json!("0")), Timestamp::parse(at).ok());
        assert_eq!([told(json!("1")), told(json!(null)), told(json!("none"))], [None; 3]);
        let at = "2026-11-22T10:00:00.000Z";
        let told = leases(json!({"last_telemetry": {"outbox_records": "0", "timestamp": at}}));
        assert!(told.told_all("A", "GW").is_some());
        assert_eq!(
            [told.told_all("GONE", "GW"), told.told_all("A", "OTHER"), leases(json!({})).told_all("A", "GW")],
            [None; 3]
        );
    }

    #[test]
    fn presence_is_known_or_not_and_makes_nothing_stale() {
        let device = item(json!({"device_id": "A", "gateway_id": "GW"}));
        let now = Timestamp::parse("2026-11-22T10:00:00Z").unwrap();
        let gateway = |presence: Value| leases(json!({"last_seen_at": now.to_string(), "presence": presence}));
        let away = gateway(json!({"connected": false, "at_ms": 5, "version": 3}));
        assert_eq!(away.connected(&device), Some((false, Timestamp::from_millis(5))));
        assert_eq!(away.stale(&device, now), None);
        for torn in [json!(null), json!("x"), json!({}), json!({"connected": true}), json!({"at_ms": 5})] {
            assert_eq!(gateway(torn).connected(&device), None);
        }
    }

    #[test]
    fn what_no_gateway_stands_for_is_stale() {
        let now = Timestamp::parse("2026-11-22T10:00:00Z").unwrap();
        let mut answer = Item::new();
        leases(json!({})).tell(
            &item(json!({"device_id": "A", "last_seen_at": "2026-11-22T09:59:00Z"})),
            now,
            &mut answer,
        );
        assert_eq!((&answer["stale"], &answer["age_seconds"]), (&json!(true), &json!(60)));
        assert!(leases(json!({})).stale(&item(json!({"gateway_id": "GW"})), now).is_some());
        assert!(leases(json!({})).stale(&item(json!({"gateway_id": "OTHER"})), now).is_some());
    }
}
