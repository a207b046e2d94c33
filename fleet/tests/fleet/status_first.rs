//! *Status first* behind AgentCore: a command needs that its caller was told the same device's status shortly before, and
//! the table remembers it, because no instance of a Lambda function does.

use std::time::Duration;

use floorgate_fleet::lambda::LambdaSettings;
use serde_json::{Value, json};

use super::bench::{Bench, Gateway, PRESSURE, VALVE};
use super::runtime_api::{self, Event, Posted};

const NAMED: LambdaSettings =
    LambdaSettings { reply: floorgate_fleet::lambda::Reply::Plain, operator_headers: true, status_first: true };

fn event(operator: &str, tool: &str, arguments: &Value) -> Event {
    Event::bare(tool, arguments, &json!({"bedrockAgentCorePropagatedHeaders": {"x-operator-id": operator}}))
}

fn read(operator: &str, device: &str) -> Event {
    event(operator, "get_device_status", &json!({ "device_id": device }))
}

fn command(operator: &str, device: &str, dry_run: bool) -> Event {
    event(operator, "send_command", &json!({"device_id": device, "command": "reboot", "dry_run": dry_run}))
}

fn is_refused(posted: &Posted) -> bool {
    assert_ne!(posted.body["error_code"], "STORE_UNAVAILABLE", "{posted:?}");
    posted.body["error_code"] == "STATUS_FIRST"
}

#[tokio::test]
async fn a_lambda_sends_no_command_without_a_status_read_of_the_same_device_by_the_same_operator() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let events = vec![
        command("ada", PRESSURE, false),
        command("ada", PRESSURE, true),
        read("ada", VALVE),
        command("ada", PRESSURE, false),
        read("eve", PRESSURE),
        command("ada", PRESSURE, false),
        read("ada", PRESSURE),
        command("ada", PRESSURE, false),
    ];
    let posted = runtime_api::run(&bench.fleet, NAMED, events).await;
    for n in [0, 1, 3, 5] {
        assert!(is_refused(&posted[n]), "{n}: {:?}", posted[n]);
        assert_eq!(posted[n].body["delivered"], false);
        assert!(posted[n].body["error"].as_str().unwrap().contains("read it first"), "{:?}", posted[n]);
    }
    assert_eq!((&posted[7].body["status"], &posted[7].body["issuer"]), (&json!("succeeded"), &json!("ada")));
    assert_eq!(gateway.received().len(), 1, "nothing that was refused has left");
}

#[tokio::test]
async fn a_read_counts_for_five_minutes_in_every_instance_of_a_lambda() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "rejected", "reason": "COOL_DOWN"}));
    runtime_api::run(&bench.fleet, NAMED, vec![read("ada", PRESSURE)]).await;
    bench.clock.advance(Duration::from_secs(300));
    bench.heard_now().await;
    let other = bench.another_fleet();
    let posted = runtime_api::run(&other, NAMED, vec![command("ada", PRESSURE, false)]).await;
    assert_eq!(posted[0].body["error_code"], "COOL_DOWN", "{posted:?}");
    bench.clock.advance(Duration::from_millis(1));
    let posted = runtime_api::run(&other, NAMED, vec![command("ada", PRESSURE, false)]).await;
    assert!(is_refused(&posted[0]), "{posted:?}");
}

#[tokio::test]
async fn a_status_that_was_not_answered_is_not_read() {
    let bench = Bench::start().await;
    let events = vec![
        event("ada", "get_device_status", &json!({"device_id": PRESSURE, "odd": 1})),
        event("ada", "get_device_status", &json!({"device_id": PRESSURE.to_lowercase()})),
        event("ada", "list_devices", &json!({})),
        command("ada", PRESSURE, false),
    ];
    let posted = runtime_api::run(&bench.fleet, NAMED, events).await;
    assert!(is_refused(&posted[3]), "{posted:?}");
}

#[tokio::test]
async fn without_an_interceptor_the_rule_holds_for_the_gateway_as_a_whole() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let bare = |tool: &str| Event::bare(tool, &json!({"device_id": PRESSURE}), &json!({}));
    let send = || Event::bare("send_command", &json!({"device_id": PRESSURE, "command": "reboot"}), &json!({}));
    let seed =
        Event::seed(&json!({"name": "send_command", "arguments": {"device_id": PRESSURE, "command": "recalibrate"}}));
    let events = vec![send(), bare("get_device_status"), send(), seed];
    let posted = runtime_api::run(&bench.fleet, LambdaSettings::default(), events).await;
    assert!(is_refused(&posted[0]) && posted[2].body["status"] == "succeeded", "{posted:?}");
    // The seed's event names nobody at all, so it is another caller, who has read nothing.
    assert!(posted[3].body["isError"] == true && posted[3].body.to_string().contains("STATUS_FIRST"), "{posted:?}");
}

#[tokio::test]
async fn where_operators_are_named_a_call_in_nobodys_name_reaches_no_table() {
    let mut bench = Bench::start().await;
    bench.stop_table().await;
    let events = vec![
        Event::bare("send_command", &json!({"device_id": PRESSURE, "command": "reboot"}), &json!({})),
        Event::seed(&json!({"name": "list_devices"})),
    ];
    let posted = runtime_api::run(&bench.fleet, NAMED, events).await;
    assert_eq!(posted[0].body["error_code"], "OPERATOR_UNKNOWN");
    assert!(posted[1].body.to_string().contains("OPERATOR_UNKNOWN"));
}

#[tokio::test]
async fn a_table_that_does_not_answer_permits_no_command() {
    let mut bench = Bench::start().await;
    runtime_api::run(&bench.fleet, NAMED, vec![read("ada", PRESSURE)]).await;
    bench.stop_table().await;
    let posted = runtime_api::run(&bench.fleet, NAMED, vec![command("ada", PRESSURE, false)]).await;
    assert_eq!(posted[0].body["error_code"], "STORE_UNAVAILABLE", "{posted:?}");
}

#[tokio::test]
async fn reads_of_one_operator_and_device_are_one_item_that_the_table_may_forget_and_no_list_shows() {
    let bench = Bench::start().await;
    let events = vec![read("ada", PRESSURE), read("ada", PRESSURE), read("ada", VALVE)];
    runtime_api::run(&bench.fleet, NAMED, events).await;
    let items = bench.client.scan(floorgate_demo::dynamo::COMMANDS).await.unwrap();
    assert_eq!(items.len(), 2, "{items:?}");
    for item in &items {
        let noted = item["read_at_ms"].as_i64().unwrap();
        assert_eq!(item["forget_at"].as_i64().unwrap(), noted / 1_000 + 3_600);
        assert!(item["device_id"].as_str().unwrap().starts_with("status_read#"), "{item}");
    }
    assert_eq!(bench.call("list_commands", json!({})).await.unwrap()["commands"], json!([]));
}
