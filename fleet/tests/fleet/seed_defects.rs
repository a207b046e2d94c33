//! One test for each defect of the seed's Lambda: what it did wrong is not done here.

use floorgate_demo::dynamo::{COMMANDS, DEVICES, HISTORY};
use floorgate_fleet::clock::Clock;
use floorgate_fleet::lambda::LambdaSettings;
use floorgate_fleet::link::Link;
use floorgate_fleet::settings::Settings;
use floorgate_fleet::store::Tables;
use floorgate_fleet::tools;
use serde_json::{Value, json};

use super::bench::{self, Bench, GATEWAY, Gateway, NOW, PRESSURE, VALVE, at};
use super::runtime_api::{self, Event};

const VIBRATION: &str = "SENSOR-LINE3-VIBR-001";

fn ids(answer: &Value) -> Vec<&str> {
    let mut ids: Vec<_> =
        answer["devices"].as_array().unwrap().iter().map(|d| d["device_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids
}

fn reboot() -> Value {
    json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 5})
}

#[tokio::test]
async fn seed_defect_01_the_gateways_real_event_finds_its_tool() {
    let bench = Bench::start().await;
    let events = vec![
        Event::bare("get_device_status", &json!({"device_id": PRESSURE}), &json!({})),
        Event::bare("list_devices", &json!({}), &json!({"bedrockAgentCorePropagatedHeaders": {"x-operator-id": "o"}})),
        Event::seed(&json!({"name": "get_device_status", "arguments": {"device_id": PRESSURE}})),
    ];
    let posted = runtime_api::run(&bench.fleet, LambdaSettings::default(), events).await;
    assert_eq!(posted[0].body["device_id"], PRESSURE, "{posted:?}");
    assert_eq!(posted[1].body["count"], 5);
    assert_eq!(posted[2].body["isError"], false);
    assert!(posted[2].body["content"][0]["text"].as_str().unwrap().contains(PRESSURE));
}

#[tokio::test]
async fn seed_defect_02_a_location_combines_with_the_other_filters() {
    let bench = Bench::start().await;
    let list = async |arguments: Value| bench.call("list_devices", arguments).await.unwrap();
    let line7 = "factory-floor-1/line-7";
    assert_eq!(list(json!({"location": line7})).await["count"], 2);
    assert_eq!(ids(&list(json!({"location": line7, "status": "online"})).await), [PRESSURE]);
    assert_eq!(
        ids(&list(json!({"location": line7, "device_type": "temperature_sensor", "status": "online"})).await),
        [""; 0]
    );
    assert_eq!(ids(&list(json!({"location": "factory-floor-1/*", "device_type": "valve_actuator"})).await), [VALVE]);
}

#[tokio::test]
async fn seed_defect_03_large_items_do_not_make_the_count_a_lie() {
    let bench = Bench::empty().await;
    for n in 0..67 {
        let ballast = if n < 60 { "x".repeat(40_000) } else { String::new() };
        let item = json!({"device_id": format!("D-{n:03}"), "device_type": "pressure_sensor", "location": "hall",
            "status": "online", "ballast": ballast});
        bench.put(DEVICES, item).await;
    }
    for arguments in [json!({}), json!({"location": "hall"}), json!({"status": "online"}), json!({"location": "h*"})] {
        let answer = bench.call("list_devices", arguments.clone()).await.unwrap();
        assert_eq!((&answer["count"], ids(&answer).len()), (&json!(67), 67), "{arguments}");
        assert_eq!(answer["complete"], true, "{arguments}");
    }
}

#[tokio::test]
async fn seed_defect_04_what_is_no_command_goes_nowhere() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let error =
        bench.refused("send_command", json!({"device_id": PRESSURE, "command": "explode"}), "UNKNOWN_COMMAND").await;
    assert_eq!(error.details["delivered"], false);
    assert!(error.message.contains("recalibrate, reboot, update_config, set_status"));
    assert!(bench.item(PRESSURE).await.get("last_command").is_none());
    assert!(bench.commands().await.is_empty() && gateway.received().is_empty());
}

