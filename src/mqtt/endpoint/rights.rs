//! Who a client is and what it may do.
//!
//! | role | who | may publish | may subscribe |
//! |---|---|---|---|
//! | device | its certificate or user name is an attached device's id; without authentication, a client on this machine whose client id is one | its own telemetry, state, result | its own execute, QoS 0 or 1 |
//! | watcher | its certificate or user name is configured as one | nothing | any filter that reaches a floor topic, QoS 0 |
//! | local | any other client on this machine, without authentication | telemetry, state, result of any device | as a watcher |
//!
//! Rights are decided when a client connects, by the devices that are attached then.

use floorgate_model::DeviceId;

use super::filter;
use crate::mqtt::topics::{FloorTopic, Parsed, TopicScheme};

/// What a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// An attached device: speaks for itself alone.
    Device(DeviceId),
    /// A technician's client: sees everything, says nothing.
    Watcher,
    /// A tool on this machine, where nothing asks for authentication.
    Local,
}

/// The highest QoS at which a filter is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    /// Orders: acknowledged.
    Orders,
    /// Watching: at most once.
    Watching,
}

impl Role {
    /// Whether it may publish to `topic`.
    pub(super) fn may_publish(&self, scheme: &TopicScheme, topic: &str) -> bool {
        match (self, scheme.parse(topic)) {
            (Self::Device(own), Parsed::Device(kind, id)) => FloorTopic::INBOUND.contains(&kind) && id == *own,
            // A bad id in a good topic is refused, counted and acknowledged by the intake, as on a broker's link.
            (Self::Local, Parsed::Device(kind, _) | Parsed::BadId(kind)) => FloorTopic::INBOUND.contains(&kind),
            _ => false,
        }
    }

    /// How it may subscribe to `filter`; `None` if not at all.
    pub(super) fn may_subscribe(&self, scheme: &TopicScheme, filter: &str) -> Option<Grant> {
        match self {
            Self::Device(own) => (filter == scheme.topic(FloorTopic::Execute, own)).then_some(Grant::Orders),
            Self::Watcher | Self::Local => {
                let reaches = FloorTopic::ALL.iter().any(|topic| filter::overlap(filter, &scheme.filter(*topic)));
                reaches.then_some(Grant::Watching)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> Role {
        Role::Device(DeviceId::new(id).unwrap())
    }

    #[test]
    fn publishing_follows_the_table() {
        let scheme = TopicScheme::default();
        for (role, topic, allowed) in [
            (device("A"), "devices/A/telemetry", true),
            (device("A"), "devices/A/state", true),
            (device("A"), "devices/A/result", true),
            (device("A"), "devices/A/execute", false),
            (device("A"), "devices/B/telemetry", false),
            (device("A"), "devices/A/other", false),
            (device("A"), "devices/A/commands", false),
            (Role::Watcher, "devices/A/telemetry", false),
            (Role::Watcher, "devices/A/execute", false),
            (Role::Local, "devices/A/telemetry", true),
            (Role::Local, "devices/-bad/state", true),
            (Role::Local, "devices/A/execute", false),
            (Role::Local, "devices/-bad/execute", false),
            (Role::Local, "foreign", false),
        ] {
            assert_eq!(role.may_publish(&scheme, topic), allowed, "{role:?} {topic}");
        }
    }

    #[test]
    fn subscribing_follows_the_table() {
        let scheme = TopicScheme::default();
        for (role, filter, grant) in [
            (device("A"), "devices/A/execute", Some(Grant::Orders)),
            (device("A"), "devices/B/execute", None),
            (device("A"), "devices/+/execute", None),
            (device("A"), "devices/A/#", None),
            (device("A"), "#", None),
            (device("A"), "devices/A/state", None),
            (Role::Watcher, "#", Some(Grant::Watching)),
            (Role::Watcher, "devices/+/state", Some(Grant::Watching)),
            (Role::Watcher, "devices/A/execute", Some(Grant::Watching)),
            (Role::Watcher, "+/A/#", Some(Grant::Watching)),
            (Role::Watcher, "$SYS/#", None),
            (Role::Watcher, "other/#", None),
            (Role::Local, "devices/#", Some(Grant::Watching)),
            (Role::Local, "nothing/of/ours", None),
        ] {
            assert_eq!(role.may_subscribe(&scheme, filter), grant, "{role:?} {filter}");
        }
    }
}
