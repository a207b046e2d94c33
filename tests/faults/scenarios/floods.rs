//! Floods: 50,000 ids that nobody attached, and one device that does not stop talking, at the endpoint and over a plant's
//! broker.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::{PATIENCE, judge};
use crate::Round;
use crate::broker::Broker;
use crate::load::floor::{Conduct, now_ms};
use crate::load::{self, Load};
use crate::rig::client::Client;
use crate::rig::{Options, Rig};

/// Unknown ids of one flood.
const IDS: usize = 50_000;
/// From so many clients: one alone may send 200 messages a second.
const CLIENTS: usize = 10;
/// They come within this time.
const FLOOD: Duration = Duration::from_secs(60);
/// What they may cost.
const RSS_MAX_KB: i64 = 5 * 1_024;
/// Messages on their way at a time.
const WINDOW: usize = 500;

/// A few seconds on a busy machine tell no tenth: that is measured by `tests/isolation.rs`. Here a neighbour must not wait
/// for the flood, whose queue is seconds long; what makes it slower by less than this is the load that runs beside.
const NEIGHBOUR_SLOWER_MAX: u32 = 3;
/// Quicker than this is never too slow: some flushes of a slow disk one after the other.
const NEIGHBOUR_MAX: Duration = Duration::from_millis(250);

