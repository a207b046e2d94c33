//! What may happen to the daemon under load besides a power cut, and who helps: a flush that never ends (the watchdog), more
//! memory than the unit allows (the kernel), more tasks than it allows (nobody has to). The load goes on, and the judge of the
//! power cuts finds at the end whether anything acknowledged was lost or done twice.

use std::time::{Duration, Instant};

use crate::given::Kind;
use crate::load::Load;
use crate::machine::Machine;
use crate::power::under_load;
use crate::rig::until;
use crate::service;

/// `WatchdogSec=` for a container, so that a change's checks are quick; an emulated machine shows the unit's own.
const WATCHDOG_IN_CONTAINER: Duration = Duration::from_secs(4);
/// From the end of the old process to the new one's READY, on top of the watchdog's patience. An emulated processor takes
/// most of it for the restart.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Longer than anyone waits: the flush does not end by itself.
const FLUSH_TAKES_MICROS: u64 = 600_000_000;
/// `MemoryMax=`, `MemoryHigh=` and `TasksMax=` of the unit, as the kernel has them.
const LIMITS: [(&str, u64); 3] = [("memory.max", 128 << 20), ("memory.high", 96 << 20), ("pids.max", 64)];
const WATCHDOG_TIMEOUTS: &str = "journalctl -u floorgate -b --no-pager | grep -c 'Watchdog timeout' || true";
/// Less than the daemon's own memory, text of its program aside: it is above its limit at once.
const TOO_LITTLE: &str = "2M";
/// More than `TasksMax=`.
const CROWD: u32 = 80;

/// All of it.
pub async fn story(machine: &Machine, load: &Load, random: &mut fastrand::Rng) {
    stuck_writer(machine, load, random).await;
    if machine.try_sh(&format!("test -e {}/memory.max", cgroup(machine).await)).await.is_some_and(|said| said.code == 0)
    {
        crowd(machine, load, random).await;
        memory(machine, load, random).await;
    } else {
        println!("board: not run: limits of memory and tasks; this kernel has these controllers as cgroup v1");
    }
}

async fn cgroup(machine: &Machine) -> String {
    format!("/sys/fs/cgroup{}", service::show(machine, "ControlGroup").await)
}

/// Waits until systemd has started the service again; answers how long it took since `began`.
async fn back(machine: &Machine, old: &str, began: Instant, within: Duration) -> Duration {
    let back = || async {
        let said = machine.sh("systemctl show -P MainPID -P ActiveState floorgate").await;
        let (pid, state) = said.trim().split_once('\n')?;
        (pid != old && pid != "0" && state == "active").then_some(())
    };
    until("systemd starts the service again", within.as_secs(), back).await;
    began.elapsed()
}

/// The writer waits for a flush that does not end, as on a card that dies; every other thread lives. The sign of life comes
/// from the writer alone, so systemd ends the process and starts a new one, and what was acknowledged is there.
async fn stuck_writer(machine: &Machine, load: &Load, random: &mut fastrand::Rng) {
    if machine.kind() == Kind::Container {
        let unit = format!("[Service]\nWatchdogSec={}\n", WATCHDOG_IN_CONTAINER.as_secs());
        machine.write("/etc/systemd/system/floorgate.service.d/watchdog.conf", &unit).await;
        machine.sh("systemctl daemon-reload; systemctl restart floorgate").await;
        service::active(machine).await;
    }
    under_load(machine, load, random).await;
    let watchdog = service::show(machine, "WatchdogUSec").await;
    let pid = service::show(machine, "MainPID").await;
    let writer = machine.sh(&format!("grep -lx store /proc/{pid}/task/*/comm | cut -d/ -f5")).await.trim().to_owned();
    assert!(writer.parse::<u32>().is_ok(), "the writer's thread has another name: {writer:?}");
    // Held at the entry of the system call by a tracer, from which a kill still frees it.
    let flushes = "fsync,fdatasync";
    let before: u32 = machine.sh(WATCHDOG_TIMEOUTS).await.trim().parse().unwrap();
    let began = Instant::now();
    machine
        .sh(&format!(
            "systemd-run --quiet --collect --unit=board-flush strace -p {writer} -o /run/board-flush -e trace={flushes} \
             -e inject={flushes}:delay_enter={FLUSH_TAKES_MICROS}"
        ))
        .await;
    let held = || async {
        let stat =
            machine.sh(&format!("cut -d')' -f2 /proc/{pid}/task/{writer}/stat; cat /run/board-flush || true")).await;
        (stat.trim_start().starts_with('t') && stat.contains("sync(")).then_some(())
    };
    until("the writer is held in a flush", (BACK_WITHIN * machine.kind().slowness()).as_secs(), held).await;
    let acknowledged = load.log.lock().acknowledged.len();
    // Of the others none is held, and the endpoint still welcomes whoever connects.
    let others = machine
        .sh(&format!(
            "for task in /proc/{pid}/task/*; do [ ${{task##*/}} = {writer} ] || cut -d')' -f2 $task/stat; done"
        ))
        .await;
    let (alive, stopped) = others.lines().partition::<Vec<_>, _>(|line| line.trim_start().starts_with(['S', 'R']));
    assert!(alive.len() >= 3 && stopped.is_empty(), "only the writer is to be stuck: {others}");
    let patience = Duration::from_secs(30) + BACK_WITHIN * machine.kind().slowness();
    let fired =
        || async { (machine.sh(WATCHDOG_TIMEOUTS).await.trim().parse::<u32>().unwrap() > before).then_some(()) };
    until("the watchdog fires", patience.as_secs(), fired).await;
    // systemd has ended every other thread. A tracer is asked for leave to die; a flush that hangs in the kernel is not.
    machine.sh("systemctl kill --signal=KILL board-flush").await;
    let took = back(machine, &pid, began, patience).await;
    println!(
        "board: a writer stuck in a flush, {} other threads alive: started again after {:.1} s (WatchdogSec={watchdog})",
        alive.len(),
        took.as_secs_f64()
    );
    under_load(machine, load, random).await;
    let now = load.log.lock().acknowledged.len();
    assert!(now > acknowledged, "nothing is acknowledged after the restart");
    if machine.kind() == Kind::Container {
        machine.sh("rm /etc/systemd/system/floorgate.service.d/watchdog.conf; systemctl daemon-reload").await;
    }
}

