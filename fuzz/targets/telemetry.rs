//! Any bytes as telemetry: refused, or 1 to 64 finite readings with usable names.
#![no_main]

use floorgate::mqtt::codec::{FLOOR_PAYLOAD_MAX, parse_telemetry};
use floorgate_model::reading::{METRIC_NAME_MAX, READINGS_MAX, RESERVED_NAMES};
use floorgate_model::{DeviceId, Timestamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let device = DeviceId::new("PRESS-1").expect("a valid id");
    let received_at = Timestamp::from_millis(1_795_341_600_000);
    let report = match parse_telemetry(&device, payload, received_at, false, false) {
        Ok(report) => report,
        Err(refused) => {
            assert!(refused.detail.chars().count() <= 160 && !refused.detail.contains(char::is_control));
            return;
        }
    };
    assert!(payload.len() <= FLOOR_PAYLOAD_MAX);
    assert_eq!((&report.device_id, report.received_at), (&device, received_at));
    assert!((1..=READINGS_MAX).contains(&report.readings.len()));
    for (name, reading) in report.readings.iter() {
        assert!(reading.value().is_finite(), "{name}");
        assert!((1..=METRIC_NAME_MAX).contains(&name.len()) && !RESERVED_NAMES.contains(&name), "{name}");
    }
    // A redelivery has the same bytes and has to mean the same.
    assert_eq!(parse_telemetry(&device, payload, received_at, false, false).as_ref(), Ok(&report));
});
