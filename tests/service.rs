//! The daemon as a service: what it tells the service manager, what SIGHUP changes, and how little it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod rig;

use std::time::Duration;

use rig::device::Behaviour;
use rig::{Options, Rig, isoformat};
use serde_json::{Value, json};
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

/// The end of the socket at which a service manager listens.
struct Manager(UnixDatagram);

impl Manager {
    fn of(rig: &mut Rig) -> Self {
        let place = rig.folder.path().join("notify");
        let socket = UnixDatagram::bind(&place).unwrap();
        rig.daemon.environment.push(("NOTIFY_SOCKET", place));
        Self(socket)
    }

    /// The next message that is told and has this line.
    async fn told(&self, line: &str) -> String {
        let mut bytes = [0; 4_096];
        let waiting = async {
            loop {
                let n = self.0.recv(&mut bytes).await.unwrap();
                let message = String::from_utf8(bytes[..n].to_vec()).unwrap();
                if message.lines().any(|told| told.starts_with(line)) {
                    return message;
                }
            }
        };
        timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never told: {line}"))
    }
}

async fn started(options: Options) -> (Rig, Manager) {
    let mut rig = Rig::prepare(options).await;
    let manager = Manager::of(&mut rig);
    rig.daemon.provision().await;
    rig.daemon.run().await;
    manager.told("READY=1").await;
    (rig, manager)
}

/// SIGHUP, and what is told once it is done.
async fn reload(rig: &Rig, manager: &Manager) -> String {
    let sent = Command::new("kill").arg("-HUP").arg(rig.daemon.pid().to_string()).status().await.unwrap();
    assert!(sent.success());
    let begun = manager.told("RELOADING=1").await;
    let since = begun.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("both in one message");
    assert!(since.parse::<u64>().unwrap() > 0);
    manager.told("READY=1").await
}

fn attach(rig: &Rig, file: &str, text: &str) {
    let folder = rig.folder.path().join("devices.d");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(file), text).unwrap();
}

