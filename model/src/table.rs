//! The DynamoDB tables: names of attributes and indexes, and how DynamoDB counts an item's size (contract §4).

use crate::reading::Reading;

/// Attributes of `iot-devices` (PK `device_id`).
pub mod devices {
    /// Partition key.
    pub const DEVICE_ID: &str = "device_id";
    /// The type whose profile applies.
    pub const DEVICE_TYPE: &str = "device_type";
    /// Where it stands; partition key of [`LOCATION_INDEX`].
    pub const LOCATION: &str = "location";
    /// When it was first registered.
    pub const REGISTERED_AT: &str = "registered_at";
    /// Shown status.
    pub const STATUS: &str = "status";
    /// Why it has this status.
    pub const STATUS_REASON: &str = "status_reason";
    /// Since when.
    pub const STATUS_SINCE: &str = "status_since";
    /// Administrative overlay.
    pub const ADMIN_STATE: &str = "admin_state";
    /// Firmware version as the device reports it.
    pub const FIRMWARE_VERSION: &str = "firmware_version";
    /// Map of strings: the newest readings and their `timestamp`.
    pub const LAST_TELEMETRY: &str = "last_telemetry";
    /// When the gateway last heard of it.
    pub const LAST_SEEN_AT: &str = "last_seen_at";
    /// The gateway it is attached to.
    pub const GATEWAY_ID: &str = "gateway_id";
    /// Number; grows with every write of the gateway.
    pub const SHADOW_VERSION: &str = "shadow_version";
    /// Map of strings: the device's configuration.
    pub const CONFIGURATION: &str = "configuration";
    /// Map: the last command, created by the tools.
    pub const LAST_COMMAND: &str = "last_command";
    /// When the tools created it.
    pub const LAST_COMMAND_AT: &str = "last_command_at";
    /// Map: the last execution, as the gateway knows it.
    pub const LAST_EXECUTION: &str = "last_execution";
    /// Index by location, as the seed creates it.
    pub const LOCATION_INDEX: &str = "location-index";
}

/// Attributes of `iot-telemetry-history` (PK `device_id`, SK `timestamp`).
pub mod history {
    /// Sort key: time of the block's first sample.
    pub const TIMESTAMP: &str = "timestamp";
    /// Time of its last sample.
    pub const END: &str = "end";
    /// Number of samples.
    pub const COUNT: &str = "count";
    /// List of numbers: each sample's distance from the first, milliseconds.
    pub const OFFSETS_MS: &str = "offsets_ms";
    /// Map: metric → list of N, S or NULL, one element a sample.
    pub const READINGS: &str = "readings";
    /// Of a gap record: time of the first reading that is missing, as well as it is known.
    pub const FROM: &str = "from";
    /// Of a gap record: how many readings are missing.
    pub const LOST: &str = "lost";
    /// Of a gap record: why, a code of [`crate::LossReason`].
    pub const REASON: &str = "reason";
    /// Of a gap record, if something is left of its readings: map of metric → [`MIN`], [`MAX`], [`MEAN`], [`COUNT`].
    pub const SUMMARY: &str = "summary";
    /// Smallest value.
    pub const MIN: &str = "min";
    /// Largest value.
    pub const MAX: &str = "max";
    /// Arithmetic mean.
    pub const MEAN: &str = "mean";
    /// TTL, epoch seconds.
    pub const EXPIRES_AT: &str = "expires_at";
    /// Only where some of the times are a guess: [`UNSYNCHRONISED`].
    pub const CLOCK: &str = "clock";
    /// The gateway did not know the time when it took these samples, and never learnt it. Their order is right; their
    /// times are not before the truth, give or take the drift of a clock, and may be after it by any span the gateway's
    /// own clock was ahead.
    pub const UNSYNCHRONISED: &str = "unsynchronised";
    /// Most bytes of one item: one write unit.
    pub const ITEM_BYTES_MAX: usize = 1_024;
}

/// Attributes of `iot-commands` (PK `device_id`, SK `command_id`) are the fields of
/// [`crate::ExecutionRecord`], spelled alike.
pub mod commands {
    /// Sort key.
    pub const COMMAND_ID: &str = "command_id";
    /// Where the execution stands.
    pub const STATUS: &str = "status";
    /// TTL, epoch seconds, of what need not be kept: dry runs, and that somebody read a status. (`expires_at` is a text, and
    /// the command's own.)
    pub const FORGET_AT: &str = "forget_at";
}

/// Bytes DynamoDB counts for a number: about one per two significant digits, plus one, plus one for a sign.
/// Rounded up, so an item is never larger than counted.
#[must_use]
pub fn number_size(text: &str) -> usize {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    digits / 2 + 2 + usize::from(text.starts_with('-'))
}

/// Bytes DynamoDB counts for one reading inside a list (one byte an element on top of the value).
#[must_use]
pub fn reading_size(reading: Reading) -> usize {
    let text = reading.to_string();
    1 + if reading.fits_table_number() { number_size(&text) } else { text.len() }
}
