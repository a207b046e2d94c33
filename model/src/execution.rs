//! The life of a command: created, in progress, and exactly one terminal status.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::id::{CommandId, DeviceId, GatewayId};
use crate::timestamp::Timestamp;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word used in payloads and tables.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                let found = Self::ALL.iter().copied().find(|word| word.as_str() == text);
                found.ok_or_else(|| UnknownWord(text.chars().take(64).collect()))
            }
        }
    };
}

/// A word outside its vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a known word here")]
pub struct UnknownWord(pub String);

words! {
    /// Where an execution stands (contract §5): AWS IoT's six, lower case, and two of ours.
    ExecutionStatus {
        /// Accepted and journalled, waiting for its turn.
        Created = "created",
        /// The intent is committed; the device may have it.
        InProgress = "in_progress",
        /// Done, as far as the reason says verified.
        Succeeded = "succeeded",
        /// Not done; the device said so, or could not be reached.
        Failed = "failed",
        /// Not done in time.
        TimedOut = "timed_out",
        /// It cannot be known whether it was done.
        Indeterminate = "indeterminate",
        /// Refused before anything was tried.
        Rejected = "rejected",
        /// Too old to be executed.
        Expired = "expired",
    }
}

impl ExecutionStatus {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Created | Self::InProgress)
    }

    /// Whether an execution may go from this status to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Created => next != Self::Created,
            Self::InProgress => {
                matches!(next, Self::Succeeded | Self::Failed | Self::TimedOut | Self::Indeterminate | Self::Expired)
            }
            _ => false,
        }
    }
}

words! {
    /// Why an execution has its status: stable codes for programs (contract §5).
    Reason {
        /// No device of this id is attached.
        UnknownDevice = "UNKNOWN_DEVICE",
        /// Not one of the four commands.
        UnknownCommand = "UNKNOWN_COMMAND",
        /// Known, but not for this type of device, or the device says it cannot.
        Unsupported = "UNSUPPORTED",
        /// A parameter is missing, unknown, of the wrong type or out of range.
        InvalidParameters = "INVALID_PARAMETERS",
        /// The payload is no command.
        Malformed = "MALFORMED",
        /// Came as a retained message.
        Retained = "RETAINED",
        /// Its time has passed.
        Expired = "EXPIRED",
        /// Its time lies in the future.
        ClockSkew = "CLOCK_SKEW",
        /// The gateway does not know the time well enough to judge.
        ClockUntrusted = "CLOCK_UNTRUSTED",
        /// The id belongs to a different command.
        DuplicateId = "DUPLICATE_ID",
        /// Too many commands wait.
        QueueFull = "QUEUE_FULL",
        /// The device is not there.
        DeviceOffline = "DEVICE_OFFLINE",
        /// The device's readings are too old to judge by.
        Stale = "STALE",
        /// The device is out of service.
        Maintenance = "MAINTENANCE",
        /// Commands are inhibited on this gateway.
        Inhibited = "INHIBITED",
        /// The device is in quarantine.
        Quarantined = "QUARANTINED",
        /// Too soon after the last one.
        CoolDown = "COOL_DOWN",
        /// Too many in a while.
        RateLimited = "RATE_LIMITED",
        /// A reading forbids it.
        Interlock = "INTERLOCK",
        /// A person at the gateway has to approve it.
        ApprovalRequired = "APPROVAL_REQUIRED",
        /// A dry run that would have been accepted.
        DryRunOk = "DRY_RUN_OK",
        /// The device reported a failure.
        DeviceError = "DEVICE_ERROR",
        /// The device did not answer.
        NoResponse = "NO_RESPONSE",
        /// The gateway restarted while it ran.
        Interrupted = "INTERRUPTED",
        /// The device says done; nothing else shows it.
        Unverified = "UNVERIFIED",
    }
}

/// One execution of a command, as it is stored, published and written to the tables (contract §5).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ExecutionRecord {
    /// Given by the sender or derived from the content.
    pub command_id: CommandId,
    /// The device.
    pub device_id: DeviceId,
    /// The command's name as sent; a rejected one may be unknown.
    pub command: String,
    /// The parameters as sent.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The sender's time.
    pub issued_at: Timestamp,
    /// When it must no longer be executed.
    pub expires_at: Timestamp,
    /// The gateway's time at receipt.
    pub received_at: Timestamp,
    /// Where it stands.
    pub status: ExecutionStatus,
    /// Why, as a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why, for people: what, which one, what now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the device told about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Map<String, Value>>,
    /// When the intent was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The gateway that judged it.
    pub gateway_id: GatewayId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_a_terminal_status_and_nothing_goes_back() {
        for from in ExecutionStatus::ALL {
            assert!(!from.may_become(ExecutionStatus::Created));
            for to in ExecutionStatus::ALL {
                assert!(!(from.is_terminal() && from.may_become(*to)), "{from} → {to}");
            }
        }
        assert!(!ExecutionStatus::InProgress.may_become(ExecutionStatus::Rejected));
    }

    #[test]
    fn every_word_reads_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        for status in ExecutionStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }
}
