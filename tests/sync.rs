//! The real client against a real DynamoDB-compatible endpoint over HTTP, beside the seed's Lambda's own writes.
//!
//! `FLOORGATE_TEST_DYNAMODB=http://127.0.0.1:PORT` names an endpoint that runs already (any implementation); without it
//! the demo's table is built and started.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "sync/current_first.rs"]
mod current_first;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use floorgate::clock::Clock;
use floorgate::shadow::{DeviceView, HistoryBlock, OutboxEntry, StateSnapshot};
use floorgate::sync::table::{Cause, ExecutionWritten, StateWritten};
use floorgate::sync::{CloudTable, CredentialsConfig, DynamoConfig, DynamoTable, SyncError, TableError, provision};
use floorgate_model::{
    AdminState, CommandId, DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, GatewayId, Reading, Readings,
    Reason, Timestamp,
};
use serde_json::json;

#[path = "sync/network.rs"]
mod network;
#[path = "sync/outcomes.rs"]
mod outcomes;

const NOW: i64 = 1_795_341_600_000;
type Item = HashMap<String, AttributeValue>;

/// The demo's table, ended with its standard input.
struct DemoTable(Child);

fn endpoint() -> String {
    static ENDPOINT: OnceLock<(String, Mutex<Option<DemoTable>>)> = OnceLock::new();
    let start = || {
        if let Ok(url) = std::env::var("FLOORGATE_TEST_DYNAMODB") {
            return (url, Mutex::new(None));
        }
        // A runtime of its own on a thread of its own: this runs inside whichever test comes first.
        let build = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(floorgate_demo::builds::table(&floorgate_demo::builds::Progress::default())).unwrap()
        };
        let program = std::thread::spawn(build).join().unwrap();
        let file = std::env::temp_dir().join(format!("floorgate-sync-{}.db", std::process::id()));
        let mut child = Command::new(program).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the table says where it listens");
        (format!("http://{address}"), Mutex::new(Some(DemoTable(child))))
    };
    let (url, child) = ENDPOINT.get_or_init(start);
    assert!(child.lock().unwrap().as_mut().is_none_or(|table| table.0.try_wait().unwrap().is_none()), "it ended");
    url.clone()
}

/// One test's own tables.
struct Bench {
    config: DynamoConfig,
    table: DynamoTable,
    raw: Client,
}

fn config(prefix: &str, gateway: &str) -> DynamoConfig {
    DynamoConfig {
        region: "us-east-1".into(),
        endpoint_url: Some(endpoint()),
        devices_table: format!("{prefix}-devices"),
        history_table: format!("{prefix}-history"),
        commands_table: Some(format!("{prefix}-commands")),
        credentials: CredentialsConfig::Static {
            access_key_id: "AKIATEST".into(),
            secret_access_key: "secret".into(),
            session_token: None,
        },
        gateway_id: GatewayId::new(gateway).unwrap(),
        request_timeout: None,
    }
}

