//! The DynamoDB endpoint fails in every way a network and a service can.

use std::path::Path;
use std::time::{Duration, Instant};

use super::judge;
use crate::Round;
use crate::gate::{Fault, Gate};
use crate::load::checker::RETURN_MAX;
use crate::load::floor::Conduct;
use crate::load::{self, Load};
use crate::rig::Rig;

/// The endpoint's name, which only the daemon's own hosts file knows.
const NAME: &str = "table.plant.invalid";

/// A block closes, and is sent as a batch, within this time.
const BATCH_WITHIN: Duration = Duration::from_secs(30);

/// What comes over the endpoint.
#[derive(Debug, Clone, Copy)]
enum Storm {
    Http(Fault),
    /// Nothing listens.
    Refused,
    /// The name is not resolved any more.
    NoName,
    /// The daemon is killed in the middle of the storm before.
    Kill,
}

/// A view of the machine for the daemon alone: its own hosts file, and no other source of names. False if this user may
/// not make one.
fn own_names(rig: &mut Rig) -> bool {
    let folder = rig.folder.path();
    std::fs::write(folder.join("nsswitch.conf"), "hosts: files\n").unwrap();
    write_hosts(folder, true);
    let script = format!(
        "mount --bind {0}/hosts /etc/hosts && mount --bind {0}/nsswitch.conf /etc/nsswitch.conf && exec \"$0\" \"$@\"",
        folder.display()
    );
    let through = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned);
    let tried = std::process::Command::new(&through[0]).args(&through[1..]).arg("true").output();
    let may = tried.is_ok_and(|output| output.status.success());
    if may {
        rig.daemon.through = through.to_vec();
    }
    may
}

/// In place: the daemon sees this very file.
fn write_hosts(folder: &Path, known: bool) {
    let name = if known { format!("127.0.0.1 {NAME}\n") } else { String::new() };
    std::fs::write(folder.join("hosts"), format!("127.0.0.1 localhost\n{name}")).unwrap();
}

/// One storm, and what it counts as beside the requests it hit.
async fn blow(
    storm: Storm,
    gate: &Gate,
    rig: &mut Rig,
    load: &Load,
    random: &mut fastrand::Rng,
) -> Option<&'static str> {
    let lasts = Duration::from_millis(random.u64(800..2_500));
    match storm {
        Storm::Http(fault) => {
            gate.storm(fault, random.choice([40, 100]).unwrap_or(100));
            // A partial batch needs a batch, and blocks close now and then.
            let (begun, hit) = (Instant::now(), || gate.injected().contains_key(&fault));
            while begun.elapsed() < lasts || (!hit() && begun.elapsed() < BATCH_WITHIN) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            None
        }
        Storm::Refused => {
            gate.switch.cut().await;
            tokio::time::sleep(lasts).await;
            gate.switch.restore().await.unwrap();
            Some("table/refused")
        }
        Storm::NoName => {
            write_hosts(rig.folder.path(), false);
            // What is connected needs no name: cut it.
            gate.switch.cut().await;
            gate.switch.restore().await.unwrap();
            tokio::time::sleep(lasts.max(Duration::from_secs(2))).await;
            write_hosts(rig.folder.path(), true);
            Some("table/name-not-resolved")
        }
        Storm::Kill => {
            rig.daemon.kill().await;
            rig.daemon.run().await;
            load.log.lock().starts.push(rig.daemon.ready_after);
            Some("table/daemon-killed")
        }
    }
}

/// Some storms pass into the next one, some into calm weather; how long it takes then until a request is answered.
async fn calm(gate: &Gate, load: &Load) {
    gate.calm();
    let calm = Instant::now();
    while gate.answered().is_none_or(|at| at < calm) && calm.elapsed() < RETURN_MAX {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    load.log.lock().returns.push(calm.elapsed());
}

pub async fn storms(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    let gate = Gate::start(rig.table_cable.address(), random.u64(..)).await;
    let named = own_names(&mut rig);
    let host = if named { NAME } else { "127.0.0.1" };
    let port = gate.switch.address().port();
    rig.put_in_config(&format!("http://{}", rig.table_cable.address()), &format!("http://{host}:{port}"));
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);

    let mut storms: Vec<Storm> = Fault::ALL.into_iter().map(Storm::Http).collect();
    storms.extend([Storm::Refused, Storm::Kill, Storm::Kill]);
    if named {
        storms.push(Storm::NoName);
    } else {
        round.note("table/name-not-resolved", "needs the right to `unshare --mount`");
    }
    random.shuffle(&mut storms);
    for storm in storms {
        if let Some(fault) = blow(storm, &gate, &mut rig, &load, &mut random).await {
            round.count(fault, 1);
        }
        if random.bool() {
            calm(&gate, &load).await;
        }
    }
    gate.calm();
    judge(&mut load, &rig, &mut round).await;
    for fault in Fault::ALL {
        let hits = gate.injected().get(&fault).copied().unwrap_or(0);
        round.count(format!("table/{}", fault.name()), hits);
        if hits == 0 {
            // No promise is broken, but nothing was shown either.
            round.note(&format!("table/{}", fault.name()), "no request met it");
        }
    }
    round
}
