//! What the unit promises, asked sentence by sentence of a systemd that runs it. The cloud and the tables are gone by then, so
//! each of these starts is one without an uplink.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use floorgate_demo::devices::VALVE;
use serde_json::Value;

use crate::machine::{Machine, Said};
use crate::rig::client::Client;
use crate::rig::until;
use crate::service;

/// Between a change and the headline that tells it, and some.
const STATUS_WITHIN_SECONDS: u64 = 60;
/// A pause that a test can wait for; the unit's own begins at 2 s.
const QUICK_RESTART: &str = "[Service]\nRestartSec=100ms\n";
/// Five of those, and what a start takes: a loop would have turned by then.
const LOOP_SHOWS_AFTER: &str = "sleep 2";
const DROP_INS: &str = "/etc/systemd/system/floorgate.service.d";
/// What `systemd-analyze security` still counts; the last paragraph of the unit explains each.
const STILL_COUNTED: [&str; 7] = [
    "DeviceAllow",
    "IPAddressDeny",
    "PrivateNetwork",
    "ProcSubset",
    "RestrictAddressFamilies_AF_INET_INET6",
    "RestrictAddressFamilies_AF_UNIX",
    "RootDirectoryOrRootImage",
];

/// All of it; the service runs at the beginning and at the end.
pub async fn story(machine: &Machine, floor: SocketAddr) {
    sandbox(machine).await;
    remaining_points(machine).await;
    without_an_uplink(machine).await;
    ready_means_intake(machine, floor).await;
    reload(machine).await;
    exits(machine).await;
    credentials(machine, floor).await;
}

async fn status_says(machine: &Machine, what: &str) -> String {
    let says = || async {
        let text = service::show(machine, "StatusText").await;
        text.contains(what).then_some(text)
    };
    until(&format!("STATUS= says `{what}`"), STATUS_WITHIN_SECONDS, says).await
}

/// The process as the kernel has it, not as the unit asks for it.
async fn sandbox(machine: &Machine) {
    let pid = service::show(machine, "MainPID").await;
    let said = machine.sh(&format!("cat /proc/{pid}/status; stat -c 'User: %U' /proc/{pid}")).await;
    for line in [
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "User: floorgate",
    ] {
        let said = said.replace('\t', " ");
        assert!(said.contains(line), "no `{line}` in\n{said}");
    }
    // Through its own eyes, and with root's rights: nothing can be written but its state, nobody's home is there.
    let inside = async |script: &str| {
        machine.try_sh(&format!("nsenter -t {pid} -m -- sh -c '{script}'")).await.expect("a shell")
    };
    for folder in ["/etc/floorgate", "/usr", "/var", "/boot"] {
        let Said { code, text } = inside(&format!("touch {folder}/written")).await;
        assert!(code != 0 && text.contains("Read-only"), "{folder}: {text}");
    }
    assert_eq!(inside("touch /var/lib/floorgate/written && rm /var/lib/floorgate/written").await.code, 0);
    assert_eq!(inside("ls -A /root /home | grep -v :").await.text.trim(), "", "homes are there");
    assert_eq!(inside("ls /dev | grep -E \"^(vd|sd|loop|mem|kmsg)\"").await.text.trim(), "", "devices are there");
    println!(
        "board: sandbox: no capability, {}",
        said.lines().find(|l| l.starts_with("Seccomp_filters")).unwrap_or("a filter")
    );
}

/// Whatever the score still counts stands in the unit, with its reason.
async fn remaining_points(machine: &Machine) {
    let said = machine.sh("systemd-analyze security --no-pager --json=short floorgate.service").await;
    let points: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let counted = |point: &&Value| point["exposure"].as_str().is_some_and(|e| e.parse::<f64>().is_ok_and(|e| e > 0.0));
    let names: BTreeSet<_> = points.iter().filter(counted).map(|point| point["json_field"].as_str().unwrap()).collect();
    assert_eq!(names, STILL_COUNTED.into_iter().collect(), "explain it in deploy/systemd/floorgate.service");
}

