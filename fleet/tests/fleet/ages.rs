//! How old what is told of commands is, what became of those that nobody took up, and whether a gateway can be reached.

use std::time::Duration;

use floorgate_demo::dynamo::DEVICES;
use floorgate_fleet::link::{IotLink, Link};
use floorgate_fleet::store::Tables;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bench::{self, Bench, GATEWAY, Gateway, PRESSURE, VALVE};

const REBOOT_LASTS: Duration = Duration::from_secs(120);
const SETTLED_AFTER: Duration = Duration::from_secs(300);

async fn remove(bench: &Bench, device: &str) {
    let key = json!({"TableName": DEVICES, "Key": {"device_id": {"S": device}}});
    bench.client.call("DeleteItem", &key).await.unwrap();
}

/// The gateway's own report, now.
async fn reports(bench: &Bench, outbox_records: u32) {
    bench.heard_now().await;
    let readings = json!({"outbox_records": outbox_records.to_string(), "timestamp": bench.clock.now().to_string()});
    bench.set(GATEWAY, "last_telemetry", readings).await;
}

#[tokio::test]
async fn every_answer_about_commands_says_how_old_it_is_also_of_a_device_that_is_gone() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let sent = bench.call("send_command", json!({"device_id": VALVE, "command": "reboot"})).await.unwrap();
    let ask = json!({"device_id": VALVE, "command_id": sent["command_id"]});
    let ages = |answer: &Value| (answer["stale"].clone(), answer["last_seen_at"].clone());
    let fresh = (json!(false), json!(bench::NOW));
    assert_eq!(ages(&bench.call("get_command_status", ask.clone()).await.unwrap()), fresh);
    let list = bench.call("list_commands", json!({"device_id": VALVE})).await.unwrap();
    assert_eq!((ages(&list), ages(&list["commands"][0])), (fresh.clone(), fresh.clone()));
    assert_eq!(ages(&bench.call("list_commands", json!({})).await.unwrap()["commands"][0]), fresh);
    let none = bench.call("list_commands", json!({"device_id": PRESSURE})).await.unwrap();
    assert_eq!((&none["count"], ages(&none)), (&json!(0), fresh), "also where there is no command");
    // Its gateway falls silent, and the device is removed: the gateway that took the command up still counts.
    bench.clock.advance(Duration::from_secs(91));
    remove(&bench, VALVE).await;
    for answer in [
        bench.call("get_command_status", ask.clone()).await.unwrap(),
        bench.call("list_commands", json!({"device_id": VALVE})).await.unwrap(),
    ] {
        assert_eq!(answer["stale"], true, "{answer}");
        assert!(answer["stale_reason"].as_str().unwrap().contains("silent since"), "{answer}");
    }
    bench.heard_now().await;
    assert_eq!(bench.call("get_command_status", ask).await.unwrap()["stale"], false);
}

#[tokio::test]
async fn a_command_that_no_gateway_took_up_has_expired_once_its_gateway_has_told_everything() {
    let bench = Bench::start().await;
    let _gateway = Gateway::silent(&bench);
    let send = json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "k", "wait_seconds": 0});
    let sent = bench.call("send_command", send.clone()).await.unwrap();
    let ask = json!({"device_id": PRESSURE, "command_id": sent["command_id"]});
    let status = async || bench.call("get_command_status", ask.clone()).await.unwrap();
    let is_open = |answer: &Value| answer["status"] == "created" && answer["final"] == false;
    let listed = async |status: &str| {
        let answer = bench.call("list_commands", json!({"device_id": PRESSURE, "status": status})).await.unwrap();
        let found = answer["commands"].as_array().unwrap();
        assert!(found.iter().all(|command| command["status"] == status), "{answer}");
        found.len()
    };
    // Away beyond its expiry, a gateway may still tell that it was executed.
    bench.clock.advance(REBOOT_LASTS + SETTLED_AFTER + Duration::from_secs(3_600));
    assert!(is_open(&status().await));
    assert_eq!((listed("created").await, listed("expired").await), (1, 0));
    // Back, with something left to tell: this may be it.
    reports(&bench, 1).await;
    assert!(is_open(&status().await));
    let ahead = bench.clock.now().saturating_add(SETTLED_AFTER + Duration::from_millis(1)).to_string();
    bench.set(GATEWAY, "last_telemetry", json!({"outbox_records": "0", "timestamp": ahead})).await;
    assert!(is_open(&status().await), "a word from the future may be older than the expiry");
    reports(&bench, 0).await;
    let told = status().await;
    assert_eq!(
        (&told["status"], &told["reason"], &told["final"], &told["delivered"]),
        (&json!("expired"), &json!("EXPIRED"), &json!(true), &json!(false))
    );
    assert!(told["message"].as_str().unwrap().contains("no gateway took it up"), "{told}");
    assert_eq!((listed("created").await, listed("expired").await), (0, 1));
    assert_eq!(bench.commands().await[0]["status"], "created", "reading writes nothing");
    let error = bench.refused("send_command", send, "EXPIRED").await;
    assert_eq!((&error.details["status"], &error.details["repeated"]), (&json!("expired"), &json!(true)));
}

