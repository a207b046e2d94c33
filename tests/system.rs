//! The whole daemon against real neighbours: telemetry in, commands out, the table current.
//!
//! `cargo test` runs these with the built-in endpoint, the demo's broker and the demo's table; `cargo xtask brokers`
//! with mosquitto on both sides and another implementation of the table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod rig;

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use floorgate_model::Timestamp;
use rig::device::Behaviour;
use rig::{Options, Rig, isoformat, until};
use serde_json::{Value, json};

fn now() -> String {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond()).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telemetry_reaches_the_table_as_the_agent_reads_it() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    for n in 0..3 {
        device.report(json!({"pressure_psi": 142.5 + f64::from(n), "temperature_c": "38.2", "timestamp": now()})).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let newest = |item: &Value| item["last_telemetry"]["pressure_psi"] == "144.5";
    let item = rig.item("the newest reading", device.id(), 10, newest).await;
    assert_eq!(item["status"], "online");
    assert_eq!(item["last_telemetry"]["temperature_c"], "38.2");
    assert_eq!(item["last_telemetry"]["timestamp"].as_str().unwrap().len(), 24);
    assert_eq!(item["firmware_version"], "2.4.1");
    assert_eq!(item["configuration"]["alert_threshold_psi"], "150");
    assert_eq!(item["device_type"], "pressure_sensor");
    assert_eq!(item["location"], "factory-floor-1/line-7");
    assert_eq!(item["gateway_id"], rig.gateway.as_str());
    assert!(item["shadow_version"].is_number());
    // A device that never spoke has an item with both maps, or the seed's Lambda could not write to it.
    let silent = rig.item("the silent device", &rig.id("VALVE-001"), 30, |item| item["status"] == "offline").await;
    assert!(silent["configuration"].is_object() && silent["last_telemetry"].is_object());
    // The gateway is a device too.
    let gateway = rig
        .item("the gateway's readings", &rig.gateway, 40, |item| item["last_telemetry"]["cpu_pct"].is_string())
        .await;
    assert_eq!(gateway["device_type"], "edge_gateway");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_above_its_threshold_warns_and_a_last_will_means_offline() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    for value in [151.0, 152.5] {
        device.report(json!({"pressure_psi": value})).await;
    }
    let item = rig.item("the warning", device.id(), 5, |item| item["status"] == "warning").await;
    assert!(item["status_reason"].as_str().unwrap().contains("pressure_psi"), "{item}");
    let id = device.id().to_owned();
    drop(device);
    rig.item("the last will", &id, 5, |item| item["status"] == "offline").await;
}

