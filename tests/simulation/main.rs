//! Outages of days in seconds: store, dispatcher, admission and uploader as they are, with cloud and floor in memory and
//! time that moves only when it is told to. One seed decides everything; the judge is that of the fault suite.
//!
//! It stands at the seam of our own types: links and their sockets are not in it (`tests/link.rs`, `cargo xtask faults`).
//! `FLOORGATE_TEST_SEED` repeats one run, `FLOORGATE_TEST_SEEDS` sets how many there are.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "../load/checker.rs"]
mod checker;
mod cloud;
#[path = "../load/evidence.rs"]
mod evidence;
mod floor;
mod world;

use std::sync::Mutex;
use std::time::Duration;

use world::World;

/// Seeds that once found something; they stay.
const REGRESSIONS: &[u64] = &[];
/// Runs of every `cargo test`.
const RUNS: u64 = 100;

struct Ran {
    seed: u64,
    broken: Vec<String>,
    crashes: u64,
    simulated: Duration,
    figures: (usize, usize, usize),
}

fn simulate(seed: u64) -> Ran {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        // Paused time runs ahead by itself while everyone waits for the store's thread, unless something blocks.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let _holds_time = tokio::task::spawn_blocking(move || ended.recv().is_err());
        let mut world = World::new(seed);
        let broken = world.live().await;
        drop(end);
        Ran { seed, broken, crashes: world.crashes, simulated: world.simulated, figures: world.figures() }
    })
}

#[test]
fn days_of_outages_crashes_and_throttling_lose_nothing_and_run_nothing_twice_or_stale() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("FLOORGATE_TEST_SEED") {
        Some(seed) => vec![seed],
        None => REGRESSIONS.iter().copied().chain(0..number("FLOORGATE_TEST_SEEDS").unwrap_or(RUNS)).collect(),
    };
    let (queue, results) = (Mutex::new(seeds.clone()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = { queue.lock().unwrap().pop() } {
                    let ran = simulate(seed);
                    results.lock().unwrap().push(ran);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    let broken: Vec<_> = results.iter().filter(|ran| !ran.broken.is_empty()).collect();
    let days = results.iter().map(|ran| ran.simulated).sum::<Duration>().as_secs() / 86_400;
    let crashes: u64 = results.iter().map(|ran| ran.crashes).sum();
    println!(
        "faults: simulation runs={} ok={} {days} days, {crashes} crashes",
        results.len(),
        results.len() - broken.len()
    );
    let sum = |figure: fn(&Ran) -> usize| results.iter().map(figure).sum::<usize>();
    let [readings, asked, succeeded] = [sum(|ran| ran.figures.0), sum(|ran| ran.figures.1), sum(|ran| ran.figures.2)];
    println!("{readings} readings, {asked} commands, {succeeded} succeeded");
    for ran in &broken {
        println!("FLOORGATE_TEST_SEED={}: {:#?}", ran.seed, &ran.broken[..ran.broken.len().min(10)]);
    }
    assert!(broken.is_empty(), "{} of {} runs broke a promise", broken.len(), results.len());
    assert_eq!(results.len(), seeds.len(), "a run ended in a panic");
    assert!(succeeded > 2 * seeds.len() && crashes >= seeds.len() as u64 / 2, "the load was real");
}
