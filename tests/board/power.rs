//! Power cuts under load: senders, machines and an agent on this host write down what was acknowledged and done, the machine
//! loses its power without a word before, and the judge of the fault suite joins all of it at the end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::given::{Given, Kind};
use crate::harm;
use crate::load::checker::Broken;
use crate::load::evidence::Evidence;
use crate::load::floor::Conduct;
use crate::load::{self, Load};
use crate::machine::Machine;
use crate::rig::client::Client;
use crate::rig::{Options, Rig, until};
use crate::service;

/// The memory figure's devices, and how often each reports: 20 messages a second in all.
const CALM: usize = 50;
const CALM_EVERY: Duration = Duration::from_millis(2_500);
/// How long they report before the memory and the journal are read.
const CALM_FOR: Duration = Duration::from_secs(66);
/// Until all of them have connected and reported; from then on it is a quiet day, of which [`QUIET_FOR`] is looked at.
const CALM_AFTER: Duration = Duration::from_secs(6);
const QUIET_FOR: Duration = Duration::from_secs(60);
/// Lines of a quiet gateway in that time.
const LINES_MAX: usize = 1;
/// Readings that are acknowledged after a start before the power may go again.
const LOAD_MIN: usize = 60;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// ... and until then it takes so long at most, its clients' waits between two connections included.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(120);
/// The last thing acknowledged becomes visible in the table within this.
const JUDGED_WITHIN: Duration = Duration::from_secs(240);
/// Where a battery-backed clock begins when its battery is empty.
const EMPTY_BATTERY: &str = "1970-01-01T00:00:00";

/// How exactly the clock is set right, and how often that is tried.
const CLOCK_WITHIN_MS: i64 = 400;
const SETTINGS_MAX: u32 = 8;

pub async fn story(given: &Given) {
    println!("board: power: {} on {}, seed {}", given.kind.in_words(), given.arch, given.seed);
    let mut random = fastrand::Rng::with_seed(given.seed);
    let rig = load::prepare(options()).await;
    let mut files = vec![given.package.clone()];
    if given.no_flush {
        files.push(no_flush(rig.folder.path()));
    }
    let mut machine = Machine::new(given, &files, rig.floor);
    println!("board: power: boot {:.1} s", machine.boot(None).await.as_secs_f64());
    set_up(&machine, &rig, given.no_flush).await;
    if !given.no_flush {
        calm(&machine, &rig).await;
    }
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, given.seed);
    let mut gone = 0;
    for n in 1..=given.cuts {
        under_load(&machine, &load, &mut random).await;
        gone += u64::from(cut(n, &mut machine, &load, &mut random, None).await);
    }
    let cuts = given.cuts;
    println!("board: power: {gone} of {cuts} files that were written a moment before a cut, not flushed, are gone");
    assert!(cuts == 0 || gone > 0, "nothing unflushed was ever lost: these are no power cuts");
    if !given.no_flush {
        harm::story(&machine, &load, &mut random).await;
    }
    if given.kind == Kind::Machine {
        empty_battery(&mut machine, &load, &mut random).await;
    } else {
        println!("board: power: not run: a start in 1970; a container has this machine's clock");
    }
    under_load(&machine, &load, &mut random).await;
    load.stop().await;
    if given.no_flush {
        convicted(given, &mut load).await;
    } else {
        judged(given, &machine, &rig, &mut load).await;
    }
    machine.power_off().await;
}

/// The load's devices and those of the memory figure.
fn options() -> Options {
    let mut options = load::options();
    for n in 1..=CALM {
        options.extra += &format!(
            "[[device]]\nid = \"CALM-{n:03}\"\ntype = \"pressure_sensor\"\nlocation = \"factory-floor-1\"\n\
             driver = \"mqtt\"\nsample_rate_seconds = 5\n"
        );
    }
    options
}

/// No promise is broken.
async fn judged(given: &Given, machine: &Machine, rig: &Rig, load: &mut Load) {
    let (evidence, broken) = load.judge(JUDGED_WITHIN * given.kind.slowness()).await;
    if !broken.is_empty() {
        explain(machine, rig, &evidence, &broken).await;
        let status = format!("floorgate status --config {}", service::CONFIG);
        println!("{:?}", machine.try_sh(&format!("journalctl -u floorgate -b --no-pager | tail -40; {status}")).await);
    }
    assert!(broken.is_empty(), "seed {}: {broken:#?}", given.seed);
    assert!(evidence.gaps.is_empty(), "seed {}: nothing was to be given up: {:?}", given.seed, evidence.gaps);
    let succeeded = evidence.records.iter().filter(|record| record.status == "succeeded").count();
    println!(
        "board: power: {} cuts: {} readings acknowledged, 0 lost; {} commands, {} executed, {succeeded} succeeded, 0 twice",
        given.cuts,
        evidence.acknowledged.len(),
        evidence.asked.len(),
        evidence.executed.len()
    );
    assert!(evidence.acknowledged.len() > LOAD_MIN && succeeded > 0, "the load was real");
}