/// What the seed's Lambda does to the table before it publishes.
async fn write_optimistically(rig: &Rig, device: &str, command: &str, parameters: &[(&str, &str)], issued: &str) {
    let text = |t: &str| AttributeValue::S(t.to_owned());
    let map = parameters.iter().map(|(k, v)| ((*k).to_owned(), text(v))).collect();
    let last = [("command", text(command)), ("parameters", AttributeValue::M(map)), ("status", text("delivered"))];
    let last = last.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let mut update =
        rig.items.client().update_item().table_name(rig.items.name("devices")).key("device_id", text(device));
    update =
        update.expression_attribute_names("#lc", "last_command").expression_attribute_names("#la", "last_command_at");
    update = update
        .expression_attribute_values(":c", AttributeValue::M(last))
        .expression_attribute_values(":t", text(issued));
    let mut expression = "SET #lc = :c, #la = :t".to_owned();
    if command == "recalibrate" {
        expression += ", #config.#date = :d";
        update = update
            .expression_attribute_names("#config", "configuration")
            .expression_attribute_names("#date", "calibration_date");
        update = update.expression_attribute_values(":d", text(&issued[..10]));
    }
    for (n, (key, value)) in parameters.iter().filter(|_| command == "update_config").enumerate() {
        expression += &format!(", #config.#p{n} = :p{n}");
        update = update
            .expression_attribute_names("#config", "configuration")
            .expression_attribute_names(format!("#p{n}"), *key);
        update = update.expression_attribute_values(format!(":p{n}"), text(value));
    }
    if command == "reboot" {
        expression += ", #status = :s";
        update =
            update.expression_attribute_names("#status", "status").expression_attribute_values(":s", text("rebooting"));
    }
    update.update_expression(expression).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_succeed_verified_and_the_table_says_so() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let mut operator = rig.operator().await;
    let topic = format!("devices/{}/commands", device.id());
    let cases =
        [("recalibrate", json!({})), ("update_config", json!({"alert_threshold_psi": "145.5"})), ("reboot", json!({}))];
    for (command, parameters) in cases {
        let issued = isoformat(0);
        let given: Vec<(&str, &str)> =
            parameters.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
        write_optimistically(&rig, device.id(), command, &given, &issued).await;
        operator.publish(&topic, Rig::command(command, parameters.clone(), &issued).to_string(), false).await;
        let outcome = operator.outcome(device.id(), 10).await;
        assert_eq!(outcome["status"], "succeeded", "{outcome}\n{}", rig.daemon.log());
        assert_eq!(outcome["reason"], Value::Null, "verified: {outcome}");
        let fits =
            |item: &Value| item["last_command"]["status"] == "succeeded" && item["last_command"]["command"] == command;
        let item = rig.item("the outcome", device.id(), 5, fits).await;
        assert_eq!(item["last_command"]["command_id"], outcome["command_id"]);
        let fits = |item: &Value| {
            item["last_execution"]["command_id"] == outcome["command_id"]
                && item["last_execution"]["status"] == "succeeded"
        };
        rig.item("the execution", device.id(), 5, fits).await;
    }
    let item = rig
        .item("the new threshold", device.id(), 5, |item| item["configuration"]["alert_threshold_psi"] == "145.5")
        .await;
    assert_eq!(item["status"], "online", "a reboot never stays: {item}");
    let executed: Vec<_> = device.executed().iter().map(|order| order["command"].clone()).collect();
    assert_eq!(executed, ["recalibrate", "update_config", "reboot"]);
    assert_eq!(device.executed()[1]["parameters"]["alert_threshold_psi"], 145.5, "in the device's types");
    let history = rig.items.commands(device.id()).await;
    assert_eq!(history.len(), 3);
    assert!(history.iter().all(|item| item["status"] == "succeeded"), "{history:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_is_undone_where_the_agent_reads() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Fail).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["configuration"]["calibration_date"] == "2025-06-01").await;
    let mut operator = rig.operator().await;
    let topic = format!("devices/{}/commands", device.id());

    let issued = isoformat(0);
    write_optimistically(&rig, device.id(), "recalibrate", &[], &issued).await;
    operator.publish(&topic, Rig::command("recalibrate", json!({}), &issued).to_string(), false).await;
    let outcome = operator.outcome(device.id(), 10).await;
    assert_eq!((outcome["status"].as_str(), outcome["reason"].as_str()), (Some("failed"), Some("DEVICE_ERROR")));
    assert!(outcome["message"].as_str().unwrap().contains("zero offset out of tolerance"));
    let undone = |item: &Value| {
        item["configuration"]["calibration_date"] == "2025-06-01" && item["last_command"]["status"] == "failed"
    };
    rig.item("the old calibration date", device.id(), 5, undone).await;

    // A safety key, which the seed's Lambda writes without asking.
    let issued = isoformat(0);
    write_optimistically(&rig, device.id(), "update_config", &[("emergency_shutoff", "disabled")], &issued).await;
    let refused = Rig::command("update_config", json!({"emergency_shutoff": "disabled"}), &issued);
    operator.publish(&topic, refused.to_string(), false).await;
    let outcome = operator.outcome(device.id(), 10).await;
    assert_eq!(
        (outcome["status"].as_str(), outcome["reason"].as_str()),
        (Some("rejected"), Some("INVALID_PARAMETERS"))
    );
    let undone = |item: &Value| {
        item["configuration"].get("emergency_shutoff").is_none() && item["last_command"]["status"] == "rejected"
    };
    rig.item("no trace of the refused key", device.id(), 5, undone).await;
    assert_eq!(device.executed().len(), 1, "the refused one never reached the device");
}

/// Sends a command as the seed does, table first, and waits for its outcome there.
async fn send_as_the_seed(rig: &Rig, device: &str, command: &str, parameters: &[(&str, &str)], status: &str) -> Value {
    let issued = isoformat(0);
    write_optimistically(rig, device, command, parameters, &issued).await;
    let given: Value = parameters.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
    let mut operator = rig.operator().await;
    let payload = Rig::command(command, given, &issued).to_string();
    operator.publish(&format!("devices/{device}/commands"), payload, false).await;
    let outcome = operator.outcome(device, 40).await;
    assert_eq!(outcome["status"], status, "{outcome}");
    let told = |item: &Value| item["last_command"]["command_id"] == outcome["command_id"];
    rig.item("the outcome", device, 5, told).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_too_early_for_a_device_that_never_told_its_configuration_is_taken_back() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.bare_device("PRESS-001", Behaviour::Fail).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let empty = |item: &Value| item["configuration"] == json!({});
    for (command, parameters, status) in [
        ("recalibrate", &[][..], "failed"),
        ("update_config", &[("alert_threshold_psi", "145")], "failed"),
        ("update_config", &[("emergency_shutoff", "disabled"), ("alert_threshold_psi", "9")], "rejected"),
    ] {
        send_as_the_seed(&rig, device.id(), command, parameters, status).await;
        rig.item("an empty configuration", device.id(), 5, empty).await;
    }
    // A valve that cannot be calibrated, and the gateway itself.
    for device in [rig.id("VALVE-001"), rig.gateway.clone()] {
        rig.item("its item", &device, 30, |item| item["configuration"].is_object()).await;
        for (command, parameters) in [("recalibrate", &[][..]), ("update_config", &[("rate", "1")])] {
            send_as_the_seed(&rig, &device, command, parameters, "rejected").await;
            rig.item("an empty configuration", &device, 5, empty).await;
        }
    }
    // A tool that writes after the outcome: the second look takes it back, also one that a restart makes.
    let mut rig = rig;
    for restarts in [false, true] {
        let issued = isoformat(0);
        let mut operator = rig.operator().await;
        let payload = Rig::command("recalibrate", json!({}), &issued).to_string();
        operator.publish(&format!("devices/{}/commands", device.id()), payload, false).await;
        operator.outcome(device.id(), 10).await;
        let told = |item: &Value| item["last_execution"]["status"] == "failed" && item["status"] == "online";
        rig.item("the execution", device.id(), 5, told).await;
        if restarts {
            assert_eq!(rig.daemon.terminate().await.0, Some(0));
        }
        write_optimistically(&rig, device.id(), "recalibrate", &[], &issued).await;
        if restarts {
            rig.daemon.run().await;
        }
        let undone = |item: &Value| empty(item) && item["last_command"]["status"] == "failed";
        rig.item("taken back", device.id(), 5, undone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_device_without_a_configuration_did_is_kept_when_something_else_fails() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.bare_device("PRESS-001", Behaviour::SayOnly).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    send_as_the_seed(&rig, device.id(), "update_config", &[("alert_threshold_psi", "145")], "succeeded").await;
    let kept = |item: &Value| item["configuration"] == json!({"alert_threshold_psi": "145"});
    rig.item("the threshold", device.id(), 5, kept).await;
    send_as_the_seed(&rig, device.id(), "update_config", &[("emergency_shutoff", "disabled")], "rejected").await;
    rig.item("the threshold alone", device.id(), 5, kept).await;
    assert_eq!(device.executed().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_must_not_run_is_answered_and_never_reaches_the_device() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let mut operator = rig.operator().await;
    let with = |mut payload: Value, key: &str, value: Value| {
        payload[key] = value;
        payload
    };
    let plain = |command: &str, parameters: Value, age: i64| Rig::command(command, parameters, &isoformat(age));
    let cases = [
        ("PRESS-001", plain("reboot", json!({}), 600), "expired", "EXPIRED"),
        ("PRESS-001", plain("update_config", json!({"sample_rate_seconds": 5}), 1_000), "expired", "EXPIRED"),
        ("PRESS-001", with(plain("reboot", json!({}), 30), "expires_at", isoformat(10).into()), "expired", "EXPIRED"),
        ("PRESS-001", plain("reboot", json!({}), -120), "rejected", "CLOCK_SKEW"),
        ("PRESS-001", plain("explode", json!({}), 0), "rejected", "UNKNOWN_COMMAND"),
        ("PRESS-001", plain("update_config", json!({"sample_rate_seconds": 0}), 0), "rejected", "INVALID_PARAMETERS"),
        ("PRESS-001", plain("update_config", json!({}), 0), "rejected", "INVALID_PARAMETERS"),
        ("PRESS-001", plain("set_status", json!({"status": "offline"}), 0), "rejected", "INVALID_PARAMETERS"),
        ("PRESS-001", with(plain("reboot", json!({}), 0), "dry_run", true.into()), "rejected", "DRY_RUN_OK"),
        ("VALVE-001", plain("recalibrate", json!({}), 0), "rejected", "UNSUPPORTED"),
    ];
    for (suffix, payload, status, reason) in cases {
        let id = rig.id(suffix);
        operator.publish(&format!("devices/{id}/commands"), payload.to_string(), false).await;
        let outcome = operator.outcome(&id, 10).await;
        assert_eq!(
            (outcome["status"].as_str(), outcome["reason"].as_str()),
            (Some(status), Some(reason)),
            "{payload}: {outcome}"
        );
    }
    // The valve has never been seen; once its silence is noticed, it is offline.
    let valve = rig.id("VALVE-001");
    rig.item("silence", &valve, 30, |item| item["status"] == "offline").await;
    operator.publish(&format!("devices/{valve}/commands"), plain("reboot", json!({}), 0).to_string(), false).await;
    assert_eq!(operator.outcome(&valve, 10).await["reason"], "DEVICE_OFFLINE");
    // Maintenance is an overlay that refuses everything but its own removal.
    let topic = format!("devices/{}/commands", device.id());
    operator.publish(&topic, plain("set_status", json!({"status": "maintenance"}), 0).to_string(), false).await;
    assert_eq!(operator.outcome(device.id(), 10).await["status"], "succeeded");
    rig.item("maintenance", device.id(), 5, |item| {
        item["status"] == "maintenance" && item["admin_state"] == "maintenance"
    })
    .await;
    operator.publish(&topic, plain("reboot", json!({}), 0).to_string(), false).await;
    assert_eq!(operator.outcome(device.id(), 10).await["reason"], "MAINTENANCE");
    operator.publish(&topic, plain("set_status", json!({"status": "online"}), 0).to_string(), false).await;
    assert_eq!(operator.outcome(device.id(), 10).await["status"], "succeeded");
    device.report(json!({"pressure_psi": 121})).await;
    rig.item("back in service", device.id(), 5, |item| item["status"] == "online").await;
    assert_eq!(device.executed(), Vec::<Value>::new());
    let counted = json!({"CLOCK_SKEW": 1, "DEVICE_OFFLINE": 1, "EXPIRED": 3, "INVALID_PARAMETERS": 3, "MAINTENANCE": 1,
        "UNKNOWN_COMMAND": 1, "UNSUPPORTED": 1});
    assert_eq!(rig.status().await["commands_refused"], counted, "a dry run that passes is no refusal");
    let log = rig.daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("command refused")).collect();
    assert!((2..=4).contains(&lines.len()), "one a minute and device: {lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_again_is_answered_and_not_executed_again() {
    let mut rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let mut operator = rig.operator().await;
    let topic = format!("devices/{}/commands", device.id());
    let payload = Rig::command("reboot", json!({}), &isoformat(0)).to_string();
    for _ in 0..3 {
        operator.publish(&topic, payload.clone(), false).await;
    }
    let first = operator.outcome(device.id(), 10).await;
    assert_eq!(first["status"], "succeeded");
    // Once more, after a restart of the daemon.
    assert_eq!(rig.daemon.terminate().await.0, Some(0), "{}", rig.daemon.log());
    rig.daemon.run().await;
    operator.publish(&topic, payload, false).await;
    let again = operator.outcome(device.id(), 15).await;
    assert_eq!(again["command_id"], first["command_id"]);
    assert_eq!(again["status"], "succeeded");
    assert_eq!(device.executed().len(), 1);
    assert_eq!(rig.items.commands(device.id()).await.len(), 1);
    // What is no command, and bears its id: with the same words and with others.
    let id = &first["command_id"];
    for bad in [json!({"command": "reboot", "command_id": id}), json!({"command": "recalibrate", "command_id": id})] {
        operator.publish(&topic, bad.to_string(), false).await;
    }
    let counted = || async {
        let status = rig.status().await;
        let both = (&status["refused"]["duplicate_id"], &status["commands_refused"]["DUPLICATE_ID"]);
        (both == (&json!(2), &json!(2))).then_some(())
    };
    until("both counted", 10, counted).await;
    assert_eq!((device.executed().len(), rig.items.commands(device.id()).await.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_while_the_cloud_is_away_is_all_there_afterwards() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"n": 0, "pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["last_telemetry"]["n"] == "0").await;
    rig.cut().await;
    for n in 1..=400 {
        device.report(json!({"n": n, "pressure_psi": 120, "timestamp": now()})).await;
    }
    let waiting = until("the buffer grows", 10, || async {
        let store = rig.status().await["store"].clone();
        (store["samples_waiting"].as_u64()? + store["samples_open"].as_u64()? >= 400).then_some(store)
    });
    waiting.await;
    rig.restore().await;
    rig.item("the newest reading", device.id(), 70, |item| item["last_telemetry"]["n"] == "400").await;
    let all: Vec<f64> = (0..=400).map(f64::from).collect();
    until("the backlog drains", 150, || async { (rig.items.samples(device.id(), "n").await == all).then_some(()) })
        .await;
    let blocks = rig.items.history(device.id()).await;
    assert!(blocks.iter().any(|block| block["count"].as_u64().unwrap() > 10), "packed: {} blocks", blocks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_within_five_seconds_and_nothing_is_missing_after_it() {
    let mut rig = Rig::start(Options { commit_interval: "1s", ..Options::default() }).await;
    let device = rig.device("PRESS-001", Behaviour::Silent).await;
    for n in 0..5 {
        device.report(json!({"n": n})).await;
    }
    // With a plant's broker between, a report may come later than a command of another link.
    let known = || async { rig.daemon.json(&["device", device.id()]).await };
    until("the device", 10, || async { (known().await["status"] == "online").then_some(()) }).await;
    let operator = rig.operator().await;
    let issued = isoformat(0);
    operator
        .publish(
            &format!("devices/{}/commands", device.id()),
            Rig::command("recalibrate", json!({}), &issued).to_string(),
            false,
        )
        .await;
    until("the order", 10, || async { (device.executed().len() == 1).then_some(()) }).await;
    let (code, took) = rig.daemon.terminate().await;
    assert_eq!(code, Some(0), "{}", rig.daemon.log());
    assert!(took < Duration::from_secs(5), "took {took:?}");
    rig.daemon.run().await;
    // Nothing answers for the interrupted command: it was sent once, it is not sent again, and it ends.
    let open = rig.daemon.json(&["commands"]).await;
    assert_eq!(open.as_array().unwrap().len(), 1, "{open}");
    let samples = [0.0, 1.0, 2.0, 3.0, 4.0];
    until("the samples", 90, || async { (rig.items.samples(device.id(), "n").await == samples).then_some(()) }).await;
    assert_eq!(device.executed().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_nonsense_is_counted_and_harms_nobody() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    let bystander = rig.device("VALVE-001", Behaviour::Obey).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let before = rig.status().await;
    let bad: [&[u8]; 9] = [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[1,2]",
        b"{\"pressure_psi\": \"high\"}",
        b"{\"pressure_psi\": NaN}",
        b"{\"a\":{\"b\":{\"c\":{\"d\":1}}}}",
        b"{\"pressure_psi\": 1e999}",
        b"{\"timestamp\": \"yesterday\", \"pressure_psi\": 1}",
    ];
    for payload in bad {
        device.send("telemetry", payload).await;
        device.send("state", payload).await;
        device.send("result", payload).await;
    }
    device.send("telemetry", vec![b'['; 12_000]).await;
    let mut operator = rig.operator().await;
    for payload in [&b"not json"[..], b"{}", b"\xff", b"{\"command\": 7}", b"[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]"]
    {
        operator.publish(&format!("devices/{}/commands", device.id()), payload, false).await;
    }
    bystander.report(json!({"position_pct": 75})).await;
    rig.item("the bystander", bystander.id(), 10, |item| item["last_telemetry"]["position_pct"] == "75").await;
    let after = rig.status().await;
    assert_ne!(before["refused"], after["refused"], "counted by reason: {after:#}");
    let item = rig.items.device(device.id()).await.unwrap();
    assert_eq!(item["last_telemetry"]["pressure_psi"], "120");
    // Of the five payloads two are objects: each gets its one answer. The others have no record.
    for _ in 0..2 {
        let outcome = operator.outcome(device.id(), 10).await;
        assert_eq!((outcome["status"].as_str(), outcome["reason"].as_str()), (Some("rejected"), Some("MALFORMED")));
    }
    let result = tokio::time::timeout(Duration::from_secs(1), operator.next(1)).await;
    assert!(!matches!(result, Ok(Some(_))), "a payload that is no object has no record");
    assert!(device.executed().is_empty());
    // Unknown devices are remembered as pending, never written to the table.
    let stranger = rig::client::Client::connect(rig.floor, &format!("{}-stranger", rig.prefix)).await;
    stranger.publish(&format!("devices/{}/telemetry", rig.id("NOBODY")), json!({"x": 1}).to_string(), false).await;
    until("pending", 5, || async { rig.status().await.to_string().contains(&rig.id("NOBODY")).then_some(()) }).await;
    assert!(rig.items.all_devices().await.iter().all(|item| item["device_id"] != rig.id("NOBODY").as_str()));
    let lines = rig.daemon.log().lines().count();
    assert!(lines < 60, "{lines} lines of log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_operators_command_goes_the_same_way() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let sent = rig.daemon.cli(&["send", device.id(), "update_config", "sample_rate_seconds=10", "--wait", "10"]).await;
    assert!(sent.status.success(), "{sent:?}");
    assert_eq!(device.executed().len(), 1);
    let refused =
        rig.daemon.cli(&["send", device.id(), "update_config", "emergency_shutoff=disabled", "--wait", "10"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stdout).contains("INVALID_PARAMETERS"), "{refused:?}");
    assert_eq!(device.executed().len(), 1);
    rig.item("the new rate", device.id(), 5, |item| item["configuration"]["sample_rate_seconds"] == "10").await;
    let listed = rig.daemon.json(&["commands"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
}
