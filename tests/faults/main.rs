//! The fault suite: scenarios of faults under load, judged from outside (`cargo xtask faults`, `docs/testing.md`).
//!
//! `FLOORGATE_FAULT_MINUTES` (default 1) is how long the suite takes about; every scenario runs once at least.
//! `FLOORGATE_FAULT_SEED` and `FLOORGATE_FAULT_ONLY` repeat one. Each row of `docs/fault-matrix.md` comes from a line
//! `faults: NAME runs=N ok=N NOTE` that is printed here.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "../support/broker.rs"]
#[allow(dead_code, clippy::or_fun_call, reason = "each test uses some of it")]
mod broker;
mod gate;
#[path = "../load/mod.rs"]
mod load;
#[path = "../rig/mod.rs"]
mod rig;
mod scenarios;
mod wire;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

/// What one run of a scenario did, and what it found.
#[derive(Debug, Default)]
pub struct Round {
    /// Fault → how often it was injected, and something to say of it.
    pub faults: BTreeMap<String, (u64, String)>,
    /// Broken promises, in words.
    pub broken: Vec<String>,
}

impl Round {
    pub fn count(&mut self, fault: impl Into<String>, runs: u64) {
        self.faults.entry(fault.into()).or_default().0 += runs;
    }

    pub fn note(&mut self, fault: &str, note: impl Into<String>) {
        self.faults.entry(fault.to_owned()).or_default().1 = note.into();
    }
}

type Run = Pin<Box<dyn Future<Output = Round>>>;

/// A scenario: its name, and how it runs with a seed.
pub struct Scenario {
    pub name: &'static str,
    pub run: fn(u64) -> Run,
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Injected, and of these in rounds without a broken promise, and the last note.
type Tally = BTreeMap<String, (u64, u64, String)>;

/// Runs one scenario once; a panic is a finding like any other.
async fn round(scenario: &Scenario, seed: u64) -> Round {
    let started = Instant::now();
    let ran = AssertUnwindSafe((scenario.run)(seed)).catch_unwind().await;
    let round = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let broken = vec![text.unwrap_or_else(|| "it panicked".to_owned())];
        Round { faults: BTreeMap::from([(scenario.name.to_owned(), (1, String::new()))]), broken }
    });
    println!("{} seed {seed}: {} s, {} broken", scenario.name, started.elapsed().as_secs(), round.broken.len());
    round.broken.iter().take(20).for_each(|broken| println!("  {broken}"));
    round
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_holds_under_every_fault() {
    let budget = Duration::from_secs(60 * from_environment("FLOORGATE_FAULT_MINUTES").unwrap_or(1));
    let base = from_environment("FLOORGATE_FAULT_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let only = std::env::var("FLOORGATE_FAULT_ONLY").ok();
    let wanted = |scenario: &&Scenario| only.as_ref().is_none_or(|only| only == scenario.name);
    let chosen: Vec<_> = scenarios::ALL.iter().filter(wanted).collect();
    assert!(!chosen.is_empty(), "no scenario is called {only:?}");
    println!("seed {base}");
    let (started, mut tally, mut found) = (Instant::now(), Tally::new(), String::new());
    let mut rounds = 0;
    while rounds == 0 || started.elapsed() < budget {
        let seed = base.wrapping_add(rounds);
        for scenario in &chosen {
            if rounds > 0 && started.elapsed() >= budget {
                break;
            }
            let round = round(scenario, seed).await;
            for (fault, (runs, note)) in round.faults {
                let row = tally.entry(fault).or_default();
                row.0 += runs;
                row.1 += if round.broken.is_empty() { runs } else { 0 };
                if !note.is_empty() {
                    row.2 = note;
                }
            }
            if !round.broken.is_empty() {
                let name = scenario.name;
                let _ = writeln!(
                    found,
                    "{name}, seed {seed}; repeat with `cargo xtask faults --only {name} --seed {seed}`"
                );
                for broken in round.broken.iter().take(20) {
                    let _ = writeln!(found, "  {broken}");
                }
            }
        }
        rounds += 1;
    }
    for (fault, (runs, ok, note)) in &tally {
        println!("faults: {fault} runs={runs} ok={ok} {note}");
    }
    assert!(found.is_empty(), "\n{found}");
}
