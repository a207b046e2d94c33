//! The journal's end of the log: entries in its native protocol, with the fields an operator searches by.
//!
//! The journal's socket has a fixed place, so the daemon gets a mount namespace of its own in which the test's socket is
//! there. Where `unshare --mount` is not allowed this cannot be shown, and says so; `cargo xtask vm` asks a real journal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod rig;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rig::device::Behaviour;
use rig::{Options, Rig, isoformat};
use serde_json::json;

type Entry = BTreeMap<String, String>;

/// An entry of the native protocol: `KEY=value\n`, or `KEY\n`, eight bytes of length, the value, `\n`.
fn parse(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a line's end");
        let line = std::str::from_utf8(&bytes[..end]).unwrap();
        let rest = &bytes[end + 1..];
        if let Some((key, value)) = line.split_once('=') {
            entry.insert(key.to_owned(), value.to_owned());
            bytes = rest;
        } else {
            let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            let value = String::from_utf8(rest[8..8 + length].to_vec()).unwrap();
            assert_eq!(rest[8 + length], b'\n', "{line}");
            entry.insert(line.to_owned(), value);
            bytes = &rest[8 + length + 1..];
        }
    }
    entry
}

/// Stands in the journal's place and writes down what comes, for as long as the test lasts.
fn journal(socket: UnixDatagram) -> Arc<Mutex<Vec<Entry>>> {
    let entries = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&entries);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 256 * 1024];
        while let Ok(n) = socket.recv(&mut bytes) {
            // The empty one only asks whether somebody listens.
            if n > 0 {
                into.lock().unwrap().push(parse(&bytes[..n]));
            }
        }
    });
    entries
}

fn namespaces_are_allowed() -> bool {
    let tried = std::process::Command::new("unshare").args(["--mount", "true"]).status();
    tried.is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn device_command_and_reason_are_fields_of_the_journals_entries() {
    if !namespaces_are_allowed() {
        eprintln!("not shown: needs the right to `unshare --mount`");
        return;
    }
    let mut rig = Rig::prepare(Options::default()).await;
    rig.daemon.provision().await;
    let place = rig.folder.path().join("journal");
    std::fs::create_dir(&place).unwrap();
    let entries = journal(UnixDatagram::bind(place.join("socket")).unwrap());
    let log = std::fs::File::create(rig.folder.path().join("daemon.log")).unwrap().metadata().unwrap();
    let stream = format!("{}:{}", log.dev(), log.ino());
    rig.daemon.environment.push(("JOURNAL_STREAM", stream.into()));
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal && exec \"$@\"",
        place.display()
    );
    rig.daemon.through = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    rig.daemon.run().await;
    let offline = rig.id("VALVE-001");
    let mut operator = rig.operator().await;
    let order = Rig::command("recalibrate", json!({}), &isoformat(0)).to_string();
    operator.publish(&format!("devices/{offline}/commands"), order, false).await;
    let outcome = operator.outcome(&offline, 20).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.client().publish(&format!("devices/{}/telemetry", device.id()), "no object", false).await;

    let found = |what: &'static str, fits: Box<dyn Fn(&Entry) -> bool>| {
        let entries = Arc::clone(&entries);
        async move {
            rig::until(what, 10, || async { entries.lock().unwrap().iter().find(|entry| fits(entry)).cloned() }).await
        }
    };
    let id = outcome["command_id"].as_str().unwrap().to_owned();
    let command = found("the command", Box::new(move |entry| entry.get("COMMAND_ID") == Some(&id))).await;
    assert_eq!(command["DEVICE_ID"], offline);
    assert_eq!(command["REASON"], outcome["reason"].as_str().unwrap());
    // What people see says it as well.
    let says = |text: String| assert!(command["MESSAGE"].contains(&text), "{text}: {command:#?}");
    says(format!(" reason={}", command["REASON"]));
    says(format!(" device_id={offline}"));
    assert_eq!(command["SYSLOG_IDENTIFIER"], "floorgate");
    assert!(["4", "6"].contains(&command["PRIORITY"].as_str()) || command["PRIORITY"] == "5", "{command:#?}");
    let id = device.id().to_owned();
    let refused = found("the refusal", Box::new(move |entry| entry.get("DEVICE_ID") == Some(&id))).await;
    assert!(refused["MESSAGE"].starts_with("message refused"), "{refused:#?}");
    assert!(!refused["REASON"].is_empty() && refused["PRIORITY"] == "4", "{refused:#?}");
    assert_eq!(rig.daemon.log(), "", "and nothing is said twice");
    // Whoever reads the journal is slow at times; the daemon ends in time all the same.
    assert!(rig.daemon.terminate().await.1 < Duration::from_secs(5));
}