/// The judge finds what a daemon without flushes lost.
async fn convicted(given: &Given, load: &mut Load) {
    let (_, broken) = load.judge(JUDGED_WITHIN / 4).await;
    let lost = broken.iter().filter(|broken| matches!(broken, Broken::LostReading(..))).count();
    println!("board: power: without flushes, {} cuts: {lost} acknowledged readings lost", given.cuts);
    assert!(lost > 0, "a daemon that does not flush got through");
}

/// What everyone says of the commands whose promise is broken.
async fn explain(machine: &Machine, rig: &Rig, evidence: &Evidence, broken: &[Broken]) {
    let said = broken.iter().map(|broken| format!("{broken:?}")).collect::<String>();
    for asked in evidence.asked.iter().filter(|asked| said.contains(&format!("{:?}", asked.id))).take(5) {
        let id = &asked.id;
        let device = id.rsplit_once('-').map_or(id.as_str(), |(device, _)| device);
        let in_table = rig.items.commands(device).await.into_iter().find(|item| item["command_id"] == id.as_str());
        println!("{asked:?}\n  in the table: {in_table:?}");
        println!("  heard: {:?}", evidence.results.iter().filter(|result| result.id == *id).collect::<Vec<_>>());
        println!(
            "  executed: {:?}",
            evidence.executed.iter().filter(|executed| executed.id == *id).collect::<Vec<_>>()
        );
        let journal = format!("journalctl -u floorgate COMMAND_ID={id} -o short-precise --no-pager | tail -20");
        let known = format!("floorgate commands --json --config {} | grep -A20 -B8 '{id}'", service::CONFIG);
        println!("  the gateway says: {:?}", machine.try_sh(&format!("{journal}; {known}")).await);
    }
}

/// The package and this rig's configuration, on disk.
async fn set_up(machine: &Machine, rig: &Rig, no_flush: bool) {
    machine.insert_packages().await;
    service::install(machine, "[0-9]*", "").await;
    let config: String = crate::rig::read(&rig.config)
        .lines()
        .filter(|line| !line.starts_with("state_dir"))
        .map(|line| format!("{line}\n"))
        .collect();
    let profiles = crate::rig::read(&rig.folder.path().join("profiles.d/load.toml"));
    machine.write("/etc/floorgate/profiles.d/load.toml", &profiles).await;
    if no_flush {
        let unit = "[Service]\nEnvironment=LD_PRELOAD=/packages/libno_flush.so\n";
        machine.write("/etc/systemd/system/floorgate.service.d/no_flush.conf", unit).await;
    }
    service::configure(machine, &config).await;
    machine
        .sh("chmod 644 /etc/floorgate/profiles.d/load.toml; systemctl enable floorgate; systemctl restart floorgate")
        .await;
    service::active(machine).await;
    // Set up long ago: what the administrator wrote is on disk. Nothing is flushed by the test from here on.
    machine.sh("sync").await;
    let up = || async { (status(machine).await["cloud"]["state"] == "up").then_some(()) };
    until("the cloud link is up", 60, up).await;
}

async fn status(machine: &Machine) -> serde_json::Value {
    let said = machine.sh("floorgate status --json --config /etc/floorgate/floorgate.toml").await;
    serde_json::from_str(&said).unwrap_or_default()
}

/// Figures of the closing note: memory, and lines in the journal, with 50 devices at 20 messages a second and all well.
async fn calm(machine: &Machine, rig: &Rig) {
    let mut tasks = Vec::new();
    for n in 1..=CALM {
        let floor = rig.floor;
        tasks.push(tokio::spawn(async move {
            let id = format!("CALM-{n:03}");
            tokio::time::sleep(CALM_EVERY * n as u32 / CALM as u32).await;
            let client = Client::connect(floor, &id).await;
            let mut every = tokio::time::interval(CALM_EVERY);
            // The first one is at once.
            every.tick().await;
            let end = Instant::now() + CALM_FOR;
            let mut sent = 0;
            while Instant::now() < end {
                every.tick().await;
                client
                    .publish(&format!("devices/{id}/telemetry"), json!({"pressure_psi": 100 + n}).to_string(), false)
                    .await;
                sent += 1;
            }
            // Connected until the memory was read.
            (client, sent)
        }));
    }
    tokio::time::sleep(CALM_AFTER).await;
    let since = machine.sh("date +%s").await;
    let (mut clients, mut sent) = (Vec::new(), 0);
    for task in tasks {
        let (client, messages) = task.await.unwrap();
        clients.push(client);
        sent += messages;
    }
    let said =
        machine.sh(&format!("journalctl -u floorgate -p info -o cat --no-pager --since @{}", since.trim())).await;
    let said: Vec<_> = said.lines().filter(|line| !line.starts_with("-- ")).collect();
    println!("board: a quiet day: {} lines in the journal in {} s", said.len(), QUIET_FOR.as_secs());
    assert!(said.len() <= LINES_MAX, "a quiet gateway says {said:#?}");
    let per_second = f64::from(sent) / CALM_FOR.as_secs_f64();
    let kib = service::pss_kib(machine).await;
    println!(
        "board: memory (PSS) {}.{} MiB with {CALM} devices at {per_second:.0} messages a second",
        kib / 1024,
        kib % 1024 * 10 / 1024
    );
}

