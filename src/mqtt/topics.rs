//! All topics, built and parsed side by side (contract §3).

use floorgate_model::{DeviceId, GatewayId};

/// What a floor topic carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloorTopic {
    /// Readings, device → gateway.
    Telemetry,
    /// State, birth and last will, device → gateway.
    State,
    /// An order, gateway → device.
    Execute,
    /// The device's word on an order, device → gateway.
    Result,
}

impl FloorTopic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Telemetry, Self::State, Self::Execute, Self::Result];
    /// Those the gateway listens to.
    pub const INBOUND: [Self; 3] = [Self::Telemetry, Self::State, Self::Result];
}

/// A topic with one place for the device's id: `prefix{device_id}suffix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    prefix: String,
    suffix: String,
}

/// Why a text is no topic template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The placeholder has to stand in it, once.
    #[error("must contain {{device_id}} exactly once")]
    Placeholder,
    /// The placeholder has to be a whole level, or ids could not be told from their surroundings.
    #[error("must have {{device_id}} as a whole level, between slashes")]
    Level,
    /// Wild cards and NUL have no place in a topic name.
    #[error("must not contain + # or NUL, nor begin with $")]
    Character,
    /// 65,535 bytes is MQTT's limit; ours leaves room for the id.
    #[error("is longer than 512 bytes")]
    TooLong,
}

/// The word that stands for the device's id in a template.
pub const PLACEHOLDER: &str = "{device_id}";

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError`] if ids could not be put in and read back unambiguously.
    pub fn new(text: &str) -> Result<Self, TemplateError> {
        let (prefix, suffix) = text.split_once(PLACEHOLDER).ok_or(TemplateError::Placeholder)?;
        if suffix.contains(PLACEHOLDER) {
            return Err(TemplateError::Placeholder);
        }
        if text.len() > 512 {
            return Err(TemplateError::TooLong);
        }
        if text.contains(['+', '#', '\0']) || text.starts_with('$') {
            return Err(TemplateError::Character);
        }
        let level = (prefix.is_empty() || prefix.ends_with('/')) && (suffix.is_empty() || suffix.starts_with('/'));
        if !level {
            return Err(TemplateError::Level);
        }
        Ok(Self { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }

    /// The topic of one device.
    #[must_use]
    pub fn topic(&self, device: &DeviceId) -> String {
        format!("{}{device}{}", self.prefix, self.suffix)
    }

    /// The filter for every device.
    #[must_use]
    pub fn filter(&self) -> String {
        format!("{}+{}", self.prefix, self.suffix)
    }

    /// The text where this topic has the device's id, whatever it is; `None` if it is another topic.
    #[must_use]
    pub fn id_text<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let id = topic.strip_prefix(self.prefix.as_str())?.strip_suffix(self.suffix.as_str())?;
        (!id.contains('/')).then_some(id)
    }
}

/// What stands where a topic has the device's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A topic of ours with a valid id.
    Device(FloorTopic, DeviceId),
    /// A topic of ours, but no id.
    BadId(FloorTopic),
    /// None of our topics.
    Foreign,
}

/// The floor's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicScheme {
    templates: [Template; 4],
}

impl Default for TopicScheme {
    fn default() -> Self {
        let template = |suffix: &str| Template { prefix: "devices/".to_owned(), suffix: suffix.to_owned() };
        Self { templates: ["/telemetry", "/state", "/execute", "/result"].map(template) }
    }
}

impl TopicScheme {
    /// A scheme from one template for each topic, in the order of [`FloorTopic::ALL`]; `None` if two of them are equal.
    #[must_use]
    pub fn new(templates: [Template; 4]) -> Option<Self> {
        let unequal = (0..4).all(|a| (0..a).all(|b| templates[a] != templates[b]));
        unequal.then_some(Self { templates })
    }

    fn template(&self, topic: FloorTopic) -> &Template {
        let [telemetry, state, execute, result] = &self.templates;
        match topic {
            FloorTopic::Telemetry => telemetry,
            FloorTopic::State => state,
            FloorTopic::Execute => execute,
            FloorTopic::Result => result,
        }
    }

    /// The topic of one device.
    #[must_use]
    pub fn topic(&self, topic: FloorTopic, device: &DeviceId) -> String {
        self.template(topic).topic(device)
    }

    /// The filter for every device.
    #[must_use]
    pub fn filter(&self, topic: FloorTopic) -> String {
        self.template(topic).filter()
    }

    /// What a topic is.
    #[must_use]
    pub fn parse(&self, topic: &str) -> Parsed {
        for kind in FloorTopic::ALL {
            if let Some(id) = self.template(kind).id_text(topic) {
                return DeviceId::new(id).map_or(Parsed::BadId(kind), |id| Parsed::Device(kind, id));
            }
        }
        Parsed::Foreign
    }
}

/// Where the cloud sends commands for one device.
#[must_use]
pub fn commands(device: &DeviceId) -> String {
    format!("devices/{device}/commands")
}

/// The text where a command topic has the device's id; `None` if it is no command topic.
#[must_use]
pub fn command_device(topic: &str) -> Option<&str> {
    let id = topic.strip_prefix("devices/")?.strip_suffix("/commands")?;
    (!id.contains('/')).then_some(id)
}

/// Where execution records of one device go.
#[must_use]
pub fn command_result(device: &DeviceId) -> String {
    format!("devices/{device}/commands/result")
}

/// Where the gateway's own state goes, retained.
#[must_use]
pub fn gateway_state(gateway: &GatewayId) -> String {
    format!("gateways/{gateway}/state")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_template_that_cannot_be_read_back_is_refused() {
        for bad in [
            "devices/telemetry",
            "d/{device_id}/{device_id}",
            "d/x{device_id}/t",
            "d/{device_id}x",
            "+/{device_id}",
            "$SYS/{device_id}",
            "d/{device_id}/#",
        ] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_that_is_none_is_seen_before_it_touches_state() {
        let scheme = TopicScheme::default();
        for id in ["", "+", "#", "-x", "a b", &"x".repeat(65)] {
            let parsed = scheme.parse(&format!("devices/{id}/telemetry"));
            assert_eq!(parsed, Parsed::BadId(FloorTopic::Telemetry), "{id:?}");
        }
        for topic in ["", "devices/a/b/telemetry", "devices/a", "$SYS/x", "devices/a/commands"] {
            assert_eq!(scheme.parse(topic), Parsed::Foreign, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn topics_read_back_as_they_were_built(
            id in "[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}",
            prefix in "([a-z]{1,8}/){0,3}",
            n in 0usize..4,
        ) {
            let device = DeviceId::new(&id).unwrap();
            let template = |s: &str| Template::new(&format!("{prefix}{{device_id}}/{s}")).unwrap();
            let scheme = TopicScheme::new(["a", "b", "c", "d"].map(template)).unwrap();
            let topic = FloorTopic::ALL[n];
            prop_assert_eq!(scheme.parse(&scheme.topic(topic, &device)), Parsed::Device(topic, device.clone()));
            let commands = commands(&device);
            prop_assert_eq!(command_device(&commands), Some(device.as_str()));
        }
    }
}