/// A start with the cloud and the tables away is one like any other, and STATUS= says what is away and what waits.
async fn without_an_uplink(machine: &Machine) {
    for property in ["After", "Wants", "Requires"] {
        let others = service::show(machine, property).await;
        assert!(!others.contains("network-online") && !others.contains("time-sync"), "{property}={others}");
    }
    machine.sh("systemctl restart floorgate").await;
    let text = status_says(machine, "cloud down").await;
    assert!(text.contains("floor up") && text.contains("tables down"), "{text}");
    println!("board: STATUS= without an uplink: {text}");
}

/// READY=1 comes when devices are heard: not before, and then at once.
async fn ready_means_intake(machine: &Machine, floor: SocketAddr) {
    // Someone else has the port.
    let perl = format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => \"{}\", Listen => 1, ReuseAddr => 1) or die; sleep 600",
        machine.floor_inside()
    );
    machine.write("/run/board-port", &perl).await;
    machine.sh("systemctl stop floorgate; systemd-run --quiet --collect --unit=board-port perl /run/board-port").await;
    let listens = || async {
        let port = machine.floor_inside().port();
        let said = machine.try_sh(&format!("ss -Hltnp sport = :{port} | grep perl")).await?;
        (said.code == 0).then_some(())
    };
    until("the port is taken", 60, listens).await;
    machine.try_sh("systemctl start floorgate").await.expect("a shell");
    let again = || async { (service::show(machine, "NRestarts").await.parse::<u32>().unwrap() >= 2).then_some(()) };
    until("it is tried again", 120, again).await;
    let ready = machine.sh("systemctl show -P ActiveState -P StatusText floorgate").await;
    assert!(!ready.contains("running"), "READY=1 without intake: {ready}");
    // systemd 254 and later: the pause grows with each try.
    let (first, next) = (service::show(machine, "RestartUSec").await, service::show(machine, "RestartUSecNext").await);
    assert!(next.is_empty() || next != first, "the pause does not grow: {next}");
    let pauses = if next.is_empty() { format!("every {first}") } else { format!("after {first}, now after {next}") };
    machine.sh("systemctl stop board-port").await;
    service::active(machine).await;
    // Without a second try: whoever was told "ready" may connect.
    let client = Client::connect(floor, VALVE).await;
    client.publish(&format!("devices/{VALVE}/telemetry"), "{\"flow_rate_lpm\": 1}", false).await;
    println!("board: a taken port: not READY, tried again {pauses}; READY and heard once it was free");
}

/// SIGHUP: a new device is there without a restart; a file with an error changes nothing and is named.
async fn reload(machine: &Machine) {
    let pid = service::show(machine, "MainPID").await;
    let devices = async || {
        let said = machine.sh("floorgate devices --json --config /etc/floorgate/floorgate.toml").await;
        said.matches("\"device_id\"").count()
    };
    let before = devices().await;
    machine
        .write("/etc/floorgate/devices.d/new.toml", "[[device]]\nid = \"NEW-001\"\ntype = \"pressure_sensor\"\n")
        .await;
    machine.sh("chmod 644 /etc/floorgate/devices.d/new.toml; systemctl reload floorgate").await;
    let more = || async { (devices().await == before + 1).then_some(()) };
    until("the new device is there", 60, more).await;

    machine.write("/etc/floorgate/devices.d/worse.toml", "[[device]]\nid = \"no id\"\ntype = \"nothing\"\n").await;
    machine.sh("chmod 644 /etc/floorgate/devices.d/worse.toml").await;
    let refused = machine.try_sh("systemctl reload floorgate").await.expect("a shell");
    assert_ne!(refused.code, 0, "`systemctl reload` is content with a file that has an error");
    let said = machine.sh("journalctl -u floorgate -b --no-pager | grep worse.toml").await;
    assert!(said.contains("worse.toml:2"), "{said}");
    // And whoever sends the signal instead gets the same answer.
    machine.sh(&format!("kill -HUP {pid}")).await;
    let text = status_says(machine, "reload refused").await;
    assert!(text.contains("the old configuration counts") && text.contains("worse.toml:2"), "{text}");
    assert_eq!(devices().await, before + 1, "what was attached stays so");

    machine
        .sh("rm /etc/floorgate/devices.d/new.toml /etc/floorgate/devices.d/worse.toml; systemctl reload floorgate")
        .await;
    let as_before = || async { (devices().await == before).then_some(()) };
    until("the device has left", 60, as_before).await;
    let state = machine.sh("systemctl show -P MainPID -P ActiveState floorgate").await;
    assert_eq!(state.trim(), format!("{pid}\nactive"), "a reload is no restart");
    println!("board: reload: one came and left, a bad file refused: {text}");
}

