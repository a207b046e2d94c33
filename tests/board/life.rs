//! The life of a package: installed on a fresh system, configured, used, asked for everything its unit promises, stopped, stuck,
//! upgraded, rolled back, purged.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::given::Given;
use crate::machine::Machine;
use crate::rig::free_port;
use crate::{acts, service, unit};

/// The contract's.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// `WatchdogSec=` for the test; the unit's own is half a minute.
const WATCHDOG: Duration = Duration::from_secs(4);
/// `systemd-analyze security`, in tenths.
const EXPOSURE_MAX: f64 = 1.2;

pub async fn story(given: &Given) {
    let folder = tempfile::tempdir().unwrap();
    let (later, old, new) = service::later_version(&given.package, folder.path());
    let floor = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut machine = Machine::new(given, &[given.package.clone(), later], floor);
    println!("board: life: boot {:.1} s", machine.boot(None).await.as_secs_f64());
    machine.insert_packages().await;
    fresh_install(&machine, &old).await;
    // Enough for a command to keep, once the devices are known; all of them are the other story's.
    acts::play(&machine, floor, folder.path(), &[1, 4]).await;
    stop(&machine).await;
    unit::story(&machine, floor).await;
    stuck(&machine).await;
    upgrade_and_back(&machine, &old, &new).await;
    purge(&machine).await;
    machine.power_off().await;
}

/// Nothing runs that is not configured, and the user is told what to fill in.
async fn fresh_install(machine: &Machine, version: &str) {
    let began = Instant::now();
    let said = service::install(machine, version, "").await;
    println!("board: apt install {:.1} s", began.elapsed().as_secs_f64());
    assert!(said.contains(service::CONFIG), "the user is not told what to fill in:\n{said}");
    // A loop would have turned by then: the unit's first pause is 2 s.
    machine.sh("sleep 3").await;
    let state = [service::show(machine, "ActiveState").await, service::show(machine, "NRestarts").await];
    assert_eq!(state, ["inactive", "0"], "an unconfigured service was started");
    // Nor is it when someone starts it all the same, or the machine boots: it says what is missing, once.
    machine
        .sh("! systemctl start floorgate 2>/dev/null || systemctl is-active floorgate | grep inactive; sleep 3")
        .await;
    let state = service::show(machine, "NRestarts").await;
    assert_eq!(state, "0", "an unconfigured service is started again and again");
    machine.sh("systemctl reset-failed floorgate 2>/dev/null || true").await;
    machine.sh("systemd-analyze verify --man=no floorgate.service").await;
    let exposure = machine.sh("systemd-analyze security --no-pager floorgate.service | tail -1").await;
    println!("board: systemd-analyze verify: nothing to say; security: {}", exposure.trim());
    let score = exposure.split_whitespace().find_map(|word| word.parse::<f64>().ok()).expect("a score");
    assert!(score <= EXPOSURE_MAX, "{exposure}");
}

async fn stop(machine: &Machine) {
    let times = machine.sh("date +%s%N; systemctl stop floorgate; date +%s%N").await;
    let times: Vec<u64> = times.split_whitespace().map(|time| time.parse().unwrap()).collect();
    let took = Duration::from_nanos(times[1] - times[0]);
    println!("board: systemctl stop {} ms", took.as_millis());
    assert!(took < STOP_WITHIN, "systemctl stop took {took:?}");
    assert_eq!(service::show(machine, "Result").await, "success");
    machine.sh("systemctl start floorgate").await;
    service::active(machine).await;
}

/// A daemon whose writer answers no more is started again by systemd.
async fn stuck(machine: &Machine) {
    let watchdog = WATCHDOG.as_secs();
    let unit = format!("[Service]\nWatchdogSec={watchdog}\n");
    machine.write("/etc/systemd/system/floorgate.service.d/watchdog.conf", &unit).await;
    machine.sh("systemctl daemon-reload; systemctl restart floorgate").await;
    service::active(machine).await;
    let stuck = service::show(machine, "MainPID").await;
    let began = Instant::now();
    machine.sh(&format!("kill -STOP {stuck}")).await;
    let back = || async {
        let (pid, state) = (service::show(machine, "MainPID").await, service::show(machine, "ActiveState").await);
        (pid != stuck && pid != "0" && state == "active").then_some(())
    };
    crate::rig::until("systemd starts the stuck daemon again", 120, back).await;
    let took = began.elapsed();
    let said = machine.sh("journalctl -u floorgate --no-pager | grep -i watchdog | tail -1").await;
    println!(
        "board: stuck daemon started again after {:.1} s (WatchdogSec={watchdog}): {}",
        took.as_secs_f64(),
        said.trim()
    );
    machine.sh("rm /etc/systemd/system/floorgate.service.d/watchdog.conf; systemctl daemon-reload; systemctl restart floorgate").await;
    service::active(machine).await;
}

/// What must be the same before and after: the configuration, and the commands that are known.
async fn kept(machine: &Machine) -> String {
    let state = "floorgate commands --json --config /etc/floorgate/floorgate.toml | tr ',' '\\n' | grep command_id | sort | uniq";
    let config = "find /etc/floorgate -type f -exec sha256sum {} + | sort";
    machine.sh(&format!("{config}; {state}; stat -c '%n %U %a' /etc/floorgate /var/lib/floorgate")).await
}

async fn upgrade_and_back(machine: &Machine, old: &str, new: &str) {
    let before = kept(machine).await;
    assert!(before.contains("command_id"), "the acts left no command:\n{before}");
    for (version, options) in [(new, ""), (old, "--allow-downgrades")] {
        let pid = service::show(machine, "MainPID").await;
        let began = Instant::now();
        service::install(machine, version, options).await;
        service::active(machine).await;
        let installed = machine.sh("dpkg-query -W -f '${Version}' floorgate").await;
        assert_eq!(installed.trim(), version);
        assert_ne!(service::show(machine, "MainPID").await, pid, "{version} was installed, the other one runs on");
        assert_eq!(kept(machine).await, before, "{version} changed what was there");
        println!("board: to {version} in {:.1} s: configuration and state kept", began.elapsed().as_secs_f64());
    }
}

/// Nothing is left but what the administrator and apt wrote.
async fn purge(machine: &Machine) {
    machine
        .sh("rm -r /etc/systemd/system/floorgate.service.*; DEBIAN_FRONTEND=noninteractive apt purge -y floorgate")
        .await;
    let left = machine
        .sh("find / -xdev -name '*floorgate*' -not -path '/packages/*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/tmp/systemd-*' -not -path '/var/tmp/systemd-*'")
        .await;
    assert_eq!(left.trim(), "", "purge left files");
    let running = machine.try_sh("pidof floorgate").await.expect("a shell");
    assert_ne!(running.code, 0, "it runs after its purge");
    println!("board: purge left nothing");
}
