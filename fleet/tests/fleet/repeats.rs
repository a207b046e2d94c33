//! Commands that are asked for again: what never left, what nobody took up, keys that are old, answers that are lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use floorgate_demo::dynamo::COMMANDS;
use floorgate_fleet::caller::Caller;
use floorgate_fleet::link::{IotLink, Link};
use floorgate_fleet::store::Tables;
use serde_json::{Value, json};

use super::bench::{self, Bench, Gateway, PRESSURE, VALVE, until};
use super::wire::Wire;

fn keyed(parameters: Value) -> Value {
    json!({"device_id": PRESSURE, "command": "update_config", "parameters": parameters, "idempotency_key": "k",
        "wait_seconds": 0})
}

#[tokio::test]
async fn what_never_left_is_an_error_and_its_key_sends_it_once_it_can_leave() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "k", "wait_seconds": 5});
    let away = bench.fleet_without_link();
    for _ in 0..2 {
        assert_eq!(bench::call(&away, "send_command", ask.clone()).await.unwrap_err().code, "NOT_SENT");
    }
    let last = bench.item(PRESSURE).await["last_command"].clone();
    assert_eq!((&last["status"], &last["reason"]), (&json!("failed"), &json!("NOT_SENT")));
    bench.clock.advance(Duration::from_secs(20));
    let sent = bench.call("send_command", ask.clone()).await.unwrap();
    assert_eq!((&sent["status"], &sent["repeated"]), (&json!("succeeded"), &json!(false)), "{sent}");
    assert_eq!(gateway.received()[0].1["timestamp"], "2026-11-22T10:00:20.000Z", "with the times of now");
    let again = bench.call("send_command", ask).await.unwrap();
    assert_eq!((&again["repeated"], gateway.received().len()), (&json!(true), 1));
    assert_eq!(bench.commands().await.len(), 1);
}

#[tokio::test]
async fn a_flood_of_repeats_is_one_message_every_ten_seconds_and_none_to_a_silent_gateway() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let ask = keyed(json!({"sample_rate_seconds": 10}));
    for _ in 0..10 {
        bench.call("send_command", ask.clone()).await.unwrap();
    }
    until("the message", || !gateway.received().is_empty()).await;
    bench.clock.advance(Duration::from_millis(9_999));
    bench.call("send_command", ask.clone()).await.unwrap();
    bench.clock.advance(Duration::from_millis(1));
    for _ in 0..10 {
        bench.call("send_command", ask.clone()).await.unwrap();
    }
    until("the second message", || gateway.received().len() == 2).await;
    bench.clock.advance(Duration::from_secs(100));
    let stale = bench.call("send_command", ask).await.unwrap();
    assert_eq!(stale["stale"], true);
    assert_eq!(gateway.received().len(), 2);
}

#[tokio::test]
async fn a_repeat_is_the_same_message_however_its_numbers_were_written() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    bench.call("send_command", keyed(json!({"sample_rate_seconds": 10, "alert_threshold_psi": 145.0}))).await.unwrap();
    bench.clock.advance(Duration::from_secs(10));
    let again = keyed(json!({"alert_threshold_psi": 145, "sample_rate_seconds": 10.0}));
    assert_eq!(bench.call("send_command", again).await.unwrap()["repeated"], true);
    until("both messages", || gateway.received().len() == 2).await;
    let texts: Vec<_> = gateway.received().iter().map(|(_, payload)| payload.to_string()).collect();
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn a_key_counts_for_a_day_and_then_its_use_is_an_error() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = keyed(json!({"sample_rate_seconds": 10}));
    bench.call("send_command", ask.clone()).await.unwrap();
    bench.clock.advance(Duration::from_secs(24 * 3_600));
    assert_eq!(bench.call("send_command", ask.clone()).await.unwrap()["repeated"], true);
    bench.clock.advance(Duration::from_millis(1));
    let error = bench.refused("send_command", ask, "DUPLICATE_ID").await;
    assert!(error.message.contains("24 hours") && error.message.contains("new key"), "{error}");
    assert_eq!(gateway.received().len(), 1);
}

