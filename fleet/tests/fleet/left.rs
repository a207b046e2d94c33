//! Whether a command left: what is known of it, what it costs if it did not, and who says so.

use std::sync::Arc;
use std::time::Duration;

use floorgate_demo::dynamo::COMMANDS;
use floorgate_fleet::link::{IotLink, Link};
use floorgate_fleet::store::Tables;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::bench::{self, Bench, Gateway, PRESSURE};

#[tokio::test]
async fn who_tries_without_end_what_does_not_leave_is_refused_and_the_tries_are_forgotten_after_a_day() {
    let bench = Bench::start().await;
    let away = bench.fleet_without_link();
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 0});
    // Twenty cost nothing, then three are the budget of the command itself.
    for n in 0..23 {
        assert_eq!(bench::call(&away, "send_command", ask.clone()).await.unwrap_err().code, "NOT_SENT", "{n}");
    }
    assert_eq!(bench::call(&away, "send_command", ask).await.unwrap_err().code, "RATE_LIMITED");
    let tries = bench.commands().await;
    assert_eq!(tries.len(), 23);
    let forgotten = bench.clock.now().as_seconds() + 24 * 3_600;
    assert!(tries.iter().all(|item| item["forget_at"].as_i64() == Some(forgotten)), "{tries:?}");
}

/// AWS IoT's data plane, which refuses its first request when `go` says so, and takes all others at once.
async fn late_refusal(came: Arc<Notify>, go: Arc<Notify>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            let (came, go, refuses) = (Arc::clone(&came), Arc::clone(&go), std::mem::take(&mut first));
            tokio::spawn(async move {
                let mut read = vec![0; 65_536];
                while stream.read(&mut read).await.is_ok_and(|read| read > 0) {
                    let status = if refuses { "403 Forbidden" } else { "200 OK" };
                    if refuses {
                        came.notify_one();
                        go.notified().await;
                    }
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn what_a_repeat_has_sent_meanwhile_is_not_called_not_sent_by_the_first_call() {
    let bench = Bench::start().await;
    let (came, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let url = late_refusal(Arc::clone(&came), Arc::clone(&go)).await;
    let link = Link::Iot(IotLink::new(&bench::aws(), &url));
    let fleet = bench::fleet(&bench.endpoint, Tables::default(), link, &bench.clock);
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "k", "wait_seconds": 0});
    let repeat = async {
        came.notified().await;
        bench.clock.advance(Duration::from_secs(10));
        let answer = bench::call(&fleet, "send_command", ask.clone()).await;
        go.notify_one();
        answer.unwrap()
    };
    let (first, repeat) = futures_util::join!(bench::call(&fleet, "send_command", ask.clone()), repeat);
    let first = first.unwrap();
    assert_eq!((&first["command_id"], &first["status"]), (&repeat["command_id"], &json!("created")));
    assert_eq!(bench.item(PRESSURE).await["last_command"]["status"], "created");
    // It was sent once, and one of the two paid.
    let used = bench.client.scan(COMMANDS).await.unwrap();
    let used = used.iter().filter(|item| item["command_id"] == "reboot");
    let mut used: Vec<_> = used.filter_map(|item| item["used_until_ms"].as_i64()).collect();
    used.sort_unstable();
    let began = bench::at(bench::NOW).as_millis();
    assert_eq!(used, [began + 75_000, began + 300_000]);
}

/// AWS IoT's data plane, whose connections break.
async fn breaking() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    url
}

#[tokio::test]
async fn nobody_is_told_that_a_command_was_sent_before_a_call_knows_that_it_left() {
    let bench = Bench::start().await;
    let _gateway = Gateway::silent(&bench);
    let over = |url: &str| {
        let link = Link::Iot(IotLink::new(&bench::aws(), url));
        bench::fleet(&bench.endpoint, Tables::default(), link, &bench.clock)
    };
    let broken = over(&breaking().await);
    let ask = json!({"device_id": PRESSURE, "command": "update_config", "parameters": {"sample_rate_seconds": 10},
        "idempotency_key": "k", "wait_seconds": 0});
    let message = |answer: &Value| answer["message"].as_str().unwrap().to_owned();
    let open = |answer: &Value| message(answer).contains("not known whether the command left");
    let first = bench::call(&broken, "send_command", ask.clone()).await.unwrap();
    let status = json!({"device_id": PRESSURE, "command_id": first["command_id"]});
    let told = async || bench.call("get_command_status", status.clone()).await.unwrap();
    assert!(open(&first) && open(&told().await), "{first}");
    // As it was advised to do; within ten seconds nothing is published, and after them nothing leaves.
    let at_once = bench::call(&broken, "send_command", ask.clone()).await.unwrap();
    assert!(at_once["repeated"] == true && open(&at_once), "{at_once}");
    bench.clock.advance(Duration::from_secs(10));
    let unsent = bench::call(&bench.fleet_without_link(), "send_command", ask.clone()).await.unwrap();
    assert!(unsent["repeated"] == true && open(&unsent), "{unsent}");
    // It leaves with a later repeat, and from then on everybody is told, also where a later one does not leave.
    bench.clock.advance(Duration::from_secs(10));
    let sent = bench.call("send_command", ask.clone()).await.unwrap();
    assert!(message(&sent).starts_with("sent, and the gateway has not answered"), "{sent}");
    assert_eq!(message(&told().await), message(&sent));
    bench.clock.advance(Duration::from_secs(10));
    let later = bench::call(&broken, "send_command", ask).await.unwrap();
    assert_eq!(message(&later), message(&sent));
}

#[tokio::test]
async fn equal_calls_at_the_end_of_the_budget_join_instead_of_being_refused() {
    for key in [json!(null), json!("k")] {
        let bench = Bench::start().await;
        let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
        let mut ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 5});
        if !key.is_null() {
            ask["idempotency_key"] = key.clone();
        }
        // Three reboots are a budget, and these are one.
        let calls = (0..5).map(|_| bench.call("send_command", ask.clone()));
        let answers: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap).collect();
        let id = &answers[0]["command_id"];
        assert!(answers.iter().all(|answer| answer["command_id"] == *id), "{answers:?}");
        assert_eq!(gateway.received().len(), 1, "{key}");
        // What is asked for anew is refused by a budget that is used up.
        let used_up = bench.clock.now().as_millis() + 900_000;
        bench
            .put(COMMANDS, json!({"device_id": "budget#everyone", "command_id": "reboot", "used_until_ms": used_up}))
            .await;
        let other = json!({"device_id": PRESSURE, "command": "reboot", "idempotency_key": "other"});
        bench.refused("send_command", other, "RATE_LIMITED").await;
    }
}
