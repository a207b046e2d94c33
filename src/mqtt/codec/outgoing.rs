//! What the gateway sends: orders, execution records, its own state.

use bytes::Bytes;
use floorgate_model::{CommandId, CommandName, ExecutionRecord, Timestamp};
use serde_json::{Map, Value, json};

/// The gateway's last will on `gateways/{gateway_id}/state` (contract §3).
pub const GATEWAY_WILL: &str = r#"{"online":false}"#;

/// What goes to `devices/{id}/execute`.
#[must_use]
pub fn execute_payload(
    command_id: &CommandId,
    command: CommandName,
    parameters: &Map<String, Value>,
    issued_at: Timestamp,
    expires_at: Timestamp,
) -> Bytes {
    let order = json!({
        "command_id": command_id,
        "command": command,
        "parameters": parameters,
        "issued_at": issued_at,
        "expires_at": expires_at,
    });
    Bytes::from(order.to_string())
}

/// What goes to `devices/{id}/commands/result`: the record of contract §5.
#[must_use]
pub fn record_payload(record: &ExecutionRecord) -> Bytes {
    // A record holds ids, texts, times and JSON values; none of them can fail to be written.
    serde_json::to_vec(record).unwrap_or_default().into()
}

/// What goes to `gateways/{gateway_id}/state`, retained.
#[must_use]
pub fn gateway_payload(online: bool, version: &str, last_seen_at: Timestamp) -> Bytes {
    Bytes::from(json!({"online": online, "version": version, "last_seen_at": last_seen_at}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::codec::parse_answer;
    use floorgate_model::{DeviceId, ExecutionStatus, GatewayId, Reason};

    #[test]
    fn an_order_carries_what_a_device_repeats_in_its_answer() {
        let device = DeviceId::new("PRESS-1").unwrap();
        let id = CommandId::new("c-1").unwrap();
        let payload = execute_payload(&id, CommandName::Reboot, &Map::new(), Timestamp::EPOCH, Timestamp::EPOCH);
        let mut order: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(order["issued_at"], "1970-01-01T00:00:00.000Z");
        order["status"] = json!("succeeded");
        assert_eq!(parse_answer(&device, order.to_string().as_bytes(), Timestamp::EPOCH).unwrap().command_id, id);
    }

    #[test]
    fn a_record_reads_back_as_it_was() {
        let record = ExecutionRecord {
            command_id: CommandId::new("c-1").unwrap(),
            device_id: DeviceId::new("PRESS-1").unwrap(),
            command: "reboot".into(),
            parameters: Map::new(),
            issuer: Some("agent".into()),
            issued_at: Timestamp::EPOCH,
            expires_at: Timestamp::EPOCH,
            received_at: Timestamp::EPOCH,
            status: ExecutionStatus::Rejected,
            reason: Some(Reason::Retained),
            message: None,
            details: None,
            started_at: None,
            completed_at: Some(Timestamp::EPOCH),
            gateway_id: GatewayId::new("G").unwrap(),
        };
        assert_eq!(serde_json::from_slice::<ExecutionRecord>(&record_payload(&record)).unwrap(), record);
    }

    #[test]
    fn the_gateways_will_and_birth_share_their_first_field() {
        let will: Value = serde_json::from_str(GATEWAY_WILL).unwrap();
        let birth: Value = serde_json::from_slice(&gateway_payload(true, "0.1.0", Timestamp::EPOCH)).unwrap();
        assert_eq!((&will["online"], &birth["online"]), (&json!(false), &json!(true)));
    }
}