#[tokio::test]
async fn seed_defect_05_delivered_is_the_gateways_word_and_not_ours() {
    let bench = Bench::start().await;
    let silent = Gateway::silent(&bench);
    let mut ask = reboot();
    ask["wait_seconds"] = json!(0);
    let answer = bench.call("send_command", ask).await.unwrap();
    assert_eq!(
        (&answer["delivered"], &answer["status"], &answer["final"]),
        (&json!(false), &json!("created"), &json!(false))
    );
    assert_eq!(bench.item(PRESSURE).await["last_command"]["status"], "created");
    drop(silent);
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let answer =
        bench.call("send_command", json!({"device_id": VALVE, "command": "reboot", "wait_seconds": 5})).await.unwrap();
    assert_eq!(
        (&answer["delivered"], &answer["status"], &answer["final"]),
        (&json!(true), &json!("succeeded"), &json!(true))
    );
    let nowhere = bench::call(
        &bench.fleet_without_link(),
        "send_command",
        json!({"device_id": PRESSURE, "command": "update_config",
        "parameters": {"sample_rate_seconds": 5}}),
    )
    .await
    .unwrap_err();
    assert_eq!((nowhere.code.as_ref(), &nowhere.details["delivered"]), ("NOT_SENT", &json!(false)));
    let items = bench.commands().await;
    let unsent = items.iter().find(|item| item["command"] == "update_config").unwrap();
    assert_eq!((&unsent["status"], &unsent["reason"]), (&json!("failed"), &json!("NOT_SENT")));
}

#[tokio::test]
async fn seed_defect_06_only_the_overlay_is_set_and_it_reaches_a_device_that_is_offline() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let set = |parameters: Value| json!({"device_id": VIBRATION, "command": "set_status", "parameters": parameters});
    for parameters in
        [json!({"status": "on fire; DROP"}), json!({"status": "offline"}), json!({}), json!({"status": ""})]
    {
        bench.refused("send_command", set(parameters), "INVALID_PARAMETERS").await;
    }
    let answer = bench.call("send_command", set(json!({"status": "maintenance"}))).await.unwrap();
    assert_eq!(answer["delivered"], true);
    assert_eq!(gateway.received().len(), 1);
    assert_eq!(bench.item(VIBRATION).await["status"], "offline", "what is observed is not for a tool to write");
}

#[tokio::test]
async fn seed_defect_07_no_calibration_is_noted_before_it_was_done() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    for device in [VALVE, GATEWAY] {
        bench.refused("send_command", json!({"device_id": device, "command": "recalibrate"}), "UNSUPPORTED").await;
    }
    bench.call("send_command", json!({"device_id": PRESSURE, "command": "recalibrate"})).await.unwrap();
    for device in [VALVE, GATEWAY, PRESSURE] {
        assert_eq!(bench.item(device).await["configuration"]["calibration_date"], "2025-06-01", "{device}");
    }
}

#[tokio::test]
async fn seed_defect_08_a_device_without_a_configuration_can_be_commanded() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    for attribute in ["configuration", "last_telemetry"] {
        bench.set(PRESSURE, attribute, Value::Null).await;
    }
    let update = json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"sample_rate_seconds": 10}});
    for arguments in [json!({"device_id": PRESSURE, "command": "recalibrate"}), update] {
        assert_eq!(bench.call("send_command", arguments).await.unwrap()["status"], "succeeded");
    }
    let status = bench.call("get_device_status", json!({"device_id": PRESSURE})).await.unwrap();
    assert_eq!((&status["configuration"], &status["last_telemetry"]), (&json!({}), &json!({})));
}

#[tokio::test]
async fn seed_defect_09_keys_of_a_configuration_are_checked_and_never_part_of_an_expression() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let before = bench.item(PRESSURE).await;
    for parameters in [
        json!({"a-b": 1, "a_b": 2}),
        json!({"sample rate": 1}),
        json!({"a.b": 1}),
        json!({"x = :y, #status": "offline"}),
        json!({"emergency_shutoff": "disabled"}),
        json!({"sample_rate_seconds": 0}),
        json!({"": 1}),
        json!({}),
    ] {
        let ask = json!({"device_id": PRESSURE, "command": "update_config", "parameters": parameters});
        bench.refused("send_command", ask, "INVALID_PARAMETERS").await;
    }
    assert_eq!(bench.item(PRESSURE).await, before);
    assert!(gateway.received().is_empty());
}