#[tokio::test]
async fn two_callers_of_one_name_do_not_join_each_others_commands() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let send = async |subject: &str| {
        let caller = Caller { subject: subject.into(), name: "boss".repeat(64), ..Caller::default() };
        let ask = json!({"device_id": VALVE, "command": "reboot", "wait_seconds": 0});
        bench.fleet.call(&caller, "send_command", ask.as_object().unwrap().clone()).await.unwrap()
    };
    let (one, other, one_again) = (send("a").await, send("b").await, send("b").await);
    assert_ne!(one["command_id"], other["command_id"]);
    assert_eq!((&other["command_id"], &one_again["repeated"]), (&one_again["command_id"], &json!(true)));
    until("two messages", || gateway.received().len() == 2).await;
}

#[tokio::test]
async fn a_failure_to_send_does_not_end_what_somebody_else_sent_meanwhile() {
    let bench = Bench::start().await;
    let key = json!({"device_id": {"S": PRESSURE}, "command_id": {"S": "c"}});
    bench
        .put(COMMANDS, json!({"device_id": PRESSURE, "command_id": "c", "status": "created", "published_at_ms": 7}))
        .await;
    let store = floorgate_fleet::store::Store::new(&bench::aws(), Some(&bench.endpoint), Tables::default());
    let at = bench.clock.now();
    assert!(!store.end_unsent((PRESSURE, "c"), "NOT_SENT", "x", (at, 6, at)).await.unwrap());
    let read = async || bench.client.call("GetItem", &json!({"TableName": COMMANDS, "Key": key})).await.unwrap();
    assert_eq!(read().await["Item"]["status"]["S"], "created");
    assert!(store.end_unsent((PRESSURE, "c"), "NOT_SENT", "x", (at, 7, at)).await.unwrap());
    assert_eq!(read().await["Item"]["status"]["S"], "failed");
    assert!(!store.claim_publication((PRESSURE, "c"), 8, 9).await.unwrap(), "what has ended is not sent after that");
}

#[tokio::test]
async fn an_aws_iot_that_cannot_be_reached_has_been_sent_nothing() {
    let bench = Bench::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("http://{free}"), "https://no-such-host.invalid".to_owned()] {
        let link = Link::Iot(IotLink::new(&bench::aws(), &url));
        let fleet = bench::fleet(&bench.endpoint, Tables::default(), link, &bench.clock);
        let ask = json!({"device_id": PRESSURE, "command": "reboot"});
        assert_eq!(bench::call(&fleet, "send_command", ask).await.unwrap_err().code, "NOT_SENT", "{url}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_open_whether_the_command_left() {
    let bench = Bench::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream)
        }
    });
    let link = Link::Iot(IotLink::new(&bench::aws(), &url));
    let fleet = bench::fleet(&bench.endpoint, Tables::default(), link, &bench.clock);
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 0});
    let answer = bench::call(&fleet, "send_command", ask).await.unwrap();
    assert_eq!((&answer["status"], &answer["delivered"]), (&json!("created"), &json!(false)));
    assert!(answer["message"].as_str().unwrap().contains("not known whether the command left"), "{answer}");
}

#[tokio::test]
async fn an_item_whose_gateway_is_no_id_costs_no_list() {
    let bench = Bench::start().await;
    bench.set(VALVE, "gateway_id", json!("x".repeat(3_000))).await;
    bench.set(PRESSURE, "gateway_id", json!("no id")).await;
    let listed = bench.call("list_devices", json!({})).await.unwrap();
    assert_eq!(listed["count"], 5);
    let stale =
        |id: &str| listed["devices"].as_array().unwrap().iter().any(|d| d["device_id"] == id && d["stale"] == true);
    assert!(stale(VALVE) && stale(PRESSURE));
}

