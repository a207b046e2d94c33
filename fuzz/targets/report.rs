//! Any bytes as a state (first byte even) or an answer (odd): refused, or within its limits.
#![no_main]

use std::collections::BTreeMap;

use floorgate::mqtt::codec::{
    CONFIGURATION_KEYS_MAX, CONFIGURATION_TEXT_MAX, FIRMWARE_MAX, FLOOR_PAYLOAD_MAX, REASON_MAX, parse_answer,
    parse_state,
};
use floorgate_model::{CommandId, CommandName, DeviceId, Timestamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, payload)) = bytes.split_first() else { return };
    let device = DeviceId::new("VALVE-1").expect("a valid id");
    let received_at = Timestamp::from_millis(1_795_341_600_000);
    if choice % 2 == 0 {
        let Ok(state) = parse_state(&device, payload, received_at, choice & 2 != 0) else { return };
        assert!(payload.len() <= FLOOR_PAYLOAD_MAX && state.device_id == device);
        assert!(state.firmware_version.is_none_or(|version| version.len() <= FIRMWARE_MAX));
        assert!(state.commands.is_none_or(|commands| commands.len() <= CommandName::ALL.len()));
        check(state.configuration);
    } else {
        let Ok(answer) = parse_answer(&device, payload, received_at) else { return };
        assert!(payload.len() <= FLOOR_PAYLOAD_MAX && answer.device_id == device);
        assert!(CommandId::new(answer.command_id.as_str()).is_ok());
        assert!(answer.reason.is_none_or(|reason| reason.chars().count() <= REASON_MAX));
        check(answer.configuration);
    }
});

fn check(configuration: Option<BTreeMap<String, String>>) {
    let Some(configuration) = configuration else { return };
    assert!(configuration.len() <= CONFIGURATION_KEYS_MAX);
    for (key, value) in configuration {
        assert!(key.len() <= CONFIGURATION_TEXT_MAX && value.len() <= CONFIGURATION_TEXT_MAX, "{key}");
    }
}