/// Whatever ends it, it is started again, but for wrong arguments and a configuration that cannot be used.
async fn exits(machine: &Machine) {
    let quick = format!("{DROP_INS}/quick.conf");
    machine.write(&quick, QUICK_RESTART).await;
    machine.sh("systemctl daemon-reload; systemctl restart floorgate").await;
    let pid = service::show(machine, "MainPID").await;
    machine.sh(&format!("kill -KILL {pid}; {LOOP_SHOWS_AFTER}")).await;
    service::active(machine).await;
    assert_eq!(service::show(machine, "NRestarts").await, "1", "killed, it is started again, once");

    let wrong = format!("{DROP_INS}/wrong.conf");
    let arguments = "[Service]\nExecStart=\nExecStart=/usr/bin/floorgate run --no-such-option\n";
    let file = "/etc/floorgate/conf.d/wrong.toml";
    for (path, text, code) in [(wrong.as_str(), arguments, "64"), (file, "[gateway]\nidd = 1\n", "78")] {
        machine.write(path, text).await;
        machine
            .sh(&format!(
                "chmod 644 {path}; systemctl daemon-reload; systemctl restart floorgate && exit 1; {LOOP_SHOWS_AFTER}"
            ))
            .await;
        let state = machine.sh("systemctl show -P ExecMainStatus -P ActiveState -P NRestarts floorgate").await;
        let mut lines: Vec<_> = state.split_whitespace().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["0", code, "failed"], "exit {code} is final");
        machine.sh(&format!("rm {path}; systemctl daemon-reload; systemctl start floorgate")).await;
        service::active(machine).await;
    }
    machine.sh(&format!("rm {quick}; systemctl daemon-reload")).await;
    println!("board: killed: started again; exits 64 and 78: final");
}

/// A secret that is root's alone reaches the daemon by `LoadCredential=`, and no one else.
async fn credentials(machine: &Machine, floor: SocketAddr) {
    // The password `secret`.
    let hash = "$7$101$6NjKSEb5ZYkqS0xS$YlnidZRKxdsAFNTHW26CkjtjWmo0ownFxcZW6VJwh6wZ46rNIXVJS1NbJNV7jdwzW+6EEwMXYhok1fMeXt9bkA==";
    machine.write("/root/board-users", &format!("{VALVE}:{hash}")).await;
    machine.write(&format!("{DROP_INS}/users.conf"), "[Service]\nLoadCredential=users:/root/board-users\n").await;
    let named = "[floor]\nusers = \"/run/credentials/floorgate.service/users\"\n";
    machine.write("/etc/floorgate/conf.d/users.toml", named).await;
    machine.sh("chmod 600 /root/board-users; chmod 644 /etc/floorgate/conf.d/users.toml; systemctl daemon-reload; systemctl restart floorgate").await;
    let nobody = async |user: &str| {
        let read =
            format!("runuser -u {user} -- cat /run/credentials/floorgate.service/users /root/board-users 2>/dev/null");
        machine.try_sh(&read).await.expect("a shell").text
    };
    assert_eq!(nobody("nobody").await, "", "anyone reads the credential");
    let anonymous = Client::connect_with(floor, VALVE, None).await;
    assert!(anonymous.is_none(), "with users, a device without a password is refused");
    // The check of a reload reads it too.
    machine.sh("systemctl reload floorgate || { journalctl -u floorgate --no-pager | tail -8; ls -lna /run/credentials/floorgate.service; runuser -u floorgate -- cat /run/credentials/floorgate.service/users; false; }").await;
    machine
        .sh(&format!("rm /etc/floorgate/conf.d/users.toml {DROP_INS}/users.conf /root/board-users; systemctl daemon-reload; systemctl restart floorgate"))
        .await;
    service::active(machine).await;
    let client = Client::connect_with(floor, VALVE, None).await;
    assert!(client.is_some(), "without them it is heard");
    println!("board: LoadCredential=: a file of root's alone is used; nobody else reads it");
}
