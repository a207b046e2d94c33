//! The cloud's side of the configuration: which links, with which filters.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use floorgate_model::{DeviceId, GatewayId};

use super::{LinkConfig, Presence};
use crate::clock::Clock;
use crate::mqtt::codec::{GATEWAY_WILL, gateway_payload};
use crate::mqtt::topics;

/// Filters on one connection: AWS IoT allows 50, some are left for what comes.
pub const FILTERS_PER_CONNECTION: usize = 40;

/// Whose commands the cloud links listen to.
#[derive(Debug, Clone, Copy)]
pub enum CloudDevices<'a> {
    /// One filter a device.
    Each(&'a [DeviceId]),
    /// One filter for all, as configured; commands for other gateways' devices are passed over.
    Filter(&'a str),
}

/// The links for these devices: [`FILTERS_PER_CONNECTION`] filters each, at least one link. The first has the base's name,
/// client id and presence, and is the one to get the outbox; further ones are `{name}-2`, `{client_id}-2` and so on.
#[must_use]
pub fn cloud_links(base: &LinkConfig, devices: CloudDevices<'_>) -> Vec<LinkConfig> {
    let filters: Vec<String> = match devices {
        CloudDevices::Each(devices) => devices.iter().map(topics::commands).collect(),
        CloudDevices::Filter(filter) => vec![filter.to_owned()],
    };
    let mut links = vec![LinkConfig { filters: Vec::new(), ..base.clone() }];
    for (n, filters) in filters.chunks(FILTERS_PER_CONNECTION).enumerate() {
        if n == 0 {
            links[0].filters = filters.to_vec();
        } else {
            links.push(further_link(base, n, filters.to_vec()));
        }
    }
    links[0].aws_iot = is_aws_iot(base);
    links
}

/// The link after `n` others.
#[must_use]
pub fn further_link(base: &LinkConfig, n: usize, filters: Vec<String>) -> LinkConfig {
    LinkConfig {
        name: format!("{}-{}", base.name, n + 1),
        client_id: format!("{}-{}", base.client_id, n + 1),
        filters,
        presence: None,
        aws_iot: is_aws_iot(base),
        ..base.clone()
    }
}

fn is_aws_iot(base: &LinkConfig) -> bool {
    base.tls.as_ref().is_some_and(|files| files.identity.is_some())
}

/// What each link is to listen to once these are the devices, one filter each: what is there and still wanted stays on
/// its link, new ones go where there is room, and only then to further links.
#[must_use]
pub fn spread(links: &[Vec<String>], devices: &[DeviceId]) -> Vec<Vec<String>> {
    let mut missing: BTreeSet<String> = devices.iter().map(topics::commands).collect();
    let mut spread: Vec<Vec<String>> = links
        .iter()
        .map(|filters| filters.iter().filter(|filter| missing.remove(*filter)).cloned().collect())
        .collect();
    let mut missing = missing.into_iter();
    for filters in &mut spread {
        let room = FILTERS_PER_CONNECTION.saturating_sub(filters.len());
        filters.extend(missing.by_ref().take(room));
    }
    loop {
        let further: Vec<String> = missing.by_ref().take(FILTERS_PER_CONNECTION).collect();
        if further.is_empty() {
            return spread;
        }
        spread.push(further);
    }
}

/// The gateway's presence on `gateways/{gateway_id}/state`.
#[must_use]
pub fn gateway_presence(gateway: &GatewayId, version: &str, clock: Clock) -> Presence {
    let version = version.to_owned();
    Presence {
        topic: topics::gateway_state(gateway),
        will: Bytes::from_static(GATEWAY_WILL.as_bytes()),
        payload: Arc::new(move |online| gateway_payload(online, &version, clock.now())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floorgate_model::Timestamp;

    #[test]
    fn a_hundred_devices_take_three_connections_and_the_first_speaks_for_the_gateway() {
        let devices: Vec<_> = (0..100).map(|n| DeviceId::new(&format!("D-{n}")).unwrap()).collect();
        let gateway = GatewayId::new("GW-1").unwrap();
        let mut base = LinkConfig::new("cloud", "mqtt://h".parse().unwrap(), "GW-1");
        base.presence = Some(gateway_presence(&gateway, "0.1.0", Clock::set_to(Timestamp::EPOCH)));
        let links = cloud_links(&base, CloudDevices::Each(&devices));
        let ids: Vec<_> = links.iter().map(|link| (link.client_id.as_str(), link.filters.len())).collect();
        assert_eq!(ids, [("GW-1", 40), ("GW-1-2", 40), ("GW-1-3", 20)]);
        let present: Vec<_> = links.iter().map(|link| link.presence.is_some()).collect();
        assert_eq!(present, [true, false, false]);
        let all: Vec<_> = links.iter().flat_map(|link| &link.filters).collect();
        assert_eq!((all[0].as_str(), all[99].as_str()), ("devices/D-0/commands", "devices/D-99/commands"));
    }

    #[test]
    fn a_device_that_stays_keeps_its_link_and_a_new_one_takes_the_room_of_one_that_left() {
        let devices: Vec<_> = (0..80).map(|n| DeviceId::new(&format!("D-{n}")).unwrap()).collect();
        let base = LinkConfig::new("cloud", "mqtt://h".parse().unwrap(), "GW-1");
        let links: Vec<_> = cloud_links(&base, CloudDevices::Each(&devices)).into_iter().map(|l| l.filters).collect();
        assert_eq!(spread(&links, &devices), links);
        let mut others = devices[1..].to_vec();
        others.push(DeviceId::new("NEW").unwrap());
        let after = spread(&links, &others);
        assert_eq!((after.len(), &after[0][..39], &after[1]), (2, &links[0][1..], &links[1]));
        assert_eq!(after[0][39], "devices/NEW/commands");
        others.push(DeviceId::new("NEWER").unwrap());
        assert_eq!(spread(&links, &others)[2], ["devices/NEWER/commands"], "no room: a further link");
        assert_eq!(spread(&links, &[]), [Vec::<String>::new(), Vec::new()], "a link that is there stays");
    }

    #[test]
    fn without_devices_there_is_still_a_link_for_results() {
        let base = LinkConfig::new("cloud", "mqtt://h".parse().unwrap(), "GW-1");
        assert_eq!(cloud_links(&base, CloudDevices::Each(&[])).len(), 1);
        let links = cloud_links(&base, CloudDevices::Filter("devices/+/commands"));
        assert_eq!(links[0].filters, ["devices/+/commands"]);
    }
}