/// Someone else's processes fill the service up to its `TasksMax=`: no further one comes, and the daemon works on.
async fn crowd(machine: &Machine, load: &Load, random: &mut fastrand::Rng) {
    let (group, pid) = (cgroup(machine).await, service::show(machine, "MainPID").await);
    for (file, limit) in LIMITS {
        let said = machine.sh(&format!("cat {group}/{file}")).await;
        assert_eq!(said.trim().parse(), Ok(limit), "{file}");
    }
    let used = machine.sh(&format!("cat {group}/pids.current")).await;
    // Stays at the limit until it is killed.
    let perl = format!(
        "open F, \">{group}/cgroup.procs\"; print F $$; close F; \
         for (1..{CROWD}) {{ my $p = fork; last if !defined $p; if (!$p) {{ sleep 600; exit }} }} sleep 600"
    );
    machine.write("/run/board-crowd", &perl).await;
    machine.sh("systemd-run --quiet --collect --unit=board-crowd perl /run/board-crowd").await;
    let full = || async {
        let said = machine.sh(&format!("cat {group}/pids.current; grep max {group}/pids.events")).await;
        (said.lines().next() == Some("64") && !said.contains("max 0")).then_some(())
    };
    until("the service has as many tasks as it may", (BACK_WITHIN * machine.kind().slowness()).as_secs(), full).await;
    under_load(machine, load, random).await;
    machine.sh("floorgate status --config /etc/floorgate/floorgate.toml >/dev/null").await;
    machine.sh(&format!("for p in $(cat {group}/cgroup.procs); do [ $p = {pid} ] || kill -9 $p; done; true")).await;
    assert_eq!(service::show(machine, "MainPID").await, pid, "the daemon did not survive the crowd");
    println!("board: at TasksMax=64 ({} tasks of its own) it goes on", used.trim());
}

/// It takes more memory than it may: the kernel ends it, and systemd starts it again, with the unit's own limit.
async fn memory(machine: &Machine, load: &Load, random: &mut fastrand::Rng) {
    under_load(machine, load, random).await;
    let (group, pid) = (cgroup(machine).await, service::show(machine, "MainPID").await);
    let used = machine.sh(&format!("cat {group}/memory.current")).await;
    let began = Instant::now();
    // Not to be made to leak, it gets a limit that it is above. The unit still has its own.
    let _ = machine.try_sh(&format!("echo {TOO_LITTLE} > {group}/memory.max")).await;
    let took = back(machine, &pid, began, BACK_WITHIN * machine.kind().slowness()).await;
    let said = machine.sh("journalctl -u floorgate -b --no-pager | grep oom-kill | tail -1").await;
    assert!(said.contains("Failed with result 'oom-kill'"), "it was not the kernel: {said}");
    let limit = machine.sh(&format!("cat {}/memory.max", cgroup(machine).await)).await;
    assert_eq!(limit.trim().parse(), Ok(LIMITS[0].1), "the next one has the unit's limit");
    println!(
        "board: above its MemoryMax= ({} KiB used) it was ended by the kernel and started again after {:.1} s: {}",
        used.trim().parse::<u64>().unwrap() / 1024,
        took.as_secs_f64(),
        said.trim()
    );
    under_load(machine, load, random).await;
}