impl Bench {
    async fn new(name: &str) -> Self {
        let config = config(&format!("{name}-{}", std::process::id()), "GW-1");
        let clock = Clock::system(floorgate::clock::Trust::Auto);
        let lines = provision(config.clone(), clock.clone()).await.unwrap();
        assert_eq!(lines.len(), 3, "{lines:?}");
        let raw = Client::from_conf(
            aws_sdk_dynamodb::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new("us-east-1"))
                .credentials_provider(Credentials::new("AKIATEST", "secret", None, None, "test"))
                .http_client(aws_smithy_http_client::Builder::new().build_http())
                .endpoint_url(endpoint())
                .build(),
        );
        Self { table: DynamoTable::new(config.clone(), clock).unwrap(), config, raw }
    }

    async fn item(&self, table: &str, key: &[(&str, &str)]) -> Option<Item> {
        let key = key.iter().map(|(name, value)| ((*name).to_owned(), s(value))).collect();
        self.raw.get_item().table_name(table).set_key(Some(key)).send().await.unwrap().item
    }

    async fn device(&self) -> Item {
        self.item(&self.config.devices_table, &[("device_id", "PRESS-1")]).await.expect("the device has an item")
    }

    /// The update of the seed's `handle_send_command`, expression by expression.
    async fn lambda(&self, command: &str, parameters: &[(&str, &str)], at: &str) {
        let mut update = "SET #last_command = :cmd, #last_command_at = :ts".to_owned();
        let given = parameters.iter().map(|(name, value)| ((*name).to_owned(), s(value))).collect();
        let entry = AttributeValue::M(HashMap::from([
            ("command".to_owned(), s(command)),
            ("parameters".to_owned(), AttributeValue::M(given)),
            ("status".to_owned(), s("delivered")),
        ]));
        let mut request = self.raw.update_item().table_name(&self.config.devices_table).key("device_id", s("PRESS-1"));
        request = request
            .expression_attribute_names("#last_command", "last_command")
            .expression_attribute_names("#last_command_at", "last_command_at")
            .expression_attribute_values(":cmd", entry)
            .expression_attribute_values(":ts", s(at));
        match command {
            "recalibrate" => {
                update.push_str(", #config.#cal_date = :cal_date");
                request = request
                    .expression_attribute_names("#config", "configuration")
                    .expression_attribute_names("#cal_date", "calibration_date")
                    .expression_attribute_values(":cal_date", s(&at[..10]));
            }
            "update_config" => {
                for (name, value) in parameters {
                    update.push_str(&format!(", #config.#param_{name} = :param_{name}"));
                    request = request
                        .expression_attribute_names("#config", "configuration")
                        .expression_attribute_names(format!("#param_{name}"), *name)
                        .expression_attribute_values(format!(":param_{name}"), s(value));
                }
            }
            _ => {
                update.push_str(", #status = :status");
                request = request
                    .expression_attribute_names("#status", "status")
                    .expression_attribute_values(":status", s("rebooting"));
            }
        }
        request.update_expression(update).send().await.unwrap();
    }
}

fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn text<'a>(item: &'a Item, path: &[&str]) -> Option<&'a str> {
    let (last, maps) = path.split_last().unwrap();
    let map = maps.iter().try_fold(item, |map, name| map.get(*name)?.as_m().ok())?;
    map.get(*last)?.as_s().ok().map(String::as_str)
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(NOW + ms)
}