/// Resident memory of the daemon, KiB.
fn resident(rig: &Rig) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Publishes the ids of one client; answers how many were acknowledged.
async fn pour(client: &Client, ids: std::ops::Range<usize>) -> usize {
    let (mut waits, mut acknowledged) = (FuturesUnordered::new(), 0);
    for n in ids {
        waits.push(client.send(&format!("devices/FLOOD-{n}/telemetry"), r#"{"x":1}"#, false).await);
        if waits.len() >= WINDOW {
            acknowledged += usize::from(matches!(waits.next().await, Some(Ok(()))));
        }
    }
    while let Some(wait) = waits.next().await {
        acknowledged += usize::from(wait.is_ok());
    }
    acknowledged
}

async fn unknown_ids(rig: &Rig, round: &mut Round) {
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let client = Client::connect(rig.floor, &format!("technician-{n}")).await;
        // What the first messages of a client cost is not what the flood costs.
        pour(&client, IDS + n * 20..IDS + (n + 1) * 20).await;
        clients.push(client);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, begun) = (resident(rig), Instant::now());
    let part = IDS / CLIENTS;
    let pouring = clients.iter().enumerate().map(|(n, client)| pour(client, n * part..(n + 1) * part));
    let acknowledged: usize = futures_util::future::join_all(pouring).await.into_iter().sum();
    let (took, grown) = (begun.elapsed(), resident(rig) - before);
    round.count("floods/unknown-ids", 1);
    round.note("floods/unknown-ids", format!("{IDS} ids in {} s, RSS {grown:+} KiB", took.as_secs()));
    if grown > RSS_MAX_KB {
        round.broken.push(format!("G8: {IDS} unknown ids cost {grown} KiB of memory, allowed {RSS_MAX_KB}"));
    }
    if acknowledged != IDS || took > FLOOD {
        round.broken.push(format!("G8: {acknowledged} of {IDS} unknown ids were answered, within {took:?}"));
    }
}

/// One device floods; answers how long the acknowledgements of another took, at the 99th of 100.
async fn neighbour(rig: &Rig, seconds: u64, flooding: bool) -> Duration {
    let flood = Client::connect(rig.floor, "flooder").await;
    let healthy = Client::connect(rig.floor, "neighbour").await;
    let (noisy, quiet) = (rig.id("VALVE-003"), rig.id("VALVE-002"));
    let until = Instant::now() + Duration::from_secs(seconds);
    let flooded = async {
        let mut waits = FuturesUnordered::new();
        while flooding && Instant::now() < until {
            let payload = json!({"position_pct": 1, "timestamp": now_ms()}).to_string();
            waits.push(flood.send(&format!("devices/{noisy}/telemetry"), payload, false).await);
            if waits.len() >= WINDOW {
                let _ = tokio::time::timeout(Duration::from_millis(500), waits.next()).await;
            }
        }
    };
    let measured = async {
        let mut took = Vec::new();
        while Instant::now() < until {
            let begun = Instant::now();
            let payload = json!({"position_pct": 2, "timestamp": now_ms()}).to_string();
            healthy.publish(&format!("devices/{quiet}/telemetry"), payload, false).await;
            took.push(begun.elapsed());
            // Within the rate that any device may have.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        took.sort_unstable();
        took[took.len() * 99 / 100]
    };
    tokio::join!(flooded, measured).1
}

pub async fn both(seed: u64) -> Round {
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    load::first_start(&mut rig).await;
    unknown_ids(&rig, &mut round).await;
    let calm = neighbour(&rig, 5, false).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    let flooded = neighbour(&rig, 8, true).await;
    round.count("floods/one-device", 1);
    let note =
        format!("p99 of a neighbour's acknowledgement: {} ms, {} ms without", flooded.as_millis(), calm.as_millis());
    round.note("floods/one-device", note);
    if flooded > NEIGHBOUR_MAX.max(calm * NEIGHBOUR_SLOWER_MAX) {
        let (calm, flooded) = (calm.as_millis(), flooded.as_millis());
        round.broken.push(format!("G10: a neighbour of a flood waits {flooded} ms for its PUBACKs, {calm} ms without"));
    }
    judge(&mut load, &rig, &mut round).await;
    round
}

/// The device that floods over a broker. One message a second is its own limit: a device that was never heard may bring in
/// what 5,000 s of that allow, and no more.
const FLOODER: &str = "FLOOD-001";
const FLOODED: i64 = 6_000;
/// So long the load goes on after the flood has reached the broker.
const BESIDE: Duration = Duration::from_secs(8);

/// What the history says of the flooding device: the numbers that are stored, and how many are declared lost.
async fn accounted(rig: &Rig, round: &mut Round) -> (HashSet<u64>, u64) {
    let (mut stored, mut lost) = (Vec::new(), 0);
    for item in rig.items.history(&rig.id(FLOODER)).await {
        if item["count"] == 0 {
            if item["reason"] != "rate_limited" {
                round.broken.push(format!("G2: a loss of the flooding device is declared as {}", item["reason"]));
            }
            lost += item["lost"].as_u64().unwrap_or(0);
        } else {
            let numbers = item["readings"]["n"].as_array().into_iter().flatten();
            stored.extend(numbers.filter_map(Value::as_f64).map(|n| n.to_bits()));
        }
    }
    let unique: HashSet<u64> = stored.iter().copied().collect();
    if unique.len() != stored.len() {
        round.broken.push("G2: a reading of the flooding device is in the history twice".to_owned());
    }
    (unique, lost)
}

/// Over a plant's broker, which cannot be read more slowly for one device: each of its readings is stored or declared
/// lost, each once, and nobody else loses one.
pub async fn over_a_broker(seed: u64) -> Round {
    let mut round = Round::default();
    let broker = Broker::start().await;
    let mut rig = load::prepare(Options { floor_broker: Some(broker.address), ..load::options() }).await;
    let flooding = format!(
        "[[device]]\nid = \"{}\"\ntype = \"pressure_sensor\"\nlocation = \"factory-floor-1/line-7\"\ndriver = \"mqtt\"\n\
         sample_rate_seconds = 5\nmessages_per_second = 1\n",
        rig.id(FLOODER)
    );
    std::fs::write(&rig.config, format!("{}{flooding}", crate::rig::read(&rig.config))).unwrap();
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    let flood = Client::connect(rig.floor, "flooder").await;
    let (topic, begun) = (format!("devices/{}/telemetry", rig.id(FLOODER)), now_ms() - FLOODED);
    let mut waits = FuturesUnordered::new();
    for n in 0..FLOODED {
        let payload = json!({"n": n, "timestamp": begun + n}).to_string();
        waits.push(flood.send(&topic, payload, false).await);
        if waits.len() >= WINDOW {
            let _ = waits.next().await;
        }
    }
    while waits.next().await.is_some() {}
    // The broker took the flood in a moment; the others go on beside what the daemon does about it.
    tokio::time::sleep(BESIDE).await;
    judge(&mut load, &rig, &mut round).await;
    // Far ahead, and within its limit: it closes the block that is open.
    flood.publish(&topic, json!({"n": FLOODED, "timestamp": now_ms() + 100_000}).to_string(), false).await;
    let (asked, patience) = (u64::try_from(FLOODED).unwrap(), Instant::now() + PATIENCE);
    let (stored, lost) = loop {
        let (stored, lost) = accounted(&rig, &mut round).await;
        if stored.len() as u64 + lost >= asked || Instant::now() > patience || !round.broken.is_empty() {
            break (stored.len() as u64, lost);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    round.count("floods/over-a-broker", 1);
    round.note("floods/over-a-broker", format!("{asked} readings: {stored} stored, {lost} declared lost"));
    // The one that closes the block may be there, and may itself be over the limit.
    if !(asked..=asked + 1).contains(&(stored + lost)) {
        round.broken.push(format!("G2: of {asked} readings of a flood {stored} are stored and {lost} declared lost"));
    }
    if lost == 0 {
        round.broken.push("the flood was not real: nothing was over the limit".to_owned());
    }
    round
}
