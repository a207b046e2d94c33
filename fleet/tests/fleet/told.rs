//! What the tools tell, beyond the seed's defects: likely devices, repeats, the gateway's words, lists, history.

use floorgate_demo::dynamo::HISTORY;
use serde_json::{Value, json};

use super::bench::{self, Bench, GATEWAY, Gateway, PRESSURE, VALVE, at, until};

#[tokio::test]
async fn a_device_as_people_write_it_is_suggested_and_never_assumed() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    for named in ["line 7 pressure", "SENSOR-LINE7-PRES-001", "sensor-line7-press-001"] {
        let ask = json!({"device_id": named, "command": "reboot"});
        let error = bench.refused("send_command", ask, "UNKNOWN_DEVICE").await;
        assert_eq!(error.details["did_you_mean"][0], PRESSURE, "{named}");
    }
    let error = bench.refused("get_device_status", json!({"device_id": "coffee machine"}), "UNKNOWN_DEVICE").await;
    assert_eq!(error.details["did_you_mean"], json!([]));
    assert!(gateway.received().is_empty() && bench.commands().await.is_empty());
}

#[tokio::test]
async fn a_refusal_of_the_gateway_is_an_error_with_its_record() {
    let bench = Bench::start().await;
    let _gateway =
        Gateway::saying(&bench, json!({"status": "rejected", "reason": "COOL_DOWN", "message": "rebooted 3 s ago"}));
    let error = bench.refused("send_command", json!({"device_id": PRESSURE, "command": "reboot"}), "COOL_DOWN").await;
    assert_eq!(error.message, "rebooted 3 s ago");
    assert_eq!((&error.details["status"], &error.details["delivered"]), (&json!("rejected"), &json!(false)));
    assert_eq!(error.details["device_id"], PRESSURE);
    let id = &error.details["command_id"];
    let told = bench.call("get_command_status", json!({"device_id": PRESSURE, "command_id": id})).await.unwrap();
    assert_eq!(
        (&told["status"], &told["reason"], &told["stale"]),
        (&json!("rejected"), &json!("COOL_DOWN"), &json!(false))
    );
}

#[tokio::test]
async fn a_dry_run_is_answered_and_leaves_the_device_alone() {
    let bench = Bench::start().await;
    let gateway = Gateway::answering(&bench, |payload| {
        (payload["dry_run"] == true).then(|| json!({"status": "rejected", "reason": "DRY_RUN_OK"}))
    });
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "dry_run": true});
    let answer = bench.call("send_command", ask).await.unwrap();
    assert_eq!(
        (&answer["reason"], &answer["delivered"], &answer["dry_run"]),
        (&json!("DRY_RUN_OK"), &json!(false), &json!(true))
    );
    assert_eq!(gateway.received().len(), 1);
    assert!(bench.item(PRESSURE).await.get("last_command").is_none());
    // The table forgets it after a week; what was done is kept.
    let kept = bench.commands().await[0]["forget_at"].as_i64();
    assert_eq!(kept, Some(bench.clock.now().as_seconds() + 7 * 24 * 3_600));
    bench.call("send_command", json!({"device_id": VALVE, "command": "reboot", "wait_seconds": 0})).await.unwrap();
    let done: Vec<_> = bench.commands().await.into_iter().filter(|item| item.get("dry_run").is_none()).collect();
    assert!(done.len() == 1 && done[0].get("forget_at").is_none());
}

#[tokio::test]
async fn a_failure_at_the_device_was_delivered() {
    let bench = Bench::start().await;
    let _gateway =
        Gateway::saying(&bench, json!({"status": "failed", "reason": "DEVICE_ERROR", "message": "no reference"}));
    let answer = bench.call("send_command", json!({"device_id": PRESSURE, "command": "recalibrate"})).await.unwrap();
    assert_eq!(
        (&answer["status"], &answer["reason"], &answer["delivered"]),
        (&json!("failed"), &json!("DEVICE_ERROR"), &json!(true))
    );
}