fn view(version: u64) -> DeviceView {
    let mut readings = Readings::new();
    readings.insert("pressure_psi", Reading::new(142.7).unwrap()).unwrap();
    let configuration =
        [("alert_threshold_psi", "150"), ("calibration_date", "2025-06-01")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    DeviceView {
        device_id: DeviceId::new("PRESS-1").unwrap(),
        device_type: "pressure_sensor".into(),
        location: "factory-floor-1/line-7".into(),
        registered_at: at(-1_000),
        status: DeviceStatus::Online,
        observed: DeviceStatus::Online,
        status_reason: None,
        status_since: at(-500),
        admin_state: AdminState::InService,
        firmware_version: Some("2.4.1".into()),
        configuration: Some(BTreeMap::from(configuration)),
        last_configuration_at: None,
        boot_count: None,
        last_state_at: None,
        declared_commands: None,
        last_readings: readings,
        last_reading_at: Some(at(0)),
        last_seen_at: Some(at(0)),
        version,
        commands_open: 0,
        last_execution: None,
        taken_over_by: None,
        ledger: floorgate_model::DeviceLedger::default(),
    }
}

fn state(version: u64) -> StateSnapshot {
    StateSnapshot { view: view(version), urgent: true }
}

fn execution(command: &str, parameters: serde_json::Value, status: ExecutionStatus) -> OutboxEntry {
    let ended = status.is_terminal();
    let record = ExecutionRecord {
        command_id: CommandId::new(&format!("id-{command}")).unwrap(),
        device_id: DeviceId::new("PRESS-1").unwrap(),
        command: command.into(),
        parameters: parameters.as_object().unwrap().clone(),
        issuer: None,
        issued_at: at(0),
        expires_at: at(120_000),
        received_at: at(50),
        status,
        reason: (status == ExecutionStatus::Failed).then_some(Reason::DeviceError),
        message: None,
        details: None,
        started_at: None,
        completed_at: ended.then(|| at(900)),
        gateway_id: GatewayId::new("GW-1").unwrap(),
    };
    OutboxEntry { seq: 1, record, answer: None }
}

#[tokio::test]
async fn a_state_goes_only_forward_and_only_on_its_own_attributes() {
    let bench = Bench::new("forward").await;
    assert_eq!(bench.table.write_state(&state(5)).await, Ok(StateWritten::Current));
    bench.lambda("reboot", &[], "2026-11-22T10:00:00.100000+00:00").await;
    assert_eq!(bench.table.write_state(&state(4)).await, Ok(StateWritten::Behind { table_version: 5 }));
    assert_eq!(text(&bench.device().await, &["status"]), Some("rebooting"), "an old version changes nothing");
    assert_eq!(
        bench.table.write_state(&state(5)).await,
        Ok(StateWritten::Behind { table_version: 5 }),
        "a tool wrote in between: the same version is not what the table shows"
    );
    assert_eq!(bench.table.write_state(&state(6)).await, Ok(StateWritten::Current));
    assert_eq!(bench.table.write_state(&state(6)).await, Ok(StateWritten::Current), "repeated after a lost answer");
    let item = bench.device().await;
    assert_eq!(text(&item, &["status"]), Some("online"));
    assert_eq!(text(&item, &["last_command", "command"]), Some("reboot"), "the tools' attribute stays");
    assert_eq!(text(&item, &["last_telemetry", "pressure_psi"]), Some("142.7"));
    assert_eq!(text(&item, &["last_telemetry", "timestamp"]), Some("2026-11-22T10:00:00.000Z"));
    assert_eq!(text(&item, &["configuration", "alert_threshold_psi"]), Some("150"));
}

#[tokio::test]
async fn parent_maps_exist_before_anything_is_known_and_first_values_stay() {
    let bench = Bench::new("maps").await;
    let mut first = state(1);
    (first.view.configuration, first.view.last_readings) = (None, Readings::new());
    bench.table.write_state(&first).await.unwrap();
    bench.lambda("recalibrate", &[], "2026-11-22T10:00:00.100000+00:00").await;
    let mut second = state(2);
    second.view.device_type = "other".into();
    bench.table.write_state(&second).await.unwrap();
    let item = bench.device().await;
    assert_eq!(text(&item, &["device_type"]), Some("pressure_sensor"));
    assert_eq!(text(&item, &["configuration", "calibration_date"]), Some("2025-06-01"));
    assert!(item["last_telemetry"].is_m());
}

#[tokio::test]
async fn a_device_moves_to_another_gateway_only_when_its_own_has_lost_it() {
    let bench = Bench::new("owner").await;
    let other = DynamoConfig { gateway_id: GatewayId::new("GW-2").unwrap(), ..bench.config.clone() };
    let other = DynamoTable::new(other, Clock::set_to(at(0))).unwrap();
    bench.table.write_state(&state(5)).await.unwrap();
    let mut theirs = state(9);
    theirs.view.last_seen_at = Some(at(20_000));
    let by = GatewayId::new("GW-1").unwrap();
    assert_eq!(other.write_state(&theirs).await, Ok(StateWritten::TakenOver { by: by.clone() }));
    theirs.view.version = 3;
    theirs.view.last_seen_at = Some(at(31_000));
    assert_eq!(other.write_state(&theirs).await, Ok(StateWritten::Behind { table_version: 5 }));
    theirs.view.version = 6;
    assert_eq!(other.write_state(&theirs).await, Ok(StateWritten::Current));
    let owner = bench.table.read_owner(&theirs.view.device_id).await.unwrap().unwrap();
    assert_eq!((owner.gateway_id.as_str(), owner.version), ("GW-2", 6));
}

#[tokio::test]
async fn a_failed_command_of_the_lambda_is_told_and_undone() {
    let bench = Bench::new("undo").await;
    bench.table.write_state(&state(1)).await.unwrap();
    bench.lambda("update_config", &[("alert_threshold_psi", "999")], "2026-11-22T09:59:59.987654+00:00").await;
    let parameters = json!({"alert_threshold_psi": "999"});
    let failed = execution("update_config", parameters, ExecutionStatus::Failed);
    assert_eq!(bench.table.write_execution(&failed, None).await, Ok(ExecutionWritten::Done));
    bench.table.write_state(&state(2)).await.unwrap();
    let item = bench.device().await;
    assert_eq!(text(&item, &["configuration", "alert_threshold_psi"]), Some("150"));
    assert_eq!(text(&item, &["last_command", "status"]), Some("failed"));
    assert_eq!(text(&item, &["last_command", "reason"]), Some("DEVICE_ERROR"));
    assert_eq!(text(&item, &["last_command", "command_id"]), Some("id-update_config"));
    assert_eq!(text(&item, &["last_execution", "status"]), Some("failed"));
}

#[tokio::test]
async fn a_tool_that_writes_after_the_outcome_is_put_right_at_the_same_version() {
    let bench = Bench::new("settle").await;
    let done = execution("reboot", json!({}), ExecutionStatus::Succeeded);
    bench.table.write_state(&state(3)).await.unwrap();
    bench.table.write_execution(&done, None).await.unwrap();
    bench.lambda("reboot", &[], "2026-11-22T10:00:00.100000+00:00").await;
    bench.table.settle(&done.record, Some(&view(3))).await.unwrap();
    let item = bench.device().await;
    assert_eq!(text(&item, &["status"]), Some("online"));
    assert_eq!(text(&item, &["last_command", "status"]), Some("succeeded"));
    bench.lambda("reboot", &[], "2026-11-22T10:00:00.100000+00:00").await;
    bench.table.settle(&done.record, Some(&view(2))).await.unwrap();
    assert_eq!(text(&bench.device().await, &["status"]), Some("rebooting"), "an older view repairs nothing");
}

#[tokio::test]
async fn another_commands_entry_is_left_alone() {
    let bench = Bench::new("entry").await;
    bench.table.write_state(&state(1)).await.unwrap();
    for (parameters, when) in [("1", "2026-11-22T10:00:00.000000+00:00"), ("2", "2026-11-22T10:00:06.000000+00:00")] {
        bench.lambda("update_config", &[("rate", parameters)], when).await;
        let other = execution("update_config", json!({"rate": "2"}), ExecutionStatus::Succeeded);
        bench.table.write_execution(&other, None).await.unwrap();
        assert_eq!(text(&bench.device().await, &["last_command", "status"]), Some("delivered"), "{when}");
    }
}

#[tokio::test]
async fn an_execution_never_comes_back_from_its_end() {
    use ExecutionStatus::{Created, Failed, InProgress, Succeeded};
    let bench = Bench::new("execution").await;
    let key = [("device_id", "PRESS-1"), ("command_id", "id-reboot")];
    let reboot = |status| execution("reboot", json!({"delay": 5, "note": null}), status);
    let write = async |status| bench.table.write_execution(&reboot(status), None).await.unwrap();
    assert_eq!(write(Created).await, ExecutionWritten::NoDeviceItem, "no device, no item");
    assert!(bench.item(&bench.config.devices_table, &[("device_id", "PRESS-1")]).await.is_none());
    bench.table.write_state(&state(1)).await.unwrap();
    for (written, shown) in [
        (Created, "created"),
        (InProgress, "in_progress"),
        (Created, "in_progress"),
        (Succeeded, "succeeded"),
        (Failed, "succeeded"),
        (InProgress, "succeeded"),
        (Succeeded, "succeeded"),
    ] {
        write(written).await;
        let item = bench.item(bench.config.commands_table.as_deref().unwrap(), &key).await.unwrap();
        assert_eq!(text(&item, &["status"]), Some(shown), "after {written}");
        assert_eq!(text(&bench.device().await, &["last_execution", "status"]), Some(shown), "after {written}");
    }
}

fn block(second: i64, values: Vec<Option<Reading>>) -> HistoryBlock {
    HistoryBlock {
        id: second,
        device_id: DeviceId::new("PRESS-1").unwrap(),
        first: at(second * 1_000),
        offsets_ms: (0..values.len() as u64).map(|n| n * 10).collect(),
        readings: BTreeMap::from([("pressure_psi".to_owned(), values)]),
        expires_at: at(86_400_000),
        unsynchronised: false,
        gap: None,
    }
}

#[tokio::test]
async fn blocks_are_written_as_the_contract_says_and_again_without_effect() {
    let bench = Bench::new("blocks").await;
    let values = vec![Reading::new(142.7), None, Reading::new(1e300)];
    let blocks: Vec<_> = (0..25).map(|second| block(second, values.clone())).collect();
    for _ in 0..2 {
        let written = bench.table.write_blocks(&blocks).await.unwrap();
        assert_eq!((written.accepted.len(), written.unprocessed.len()), (25, 0));
    }
    let key = [("device_id", "PRESS-1"), ("timestamp", "2026-11-22T10:00:01.000Z")];
    let item = bench.item(&bench.config.history_table, &key).await.unwrap();
    assert_eq!(text(&item, &["end"]), Some("2026-11-22T10:00:01.020Z"));
    assert_eq!(item["count"].as_n().unwrap(), "3");
    assert_eq!(item["expires_at"].as_n().unwrap(), &at(86_400_000).as_seconds().to_string());
    let cells = item["readings"].as_m().unwrap()["pressure_psi"].as_l().unwrap();
    assert_eq!(cells[0].as_n().unwrap(), "142.7");
    assert!(cells[1].is_null());
    assert_eq!(cells[2].as_s().unwrap(), "1e300", "no number of DynamoDB's");
}

#[tokio::test]
async fn provisioning_again_changes_nothing_and_a_wrong_table_is_named() {
    let bench = Bench::new("schema").await;
    let clock = Clock::set_to(at(0));
    let lines = provision(bench.config.clone(), clock.clone()).await.unwrap();
    assert!(lines.iter().all(|line| line.contains("is there")), "{lines:?}");
    assert!(
        lines[1].ends_with("items expire by `expires_at`") && lines[2].ends_with("items expire by `forget_at`"),
        "{lines:?}"
    );
    bench.table.check_schema().await.unwrap();
    let wrong = DynamoConfig { devices_table: bench.config.history_table.clone(), ..bench.config.clone() };
    let error = floorgate::sync::check(wrong, clock.clone()).await.unwrap_err();
    let expected = format!(
        "table `{}` has partition key `device_id` and sort key `timestamp`, but floorgate needs partition key \
         `device_id` and no sort key; give another table under [dynamodb], or delete it and run `floorgate provision`",
        bench.config.history_table
    );
    assert_eq!(error, SyncError::Schema(expected));
    let none = DynamoConfig { history_table: "nowhere".into(), ..bench.config.clone() };
    let error = floorgate::sync::check(none.clone(), clock.clone()).await.unwrap_err().to_string();
    assert!(error.starts_with("table `nowhere` does not exist; create it with `floorgate provision`"), "{error}");
    let table = DynamoTable::new(none, clock).unwrap();
    let error = table.write_blocks(&[block(0, vec![Reading::new(1.0)])]).await.unwrap_err();
    assert!(matches!(error, TableError::Misconfigured { .. }), "{error:?}");
}
