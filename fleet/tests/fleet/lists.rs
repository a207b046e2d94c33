//! Lists and histories: pages, order, sizes.

use base64::Engine;
use floorgate_demo::dynamo::HISTORY;
use floorgate_fleet::link::Link;
use floorgate_fleet::store::Tables;
use serde_json::{Value, json};

use super::bench::{self, Bench, GATEWAY, PRESSURE, VALVE, at};
use super::wire::Wire;

async fn pages(bench: &Bench, tool: &str, list: &str, arguments: Value) -> Vec<Value> {
    let (mut all, mut arguments) = (Vec::new(), arguments);
    for _ in 0..100 {
        let answer = bench.call(tool, arguments.clone()).await.unwrap();
        let page = answer[list].as_array().unwrap();
        assert_eq!(answer["count"], page.len());
        all.extend(page.clone());
        if answer["complete"] == true {
            assert!(answer.get("next_cursor").is_none());
            return all;
        }
        arguments["cursor"] = answer["next_cursor"].clone();
    }
    panic!("{tool} never ends");
}

fn texts(items: &[Value], field: &str) -> std::collections::BTreeSet<String> {
    items.iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_of_any_size_together_are_the_whole_fleet_once() {
    let bench = Bench::empty().await;
    for n in 0..43 {
        let location = if n % 3 == 0 { "hall/a" } else { "hall/b" };
        let status = if n % 2 == 0 { "online" } else { "warning" };
        bench.device(&format!("D-{n:02}"), "pressure_sensor", location, status).await;
    }
    for (arguments, number) in [
        (json!({}), 43),
        (json!({"location": "hall/b"}), 28),
        (json!({"location": "hall/b", "status": "online"}), 14),
        (json!({"location": "hall/*", "status": "warning"}), 21),
    ] {
        for limit in [1, 5, 7, 43, 200] {
            let mut asked = arguments.clone();
            asked["limit"] = json!(limit);
            let found = pages(&bench, "list_devices", "devices", asked).await;
            assert_eq!((found.len(), texts(&found, "device_id").len()), (number, number), "{arguments} by {limit}");
        }
    }
    let first = bench.call("list_devices", json!({"limit": 1})).await.unwrap();
    let wrong = json!({"limit": 1, "status": "online", "cursor": first["next_cursor"]});
    bench.refused("list_devices", wrong, "INVALID_CURSOR").await;
}

#[tokio::test]
async fn where_many_fit_a_filter_little_is_read_and_where_few_do_pages_become_whole() {
    let bench = Bench::empty().await;
    for n in 0..400 {
        let status = if n == 399 { "warning" } else { "online" };
        bench.device(&format!("D-{n:03}"), "pressure_sensor", "hall/a", status).await;
    }
    let looked_at = async |operation: &str, ask: Value, answered: u64| {
        let wire = Wire::to(&bench.endpoint, |_, _| false).await;
        let fleet = bench::fleet(&wire.url, Tables::default(), Link::Absent, &bench.clock);
        let answer = bench::call(&fleet, "list_devices", ask).await.unwrap();
        assert_eq!(answer["count"], answered, "{answer}");
        let limits: Vec<_> = wire.asked(operation).iter().map(|body| body["Limit"].clone()).collect();
        (limits, answer["examined"].as_u64().unwrap())
    };
    let (limits, examined) = looked_at("Scan", json!({"status": "online", "limit": 20}), 20).await;
    assert_eq!((limits, examined), (vec![json!(40)], 40));
    let (limits, examined) =
        looked_at("Query", json!({"location": "hall/a", "status": "online", "limit": 20}), 20).await;
    assert_eq!((limits, examined), (vec![json!(40)], 40));
    let (limits, examined) = looked_at("Scan", json!({"status": "warning", "limit": 20}), 1).await;
    assert_eq!(limits[..2], [json!(40), json!(320)]);
    assert!(limits.len() <= 4 && examined == 400, "{limits:?} {examined}");
}

#[tokio::test]
async fn commands_are_listed_newest_first_by_pages_and_filters() {
    let bench = Bench::start().await;
    let put = async |device: &str, n: u32, command: &str, status: &str| {
        let at = format!("2026-11-22T09:{n:02}:00.000Z");
        let item = json!({"device_id": device, "command_id": format!("{:064x}", 1_000 - n), "command": command,
            "parameters": {}, "issued_at": at, "expires_at": at, "status": status, "gateway_id": GATEWAY});
        bench.put("iot-commands", item).await;
    };
    for n in 0..10 {
        put(PRESSURE, n, if n % 2 == 0 { "reboot" } else { "recalibrate" }, "succeeded").await;
        put(VALVE, n, "reboot", "rejected").await;
    }
    let of_device = pages(&bench, "list_commands", "commands", json!({"device_id": PRESSURE, "limit": 3})).await;
    let times: Vec<_> = of_device.iter().map(|command| command["timestamp"].as_str().unwrap().to_owned()).collect();
    assert_eq!(times.len(), 10);
    assert!(times.is_sorted_by(|a, b| a > b), "{times:?}");
    let filtered = pages(
        &bench,
        "list_commands",
        "commands",
        json!({"device_id": PRESSURE, "command": "reboot",
        "since": "2026-11-22T09:04:00Z"}),
    )
    .await;
    assert_eq!(filtered.len(), 3);
    let fleet = pages(&bench, "list_commands", "commands", json!({"limit": 3})).await;
    assert_eq!((fleet.len(), texts(&fleet, "device_id").len()), (20, 2));
    assert_eq!(pages(&bench, "list_commands", "commands", json!({"status": "rejected"})).await.len(), 10);
    bench.refused("list_commands", json!({"device_id": "nobody"}), "UNKNOWN_DEVICE").await;
    let order = async |ask: Value| bench.call("list_commands", ask).await.unwrap()["newest_first"].clone();
    assert_eq!(order(json!({"device_id": PRESSURE, "limit": 3})).await, true);
    assert_eq!(order(json!({"limit": 3})).await, false, "the next page may hold newer ones");
    assert_eq!(order(json!({})).await, true, "all of them");
}

#[tokio::test]
async fn a_device_with_more_commands_than_a_call_reads_is_told_page_by_page_and_each_command_once() {
    let bench = Bench::start().await;
    let ballast = "x".repeat(300_000);
    // 18 MB. Every tenth has a key, so its id has nothing to do with its time.
    for n in 0..60_u32 {
        let at = at(&format!("2026-11-22T09:{n:02}:00.000Z"));
        let id = if n % 10 == 0 {
            format!("{:064x}", u128::MAX - u128::from(n))
        } else {
            format!("{:012x}-{n:016x}", at.as_millis())
        };
        let item = json!({"device_id": PRESSURE, "command_id": id, "command": "reboot", "parameters": {},
            "issued_at": at.to_string(), "expires_at": at.to_string(), "status": "succeeded", "gateway_id": GATEWAY,
            "ballast": ballast});
        bench.put("iot-commands", item).await;
    }
    let first = bench.call("list_commands", json!({"device_id": PRESSURE, "limit": 5})).await.unwrap();
    assert_eq!((&first["newest_first"], &first["complete"]), (&json!(false), &json!(false)));
    let times: Vec<_> = first["commands"].as_array().unwrap().iter().map(|c| c["timestamp"].clone()).collect();
    let newest: Vec<_> = (55..60).rev().map(|n| json!(format!("2026-11-22T09:{n:02}:00.000Z"))).collect();
    assert_eq!(times, newest);
    for limit in [5, 7, 60, 200] {
        let all = pages(&bench, "list_commands", "commands", json!({"device_id": PRESSURE, "limit": limit})).await;
        assert_eq!((all.len(), texts(&all, "command_id").len()), (60, 60), "by {limit}");
    }
    // A cursor that names an impossible place is refused, or tells what is there; it never breaks anything.
    let cursor = |place: Value| {
        let told = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(first["next_cursor"].as_str().unwrap());
        let mut told: Value = serde_json::from_slice(&told.unwrap()).unwrap();
        told["at"] = place;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(told.to_string())
    };
    for place in [
        json!({"start": "m", "last": "a", "around": true}),
        json!({"start": "", "last": null, "around": false}),
        json!({"start": "m", "last": 5, "around": "x"}),
        json!([]),
    ] {
        let asked = json!({"device_id": PRESSURE, "limit": 5, "cursor": cursor(place.clone())});
        let code = bench.call("list_commands", asked).await.map_err(|error| error.code);
        assert!(code.is_ok() || code.as_ref().is_err_and(|code| code != "INTERNAL"), "{place}: {code:?}");
    }
    let none = json!({"device_id": PRESSURE, "limit": 5, "status": "rejected"});
    assert_eq!(pages(&bench, "list_commands", "commands", none).await.len(), 0);
}

/// All answers of a history, each not much larger than it may be.
async fn answers(bench: &Bench, mut ask: Value) -> Vec<Value> {
    let mut answers = Vec::new();
    for _ in 0..100 {
        let answer = bench.call("get_telemetry_history", ask.clone()).await.unwrap();
        assert!(answer.to_string().len() < 1_030_000, "{}", answer.to_string().len());
        let complete = answer["complete"] == true;
        ask["cursor"] = answer["next_cursor"].clone();
        answers.push(answer);
        if complete {
            return answers;
        }
    }
    panic!("it never ends");
}

fn sum(answers: &[Value], list: &str) -> usize {
    answers.iter().map(|answer| answer[list].as_array().unwrap().len()).sum()
}

#[tokio::test]
async fn large_samples_and_many_gaps_come_in_answers_of_a_megabyte() {
    let bench = Bench::start().await;
    // 600 samples of 8 metrics with long names: 1.6 MB of answers.
    let long = |n: u32, length: usize| format!("{n}{}", "m".repeat(length));
    for minute in 0..12 {
        let readings: serde_json::Map<_, _> = (0..8).map(|n| (long(n, 320), json!(vec![n; 50]))).collect();
        let offsets: Vec<u32> = (0..50).map(|n| n * 1_000).collect();
        let item = json!({"device_id": PRESSURE, "timestamp": format!("2026-11-22T09:{minute:02}:00.000Z"), "count": 50,
            "offsets_ms": offsets, "readings": readings, "expires_at": 2_000_000_000});
        bench.put(HISTORY, item).await;
    }
    // 60 gaps of 20 KB: 1.2 MB, which no limit of samples would end.
    let figures = json!({"min": 1.5, "max": 2.5, "mean": 2.25, "count": 240});
    let summary: serde_json::Map<_, _> = (0..4).map(|n| (long(n, 5_000), figures.clone())).collect();
    for second in 0..60 {
        let from = at("2026-11-22T09:40:00Z").saturating_add(std::time::Duration::from_secs(second)).to_string();
        let item = json!({"device_id": PRESSURE, "timestamp": from, "from": from, "end": from, "count": 0, "lost": 1,
            "reason": "thinned", "summary": summary, "expires_at": 2_000_000_000});
        bench.put(HISTORY, item).await;
    }
    let range = |more: Value| {
        let mut ask = json!({"device_id": PRESSURE, "from": "2026-11-22T09:00:00Z", "to": "2026-11-22T10:00:00Z"});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    for limit in [2_000, 250] {
        let all = answers(&bench, range(json!({"limit": limit}))).await;
        assert_eq!((sum(&all, "samples"), sum(&all, "gaps")), (600, 60), "by {limit}");
        assert!(all.len() >= 3, "{}", all.len());
    }
    let all = answers(&bench, range(json!({"points": 500}))).await;
    let filled: std::collections::BTreeSet<_> =
        (0..12).flat_map(|minute| (0..50).map(move |n| (minute * 60 + n) * 1_000 / 7_200)).collect();
    assert_eq!((sum(&all, "points"), sum(&all, "gaps")), (filled.len(), 60));
    let error = bench.refused("get_telemetry_history", range(json!({"points": 1})), "RANGE_TOO_LARGE").await;
    assert!(error.message.contains("more points"), "{error}");
}

#[tokio::test]
async fn large_commands_come_in_answers_of_a_megabyte_newest_first() {
    let bench = Bench::start().await;
    for n in 0..30_u32 {
        let at = at(&format!("2026-11-22T09:{n:02}:00.000Z")).to_string();
        let item = json!({"device_id": PRESSURE, "command_id": format!("c-{n:02}"), "command": "reboot", "parameters": {},
            "issued_at": at, "expires_at": at, "status": "succeeded", "gateway_id": GATEWAY,
            "details": {"told": "x".repeat(100_000)}});
        bench.put("iot-commands", item).await;
    }
    for ask in [json!({"device_id": PRESSURE}), json!({})] {
        let first = bench.call("list_commands", ask.clone()).await.unwrap();
        assert!(first.to_string().len() < 1_020_000 && first["complete"] == false, "{}", first.to_string().len());
        let all = pages(&bench, "list_commands", "commands", ask).await;
        assert_eq!((all.len(), texts(&all, "command_id").len()), (30, 30));
    }
}