#[tokio::test]
async fn a_key_that_was_used_for_something_else_sends_nothing() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = |device: &str, command: &str| json!({"device_id": device, "command": command, "idempotency_key": "k"});
    bench.call("send_command", ask(PRESSURE, "reboot")).await.unwrap();
    bench.refused("send_command", ask(PRESSURE, "recalibrate"), "DUPLICATE_ID").await;
    assert_eq!(gateway.received().len(), 1);
    // Another device is another intention, and so is another caller's key.
    bench.call("send_command", ask(VALVE, "reboot")).await.unwrap();
    let other = floorgate_fleet::Caller { subject: "sub-lee".into(), ..bench::kim() };
    let given = ask(PRESSURE, "reboot").as_object().unwrap().clone();
    bench.fleet.call(&other, "send_command", given).await.unwrap();
    assert_eq!(gateway.received().len(), 3);
}

#[tokio::test]
async fn a_repeat_of_what_nobody_took_up_is_published_again_byte_for_byte() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let ask = json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"alert_threshold_psi": 145.5},
        "idempotency_key": "k", "wait_seconds": 0});
    let first = bench.call("send_command", ask.clone()).await.unwrap();
    bench.clock.advance(std::time::Duration::from_secs(30));
    let second = bench.call("send_command", ask.clone()).await.unwrap();
    until("the second message", || gateway.received().len() == 2).await;
    let received = gateway.received();
    assert_eq!(received[0], received[1], "the gateway takes an id once");
    assert_eq!((&second["command_id"], &second["repeated"]), (&first["command_id"], &json!(true)));
    // After its expiry it is no use any more.
    bench.clock.advance(std::time::Duration::from_secs(40));
    bench.set(GATEWAY, "last_seen_at", json!(at("2026-11-22T10:20:00Z").to_string())).await;
    bench.clock.advance(std::time::Duration::from_secs(900));
    let late = bench.call("send_command", ask).await.unwrap();
    assert!(late["message"].as_str().unwrap().contains("no gateway has said anything"), "{late}");
    assert_eq!(gateway.received().len(), 2);
}

#[tokio::test]
async fn a_repeat_that_cannot_leave_does_not_undo_what_may_have_left() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "k", "wait_seconds": 0});
    bench.call("send_command", ask.clone()).await.unwrap();
    let again = bench::call(&bench.fleet_without_link(), "send_command", ask).await.unwrap();
    assert_eq!((&again["status"], &again["repeated"]), (&json!("created"), &json!(true)));
    assert_eq!(bench.commands().await[0]["status"], "created");
    until("the message", || gateway.received().len() == 1).await;
}

#[tokio::test]
async fn asking_with_a_key_does_not_use_it_up() {
    let bench = Bench::start().await;
    let gateway = Gateway::answering(&bench, |payload| {
        let dry = json!({"status": "rejected", "reason": "DRY_RUN_OK"});
        Some(if payload["dry_run"] == true { dry } else { json!({"status": "succeeded"}) })
    });
    let ask =
        |dry_run: bool| json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "k", "dry_run": dry_run});
    assert_eq!(bench.call("send_command", ask(true)).await.unwrap()["reason"], "DRY_RUN_OK");
    assert_eq!(bench.call("send_command", ask(false)).await.unwrap()["status"], "succeeded");
    assert_eq!(gateway.received().len(), 2);
}

#[tokio::test]
async fn the_same_command_while_it_is_open_is_joined_even_without_a_key() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "in_progress"}));
    let ask = |wait: u64| json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": wait});
    let first = bench.call("send_command", ask(1)).await.unwrap();
    assert_eq!(
        (&first["status"], &first["delivered"], &first["final"]),
        (&json!("in_progress"), &json!(true), &json!(false))
    );
    let again = bench.call("send_command", ask(0)).await.unwrap();
    assert_eq!((&again["command_id"], &again["repeated"]), (&first["command_id"], &json!(true)));
    assert_eq!(gateway.received().len(), 1);
    // Ended: the next one is a new one.
    bench::write_word(&bench.client, PRESSURE, first["command_id"].as_str().unwrap(), &json!({"status": "failed"}))
        .await;
    let next = bench.call("send_command", ask(0)).await.unwrap();
    assert_ne!(next["command_id"], first["command_id"]);
}

