//! Which devices could have been meant?
//!
//! Devices are never guessed: a name that is not exactly an id does nothing. The answer names the ids that are near,
//! for the caller to choose: by the words of the id, the type and the location ("line 7 pressure"), or by letters
//! ("SENSOR-LINE7-PRES-001").

use std::collections::BTreeSet;

use floorgate_model::table::devices;

use crate::age::text;
use crate::store::Item;

/// Most ids in `did_you_mean`.
pub(crate) const SUGGESTIONS_MAX: usize = 5;
/// Words of what was asked for that have to be found in a device.
const WORDS_SHARE: f64 = 0.6;
/// Likeness by letters, from 0 to 1, from which an id is named.
const LETTERS_LIKE: f64 = 0.8;
/// Most characters of a name that are compared.
const NAME_MAX: usize = 64;

/// `SENSOR-LINE7-PRESS-001` → `sensor line 7 press 1`.
fn words(text: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut word = String::new();
    for c in text.chars().take(4 * NAME_MAX).chain(" ".chars()) {
        let breaks = !c.is_alphanumeric()
            || word.chars().next_back().is_some_and(|last| last.is_ascii_digit() != c.is_ascii_digit());
        if breaks && !word.is_empty() {
            let number = word.trim_start_matches('0');
            words.insert(if number.is_empty() { word.clone() } else { number.to_owned() });
            word.clear();
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
    }
    words
}

/// `press` is meant by `pressure`, and the other way round; numbers have to be equal.
fn same_word(asked: &str, known: &str) -> bool {
    let long_enough = asked.len().min(known.len()) >= 4;
    asked == known || (long_enough && (asked.starts_with(known) || known.starts_with(asked)))
}

/// The ids of `items` that are near `asked`, nearest first.
pub(crate) fn near(asked: &str, items: &[Item]) -> Vec<String> {
    let asked: String = asked.chars().take(NAME_MAX).collect();
    let (asked_words, lower) = (words(&asked), asked.to_lowercase());
    let mut found: Vec<(f64, &str)> = Vec::new();
    for item in items {
        let Some(id) = text(item, devices::DEVICE_ID) else { continue };
        let letters = likeness(&lower, &id.to_lowercase());
        let known: BTreeSet<_> = [Some(id), text(item, devices::DEVICE_TYPE), text(item, devices::LOCATION)]
            .into_iter()
            .flatten()
            .flat_map(words)
            .collect();
        let there = asked_words.iter().filter(|asked| known.iter().any(|known| same_word(asked, known))).count();
        let share = share(there, asked_words.len());
        if letters >= LETTERS_LIKE || share >= WORDS_SHARE {
            // Letters decide among those with the same words.
            found.push((share + letters, id));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    found.into_iter().take(SUGGESTIONS_MAX).map(|(_, id)| id.to_owned()).collect()
}

/// Likeness by letters; nothing where the lengths alone rule it out, because comparing a whole fleet takes its time.
fn likeness(asked: &str, id: &str) -> f64 {
    let (one, other) = (asked.len().min(id.len()), asked.len().max(id.len()));
    if share(one, other) < LETTERS_LIKE { 0.0 } else { strsim::normalized_damerau_levenshtein(asked, id) }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few dozen words or letters")]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fleet() -> Vec<Item> {
        let devices = [
            ("SENSOR-LINE7-PRESS-001", "pressure_sensor", "factory-floor-1/line-7"),
            ("SENSOR-LINE7-TEMP-002", "temperature_sensor", "factory-floor-1/line-7"),
            ("ACTUATOR-LINE3-VALVE-001", "valve_actuator", "factory-floor-1/line-3"),
            ("GATEWAY-FLOOR2-001", "edge_gateway", "factory-floor-2"),
            ("SENSOR-LINE3-VIBR-001", "vibration_sensor", "factory-floor-1/line-3"),
        ];
        let item = |(id, kind, location)| json!({"device_id": id, "device_type": kind, "location": location});
        devices.into_iter().map(|device| item(device).as_object().unwrap().clone()).collect()
    }

    #[test]
    fn the_device_is_found_as_people_write_it() {
        for (asked, meant) in [
            ("line 7 pressure", "SENSOR-LINE7-PRESS-001"),
            ("the pressure sensor on line 7", "SENSOR-LINE7-PRESS-001"),
            ("sensor-line7-press-001", "SENSOR-LINE7-PRESS-001"),
            ("SENSOR-LINE7-PRES-001", "SENSOR-LINE7-PRESS-001"),
            ("SENSOR-LINE7-PRESS-1", "SENSOR-LINE7-PRESS-001"),
            ("line3 vibration", "SENSOR-LINE3-VIBR-001"),
            ("valve 3", "ACTUATOR-LINE3-VALVE-001"),
            ("gateway floor 2", "GATEWAY-FLOOR2-001"),
        ] {
            assert_eq!(near(asked, &fleet()).first().map(String::as_str), Some(meant), "{asked}");
        }
    }

    #[test]
    fn nothing_near_means_nothing_named() {
        for asked in ["", "coffee machine", "💥", "'; DROP TABLE devices", &"x".repeat(10_000)] {
            assert_eq!(near(asked, &fleet()), Vec::<String>::new(), "{asked:.20}");
        }
    }
}