#[tokio::test]
async fn nothing_is_settled_before_five_minutes_past_the_expiry_nor_by_another_gateway() {
    let bench = Bench::start().await;
    let _gateway = Gateway::silent(&bench);
    let send = |device: &str| json!({"device_id": device, "command": "reboot", "wait_seconds": 0});
    let sent = bench.call("send_command", send(PRESSURE)).await.unwrap();
    let moved = bench.call("send_command", send(VALVE)).await.unwrap();
    let status = async |of: &Value| {
        let ask = json!({"device_id": of["device_id"], "command_id": of["command_id"]});
        bench.call("get_command_status", ask).await.unwrap()["status"].clone()
    };
    // Another gateway has taken the valve over; it does not know what the first one did.
    bench.device("GATEWAY-FLOOR1-002", "edge_gateway", "factory-floor-1", "online").await;
    bench.set(VALVE, "gateway_id", json!("GATEWAY-FLOOR1-002")).await;
    bench.clock.advance(REBOOT_LASTS + SETTLED_AFTER - Duration::from_millis(1));
    reports(&bench, 0).await;
    assert_eq!(status(&sent).await, "created");
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(status(&sent).await, "created", "the gateway's own time counts");
    reports(&bench, 0).await;
    assert_eq!(status(&sent).await, "expired");
    assert_eq!(status(&moved).await, "created", "the other gateway heard it too, and may have executed it");
    remove(&bench, GATEWAY).await;
    let readings = json!({"outbox_records": "0", "timestamp": bench.clock.now().to_string()});
    bench.set("GATEWAY-FLOOR1-002", "last_telemetry", readings).await;
    assert_eq!(status(&moved).await, "created");
}

/// AWS IoT's data plane, which takes everything.
async fn iot() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = vec![0; 65_536];
                while stream.read(&mut read).await.is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_gateway_that_aws_iot_does_not_see_is_told_and_refuses_nothing() {
    let bench = Bench::start().await;
    let link = Link::Iot(IotLink::new(&bench::aws(), &iot().await));
    let fleet = bench::fleet(&bench.endpoint, Tables::default(), link, &bench.clock);
    let status = async |device: &str| bench.call("get_device_status", json!({ "device_id": device })).await.unwrap();
    assert!(status(PRESSURE).await.get("gateway_connected").is_none(), "nobody says anything");
    let at = bench.clock.now();
    bench.set(GATEWAY, "presence", json!({"connected": false, "at_ms": at.as_millis() - 5_000, "version": 3})).await;
    for device in [PRESSURE, GATEWAY] {
        let told = status(device).await;
        assert_eq!((&told["gateway_connected"], &told["stale"]), (&json!(false), &json!(false)));
        assert_eq!(told["gateway_connected_since"], "2026-11-22T09:59:55.000Z");
    }
    let send = |device: &str| json!({"device_id": device, "command": "reboot", "wait_seconds": 0});
    let sent = bench::call(&fleet, "send_command", send(PRESSURE)).await.unwrap();
    let message = sent["message"].as_str().unwrap();
    assert!(message.contains("not been connected to AWS IoT since 2026-11-22T09:59:55.000Z"), "{sent}");
    assert!(message.contains("may wait there until it connects"), "{sent}");
    assert_eq!(sent["status"], "created");
    // AWS IoT keeps a session for an hour, and no longer what waits in it.
    for (ago, kept) in [(3_599_999, true), (3_600_000, false)] {
        bench.set(GATEWAY, "presence", json!({"connected": false, "at_ms": at.as_millis() - ago, "version": 3})).await;
        let repeated = bench::call(&fleet, "send_command", send(PRESSURE)).await.unwrap();
        let message = repeated["message"].as_str().unwrap();
        assert_eq!(message.contains("may wait there"), kept, "{message}");
        assert_eq!(message.contains("probably not kept the command; repeat it when"), !kept, "{message}");
    }
    // Another broker is another way to the gateway.
    let other_way = bench.call("send_command", send(VALVE)).await.unwrap();
    assert!(!other_way["message"].as_str().unwrap().contains("AWS IoT"), "{other_way}");
    // Connected again, as long as a silent gateway is: it changes nothing of how old the answers are.
    bench.set(GATEWAY, "presence", json!({"connected": true, "at_ms": at.as_millis(), "version": 4})).await;
    bench.clock.advance(Duration::from_secs(91));
    let told = status(PRESSURE).await;
    assert_eq!((&told["gateway_connected"], &told["stale"]), (&json!(true), &json!(true)));
}
