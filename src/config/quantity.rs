//! Sizes and durations as people write them: `512MiB`, `1s`, `90d`.

use std::time::Duration;

const SIZES: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Bytes from a whole number and its unit.
pub(super) fn size(text: &str) -> Option<u64> {
    scaled(text, &SIZES)
}

/// A duration from a whole number and its unit.
pub(super) fn duration(text: &str) -> Option<Duration> {
    scaled(text, &DURATIONS).map(Duration::from_millis)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The text of a size, in the largest unit that divides it.
pub(super) fn size_text(bytes: u64) -> String {
    let binary = SIZES[..4].iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    binary.map_or_else(|| format!("{bytes}B"), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// The text of a duration, in the largest unit that divides it.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let largest = DURATIONS.iter().rev().find(|(_, factor)| ms >= *factor && ms.is_multiple_of(*factor));
    largest.map_or_else(|| format!("{ms}ms"), |(unit, factor)| format!("{}{unit}", ms / factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_need_a_whole_number_and_a_known_unit() {
        assert_eq!(size("512MiB"), Some(512 << 20));
        assert_eq!(size("1 GB"), Some(1_000_000_000));
        assert_eq!(duration("90d"), Some(Duration::from_secs(90 * 86_400)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "5", "MiB", "-1MiB", "1.5GiB", "5XB", "1mib", "99999999999999999999B", "20000000TiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        for bad in ["1", "s", "1 year", "-1s", "1.5s", "1S"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(n in any::<u64>()) {
            prop_assert_eq!(size(&size_text(n)), Some(n));
            let wait = Duration::from_millis(n);
            prop_assert_eq!(duration(&duration_text(wait)), Some(wait));
        }
    }
}