#[tokio::test]
async fn a_repeat_notes_the_last_command_that_the_first_call_died_before_noting() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let ask = keyed(json!({"sample_rate_seconds": 10}));
    let first = bench.call("send_command", ask.clone()).await.unwrap();
    // As if the first call had died behind its item: the device still shows what came before.
    let before = json!({"command": "reboot", "parameters": {}, "status": "succeeded", "command_id": "before"});
    bench.set(PRESSURE, "last_command", before).await;
    bench.set(PRESSURE, "last_command_at", json!("2026-11-22T09:00:00.000Z")).await;
    bench.clock.advance(Duration::from_secs(10));
    bench.call("send_command", ask.clone()).await.unwrap();
    let item = bench.item(PRESSURE).await;
    assert_eq!(
        (&item["last_command"]["command_id"], &item["last_command"]["status"]),
        (&first["command_id"], &json!("created"))
    );
    assert_eq!(item["last_command_at"], bench::NOW);
    // What was asked for later stays the last one, and so does a word of the gateway.
    bench.set(PRESSURE, "last_command_at", json!("2026-11-22T10:00:05.000Z")).await;
    bench.set(PRESSURE, "last_command", json!({"command_id": "later"})).await;
    bench.clock.advance(Duration::from_secs(10));
    bench.call("send_command", ask).await.unwrap();
    assert_eq!(bench.item(PRESSURE).await["last_command"]["command_id"], "later");
    until("three messages", || gateway.received().len() == 3).await;
}

#[tokio::test]
async fn a_keyed_command_whose_item_was_made_without_an_answer_is_sent_by_the_same_call() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let lost = AtomicBool::new(false);
    let wire =
        Wire::to(&bench.endpoint, move |operation, _| operation == "PutItem" && !lost.swap(true, Ordering::SeqCst))
            .await;
    let fleet = bench::fleet(&wire.url, Tables::default(), bench::link(&bench.broker), &bench.clock);
    let answer = bench::call(&fleet, "send_command", keyed(json!({"sample_rate_seconds": 10}))).await.unwrap();
    assert_eq!(wire.asked("PutItem").len(), 2);
    assert_eq!(answer["repeated"], false);
    until("the message", || gateway.received().len() == 1).await;
    assert_eq!(bench.item(PRESSURE).await["last_command"]["command_id"], answer["command_id"]);
}

#[tokio::test]
async fn what_did_not_leave_costs_no_budget_and_neither_does_what_another_call_sends() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let away = bench.fleet_without_link();
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 5});
    for _ in 0..10 {
        assert_eq!(bench::call(&away, "send_command", ask.clone()).await.unwrap_err().code, "NOT_SENT");
    }
    let keyed = |key: &str| json!({"device_id": VALVE, "command": "reboot", "idempotency_key": key, "wait_seconds": 5});
    let (one, other) =
        futures_util::join!(bench.call("send_command", keyed("k")), bench.call("send_command", keyed("k")));
    assert_eq!(one.unwrap()["command_id"], other.unwrap()["command_id"]);
    // Three in all, and one of them was the valve's.
    bench.call("send_command", ask.clone()).await.unwrap();
    bench.call("send_command", ask.clone()).await.unwrap();
    bench.refused("send_command", ask, "RATE_LIMITED").await;
}

