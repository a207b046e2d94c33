//! The figures of the README and the closing notes (`cargo xtask measure`), each beside its peer in the same run.
//!
//! It prints, and fails only where a figure misses its budget in `docs/limits.md` by so much that noise cannot be why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

mod rig;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rig::client::Client;
use rig::device::Behaviour;
use rig::{Options, Rig, isoformat};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use rusqlite::Connection;
use serde_json::{Value, json};

/// Kilobytes of one line of a process's `smaps_rollup`.
fn memory_kb(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn written_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

const NAMES: [&str; 50] = {
    let mut names = [""; 50];
    let all = [
        "D00", "D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D10", "D11", "D12", "D13", "D14", "D15",
        "D16", "D17", "D18", "D19", "D20", "D21", "D22", "D23", "D24", "D25", "D26", "D27", "D28", "D29", "D30", "D31",
        "D32", "D33", "D34", "D35", "D36", "D37", "D38", "D39", "D40", "D41", "D42", "D43", "D44", "D45", "D46", "D47",
        "D48", "D49",
    ];
    let mut n = 0;
    while n < 50 {
        names[n] = all[n];
        n += 1;
    }
    names
};

fn fifty() -> Options {
    let devices = NAMES.iter().map(|name| (*name, "pressure_sensor", 5)).collect();
    Options { devices, commit_interval: "1s", ..Options::default() }
}

/// Without limits for the devices: what these tests send at once is a flood by the usual ones, and declared lost.
async fn unlimited(options: Options) -> Rig {
    let mut rig = Rig::prepare(options).await;
    let limits = "[floor]\nmessages_per_second = 1000000\nmessage_burst = 1000000\n";
    std::fs::write(&rig.config, rig::read(&rig.config).replacen("[floor]\n", limits, 1)).unwrap();
    rig.daemon.provision().await;
    rig.daemon.run().await;
    rig
}

fn reading(n: u64) -> String {
    let at = jiff::Timestamp::now().as_millisecond();
    json!({"pressure_psi": 140.0 + (n % 97) as f64 / 10.0, "temperature_c": 38.0 + (n % 13) as f64 / 10.0, "timestamp": at}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_devices_at_rest_and_fifty_at_twenty_messages_a_second() {
    let devices = vec![
        ("P", "pressure_sensor", 5),
        ("T", "temperature_sensor", 10),
        ("V", "valve_actuator", 5),
        ("G", "edge_gateway", 30),
        ("B", "vibration_sensor", 1),
    ];
    let mut rig = Rig::start(Options { devices, commit_interval: "1s", ..Options::default() }).await;
    let mut attached = Vec::new();
    for suffix in ["P", "T", "V", "G", "B"] {
        attached.push(rig.device(suffix, Behaviour::Obey).await);
    }
    for n in 0..20 {
        for device in &attached {
            device.client().send(&format!("devices/{}/telemetry", device.id()), reading(n), false).await;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let pid = rig.daemon.pid();
    println!("memory, 5 devices: PSS {} kB, RSS {} kB", memory_kb(pid, "Pss:"), memory_kb(pid, "Rss:"));
    drop(attached);
    rig.daemon.terminate().await;
    rig.daemon.run().await;
    println!("start to answering on the control socket: {:?}", rig.daemon.ready_after);
    drop(rig);

    let rig = Rig::start(fifty()).await;
    let client = Client::connect(rig.floor, &format!("{}-feeder", rig.prefix)).await;
    let pid = rig.daemon.pid();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (bytes, ticks, started) = (written_bytes(pid), cpu_ticks(pid), Instant::now());
    let mut every = tokio::time::interval(Duration::from_millis(50));
    let count = 20 * 130;
    for n in 0..count {
        every.tick().await;
        let device = rig.id(NAMES[usize::try_from(n % 50).unwrap()]);
        client.send(&format!("devices/{device}/telemetry"), reading(n), false).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let bytes = written_bytes(pid) - bytes;
    println!("50 devices at {:.1} msg/s for {seconds:.0} s:", count as f64 / seconds);
    println!("  bytes written per message (write_bytes of the process): {}", bytes / count);
    println!("  CPU: {:.2} % of a core", (cpu_ticks(pid) - ticks) as f64 / seconds);
    println!("  memory: PSS {} kB, RSS {} kB", memory_kb(pid, "Pss:"), memory_kb(pid, "Rss:"));
    assert!(bytes / count < 1_200, "twice the budget");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_cloud_to_the_device() {
    let rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let mut operator = rig.operator().await;
    let mut delays = Vec::new();
    for n in 0..200u64 {
        let payload =
            Rig::command("update_config", json!({"sample_rate_seconds": 1 + n % 60}), &isoformat(0)).to_string();
        let before = device.executed().len();
        let started = Instant::now();
        drop(operator.send(&format!("devices/{}/commands", device.id()), payload, false).await);
        while device.executed().len() == before {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        delays.push(started.elapsed());
        operator.outcome(device.id(), 10).await;
    }
    delays.sort();
    println!(
        "cloud publish to device, 200 commands: p50 {:?}, p99 {:?}, max {:?}",
        delays[100], delays[197], delays[199]
    );
}

/// Puts messages for the devices into a broker's queue.
async fn fill(broker: SocketAddr, rig: &Rig, count: u64) {
    let client = Client::connect(broker, &format!("{}-filler", rig.prefix)).await;
    let mut waits = Vec::new();
    for n in 0..count {
        let device = rig.id(NAMES[usize::try_from(n % 50).unwrap()]);
        waits.push(client.send(&format!("devices/{device}/telemetry"), reading(n), false).await);
        if waits.len() == 500 {
            for wait in waits.drain(..) {
                wait.await.unwrap();
            }
        }
    }
}

/// Messages a second that a subscriber takes which does nothing but acknowledge.
async fn bare_subscriber(broker: SocketAddr, rig: &Rig, count: u64) -> f64 {
    let mut options = MqttOptions::new(format!("{}-bare", rig.prefix), broker.ip().to_string(), broker.port());
    // rumqttc acknowledges by itself, as soon as it has read: the fastest way it has.
    options.set_clean_session(false).set_inflight(1_000);
    let connect = || AsyncClient::new(options.clone(), 2_000);
    let (client, mut events) = connect();
    client.subscribe("devices/+/telemetry", QoS::AtLeastOnce).await.unwrap();
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Incoming::SubAck(_))) {}
    drop((client, events));
    fill(broker, rig, count).await;
    let (client, mut events) = connect();
    let (mut taken, started) = (0, Instant::now());
    while taken < count {
        if let Event::Incoming(Incoming::Publish(_)) = events.poll().await.unwrap() {
            taken += 1;
        }
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    client.unsubscribe("devices/+/telemetry").await.unwrap();
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Incoming::UnsubAck(_))) {}
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_ingest_beside_a_bare_subscriber_at_the_same_broker() {
    let broker: SocketAddr =
        std::env::var("FLOORGATE_TEST_MOSQUITTO").expect("set by `cargo xtask measure`").parse().unwrap();
    let mut options = fifty();
    options.floor_broker = Some(broker);
    let mut rig = unlimited(options).await;
    let count = 50_000;
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let bare = bare_subscriber(broker, &rig, count).await;
        rig.daemon.terminate().await;
        fill(broker, &rig, count).await;
        let started = Instant::now();
        rig.daemon.spawn();
        let taken = |status: &Value| status["store"]["telemetry_committed"].as_u64().unwrap_or(0);
        let mut probe = 0;
        while probe < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let output = rig.daemon.cli(&["status", "--json"]).await;
            probe = serde_json::from_slice(&output.stdout).map_or(0, |status| taken(&status));
            assert!(started.elapsed() < Duration::from_secs(120), "{probe} of {count}\n{}", rig.daemon.log());
        }
        let durable = count as f64 / started.elapsed().as_secs_f64();
        println!(
            "through mosquitto: bare subscriber {bare:.0} msg/s, floorgate (start included) {durable:.0} msg/s, ratio {:.2}",
            durable / bare
        );
        ratios.push(durable / bare);
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[1] > 0.3, "far from the budget of 0.8: {ratios:?}");
}

/// Puts the blocks of readings that are there into the file again and again, further and further back, until it is full.
fn fill_up(folder: &std::path::Path) {
    let file = folder.join("telemetry.db");
    let connection = Connection::open(&file).unwrap();
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    let mut copies = 1_i64;
    while std::fs::metadata(&file).unwrap().len() < 512 * 1024 * 1024 {
        let shift = format!(
            "INSERT INTO block SELECT id + {copies} * 10000, device, first - {copies} * 1200000, 0, previous, samples, body, era
             FROM block WHERE id < {copies} * 10000"
        );
        let copied = connection.execute(&shift, []).unwrap();
        assert!(copied > 0, "no block to copy");
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        copies *= 2;
    }
    connection.execute("UPDATE tally SET next_block = (SELECT max(id) + 1 FROM block)", []).unwrap();
}

/// Fills the journal with commands that were carried out, to just below the size up to which a start checks all of it.
fn fill_journal(folder: &std::path::Path) {
    let file = folder.join("state.db");
    let connection = Connection::open(&file).unwrap();
    let add = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250)
        INSERT INTO execution (command_id, device_id, command, parameters, issued_at, expires_at, received_at, status,
            started_at, completed_at, gateway_id, checked_parameters)
        SELECT hex(randomblob(16)), 'D', 'update_config', '{\"sample_rate_seconds\": 5}', ?1, ?1, ?1, 'succeeded',
            ?1, ?1, 'G', '{}' FROM n";
    let now = jiff::Timestamp::now().as_millisecond();
    while std::fs::metadata(&file).unwrap().len() < 4_000_000 {
        connection.execute(add, [now]).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_full_store() {
    let broker: SocketAddr =
        std::env::var("FLOORGATE_TEST_MOSQUITTO").expect("set by `cargo xtask measure`").parse().unwrap();
    let mut options = fifty();
    options.floor_broker = Some(broker);
    let mut rig = unlimited(options).await;
    rig.table_cable.cut().await;
    let taken = |status: &Value| status["store"]["telemetry_committed"].as_u64().unwrap_or(0);
    fill(broker, &rig, 50_000).await;
    while taken(&rig.status().await) < 50_000 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.daemon.terminate().await;
    fill_up(&rig.state_dir());
    fill_journal(&rig.state_dir());
    let bytes = |name: &str| std::fs::metadata(rig.folder.path().join("state").join(name)).map_or(0, |it| it.len());
    println!("telemetry.db {} MB, state.db {} kB", bytes("telemetry.db") / 1_000_000, bytes("state.db") / 1_000);
    for _ in 0..5 {
        rig.daemon.run().await;
        let calm = rig.daemon.ready_after;
        fill(broker, &rig, 5_000).await;
        while taken(&rig.status().await) < 5_000 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rig.daemon.kill().await;
        let log = std::fs::metadata(rig.state_dir().join("telemetry.db-wal")).map_or(0, |it| it.len());
        rig.daemon.run().await;
        println!(
            "start to answering, store full: {calm:?}; after kill -9 with a log of {} kB: {:?}",
            log / 1_000,
            rig.daemon.ready_after
        );
        println!("  memory: PSS {} kB", memory_kb(rig.daemon.pid(), "Pss:"));
        rig.daemon.terminate().await;
    }
    assert!(rig.daemon.ready_after < Duration::from_millis(500), "far from the budget of 100 ms");
}

#[test]
fn size_of_the_binary() {
    let binary = std::env::var("FLOORGATE_TEST_BINARY").expect("set by `cargo xtask measure`");
    let bytes = std::fs::metadata(binary).unwrap().len();
    println!("binary, release, stripped: {:.1} MB", bytes as f64 / 1e6);
}
