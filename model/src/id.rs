//! Identifiers: parsed once at the edge, valid ever after.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest device or gateway id, bytes (contract §2, hard).
pub const DEVICE_ID_MAX: usize = 64;
/// Longest command id, bytes. A derived id is 64 hex digits; a given one may carry a prefix.
pub const COMMAND_ID_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// More bytes than the limit.
    #[error("is {length} bytes long; at most {max} are allowed")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("contains {found:?}; allowed are letters, digits and `_.:-`, beginning with a letter or digit")]
    Character {
        /// The first offending character.
        found: char,
    },
}

fn check(text: &str, max: usize) -> Result<(), IdError> {
    let first = text.chars().next().ok_or(IdError::Empty)?;
    if text.len() > max {
        return Err(IdError::TooLong { length: text.len(), max });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(IdError::Character { found: first });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '-');
    match text.chars().find(|c| !allowed(*c)) {
        Some(found) => Err(IdError::Character { found }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` against the pattern of this id.
            ///
            /// # Errors
            /// [`IdError`] when it is empty, too long, or holds a character outside the pattern.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text, $max)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A device: `^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$`, so it can stand in any topic and any key.
    DeviceId,
    DEVICE_ID_MAX
);
id!(
    /// A gateway: MQTT client id and IoT thing name; the same pattern as a device, because it is one.
    GatewayId,
    DEVICE_ID_MAX
);
id!(
    /// A command: as the sender gave it, or derived from its content ([`crate::Request::command_id`]).
    CommandId,
    COMMAND_ID_MAX
);

impl GatewayId {
    /// The gateway seen as a device among its devices.
    #[must_use]
    pub fn as_device(&self) -> DeviceId {
        DeviceId(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_the_seed_are_ids() {
        for id in ["SENSOR-LINE7-PRESS-001", "GATEWAY-FLOOR2-001", "a", "0:1.2_3-4"] {
            assert_eq!(DeviceId::new(id).unwrap().as_str(), id);
        }
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn what_could_change_a_topic_or_a_key_is_no_id() {
        for id in ["", "+", "#", "a/b", "a+", "-a", ".a", "a b", "a\0", "ä", "$SYS", &"x".repeat(65)] {
            assert!(DeviceId::new(id).is_err(), "{id:?}");
        }
        assert!(CommandId::new(&"x".repeat(128)).is_ok() && CommandId::new(&"x".repeat(129)).is_err());
    }
}
