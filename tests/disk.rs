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
    until("status says that all is well", 10, || async { (rig.status().await["store"]["health"]["ok"] == true).then_some(()) })
        .await;
}

async fn ask(operator: &mut Client, device: &str, command: &str) -> Value {
    let payload = Rig::command(command, json!({}), &isoformat(0));
    operator.publish(&format!("devices/{device}/commands"), payload.to_string(), false).await;
    operator.outcome(device, 15).await
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
        ("EROFS write,open,truncate,fsync * 0", "read_only"),
        ("EIO fsync * 0", "io_error"),
        ("EIO write * 0", "io_error"),
        ("ENOSPC write .db-wal 0", "disk_full"),
    ]
    .into_iter()
    .enumerate()
    {
        let executed = device.executed().len();
        disk.fail(rules);
        unhealthy(&rig, reason).await;
        let outcome = ask(&mut operator, &valve, "reboot").await;
        assert_eq!((&outcome["status"], &outcome["reason"]), (&"rejected".into(), &"INHIBITED".into()), "{rules}: {outcome}");
        assert!(outcome["message"].as_str().unwrap().starts_with("the gateway cannot write to its disk: "), "{outcome}");
        refused.push(outcome["command_id"].clone());
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
        let outcome = ask(&mut operator, &valve, "recalibrate").await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_failed_flushes_and_a_power_cut_nothing_acknowledged_is_missing_and_no_file_is_damaged() {
    let mut rig = Rig::prepare(Options::default()).await;
    let disk = Disk::under(&mut rig).with_image(&mut rig);
    rig.daemon.provision().await;
    rig.daemon.run().await;
    let sensor = rig.id("PRESS-001");
    let sender = Sender::start(rig.floor, &sensor);
    for round in 0..3 {
        sender.next(20).await;
        // One flush fails; the pages are taken for clean, and the next flush succeeds.
        disk.fail(&format!("EIO fsync telemetry.db-wal {}", round + 1));
        until("a flush has failed", 10, || async { (rig.status().await["store"]["health"]["ok"] == false).then_some(()) }).await;
        healthy(&rig).await;
        disk.mend();
        sender.next(20).await;
        sender.next(20).await;
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
    for rules in ["EROFS write,open,truncate,fsync * 0", "ENOSPC write,open * 0", "EIO fsync * 0"] {
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
        assert_eq!(ask(&mut operator, &valve, "recalibrate").await["status"], "succeeded", "{rules}");
        assert_eq!(device.executed().len(), 1, "{rules}");
        let (code, _) = rig.daemon.terminate().await;
        assert_eq!(code, Some(0), "{rules}\n{}", rig.daemon.log());
    }
}
