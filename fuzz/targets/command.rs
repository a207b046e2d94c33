//! Any bytes as a command, and as a topic: refused, or valid ids, an expiry in bounds, and a topic that reads back.
#![no_main]

use floorgate::mqtt::codec::{ISSUER_MAX, parse_command};
use floorgate::mqtt::topics::{self, Parsed, Template, TopicScheme};
use floorgate_model::command::{LIFETIME_MAX, PARAMETERS_MAX, PAYLOAD_MAX};
use floorgate_model::{CommandId, DeviceId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let device = DeviceId::new("PUMP-1").expect("a valid id");
    if let Ok(request) = parse_command(&device, bytes) {
        assert!(bytes.len() <= PAYLOAD_MAX && request.device_id == device);
        assert!(request.expires_at <= request.issued_at.saturating_add(LIFETIME_MAX), "never stale");
        assert!(CommandId::new(request.command_id.as_str()).is_ok());
        assert!(request.parameters.len() <= PARAMETERS_MAX && (1..=64).contains(&request.command.len()));
        assert!(request.issuer.as_ref().is_none_or(|issuer| issuer.chars().count() <= ISSUER_MAX));
        // A redelivery has the same bytes and has to have the same id, or it would run twice.
        assert_eq!(parse_command(&device, bytes), Ok(request));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        topic(text, &device);
    }
});

fn topic(text: &str, device: &DeviceId) {
    let scheme = TopicScheme::default();
    if let Parsed::Device(kind, id) = scheme.parse(text) {
        assert_eq!(scheme.topic(kind, &id), text);
    }
    if let Some(id) = topics::command_device(text).and_then(|id| DeviceId::new(id).ok()) {
        assert_eq!(topics::commands(&id), text);
    }
    if let Ok(template) = Template::new(text) {
        assert_eq!(template.id_text(&template.topic(device)), Some(device.as_str()));
    }
}
