//! A fleet of 10⁵ devices: lists stay true, and no call reads it all.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use floorgate_demo::dynamo::DEVICES;
use floorgate_fleet::fleet::PAGES_MAX;
use serde_json::{Value, json};

use super::bench::{Bench, GATEWAY, NOW, PRESSURE};

const DEVICES_ALL: usize = 100_000;
const LOCATIONS: usize = 50;
/// Every so many-th device warns.
const WARNING_EACH: usize = 1_000;
/// A page of 1 MB holds at most so many of these items.
const PER_PAGE: u64 = 8_000;

async fn fill(bench: &Bench) {
    for batch in 0..DEVICES_ALL / 25 {
        let puts: Vec<Value> = (batch * 25..batch * 25 + 25)
            .map(|n| {
                let status = if n % WARNING_EACH == 0 { "warning" } else { "online" };
                json!({"PutRequest": {"Item": {
                    "device_id": {"S": format!("PRESS-{n:06}")}, "device_type": {"S": "pressure_sensor"},
                    "location": {"S": format!("plant/hall-{}", n % LOCATIONS)}, "status": {"S": status},
                    "gateway_id": {"S": GATEWAY}, "last_seen_at": {"S": NOW},
                }}})
            })
            .collect();
        bench.client.call("BatchWriteItem", &json!({"RequestItems": {DEVICES: puts}})).await.unwrap();
    }
}

async fn all(bench: &Bench, mut arguments: Value) -> (BTreeSet<String>, usize, Duration) {
    let (mut found, mut calls, mut longest, mut count) = (BTreeSet::new(), 0, Duration::ZERO, 0);
    loop {
        let began = Instant::now();
        let answer = bench.call("list_devices", arguments.clone()).await.unwrap();
        longest = longest.max(began.elapsed());
        calls += 1;
        let examined = answer["examined"].as_u64().unwrap();
        assert!(examined <= u64::from(PAGES_MAX) * PER_PAGE, "{examined} items for one answer");
        count += answer["count"].as_u64().unwrap();
        let page = answer["devices"].as_array().unwrap();
        found.extend(page.iter().map(|device| device["device_id"].as_str().unwrap().to_owned()));
        if answer["complete"] == true {
            assert_eq!(count, found.len() as u64, "no device twice, none counted that is not named");
            return (found, calls, longest);
        }
        arguments["cursor"] = answer["next_cursor"].clone();
    }
}

#[tokio::test]
#[ignore = "fills a table with 100,000 items; `cargo xtask many` runs it"]
async fn a_hundred_thousand_devices_are_listed_truly_and_in_bounded_steps() {
    let bench = Bench::start().await;
    let began = Instant::now();
    fill(&bench).await;
    println!("filled in {:?}", began.elapsed());
    for (arguments, number) in [
        (json!({"status": "warning", "device_type": "pressure_sensor"}), DEVICES_ALL / WARNING_EACH),
        (json!({"location": "plant/hall-7", "limit": 200}), DEVICES_ALL / LOCATIONS),
        (json!({"location": "plant/hall-0", "status": "warning"}), DEVICES_ALL / WARNING_EACH),
        (json!({"location": "plant/hall-4*", "status": "warning"}), 0),
        (json!({"location": "nowhere"}), 0),
    ] {
        let (found, calls, longest) = all(&bench, arguments.clone()).await;
        println!("{arguments}: {} devices in {calls} calls, the longest {longest:?}", found.len());
        assert_eq!(found.len(), number, "{arguments}");
    }
    let began = Instant::now();
    let error = bench.refused("get_device_status", json!({"device_id": "line 7 pressure"}), "UNKNOWN_DEVICE").await;
    println!("did_you_mean in {:?}: {}", began.elapsed(), error.details["did_you_mean"]);
    let known = bench.call("get_device_status", json!({"device_id": PRESSURE})).await.unwrap();
    assert_eq!(known["status"], "online");
}