#[tokio::test]
async fn seed_defect_10_values_keep_their_types() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = |value: Value| json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"alert_threshold_psi": value}});
    for wrong in [json!({"hi": 5}), json!(true), json!([1]), json!("None")] {
        bench.refused("send_command", ask(wrong), "INVALID_PARAMETERS").await;
    }
    let answer = bench.call("send_command", ask(json!(145))).await.unwrap();
    assert_eq!(answer["parameters"]["alert_threshold_psi"], 145);
    assert_eq!(gateway.received()[0].1["parameters"], json!({"alert_threshold_psi": 145}));
}

#[tokio::test]
async fn seed_defect_11_a_number_may_have_a_fraction() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"alert_threshold_psi": 145.5}});
    assert_eq!(bench.call("send_command", ask).await.unwrap()["parameters"]["alert_threshold_psi"], 145.5);
    assert_eq!(gateway.received()[0].1["parameters"]["alert_threshold_psi"], 145.5);
    assert_eq!(bench.item(PRESSURE).await["last_command"]["parameters"]["alert_threshold_psi"], 145.5);
}

#[tokio::test]
async fn seed_defect_12_null_parameters_are_none_and_a_text_is_refused() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = |parameters: Value| json!({"device_id": PRESSURE, "command": "recalibrate", "parameters": parameters});
    assert_eq!(bench.call("send_command", ask(Value::Null)).await.unwrap()["parameters"], json!({}));
    let error = bench.refused("send_command", ask(json!("now")), "INVALID_ARGUMENTS").await;
    assert!(error.message.contains("`parameters` must be an object"), "{error}");
}

#[tokio::test]
async fn seed_defect_13_a_reboot_leaves_the_status_to_the_gateway_and_cannot_be_repeated_without_end() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    for _ in 0..3 {
        bench.call("send_command", reboot()).await.unwrap();
    }
    assert_eq!(bench.item(PRESSURE).await["status"], "online");
    bench.refused("send_command", reboot(), "RATE_LIMITED").await;
    assert_eq!(gateway.received().len(), 3);
}

#[tokio::test]
async fn seed_defect_14_not_found_and_offline_are_errors() {
    let bench = Bench::start().await;
    let event = |arguments: Value| Event::seed(&json!({"name": "send_command", "arguments": arguments}));
    let events = vec![
        event(json!({"device_id": "NOBODY", "command": "reboot"})),
        event(json!({"device_id": VIBRATION, "command": "reboot"})),
    ];
    let settings = LambdaSettings { status_first: false, ..LambdaSettings::default() };
    let posted = runtime_api::run(&bench.fleet, settings, events).await;
    let told: Vec<Value> = posted
        .iter()
        .map(|posted| serde_json::from_str(posted.body["content"][0]["text"].as_str().unwrap()).unwrap())
        .collect();
    assert!(posted.iter().all(|posted| posted.body["isError"] == true && posted.path.ends_with("/response")));
    assert_eq!(told[0]["error_code"], "UNKNOWN_DEVICE");
    assert_eq!((&told[1]["error_code"], &told[1]["delivered"]), (&json!("DEVICE_OFFLINE"), &json!(false)));
    assert_eq!(told[1]["error"], format!("Device {VIBRATION} is offline. Command cannot be delivered."));
}

#[tokio::test]
async fn seed_defect_15_numbers_stay_numbers() {
    let bench = Bench::start().await;
    bench.set(PRESSURE, "last_execution", json!({"details": {"offset": 0.25, "points": 12}})).await;
    let status = bench.call("get_device_status", json!({"device_id": PRESSURE})).await.unwrap();
    assert_eq!(status["last_execution"]["details"], json!({"offset": 0.25, "points": 12}));
}

#[tokio::test]
async fn seed_defect_16_a_device_id_is_a_text_of_the_right_form() {
    let bench = Bench::start().await;
    for id in [json!(7), json!(["A"]), json!({"S": "A"}), json!(true), json!("")] {
        bench.refused("get_device_status", json!({"device_id": id}), "INVALID_ARGUMENTS").await;
    }
    bench.refused("get_device_status", json!({}), "INVALID_ARGUMENTS").await;
    bench.refused("get_device_status", json!({"device_id": null}), "INVALID_ARGUMENTS").await;
    bench.refused("get_device_status", json!({"device_id": "a b"}), "UNKNOWN_DEVICE").await;
}

