//! Figures in words: ages, sizes, readings with the unit that their name carries.

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::{Reading, Timestamp};

/// Endings of reading names and what they are written as; the longest that fits counts.
const UNITS: [(&str, &str); 22] = [
    ("_mm_s", "mm/s"),
    ("_m_s", "m/s"),
    ("_l_min", "l/min"),
    ("_m3_h", "m³/h"),
    ("_psi", "psi"),
    ("_kpa", "kPa"),
    ("_bar", "bar"),
    ("_pct", "%"),
    ("_percent", "%"),
    ("_hours", "h"),
    ("_seconds", "s"),
    ("_ms", "ms"),
    ("_rpm", "rpm"),
    ("_hz", "Hz"),
    ("_kw", "kW"),
    ("_mb", "MB"),
    ("_mm", "mm"),
    ("_c", "°C"),
    ("_f", "°F"),
    ("_v", "V"),
    ("_a", "A"),
    ("_g", "g"),
];

/// How long, in its largest sensible unit: `4 s`, `12 min`, `7 h`, `3 d`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago; `-` for never.
pub(crate) fn age(now: Timestamp, then: Option<Timestamp>) -> String {
    then.map_or_else(|| "-".to_owned(), |then| duration(now.since(then)))
}

/// A size in bytes: `820 B`, `1.5 MB`.
pub(crate) fn bytes(n: u64) -> String {
    let scaled = |unit: u64| format!("{}.{}", n / unit, n % unit * 10 / unit);
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{} kB", scaled(1_000)),
        1_000_000..1_000_000_000 => format!("{} MB", scaled(1_000_000)),
        _ => format!("{} GB", scaled(1_000_000_000)),
    }
}

/// All readings in one line: `pressure 142.7 psi, temperature 38.2 °C`.
pub(super) fn readings(readings: &BTreeMap<String, f64>) -> String {
    readings.iter().map(|(name, value)| reading(name, *value)).collect::<Vec<_>>().join(", ")
}

fn reading(name: &str, value: f64) -> String {
    let (name, value) =
        (split_unit(name), Reading::new(value).map_or_else(|| "?".to_owned(), |value| value.to_string()));
    let ((name, unit), name_text) = (name, |name: &str| name.replace('_', " "));
    match unit {
        None => format!("{} {value}", name_text(name)),
        Some("%") => format!("{} {value}%", name_text(name)),
        Some(unit) => format!("{} {value} {unit}", name_text(name)),
    }
}

/// A reading's name without its unit, and the unit as it is written.
fn split_unit(name: &str) -> (&str, Option<&'static str>) {
    let fits = |(ending, unit): &(&str, &'static str)| {
        name.strip_suffix(ending).filter(|rest| !rest.is_empty()).map(|rest| (rest, Some(*unit)))
    };
    UNITS.iter().find_map(fits).unwrap_or((name, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_have_the_unit_of_their_name() {
        let all = [("pressure_psi", 142.7), ("temperature_c", 38.0), ("vibration_mm_s", 0.5), ("battery_pct", 75.0)];
        let all = all.into_iter().chain([("connected_devices", 5.0), ("_c", 1.0)]);
        let all = all.map(|(name, value)| (name.to_owned(), value)).collect();
        let line = readings(&all);
        let expected =
            " c 1, battery 75%, connected devices 5, pressure 142.7 psi, temperature 38 °C, vibration 0.5 mm/s";
        assert_eq!(line, expected);
    }

    #[test]
    fn ages_are_told_in_their_largest_sensible_unit() {
        let told: Vec<_> = [0, 4, 119, 120, 7_199, 7_200, 172_800, 9_000_000]
            .map(|seconds| duration(Duration::from_secs(seconds)))
            .to_vec();
        assert_eq!(told, ["0 s", "4 s", "119 s", "2 min", "119 min", "2 h", "2 d", "104 d"]);
        assert_eq!(age(Timestamp::EPOCH, None), "-");
    }

    #[test]
    fn sizes_have_one_decimal_place() {
        assert_eq!(
            [0, 999, 1_000, 1_549_999, 12_300_000_000].map(bytes),
            ["0 B", "999 B", "1.0 kB", "1.5 MB", "12.3 GB"]
        );
    }
}
