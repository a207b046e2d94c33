//! A state folder that is put back from a backup revives no command (docs/operations.md, "Backup and restore").
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod rig;

use rig::device::Behaviour;
use rig::{Options, Rig, isoformat};
use serde_json::{Value, json};

/// The commands of the gateway's journal, as `[command, status, reason]`, newest first.
async fn journal(rig: &Rig) -> Vec<[String; 3]> {
    let records = rig.daemon.json(&["commands"]).await;
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let records = records.as_array().unwrap().iter();
    records.map(|record| ["command", "status", "reason"].map(|key| text(record, key))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_folder_without_its_witness_sends_nothing_again_and_refuses_commands() {
    let mut rig = Rig::start(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Silent).await;
    let mut operator = rig.operator().await;
    let order = |command: &str, parameters: Value| Rig::command(command, parameters, &isoformat(0)).to_string();
    let topic = format!("devices/{}/commands", device.id());
    operator.publish(&topic, order("recalibrate", json!({})), false).await;
    rig::until("the first is at the device", 10, || async { (device.executed().len() == 1).then_some(()) }).await;
    operator.publish(&topic, order("update_config", json!({"sample_rate_seconds": 7})), false).await;
    rig::until("the second waits", 10, || async { (journal(&rig).await.len() == 2).then_some(()) }).await;
    assert_eq!(journal(&rig).await[0][1], "created");

    // As the page says: stopped, and the witness is not part of the copy.
    rig.daemon.terminate().await;
    let kept = rig.folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    for entry in std::fs::read_dir(rig.state_dir()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        if entry.file_name() != "witness" {
            std::fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
        }
    }
    std::fs::rename(rig.state_dir(), rig.folder.path().join("before")).unwrap();
    std::fs::rename(&kept, rig.state_dir()).unwrap();
    rig.daemon.run().await;

    assert!(rig.status().await["inhibited"]["seconds_left"].as_u64().is_some_and(|left| left > 3_600));
    let listed = journal(&rig).await;
    assert_eq!(listed[0], ["update_config", "indeterminate", "INTERRUPTED"].map(str::to_owned), "{listed:?}");
    let payload = order("recalibrate", json!({}));
    operator.publish(&topic, payload, false).await;
    let refused = operator.json("the refusal", 20, |record| record["reason"] == "INHIBITED").await;
    assert_eq!(refused["status"], "rejected");
    assert_eq!(device.executed().len(), 1, "what had been sent is not sent again, and what waited never is");
    let told = rig.daemon.json(&["doctor"]).await;
    let commands =
        told["checks"].as_array().unwrap().iter().find(|check| check["check"] == "commands").unwrap().clone();
    assert!(commands["state"] == "warn" && commands["found"].as_str().unwrap().contains("inhibited"), "{commands}");
}