#[tokio::test]
async fn seed_defect_17_a_removed_device_stays_removed_and_every_command_has_its_own_record() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    bench.call("send_command", reboot()).await.unwrap();
    bench.clock.advance(std::time::Duration::from_secs(1));
    bench.call("send_command", json!({"device_id": PRESSURE, "command": "recalibrate"})).await.unwrap();
    let list = bench.call("list_commands", json!({"device_id": PRESSURE})).await.unwrap();
    let commands: Vec<_> = list["commands"].as_array().unwrap().iter().map(|c| c["command"].clone()).collect();
    assert_eq!(commands, ["recalibrate", "reboot"], "newest first");
    // What a tool that read the item before its removal would write now.
    let gone = json!({"TableName": DEVICES, "Key": {"device_id": {"S": PRESSURE}}});
    bench.client.call("DeleteItem", &gone).await.unwrap();
    let store = floorgate_fleet::store::Store::new(&bench::aws(), Some(&bench.endpoint), Tables::default());
    let parameters = json!({});
    let last = floorgate_fleet::store::LastCommand {
        device_id: PRESSURE,
        command_id: "c-1",
        command: "reboot",
        parameters: &parameters,
        issued_at: at(NOW),
    };
    assert_eq!(store.note_last_command(&last, floorgate_fleet::store::Over::Any).await, Ok(false));
    assert_eq!(bench.item(PRESSURE).await, Value::Null, "no ghost");
}

#[tokio::test]
async fn seed_defect_18_a_silent_gateway_and_maintenance_stop_commands() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    bench.set(PRESSURE, "status", json!("maintenance")).await;
    bench.refused("send_command", reboot(), "MAINTENANCE").await;
    bench.set(PRESSURE, "status", json!("online")).await;
    bench.clock.advance(std::time::Duration::from_secs(3 * 86_400));
    let status = bench.call("get_device_status", json!({"device_id": PRESSURE})).await.unwrap();
    assert_eq!((&status["stale"], &status["age_seconds"]), (&json!(true), &json!(259_200)));
    assert!(status["stale_reason"].as_str().unwrap().contains(GATEWAY));
    let error = bench.refused("send_command", reboot(), "STALE").await;
    assert_eq!(error.details["delivered"], false);
    let list = bench.call("list_devices", json!({"location": "factory-floor-1/line-7"})).await.unwrap();
    assert!(list["devices"].as_array().unwrap().iter().all(|device| device["stale"] == true), "{list}");
    assert!(gateway.received().is_empty());
}

#[tokio::test]
async fn seed_defect_19_maintenance_is_a_status_to_filter_by() {
    let bench = Bench::start().await;
    bench.set(VALVE, "status", json!("maintenance")).await;
    assert_eq!(ids(&bench.call("list_devices", json!({"status": "maintenance"})).await.unwrap()), [VALVE]);
    let described =
        tools::find("list_devices").unwrap().input_schema["properties"]["status"]["description"].to_string();
    assert!(described.contains("maintenance"));
    bench.refused("list_devices", json!({"status": "broken"}), "INVALID_ARGUMENTS").await;
}

#[tokio::test]
async fn seed_defect_20_who_asked_when_it_expires_and_a_retry_is_no_second_command() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let mut ask = reboot();
    ask["idempotency_key"] = json!("shift-7-reboot");
    let first = bench.call("send_command", ask.clone()).await.unwrap();
    let second = bench.call("send_command", ask).await.unwrap();
    assert_eq!(first["command_id"], second["command_id"]);
    assert_eq!((&first["repeated"], &second["repeated"]), (&json!(false), &json!(true)));
    assert_eq!(second["status"], "succeeded");
    let received = gateway.received();
    assert_eq!(received.len(), 1);
    assert_eq!(
        (&received[0].1["issuer"], &received[0].1["expires_at"]),
        (&json!("kim (sub-kim)"), &json!("2026-11-22T10:02:00.000Z"))
    );
    assert_eq!(bench.commands().await[0]["issuer"], "kim (sub-kim)");
}