#[tokio::test]
async fn a_command_that_cannot_be_noted_ends_as_not_sent_and_costs_no_budget() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let wire = Wire::to(&bench.endpoint, |_, body| body["UpdateExpression"].to_string().contains("last_command")).await;
    let fleet = bench::fleet(&wire.url, Tables::default(), bench::link(&bench.broker), &bench.clock);
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 0});
    assert_eq!(bench::call(&fleet, "send_command", ask.clone()).await.unwrap_err().code, "STORE_UNAVAILABLE");
    let item = bench.commands().await.remove(0);
    assert_eq!((&item["status"], &item["reason"]), (&json!("failed"), &json!("NOT_SENT")));
    // It was noted, and only the answers were lost.
    let last = bench.item(PRESSURE).await["last_command"].clone();
    assert_eq!((&last["command_id"], &last["status"]), (&item["command_id"], &json!("failed")));
    assert_eq!(last["reason"], "NOT_SENT");
    assert!(gateway.received().is_empty());
    let used = bench.client.scan(COMMANDS).await.unwrap();
    let used = used.iter().filter(|item| item["command_id"] == "reboot");
    let used: Vec<_> = used.filter_map(|item| item["used_until_ms"].as_i64()).collect();
    assert_eq!(used, [bench.clock.now().as_millis(); 2]);
}

#[tokio::test]
async fn everyones_refusal_takes_nothing_from_ones_own() {
    let bench = Bench::start().await;
    let used_up = bench.clock.now().as_millis() + 900_000;
    bench
        .put(COMMANDS, json!({"device_id": "budget#everyone", "command_id": "reboot", "used_until_ms": used_up}))
        .await;
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 0});
    for _ in 0..5 {
        let error = bench.refused("send_command", ask.clone(), "RATE_LIMITED").await;
        assert!(error.message.starts_with("everyone's together"), "{error}");
    }
    assert_eq!(bench.client.scan(COMMANDS).await.unwrap().len(), 1, "nobody's own budget was touched");
}

#[tokio::test]
async fn equal_calls_at_the_same_moment_are_one_command_even_without_a_key() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let ask = json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"sample_rate_seconds": 10},
        "wait_seconds": 5});
    let other_fleet = bench.another_fleet();
    let calls = (0..6).map(|n| {
        let fleet = if n % 2 == 0 { &bench.fleet } else { &other_fleet };
        bench::call(fleet, "send_command", ask.clone())
    });
    let answers: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(gateway.received().len(), 1);
    let id = &answers[0]["command_id"];
    assert!(answers.iter().all(|answer| answer["status"] == "succeeded" && answer["command_id"] == *id), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer["repeated"] == false).count(), 1);
    // The others say where they went, and cost nothing.
    let joined: Vec<_> = bench.commands().await.into_iter().filter(|item| item["command_id"] != *id).collect();
    for item in &joined {
        assert_eq!((&item["status"], &item["reason"]), (&json!("failed"), &json!("NOT_SENT")));
        assert!(item["message"].as_str().unwrap().ends_with(id.as_str().unwrap()), "{item}");
    }
    let used = bench.client.scan(COMMANDS).await.unwrap();
    let used: Vec<_> = used.iter().filter_map(|item| item["used_until_ms"].as_i64()).collect();
    let now = bench.clock.now().as_millis();
    assert!(used.contains(&(now + 60_000)) && used.contains(&(now + 15_000)), "{used:?}");
    // One after the other they are two: the first one has ended.
    let next = bench.call("send_command", ask).await.unwrap();
    assert_eq!((&next["repeated"], gateway.received().len()), (&json!(false), 2));
}

#[tokio::test]
async fn a_note_that_was_made_without_an_answer_is_not_taken_for_another_calls() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let lost = AtomicBool::new(false);
    let wire = Wire::to(&bench.endpoint, move |_, body| {
        body["UpdateExpression"].to_string().contains("last_command") && !lost.swap(true, Ordering::SeqCst)
    })
    .await;
    let fleet = bench::fleet(&wire.url, Tables::default(), bench::link(&bench.broker), &bench.clock);
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 5});
    let answer = bench::call(&fleet, "send_command", ask).await.unwrap();
    assert_eq!((&answer["status"], &answer["repeated"]), (&json!("succeeded"), &json!(false)), "{answer}");
    assert_eq!((gateway.received().len(), bench.commands().await.len()), (1, 1));
}