#[tokio::test]
async fn twenty_calls_with_one_key_at_once_are_one_command() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "k"});
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (fleet, ask) = (bench.fleet.clone(), ask.clone());
            tokio::spawn(async move { bench::call(&fleet, "send_command", ask).await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => drop(ids.insert(answer["command_id"].to_string())),
            // Those that came before the item was there spent from the budget first.
            Err(error) => assert_eq!(error.code, "RATE_LIMITED"),
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(bench.commands().await.len(), 1);
    let received: std::collections::BTreeSet<_> = gateway.received().iter().map(|(_, p)| p.to_string()).collect();
    assert_eq!(received.len(), 1, "however often it was published, it is one message");
}

#[tokio::test]
async fn the_wait_ends_with_the_doors_time_and_a_late_word_is_found() {
    let bench = Bench::start().await;
    let _gateway = Gateway::silent(&bench);
    let given = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 60}).as_object().unwrap().clone();
    let began = tokio::time::Instant::now();
    let time = std::time::Duration::from_millis(1_500);
    let answer = bench.fleet.call_within(&bench::kim(), "send_command", given, time).await.unwrap();
    assert!(began.elapsed() < time, "{:?}", began.elapsed());
    let id = answer["command_id"].as_str().unwrap();
    bench::write_word(&bench.client, PRESSURE, id, &json!({"status": "succeeded"})).await;
    let told = bench.call("get_command_status", json!({"device_id": PRESSURE, "command_id": id})).await.unwrap();
    assert_eq!((&told["delivered"], &told["final"]), (&json!(true), &json!(true)));
    bench.refused("get_command_status", json!({"device_id": PRESSURE, "command_id": "x"}), "COMMAND_NOT_FOUND").await;
}

#[tokio::test]
async fn all_callers_together_have_four_times_the_budget_of_one() {
    let bench = Bench::start().await;
    let mut sent = 0;
    for n in 0..30 {
        bench.device(&format!("P-{n:02}"), "pressure_sensor", "hall", "online").await;
        let caller = floorgate_fleet::Caller { subject: format!("sub-{}", n % 6), ..bench::kim() };
        let ask = json!({"device_id": format!("P-{n:02}"), "command": "recalibrate", "wait_seconds": 0});
        match bench.fleet.call(&caller, "send_command", ask.as_object().unwrap().clone()).await {
            Ok(_) => sent += 1,
            Err(error) => assert!(error.message.starts_with("everyone's together"), "{error}"),
        }
    }
    assert_eq!(sent, 20);
}

#[tokio::test]
async fn an_idempotency_key_has_128_characters_at_most() {
    let bench = Bench::start().await;
    let ask =
        |key: String| json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": key, "wait_seconds": 0});
    bench.refused("send_command", ask("ä".repeat(129)), "INVALID_ARGUMENTS").await;
    bench.refused("send_command", ask(String::new()), "INVALID_ARGUMENTS").await;
    assert!(bench.call("send_command", ask("ä".repeat(128))).await.is_ok());
}

#[tokio::test]
async fn a_budgets_own_item_is_no_command() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    bench.call("send_command", json!({"device_id": PRESSURE, "command": "reboot"})).await.unwrap();
    assert_eq!(bench.client.scan("iot-commands").await.unwrap().len(), 3, "a command, one's budget, everyone's");
    assert_eq!(bench.call("list_commands", json!({})).await.unwrap()["count"], 1);
}

async fn history(bench: &Bench) {
    for minute in 0..60 {
        let first = format!("2026-11-22T09:{minute:02}:00.000Z");
        let values: Vec<f64> = (0..12).map(|n| f64::from(minute * 12 + n)).collect();
        let offsets: Vec<u32> = (0..12).map(|n| n * 5_000).collect();
        bench
            .put(
                HISTORY,
                json!({"device_id": PRESSURE, "timestamp": first, "count": 12, "offsets_ms": offsets,
            "readings": {"pressure_psi": values}, "gateway_id": GATEWAY, "expires_at": 2_000_000_000}),
            )
            .await;
    }
    // Two hours, begun long before the range; and one within it.
    for (from, to, lost) in [
        ("2026-11-22T07:30:00.000Z", "2026-11-22T09:10:00.000Z", 240),
        ("2026-11-22T09:20:00.001Z", "2026-11-22T09:21:00.000Z", 7),
    ] {
        bench
            .put(
                HISTORY,
                json!({"device_id": PRESSURE, "timestamp": from, "from": from, "end": to, "count": 0,
            "lost": lost, "reason": "thinned", "gateway_id": GATEWAY, "expires_at": 2_000_000_000}),
            )
            .await;
    }
}