#[tokio::test]
async fn seed_defect_20_recalibrating_every_sensor_runs_into_a_budget_that_says_what_may_be_done() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    for n in 0..12 {
        bench.device(&format!("P-{n:02}"), "pressure_sensor", "factory-floor-1/line-7", "online").await;
    }
    let (mut sent, mut refused) = (0, Vec::new());
    for n in 0..12 {
        // Two instances of the Lambda take turns.
        let fleet = if n % 2 == 0 { bench.fleet.clone() } else { bench.another_fleet() };
        let ask = json!({"device_id": format!("P-{n:02}"), "command": "recalibrate", "wait_seconds": 5});
        match bench::call(&fleet, "send_command", ask).await {
            Ok(_) => sent += 1,
            Err(error) => refused.push(error),
        }
    }
    assert_eq!((sent, refused.len(), gateway.received().len()), (5, 7, 5));
    let error = &refused[0];
    assert_eq!((error.code.as_ref(), &error.details["retry_after_seconds"]), ("RATE_LIMITED", &json!(120)));
    assert_eq!(error.details["budget"], json!({"command": "recalibrate", "commands": 5, "within_seconds": 600}));
    assert!(error.message.contains("What may be done now"), "{error}");
    let dry = json!({"device_id": "P-11", "command": "recalibrate", "dry_run": true, "wait_seconds": 0});
    assert!(bench.call("send_command", dry).await.is_ok(), "what the message says may be done can be done");
    bench.clock.advance(std::time::Duration::from_secs(60));
    bench.refused("send_command", json!({"device_id": "P-11", "command": "recalibrate"}), "RATE_LIMITED").await;
}

#[tokio::test]
async fn seed_defect_21_a_failure_below_is_not_told_in_its_own_words() {
    let mut bench = Bench::start().await;
    let secret = Tables { devices: "secret-table-name".into(), ..Tables::default() };
    let fleet = bench::fleet(&bench.endpoint, secret, Link::Absent, &Clock::standing_at(at(NOW)));
    let missing = bench::call(&fleet, "get_device_status", json!({"device_id": PRESSURE})).await.unwrap_err();
    bench.stop_table().await;
    let down = bench.call("get_device_status", json!({"device_id": PRESSURE})).await.unwrap_err();
    assert_eq!((missing.code.as_ref(), down.code.as_ref()), ("INTERNAL", "STORE_UNAVAILABLE"));
    for error in [missing, down] {
        let told = error.to_json().to_string();
        for leak in ["secret-table-name", "iot-devices", "arn:", "Exception", "127.0.0.1", "aws", "panicked"] {
            assert!(!told.contains(leak), "{leak}: {told}");
        }
    }
}

#[test]
fn seed_defect_22_tables_and_region_are_settings() {
    let variable = |name: &str| match name {
        "FLOORGATE_DEVICES_TABLE" => Some("plant-devices".to_owned()),
        "AWS_REGION" => Some("eu-central-1".to_owned()),
        _ => None,
    };
    let settings = Settings::read(variable).unwrap();
    assert_eq!((settings.tables.devices.as_str(), settings.region.as_deref()), ("plant-devices", Some("eu-central-1")));
    assert_eq!(settings.tables.history, "iot-telemetry-history");
}

#[tokio::test]
async fn seed_defect_23_the_status_is_the_full_record() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let sent = bench.call("send_command", reboot()).await.unwrap();
    let status = bench.call("get_device_status", json!({"device_id": PRESSURE})).await.unwrap();
    for field in [
        "device_type",
        "location",
        "status",
        "firmware_version",
        "last_telemetry",
        "configuration",
        "registered_at",
        "last_seen_at",
        "age_seconds",
        "gateway_id",
        "gateway_last_seen_at",
        "last_command_at",
    ] {
        assert!(status.get(field).is_some(), "{field}");
    }
    assert_eq!(status["last_command"]["command_id"], sent["command_id"]);
    assert_eq!(status["stale"], false);
}