async fn outcome(rig: &Rig, device: &str, command: &str) -> Value {
    let mut operator = rig.operator().await;
    let payload = Rig::command(command, json!({}), &isoformat(0)).to_string();
    operator.publish(&format!("devices/{device}/commands"), payload, false).await;
    operator.outcome(device, 20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sighup_devices_come_and_go_without_a_restart_and_a_bad_file_changes_nothing() {
    let (rig, manager) = started(Options::default()).await;
    let press = rig.device("PRESS-001", Behaviour::Obey).await;
    let (valve, new) = (rig.id("VALVE-001"), rig.id("NEW-001"));
    let leaving = rig.device("VALVE-001", Behaviour::Obey).await;
    rig.item("the valve", &valve, 10, |item| item["status"] == "online").await;

    attach(&rig, "new.toml", &format!("[[device]]\nid = \"{new}\"\ntype = \"pressure_sensor\"\n"));
    rig.put_in_config(
        &format!(
            "[[device]]\nid = \"{valve}\"\ntype = \"valve_actuator\"\nlocation = \"factory-floor-1/line-7\"\n\
         driver = \"mqtt\"\nsample_rate_seconds = 5\n"
        ),
        "",
    );
    rig.put_in_config("state_interval = \"1s\"", "state_interval = \"2s\"");
    let told = reload(&rig, &manager).await;
    assert!(told.contains("a restart is needed for sync.state_interval"), "{told}");
    let status = rig.status().await;
    assert_eq!(status["reload"]["applied"], true, "{status:#}");
    assert_eq!(status["reload"]["changes"], "1 added, 1 removed");

    // The new one is heard, shown and commanded.
    let device = rig.device("NEW-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the new device", &new, 10, |item| item["status"] == "online").await;
    assert_eq!(outcome(&rig, &new, "recalibrate").await["status"], "succeeded", "{}", rig.daemon.log());
    assert_eq!(device.executed().len(), 1);
    // The one that left is neither.
    let gone = rig.daemon.cli(&["device", &valve]).await;
    assert!(!gone.status.success(), "{gone:?}");
    rig::until("the valve's connection ends", 10, || async { (!leaving.client().is_up()).then_some(()) }).await;
    // And whoever stayed noticed nothing.
    assert!(press.client().is_up());
    assert_eq!(outcome(&rig, press.id(), "recalibrate").await["status"], "succeeded");

    attach(&rig, "worse.toml", "[[device]]\nid = \"no id\"\ntype = \"nothing\"\n");
    std::fs::remove_file(rig.folder.path().join("devices.d/new.toml")).unwrap();
    let told = reload(&rig, &manager).await;
    assert!(told.contains("reload refused, the old configuration counts: ") && told.contains("worse.toml:2"), "{told}");
    let status = rig.status().await;
    assert_eq!(status["reload"]["applied"], false);
    assert!(status["reload"]["problems"].as_array().unwrap().len() >= 2, "every problem: {status:#}");
    let log = rig.daemon.log();
    assert!(log.contains("ERROR reload: refused; devices and profiles stay as they were"), "{log}");
    assert!(log.lines().filter(|line| line.contains("worse.toml:")).count() >= 2, "{log}");
    assert_eq!(outcome(&rig, &new, "recalibrate").await["status"], "succeeded", "what is attached stays so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floorgate_reload_waits_for_what_came_of_it_and_its_exit_code_tells() {
    let (mut rig, manager) = started(Options::default()).await;
    let new = rig.id("NEW-001");
    attach(&rig, "new.toml", &format!("[[device]]\nid = \"{new}\"\ntype = \"pressure_sensor\"\n"));
    rig.put_in_config("state_interval = \"1s\"", "state_interval = \"2s\"");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let done = rig.daemon.cli(&["reload"]).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let told = "read again: 1 added\nthese keys count after a restart: sync.state_interval\n";
    assert_eq!((text(&done.stdout).as_str(), text(&done.stderr).as_str()), (told, ""));
    assert!(rig.daemon.cli(&["device", &new]).await.status.success(), "it is attached when the command comes back");
    manager.told("RELOADING=1").await;
    manager.told("READY=1").await;

    // Each refusal is told to who asked, with a code; nothing changes.
    attach(&rig, "worse.toml", "[[device]]\nid = \"no id\"\ntype = \"nothing\"\n");
    std::fs::remove_file(rig.folder.path().join("devices.d/new.toml")).unwrap();
    let refused = rig.daemon.cli(&["reload"]).await;
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(78), String::new()), "{refused:?}");
    let told = text(&refused.stderr);
    assert!(
        told.starts_with("floorgate: the reload is refused, devices and profiles stay as they were:\n  "),
        "{told}"
    );
    assert!(told.contains("worse.toml:2") && told.contains("worse.toml:3"), "every problem: {told}");
    let report = rig.daemon.json(&["reload"]).await;
    assert_eq!((&report["applied"], &report["refused_for"]), (&json!(false), &json!("configuration")), "{report}");
    assert!(rig.daemon.cli(&["device", &new]).await.status.success(), "what is attached stays so");
    std::fs::remove_file(rig.folder.path().join("devices.d/worse.toml")).unwrap();
    let config = std::fs::read_to_string(rig.daemon.config()).unwrap();
    std::fs::write(rig.daemon.config(), config.replacen("id = \"", "id = \"ANOTHER-", 1)).unwrap();
    let refused = rig.daemon.cli(&["reload"]).await;
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(text(&refused.stderr).contains("another gateway needs a restart"), "{refused:?}");

    assert_eq!(rig.daemon.terminate().await.0, Some(0));
    let nobody = rig.daemon.cli(&["reload"]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("is it running?"), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lines_of_a_command_name_its_device_its_id_and_its_reason() {
    let (rig, manager) = started(Options::default()).await;
    let offline = rig.id("PRESS-001");
    let outcome = outcome(&rig, &offline, "recalibrate").await;
    let (id, reason) = (outcome["command_id"].as_str().unwrap(), outcome["reason"].as_str().unwrap());
    let log = rig.daemon.log();
    let line = log.lines().find(|line| line.contains("command ended") || line.contains("command refused"));
    let line = line.unwrap_or_else(|| panic!("no line of the command\n{log}"));
    for field in [format!("device_id=\"{offline}\""), format!("command_id=\"{id}\""), format!("reason=\"{reason}\"")] {
        let bare = field.replace('"', "");
        assert!(line.contains(&field) || line.contains(&bare), "{field} is not in: {line}");
    }
    manager.told("WATCHDOG=1").await;
    let told = manager.told("STATUS=").await;
    assert!(told.contains("running; ") && told.contains("; floor up; cloud up; tables up"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_gateway_says_nothing_and_a_manager_that_does_not_read_stops_nothing() {
    // The manager's queue holds ten messages or so; a sign of life comes every second.
    let (rig, _manager) = started(Options::default()).await;
    let device = rig.device("PRESS-001", Behaviour::Obey).await;
    device.report(json!({"pressure_psi": 120})).await;
    rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    let before = rig.daemon.log().lines().count();
    // More than two of everything that comes every few seconds: ticks, state writes, headlines.
    for n in 0..22 {
        device.report(json!({"pressure_psi": 120 + n % 5})).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let log = rig.daemon.log();
    let said: Vec<_> = log.lines().skip(before).collect();
    assert!(said.is_empty(), "one info line a minute would be allowed: {said:#?}");
}

#[test]
fn the_unit_agrees_with_the_daemon() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let unit = read("deploy/systemd/floorgate.service");
    let lines: Vec<_> = unit.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])).collect();
    let value = |key: &str| {
        let values: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
        assert!(!values.is_empty(), "{key} is not set");
        values
    };
    assert_eq!(value("Type"), ["notify"], "READY=1 is waited for");
    // The running daemon is the judge: another process may see neither its credentials nor its environment.
    assert_eq!(value("ExecReload"), ["/usr/bin/floorgate reload --config /etc/floorgate/floorgate.toml"]);
    // What it counts its failures in has to outlive a restart.
    assert_eq!(value("RuntimeDirectoryPreserve"), ["restart"]);
    assert_eq!(value("RestartPreventExitStatus"), ["64 78"]);
    let exits = read("src/cli.rs");
    assert!(
        exits.contains("EXIT_USAGE: u8 = 64") && exits.contains("EXIT_CONFIGURATION: u8 = 78"),
        "src/cli.rs has other codes"
    );
    assert_eq!(value("RuntimeDirectory"), ["floorgate"]);
    assert!(read("src/control/place.rs").contains("\"/run/floorgate\""), "src/control/place.rs has another folder");
    assert_eq!(value("RuntimeDirectoryMode"), ["0700"], "a folder others may enter is not used");
    assert_eq!(value("CapabilityBoundingSet"), [""]);
    assert!(lines.iter().all(|line| !line.contains("network-online")), "a gateway without an uplink starts at once");
    assert_eq!(value("ReadOnlyPaths"), [format!("/etc/{}", value("ConfigurationDirectory")[0])]);
    // It would take away what the daemon reads: the boot's id.
    assert!(lines.iter().all(|line| !line.starts_with("ProcSubset=")));
    // Asking the kernel whether the clock is right is forbidden; then timesyncd's word is looked for where it is, and the
    // drop-in for other time services gives the call back.
    assert_eq!(value("ProtectClock"), ["yes"]);
    let other = read("deploy/systemd/other-time-service.conf");
    assert!(other.contains("\nProtectClock=no\n") && other.contains("\nSystemCallFilter=adjtimex clock_adjtime"));
    assert!(read("src/clock/face.rs").contains("\"/run/systemd/timesync/synchronized\""));
    let user = value("User")[0].to_owned();
    assert!(read("deploy/sysusers.d/floorgate.conf").contains(&format!("u {user} ")));
}