#[tokio::test]
async fn a_range_is_down_sampled_and_gaps_are_shown_as_gaps() {
    let bench = Bench::start().await;
    history(&bench).await;
    let ask = json!({"device_id": PRESSURE, "from": "2026-11-22T09:00:00Z", "to": "2026-11-22T10:00:00Z", "points": 6});
    let answer = bench.call("get_telemetry_history", ask).await.unwrap();
    let points = answer["points"].as_array().unwrap();
    assert_eq!((points.len(), &answer["count"], &answer["complete"]), (6, &json!(720), &json!(true)));
    assert_eq!(points[1]["metrics"]["pressure_psi"], json!({"min": 120.0, "max": 239.0, "mean": 179.5, "count": 120}));
    let lost: Vec<_> = answer["gaps"].as_array().unwrap().iter().map(|gap| gap["lost"].clone()).collect();
    assert_eq!(lost, [240, 7]);
    assert_eq!((&answer["stale"], &answer["age_seconds"]), (&json!(false), &json!(0)));
}

#[tokio::test]
async fn samples_page_by_page_are_all_samples_once_and_a_block_that_reaches_into_the_range_counts() {
    let bench = Bench::start().await;
    history(&bench).await;
    for limit in [1, 7, 12, 100, 2_000] {
        let (mut samples, mut gaps, mut cursor) = (Vec::new(), 0, Value::Null);
        for _ in 0..200 {
            let ask = json!({"device_id": PRESSURE, "from": "2026-11-22T09:30:30Z", "to": "2026-11-22T09:40:02Z",
                "metric": "pressure_psi", "limit": limit, "cursor": cursor});
            let answer = bench.call("get_telemetry_history", ask).await.unwrap();
            samples.extend(answer["samples"].as_array().unwrap().clone());
            gaps += answer["gaps"].as_array().unwrap().len();
            if answer["complete"] == true {
                break;
            }
            cursor = answer["next_cursor"].clone();
        }
        let values: Vec<_> = samples.iter().map(|s| s["readings"]["pressure_psi"].as_i64().unwrap()).collect();
        assert_eq!(values, (366..=480).collect::<Vec<_>>(), "by {limit}");
        assert_eq!(gaps, 0);
    }
}

#[tokio::test]
async fn arguments_of_history_that_make_no_sense_are_refused() {
    let bench = Bench::start().await;
    for wrong in [
        json!({"from": "2026-11-22T10:00:00Z", "to": "2026-11-22T10:00:00Z"}),
        json!({"from": "yesterday"}),
        json!({"points": 0}),
        json!({"points": 501}),
        json!({"limit": 2_001}),
        json!({"metric": ""}),
    ] {
        let mut ask = wrong;
        ask["device_id"] = json!(PRESSURE);
        bench.refused("get_telemetry_history", ask, "INVALID_ARGUMENTS").await;
    }
}

#[tokio::test]
async fn every_argument_of_every_schema_is_read_by_its_tool() {
    let bench = Bench::start().await;
    for tool in floorgate_fleet::tools::definitions() {
        for name in tool.input_schema["properties"].as_object().unwrap().keys() {
            // No argument takes a list: what is not read would not be refused.
            let mut ask = json!({"device_id": PRESSURE, "command": "reboot", "command_id": "c"});
            ask.as_object_mut().unwrap().retain(|name, _| tool.input_schema["properties"].get(name).is_some());
            ask[name] = json!([]);
            let error = bench.call(tool.name, ask).await.expect_err(name);
            assert_eq!(error.code, "INVALID_ARGUMENTS", "{} {name}: {error}", tool.name);
        }
    }
}