#[tokio::test]
async fn seed_defect_24_a_location_may_be_a_beginning() {
    let bench = Bench::start().await;
    bench.device("GATEWAY-FLOOR2-001", "edge_gateway", "factory-floor-2", "online").await;
    bench.device("P-10", "pressure_sensor", "factory-floor-10/line-1", "online").await;
    let count = async |location: &str| {
        bench.call("list_devices", json!({"location": location})).await.unwrap()["count"].clone()
    };
    assert_eq!(count("factory-floor-1").await, 1, "exactly");
    assert_eq!(count("factory-floor-1/*").await, 4);
    assert_eq!(count("factory-floor-1*").await, 6, "also floor 10: it begins so");
    assert_eq!(count("*").await, 7);
    bench.refused("list_devices", json!({"location": "factory-*-1"}), "INVALID_ARGUMENTS").await;
}

#[tokio::test]
async fn seed_defect_25_history_is_of_numbers_paged_and_without_collisions() {
    let bench = Bench::start().await;
    let block = |first: &str, psi: Vec<f64>, celsius: Vec<Value>| {
        let offsets: Vec<usize> = (0..psi.len()).map(|n| n * 5_000).collect();
        json!({"device_id": PRESSURE, "timestamp": first, "end": first, "count": psi.len(), "offsets_ms": offsets,
            "gateway_id": GATEWAY, "readings": {"pressure_psi": psi, "temperature_c": celsius},
            "expires_at": at(NOW).as_seconds() + 1_000})
    };
    bench
        .put(HISTORY, block("2026-11-22T09:30:00.000Z", vec![1.0, 2.0, 3.5], vec![json!(20), Value::Null, json!(21)]))
        .await;
    bench.put(HISTORY, block("2026-11-22T09:40:00.000Z", vec![4.0, 5.0], vec![json!(22), json!(23)])).await;
    let mut expired = block("2026-11-22T09:35:00.000Z", vec![99.0], vec![json!(99)]);
    expired["expires_at"] = json!(at(NOW).as_seconds() - 1);
    bench.put(HISTORY, expired).await;
    let ask = |cursor: Option<&Value>| json!({"device_id": PRESSURE, "limit": 2, "cursor": cursor});
    let (mut samples, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let answer = bench.call("get_telemetry_history", ask(cursor.as_ref())).await.unwrap();
        let page = answer["samples"].as_array().unwrap().clone();
        assert!(page.len() <= 2);
        samples.extend(page);
        pages += 1;
        if answer["complete"] == true {
            break;
        }
        cursor = Some(answer["next_cursor"].clone());
    }
    assert_eq!((samples.len(), pages), (5, 3), "{samples:#?}");
    assert_eq!(samples[0]["readings"], json!({"pressure_psi": 1, "temperature_c": 20}), "two metrics of one instant");
    assert_eq!(samples[1]["readings"], json!({"pressure_psi": 2}));
    assert_eq!(
        samples[4],
        json!({"timestamp": "2026-11-22T09:40:05.000Z", "readings": {"pressure_psi": 5, "temperature_c": 23}})
    );
}

#[tokio::test]
async fn seed_defect_26_no_id_reaches_another_topic_and_a_message_says_what_it_is() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    for id in ["+", "#", "a/b", "../x", "$SYS", "a\u{0}b", &"A".repeat(65)] {
        bench.refused("send_command", json!({"device_id": id, "command": "reboot"}), "UNKNOWN_DEVICE").await;
    }
    bench.call("send_command", reboot()).await.unwrap();
    let received = gateway.received();
    assert_eq!(received.len(), 1);
    let (topic, payload) = &received[0];
    assert_eq!(topic, &format!("devices/{PRESSURE}/commands"));
    for field in ["command", "parameters", "timestamp", "command_id", "expires_at", "issuer"] {
        assert!(payload.get(field).is_some(), "{field}");
    }
}

#[tokio::test]
async fn seed_defect_27_nothing_of_one_call_is_left_for_the_next_and_the_body_names_nobody() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let update = json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"sample_rate_seconds": 9}});
    bench.call("send_command", update).await.unwrap();
    bench.call("send_command", reboot()).await.unwrap();
    assert_eq!(gateway.received()[1].1["parameters"], json!({}));
    for name in ["operator_id", "issuer", "session_id", "subject"] {
        let mut ask = reboot();
        ask[name] = json!("the boss");
        bench.refused("send_command", ask, "INVALID_ARGUMENTS").await;
    }
    assert!(bench.client.scan(COMMANDS).await.unwrap().iter().all(|item| !item.to_string().contains("the boss")));
}
