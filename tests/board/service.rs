//! The package and its service in a machine: what an administrator types, and what systemd answers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::given::Kind;
use crate::machine::{KEYS, Machine};
use crate::processes::run;

pub const CONFIG: &str = "/etc/floorgate/floorgate.toml";
/// An emulated machine is slow to start anything.
const ACTIVE_WITHIN_SECONDS: u32 = 60;
/// The endpoint listens on the guest's loopback; this brings it to where the host's port is forwarded. It comes and goes with
/// the daemon, as the endpoint's own port does: asked hundreds of times while nobody is behind it, `systemd-socket-proxyd`
/// stops taking connections. Not before sockets.target, which the daemon itself comes after.
const FLOOR_SOCKET: &str = "[Unit]\nDefaultDependencies=no\nBindsTo=floorgate.service\nAfter=floorgate.service\n[Socket]\nListenStream=1884\n\
     [Install]\nWantedBy=floorgate.service\n";
const FLOOR_SERVICE: &str = "[Unit]\nBindsTo=floorgate.service\nAfter=floorgate.service\n\
     [Service]\nExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:1883\n";

/// Installs one of `/packages`, as a user does; answers what apt said.
pub async fn install(machine: &Machine, version: &str, options: &str) -> String {
    machine
        .sh(&format!(
            "cd /packages && DEBIAN_FRONTEND=noninteractive apt install -y {options} ./floorgate_{version}_*.deb"
        ))
        .await
}

/// Writes the configuration, and what the service needs to reach the test's table and to be reached.
pub async fn configure(machine: &Machine, config: &str) {
    machine.write(CONFIG, &machine.translated(config)).await;
    machine
        .write(
            "/etc/systemd/system/floorgate.service.d/keys.conf",
            &format!("[Service]\nEnvironment={}\n", KEYS.join(" ")),
        )
        .await;
    if machine.kind() == Kind::Machine {
        machine.write("/etc/systemd/system/board-floor.socket", FLOOR_SOCKET).await;
        machine.write("/etc/systemd/system/board-floor.service", FLOOR_SERVICE).await;
    }
    let floor = if machine.kind() == Kind::Machine { "systemctl enable board-floor.socket; " } else { "" };
    machine.sh(&format!("chgrp floorgate {CONFIG}; chmod 640 {CONFIG}; systemctl daemon-reload; {floor}floorgate check --config {CONFIG}")).await;
}

/// A property of the unit.
pub async fn show(machine: &Machine, property: &str) -> String {
    machine.sh(&format!("systemctl show -P {property} floorgate")).await.trim().to_owned()
}

/// Waits until the service is active.
pub async fn active(machine: &Machine) {
    let wait = format!(
        "floor() {{ [ ! -e /etc/systemd/system/board-floor.socket ] || systemctl is-active --quiet board-floor.socket; }}; \
         for i in $(seq {}); do [ \"$(systemctl is-active floorgate)\" = active ] && floor && exit 0; sleep 0.1; done; \
         systemctl status --no-pager -l floorgate; journalctl -u floorgate -b --no-pager | tail -20; exit 1",
        ACTIVE_WITHIN_SECONDS * 10
    );
    machine.sh(&format!("bash -c '{wait}'")).await;
}

/// From the start of its process to `READY=1`, by systemd's own clock.
pub async fn start_to_ready(machine: &Machine) -> Duration {
    let stamp = async |name: &str| show(machine, name).await.parse::<u64>().unwrap();
    let (started, ready) =
        (stamp("ExecMainStartTimestampMonotonic").await, stamp("ActiveEnterTimestampMonotonic").await);
    Duration::from_micros(ready.saturating_sub(started))
}

/// Proportional set size of the daemon, KiB.
pub async fn pss_kib(machine: &Machine) -> u64 {
    let pid = show(machine, "MainPID").await;
    machine.sh(&format!("awk '/^Pss:/ {{print $2}}' /proc/{pid}/smaps_rollup")).await.trim().parse().unwrap()
}

/// The package again, as a later version: what an upgrade gets.
pub fn later_version(package: &Path, folder: &Path) -> (PathBuf, String, String) {
    let field = |name: &str| {
        let output = Command::new("dpkg-deb").arg("-f").arg(package).arg(name).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (old, tree) = (field("Version"), folder.join("tree"));
    let new = format!("{old}+board1");
    run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let mut text = String::new();
    for line in crate::rig::read(&control).lines() {
        let line = if line.starts_with("Version:") { format!("Version: {new}") } else { line.to_owned() };
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(&control, text).unwrap();
    let built = folder.join(format!("floorgate_{new}_{}.deb", field("Architecture")));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "-b"]).arg(&tree).arg(&built));
    (built, old, new)
}
