//! `kill -9` at random moments under load: nothing acknowledged is lost, nothing runs twice.
//!
//! Judged from outside: the sender writes down which PUBACKs it got, the device what it executed, and both are joined
//! with the table. `FLOORGATE_TEST_KILLS` sets the number (default 10; `cargo xtask kills` runs 50);
//! `FLOORGATE_TEST_SEED` repeats the choices of a run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rig::client::Client;
use rig::{Options, Rig, isoformat, until};
use serde_json::{Value, json};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Sends readings 0, 1, 2, … with their times, repeats what was not acknowledged, and writes down what was.
async fn sender(floor: SocketAddr, id: String, stop: Arc<AtomicBool>, acknowledged: Arc<Mutex<BTreeSet<u64>>>) {
    let topic = format!("devices/{id}/telemetry");
    let mut unacknowledged: BTreeMap<u64, String> = BTreeMap::new();
    let mut next = 0u64;
    while !(stop.load(Ordering::Relaxed) && unacknowledged.is_empty()) {
        let Some(client) = Client::connect_with(floor, &format!("{id}-sender"), None).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while client.is_up() {
            while unacknowledged.len() < 20 && !stop.load(Ordering::Relaxed) {
                let at = jiff::Timestamp::now().as_millisecond();
                // One millisecond apart at least, so every reading has a time of its own.
                unacknowledged.insert(next, json!({"n": next, "timestamp": at}).to_string());
                next += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let mut waits = Vec::new();
            for (n, payload) in &unacknowledged {
                waits.push((*n, client.send(&topic, payload.clone(), false).await));
            }
            for (n, wait) in waits {
                if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(5), wait).await {
                    unacknowledged.remove(&n);
                    acknowledged.lock().unwrap().insert(n);
                }
            }
            if stop.load(Ordering::Relaxed) && unacknowledged.is_empty() {
                return;
            }
        }
    }
}

/// Executes everything at once, writes down each id, and comes back after each loss of the connection.
async fn machine(floor: SocketAddr, id: String, stop: Arc<AtomicBool>, executed: Arc<Mutex<Vec<String>>>) {
    let topic = |leaf: &str| format!("devices/{id}/{leaf}");
    let mut boot = 1u64;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut client) = Client::connect_with(floor, &id, None).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        client.subscribe(&topic("execute")).await;
        let state = |boot: u64| json!({"online": true, "boot_count": boot}).to_string();
        drop(client.send(&topic("state"), state(boot), true).await);
        while client.is_up() && !stop.load(Ordering::Relaxed) {
            let Some(message) = client.next(1).await else { continue };
            let order: Value = serde_json::from_slice(&message.payload).unwrap();
            executed.lock().unwrap().push(order["command_id"].as_str().unwrap().to_owned());
            boot += 1;
            drop(client.send(&topic("state"), state(boot), true).await);
            let answer = json!({"command_id": order["command_id"], "status": "succeeded"});
            drop(client.send(&topic("result"), answer.to_string(), false).await);
        }
    }
}

/// Publishes reboots and keeps at it until each is acknowledged by the cloud's broker.
async fn agent(cloud: SocketAddr, id: String, stop: Arc<AtomicBool>, sent: Arc<Mutex<Vec<String>>>) {
    let client = Client::connect(cloud, &format!("{id}-agent")).await;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let command_id = format!("{id}-{n}");
        let payload =
            json!({"command": "reboot", "parameters": {}, "timestamp": isoformat(0), "command_id": command_id});
        client.publish(&format!("devices/{id}/commands"), payload.to_string(), false).await;
        // Every second one twice, as QoS 1 may.
        if n % 2 == 0 {
            client.publish(&format!("devices/{id}/commands"), payload.to_string(), false).await;
        }
        sent.lock().unwrap().push(command_id);
        n += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_runs_twice_however_often_it_is_killed() {
    let kills = number("FLOORGATE_TEST_KILLS", 10);
    let seed = number("FLOORGATE_TEST_SEED", fastrand::u64(..));
    println!("FLOORGATE_TEST_SEED={seed} FLOORGATE_TEST_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rig = Rig::start(Options::default()).await;
    let (stop, end) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (sensor, valve) = (rig.id("PRESS-001"), rig.id("VALVE-001"));
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let executed = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::new(Mutex::new(Vec::new()));
    let sending = tokio::spawn(sender(rig.floor, sensor.clone(), Arc::clone(&stop), Arc::clone(&acknowledged)));
    let working = tokio::spawn(machine(rig.floor, valve.clone(), Arc::clone(&end), Arc::clone(&executed)));
    let asking = tokio::spawn(agent(rig.cloud, valve.clone(), Arc::clone(&stop), Arc::clone(&sent)));
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.u64(20..900))).await;
        rig.daemon.kill().await;
        rig.daemon.run().await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(30), sending).await.expect("the sender is done").unwrap();
    asking.await.unwrap();

    let wanted = acknowledged.lock().unwrap().clone();
    let asked = sent.lock().unwrap().clone();
    let terminal = |item: &Value| !matches!(item["status"].as_str(), Some("created" | "in_progress"));
    until("every command ends", 240, || async {
        let ended = rig.items.commands(&valve).await.iter().filter(|item| terminal(item)).count();
        (ended == asked.len()).then_some(())
    })
    .await;
    until("every acknowledged reading is in the table", 150, || async {
        let found: Vec<u64> =
            rig.items.samples(&sensor, "n").await.iter().map(|n| format!("{n}").parse().unwrap()).collect();
        let unique: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(unique.len(), found.len(), "a reading is in the table twice; seed {seed}");
        wanted.is_subset(&unique).then_some(())
    })
    .await;
    end.store(true, Ordering::Relaxed);
    working.await.unwrap();
    let executed = executed.lock().unwrap().clone();
    let unique: BTreeSet<_> = executed.iter().collect();
    assert_eq!(unique.len(), executed.len(), "a command ran twice; seed {seed}: {executed:?}");
    let outcomes = rig.items.commands(&valve).await;
    let succeeded = outcomes.iter().filter(|item| item["status"] == "succeeded").count();
    println!(
        "{kills} kills: {} readings acknowledged, 0 lost; {} commands, {} executed, {succeeded} succeeded, 0 twice",
        wanted.len(),
        asked.len(),
        executed.len()
    );
    assert!(wanted.len() > 100 && succeeded > 0, "the load was real");
}
