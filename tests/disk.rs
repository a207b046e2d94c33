//! A disk that is full, read-only or failing under the running daemon: what was acknowledged stays, commands are refused
//! with a reason, readings stay with their sender, and everything goes on by itself.
//!
//! The faults are made by a small library in front of the C library's calls (`tests/faultfs/shim.rs`), so neither a real
//! disk nor root is needed. `cargo xtask disk` does the same with a small file system that is really full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]
#![cfg(target_os = "linux")]

mod rig;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rig::client::Client;
use rig::device::Behaviour;
use rig::disk::Disk;
use rig::sender::Sender;
use rig::{Options, Rig, isoformat, until};
use serde_json::{Value, json};

/// G8: back to normal after the disk is.
const BACK_WITHIN: Duration = Duration::from_secs(10);

async fn unhealthy(rig: &Rig, reason: &str) {
    until(&format!("status says {reason}"), 10, || async {
        let status = rig.status().await;
        let health = &status["store"]["health"];
        (health["ok"] == false && health["reason"] == reason).then_some(())
    })
    .await;
}

async fn healthy(rig: &Rig) {
    until("status says that all is well", 10, || async {
        (rig.status().await["store"]["health"]["ok"] == true).then_some(())
    })
    .await;
}

/// Waits until both files are out of use.
async fn nothing_works(rig: &Rig, device: &str, reason: &str) {
    // A word of a device, so that the file of the commands fails too; it is not acknowledged.
    let other = Client::connect(rig.floor, "other").await;
    let _word = other.send(&format!("devices/{device}/state"), r#"{"online":true}"#, false).await;
    until("the store takes nothing", 10, || async {
        let health = &rig.status().await["store"]["health"];
        (health["takes_reports"] == false && health["takes_readings"] == false).then_some(())
    })
    .await;
    unhealthy(rig, reason).await;
}

async fn ask(operator: &mut Client, device: &str, command: &str) -> Value {
    let parameters = if command == "update_config" { json!({"sample_rate_seconds": 7}) } else { json!({}) };
    let mut payload = Rig::command(command, parameters, &isoformat(0));
    let id = format!("c-{:016x}", fastrand::u64(..));
    payload["command_id"] = id.clone().into();
    operator.publish(&format!("devices/{device}/commands"), payload.to_string(), false).await;
    let ended =
        |v: &Value| v["command_id"] == id.as_str() && !matches!(v["status"].as_str(), Some("created" | "in_progress"));
    operator.json(&format!("end of {command}"), 15, ended).await
}

/// Every acknowledged reading is in the table, once.
async fn all_in_table(rig: &Rig, device: &str, wanted: &BTreeSet<u64>) {
    until("every acknowledged reading is in the table", 150, || async {
        let found = rig.items.samples(device, "n").await;
        let found: Vec<u64> = found.iter().map(|n| format!("{n}").parse().unwrap()).collect();
        let unique: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(unique.len(), found.len(), "a reading is in the table twice");
        wanted.is_subset(&unique).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_disk_does_commands_are_refused_readings_wait_and_it_is_back_within_ten_seconds() {
    let mut rig = Rig::prepare(Options::default()).await;
    let disk = Disk::under(&mut rig);
    rig.daemon.provision().await;
    rig.daemon.run().await;
    let (sensor, valve) = (rig.id("PRESS-001"), rig.id("VALVE-001"));
    let device = rig.device("VALVE-001", Behaviour::Obey).await;
    let mut operator = rig.operator().await;
    let sender = Sender::start(rig.floor, &sensor);
    sender.next(10).await;
    let mut refused = Vec::new();
    for (round, (rules, reason)) in [
        ("ENOSPC write,open * 0", "disk_full"),
        ("EROFS write,open,remove,truncate,fsync * 0", "read_only"),
        ("EIO fsync * 0", "io_error"),
        ("EIO write * 0", "io_error"),
        ("ENOSPC write .db-wal 0", "disk_full"),
    ]
    .into_iter()
    .enumerate()
    {
        let executed = device.executed().len();
        disk.fail(rules);
        nothing_works(&rig, &sensor, reason).await;
        let outcome = ask(&mut operator, &valve, "reboot").await;
        assert_eq!(
            (&outcome["status"], &outcome["reason"]),
            (&"rejected".into(), &"INHIBITED".into()),
            "{rules}: {outcome}"
        );
        assert!(
            outcome["message"].as_str().unwrap().starts_with("the gateway cannot write to its disk: "),
            "{outcome}"
        );
        refused.push(outcome["command_id"].clone());
        // What was acknowledged before has been noted by now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = sender.count();
        let devices = rig.daemon.json(&["devices"]).await;
        assert_eq!(devices.as_array().map(Vec::len), Some(3), "{devices}");
        tokio::time::sleep(Duration::from_millis(500 + 700 * round as u64)).await;
        assert_eq!(sender.count(), before, "{rules}: a reading was acknowledged that cannot be on disk");

        let mended = Instant::now();
        disk.mend();
        sender.next(15).await;
        let readings = mended.elapsed();
        healthy(&rig).await;
        let outcome = ask(&mut operator, &valve, "update_config").await;
        let commands = mended.elapsed();
        println!("{rules}: readings back after {readings:?}, a command done after {commands:?}");
        assert_eq!(outcome["status"], "succeeded", "{rules}: {outcome}\n{}", rig.daemon.log());
        assert!(commands <= BACK_WITHIN, "{rules}: back after {commands:?}");
        assert_eq!(device.executed().len(), executed + 1, "{rules}: the refused one never ran");
    }
    let acknowledged = sender.stop().await;
    println!("{} readings acknowledged", acknowledged.len());
    until("every refused command is in the table as refused", 20, || async {
        let items = rig.items.commands(&valve).await;
        let told = |id: &&Value| items.iter().any(|item| item["command_id"] == **id && item["reason"] == "INHIBITED");
        (refused.iter().filter(told).count() == refused.len()).then_some(())
    })
    .await;
    let said = rig.daemon.log().lines().filter(|line| line.contains("commands are refused")).count();
    assert!((1..=5).contains(&said), "{said} lines about the disk:\n{}", rig.daemon.log());
    all_in_table(&rig, &sensor, &acknowledged).await;
}

/// A command that the device has begun, and whose answer comes behind a reading that cannot be stored.
async fn a_command_ends_behind_a_refused_reading(mut rig: Rig, endpoint: bool) {
    let disk = Disk::under(&mut rig);
    rig.daemon.provision().await;
    rig.daemon.run().await;
    let (sensor, valve) = (rig.id("PRESS-001"), rig.id("VALVE-001"));
    let device = rig.device("VALVE-001", Behaviour::Silent).await;
    // A broker keeps nothing for a gateway that has not subscribed yet.
    until("the cloud's link is up", 30, || async { (rig.status().await["cloud"]["state"] == "up").then_some(()) })
        .await;
    let mut operator = rig.operator().await;
    let mut command = Rig::command("update_config", json!({"sample_rate_seconds": 7}), &isoformat(0));
    command["command_id"] = "behind-a-reading".into();
    operator.publish(&format!("devices/{valve}/commands"), command.to_string(), false).await;
    until("the device has its order", 10, || async { (device.executed().len() == 1).then_some(()) }).await;

    disk.fail("ENOSPC write,open,truncate telemetry 0");
    let first = Client::connect(rig.floor, "other").await;
    let _refused = first.send(&format!("devices/{sensor}/telemetry"), json!({"n": 1}).to_string(), false).await;
    until("readings are refused, and nothing else", 10, || async {
        let health = &rig.status().await["store"]["health"];
        (health["takes_readings"] == false && health["takes_reports"] == true).then_some(())
    })
    .await;
    let at = jiff::Timestamp::now().as_millisecond();
    let reading = json!({"n": 2, "timestamp": at}).to_string();
    let mut reading = device.client().send(&format!("devices/{valve}/telemetry"), reading, false).await;
    let answer = json!({"command_id": "behind-a-reading", "status": "succeeded",
        "configuration": {"sample_rate_seconds": "7"}});
    let answered = device.client().send(&format!("devices/{valve}/result"), answer.to_string(), false).await;
    let ended = |v: &Value| v["command_id"] == "behind-a-reading" && v["status"] == "succeeded";
    operator.json("the end of the command, while readings are refused", 15, ended).await;
    assert_eq!(rig.status().await["store"]["health"]["takes_readings"], false, "refused all the time");
    if endpoint {
        assert!(reading.try_recv().is_err(), "acknowledged, and not on disk");
    }
    disk.mend();
    healthy(&rig).await;
    tokio::time::timeout(Duration::from_secs(15), answered).await.expect("the answer is acknowledged").unwrap();
    let stored = |item: &Value| item["last_telemetry"]["n"] == "2";
    rig.item("the reading that waited", &valve, 15, stored).await;
    all_in_table(&rig, &valve, &BTreeSet::from([2])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_in_progress_comes_to_its_end_while_readings_are_refused() {
    a_command_ends_behind_a_refused_reading(Rig::prepare(Options::default()).await, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_in_progress_comes_to_its_end_over_a_plants_broker_while_readings_are_refused() {
    let broker = floorgate_demo::broker::Broker::start().await.unwrap();
    let options = Options { floor_broker: Some(broker.address()), ..Options::default() };
    a_command_ends_behind_a_refused_reading(Rig::prepare(options).await, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_failed_flushes_and_a_power_cut_nothing_acknowledged_is_missing_and_no_file_is_damaged() {
    let mut rig = Rig::prepare(Options::default()).await;
    let disk = Disk::under(&mut rig).with_image(&mut rig);
    rig.daemon.provision().await;
    rig.daemon.run().await;
    let sensor = rig.id("PRESS-001");
    let sender = Sender::start(rig.floor, &sensor);
    for round in 0..4 {
        sender.more(10, 20).await;
        // A flush fails; the pages are taken for clean, and the next flush succeeds.
        disk.fail(&format!("EIO fsync telemetry.db-wal {}", round + 1));
        until("a flush has failed", 10, || async {
            (rig.status().await["store"]["health"]["ok"] == false).then_some(())
        })
        .await;
        disk.mend();
        if round % 2 == 0 {
            // Whoever saw the failure is gone before it could do anything about it.
            rig.daemon.kill().await;
            rig.daemon.run().await;
        }
        healthy(&rig).await;
        sender.more(30, 20).await;
        rig.daemon.kill().await;
        disk.cut();
        rig.daemon.run().await;
    }
    let acknowledged = sender.stop().await;
    assert!(acknowledged.len() > 50, "the load was real");
    assert!(!rig.daemon.log().contains("damaged"), "{}", rig.daemon.log());
    all_in_table(&rig, &sensor, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_on_a_disk_that_takes_nothing_refuses_commands_serves_status_and_recovers() {
    for rules in ["EROFS write,open,remove,truncate,fsync * 0", "ENOSPC write,open * 0", "EIO fsync * 0"] {
        let mut rig = Rig::prepare(Options::default()).await;
        let disk = Disk::under(&mut rig);
        std::fs::create_dir_all(rig.state_dir()).unwrap();
        rig.daemon.provision().await;
        disk.fail(rules);
        rig.daemon.run().await;
        let status = rig.status().await;
        assert_eq!(status["store"]["health"]["ok"], false, "{rules}: {status}");
        let valve = rig.id("VALVE-001");
        let mut operator = rig.operator().await;
        let outcome = ask(&mut operator, &valve, "reboot").await;
        assert_eq!((&outcome["status"], &outcome["reason"]), (&"rejected".into(), &"INHIBITED".into()), "{outcome}");
        let mended = Instant::now();
        disk.mend();
        healthy(&rig).await;
        let device = rig.device("VALVE-001", Behaviour::Obey).await;
        device.report(json!({"position_pct": 3})).await;
        assert!(mended.elapsed() <= BACK_WITHIN, "{rules}: back after {:?}", mended.elapsed());
        assert_eq!(ask(&mut operator, &valve, "update_config").await["status"], "succeeded", "{rules}");
        assert_eq!(device.executed().len(), 1, "{rules}");
        let (code, _) = rig.daemon.terminate().await;
        assert_eq!(code, Some(0), "{rules}\n{}", rig.daemon.log());
    }
}

/// Fills a file system to its last byte; answers the file that does.
#[cfg(feature = "suites")]
fn fill(folder: &std::path::Path) -> std::path::PathBuf {
    use std::io::Write;
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for step in [1 << 20, 4_096, 512] {
        while file.write_all(&vec![0xff; step]).is_ok() {}
    }
    let _ = file.sync_all();
    path
}

/// With a small file system of its own (`cargo xtask disk` makes and mounts it).
#[cfg(feature = "suites")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_file_system_that_is_filled_emptied_and_made_read_only_costs_nothing_acknowledged() {
    let mount =
        std::path::PathBuf::from(std::env::var_os("FLOORGATE_TEST_MOUNT").expect("cargo xtask disk says where"));
    let remount = |how: &str| {
        let status = std::process::Command::new("mount").args(["-o", how]).arg(&mount).status().unwrap();
        assert!(status.success(), "mount -o {how}");
    };
    let mut rig = Rig::prepare(Options { extra: String::new(), ..Options::default() }).await;
    std::fs::create_dir_all(mount.join("state")).unwrap();
    std::os::unix::fs::symlink(mount.join("state"), rig.state_dir()).unwrap();
    rig.daemon.provision().await;
    rig.daemon.run().await;
    let (sensor, valve) = (rig.id("PRESS-001"), rig.id("VALVE-001"));
    let mut operator = rig.operator().await;
    let sender = Sender::start(rig.floor, &sensor);
    for round in 0..3 {
        sender.more(20, 10).await;
        let _device = rig.device("VALVE-001", Behaviour::Obey).await;
        let filler = fill(&mount);
        unhealthy(&rig, "disk_full").await;
        // Whatever the reserve has left goes, too.
        let rest = mount.join("rest");
        std::fs::rename(&filler, &rest).unwrap();
        let filler = fill(&mount);
        if round == 1 {
            rig.daemon.kill().await;
            rig.daemon.run().await;
            unhealthy(&rig, "disk_full").await;
        }
        let outcome = ask(&mut operator, &valve, "reboot").await;
        assert_eq!((&outcome["status"], &outcome["reason"]), (&"rejected".into(), &"INHIBITED".into()), "{outcome}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = sender.count();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(sender.count(), before, "a reading was acknowledged on a full disk");
        std::fs::remove_file(filler).unwrap();
        std::fs::remove_file(rest).unwrap();
        let freed = Instant::now();
        sender.next(15).await;
        healthy(&rig).await;
        println!("round {round}: back {:?} after space returned", freed.elapsed());
        assert!(freed.elapsed() <= BACK_WITHIN, "back after {:?}", freed.elapsed());
    }
    rig.daemon.kill().await;
    remount("remount,ro");
    rig.daemon.run().await;
    unhealthy(&rig, "read_only").await;
    let outcome = ask(&mut operator, &valve, "reboot").await;
    assert_eq!((&outcome["status"], &outcome["reason"]), (&"rejected".into(), &"INHIBITED".into()), "{outcome}");
    remount("remount,rw");
    let writable = Instant::now();
    sender.next(15).await;
    healthy(&rig).await;
    println!("back {:?} after it was writable again", writable.elapsed());
    assert!(writable.elapsed() <= BACK_WITHIN);
    let device = rig.device("VALVE-001", Behaviour::Obey).await;
    assert_eq!(ask(&mut operator, &valve, "update_config").await["status"], "succeeded");
    assert_eq!(device.executed().len(), 1, "what was refused never runs");
    let acknowledged = sender.stop().await;
    all_in_table(&rig, &sensor, &acknowledged).await;
    println!("{} readings acknowledged, all in the table", acknowledged.len());
    rig.daemon.terminate().await;
}