/// Waits until enough was acknowledged since now, and then a random moment.
pub async fn under_load(machine: &Machine, load: &Load, random: &mut fastrand::Rng) {
    let before = load.log.lock().acknowledged.len();
    let (within, began) = (ACKNOWLEDGED_WITHIN * machine.kind().slowness(), Instant::now());
    loop {
        let since = load.log.lock().acknowledged.len() - before;
        if since >= LOAD_MIN {
            break;
        }
        if began.elapsed() > within {
            let said =
                machine.try_sh("systemctl status floorgate -l -n 30 --no-pager; ss -tn | head -30; uptime").await;
            panic!("{since} readings acknowledged within {within:?}: {said:#?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(Duration::from_millis(random.u64(0..1_500))).await;
}

/// The library that swallows flushes, compiled for this host.
fn no_flush(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/board/shim/no_flush.rs");
    let built = folder.join("libno_flush.so");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-C", "strip=symbols", "-C", "panic=abort", "-o"]);
    assert!(rustc.arg(&built).arg(source).status().expect("rustc is there").success(), "the library compiles");
    built
}

/// One cut, and the start after it; answers whether a file that was written before it, and not flushed, is gone.
async fn cut(n: u64, machine: &mut Machine, load: &Load, random: &mut fastrand::Rng, clock: Option<&str>) -> bool {
    // What shows that this is a cut: it may be there by chance, if something else flushed meanwhile, but not often.
    machine.sh(&format!("echo witness > /root/witness-{n}")).await;
    let flushes = machine.flushes();
    let loss = machine.cut(random).await;
    let last = load.log.lock().acknowledged.last().map(|reading| (reading.device.clone(), reading.n));
    let boot = machine.boot(clock).await;
    service::active(machine).await;
    // Told, not judged by G7's two seconds: everything else boots at the same time, and a processor may be emulated.
    let ready = service::start_to_ready(machine).await;
    let (device, reading) = last.expect("something was acknowledged");
    println!(
        "board: cut {n}: {flushes} flushes before it; {} sectors lost, {} by luck not; last acknowledged {device} {reading}; \
         boot {:.1} s, start to READY {} ms",
        loss.lost,
        loss.kept,
        boot.as_secs_f64(),
        ready.as_millis()
    );
    assert!(flushes > 0, "nothing was ever flushed: this disk is no disk");
    machine.sh(&format!("cat /root/witness-{n} 2>/dev/null || true")).await.trim() != "witness"
}

/// A start with an empty battery: readings are taken, and belong to the right time once it is known. systemd lifts a clock that
/// is older than itself to its own date, so the kernel begins in 1970 and the daemon months or years too early.
async fn empty_battery(machine: &mut Machine, load: &Load, random: &mut fastrand::Rng) {
    cut(0, machine, load, random, Some(EMPTY_BATTERY)).await;
    let shown = machine.sh("date -u +'%s %FT%TZ'").await;
    let (seconds, date) = shown.trim().split_once(' ').unwrap();
    let late = jiff::Timestamp::now().as_second() - seconds.parse::<i64>().unwrap();
    assert!(late > 3_600, "the machine's clock says {date}");
    under_load(machine, load, random).await;
    let off = set_right(machine).await;
    println!(
        "board: power: started at {date}, {} days too early; took readings; then the clock was set right (to {off} ms)",
        late / 86_400
    );
}

/// Sets the machine's clock to this host's; answers by how much it is still wrong, milliseconds. A shell in an emulated machine
/// takes a second to begin, and commands must not be executed so much later than the judge's clock allows.
async fn set_right(machine: &Machine) -> i64 {
    let host = || jiff::Timestamp::now().as_millisecond();
    let mut wrong = i64::MAX;
    for _ in 0..SETTINGS_MAX {
        let (mut best, mut ahead) = (i64::MAX, 0);
        for _ in 0..4 {
            let before = host();
            let micros: i64 = machine.sh("echo ${EPOCHREALTIME/./}").await.trim().parse().unwrap();
            let took = host() - before;
            if took < best {
                (best, ahead) = (took, micros / 1_000 - before - took / 2);
            }
        }
        wrong = ahead;
        if wrong.abs() < CLOCK_WITHIN_MS {
            break;
        }
        let millis = format!("t=$((${{EPOCHREALTIME/./}} / 1000 - ({wrong})))");
        machine.sh(&format!("{millis}; date -u -s @$((t / 1000)).$(printf %03d $((t % 1000)))")).await;
    }
    assert!(wrong.abs() < CLOCK_WITHIN_MS, "the machine's clock is {wrong} ms wrong");
    wrong
}
