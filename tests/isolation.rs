//! No neighbour suffers (G10): a hung and a flooding device beside healthy ones, on the built-in endpoint and on a link
//! that all share, with a real store. The figures are ratios within one run: phases with and without the two alternate.
//!
//! `cargo test --test isolation of_five_hundred -- --ignored --nocapture` is the whole of it: 499 + 1 + 1 devices. On two
//! cores of a virtual machine that others kept busy (load 6 to 12, a flush 4 ms, in one of a hundred cases 34 ms; not
//! optimised), p99 and what the quiet phases differed among each other:
//!
//! | what | quiet | noise | beside a flood of readings | of states | of nonsense |
//! |---|---|---|---|---|---|
//! | endpoint, two reports a second each, report to PUBACK | 68 ms | 34 ms | 53 ms, 0.77 | – | – |
//! | endpoint, order to device | 4.1 ms | 2.4 ms | 3.3 ms, 0.81 | – | – |
//! | shared link, a report in 5 s each, 1,000 messages a second of flood | 114 ms | 16 ms | 54 ms, 0.48 | 28 ms, 0.25 | 57 ms, 0.50 |
//!
//! On a link the flood makes the others faster, because the window fills sooner and is committed at once. What a link
//! carries ends at a window of 20 for each flush, of which a flood of states needs two: with five times as many reports
//! (500 a second beside the 1,000) and this disk under the load of others the bound was missed in all three attempts
//! (ratios 0.4 to 6.6): so the promise is shown on a link for 100 reports a second, not for 500. A larger window at the
//! broker (`max_inflight_messages`) lifts that.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, dead_code, reason = "support code is shared by several tests")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "figures")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/running.rs"]
mod running;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use broker::Broker;
use bytes::Bytes;
use floorgate::clock::{Clock, Trust};
use floorgate::mqtt::endpoint::{Endpoint, EndpointConfig, EndpointHandle, MemorySessions};
use floorgate::mqtt::intake::{Attached, FloorIntake};
use floorgate::mqtt::limits::{Rates, Silences};
use floorgate::mqtt::link::Link;
use floorgate::mqtt::refusals::Refusals;
use floorgate::mqtt::topics::TopicScheme;
use floorgate::shadow::store::Attachment;
use floorgate::shadow::{Config, Store};
use floorgate_model::{DeviceId, GatewayId, Profile};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Figures of noisy phases may be slower by this part than those of the quiet ones, and by what the quiet phases differ
/// among each other ([`GROUPS`]): that is the machine's own noise, measured in the same run.
const SLOWER: f64 = 1.1;
/// Quiet phases are dealt out into so many groups; what their p99 differ is the noise.
const GROUPS: usize = 3;
/// Between two phases nothing is measured: what the one left on its way is no figure of the other.
const SETTLING: Duration = Duration::from_millis(200);
/// A busy machine may spoil a run. Whoever really delays others does so in every one.
const ATTEMPTS: usize = 3;

fn id(n: usize) -> DeviceId {
    DeviceId::new(&format!("D{n:03}")).unwrap()
}

struct House {
    store: Store,
    intake: FloorIntake<Store>,
    _folder: tempfile::TempDir,
}

fn house(devices: usize) -> House {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system(Trust::Always);
    let attachment = |n| Attachment {
        device_id: id(n),
        device_type: "pressure_sensor".into(),
        location: "hall".into(),
        sample_interval: Duration::from_secs(5),
        configuration: None,
        profile: Profile::built_in("pressure_sensor").unwrap(),
    };
    let config = Config {
        state_dir: folder.path().to_owned(),
        gateway_id: GatewayId::new("GW-1").unwrap(),
        devices: (0..devices).map(attachment).collect(),
        commit_interval: Duration::from_millis(100),
        quota_bytes: 512 << 20,
        history_retention: Duration::from_secs(86_400),
        announce_results: false,
        announce_tables: false,
    };
    let store = Store::open(config, clock.clone()).unwrap();
    let attached = Attached::new((0..devices).map(id));
    let refusals = Arc::new(Refusals::new(clock.clone()));
    let intake = FloorIntake::new(attached, store.clone(), TopicScheme::default(), clock, refusals);
    House { store, intake, _folder: folder }
}

/// What the flooding device sends in a noisy phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Flood {
    Readings,
    States,
    Nonsense,
}

/// What is measured now: quiet and noisy phases alternate.
#[derive(Debug, Default)]
struct Phase(Mutex<(usize, bool, Option<Flood>)>);

impl Phase {
    /// The number of the phase and its flood; `None` between two phases.
    fn measured(&self) -> Option<Measured> {
        let (number, measured, flood) = *self.0.lock().unwrap();
        measured.then_some((number, flood))
    }

    fn flood(&self) -> Option<Flood> {
        self.0.lock().unwrap().2
    }

    /// One phase to warm up, which also uses up the burst of the flooding device; then quiet ones before and after each
    /// noisy one.
    async fn run(&self, length: Duration, floods: &[Flood]) {
        *self.0.lock().unwrap() = (0, false, Some(Flood::Readings));
        sleep(Duration::from_secs(1)).await;
        let noisy = floods.iter().flat_map(|flood| [Some(*flood), None]);
        for (number, flood) in std::iter::once(None).chain(noisy).enumerate() {
            for measured in [false, true] {
                *self.0.lock().unwrap() = (number, measured, flood);
                sleep(if measured { length } else { SETTLING }).await;
            }
        }
    }
}

/// Its number, and its flood.
type Measured = (usize, Option<Flood>);
/// When it began, and in which phase.
type Begun = (Option<Measured>, Instant);

#[derive(Default)]
struct Figures(Mutex<BTreeMap<Measured, Vec<Duration>>>);

fn p99(mut all: Vec<Duration>) -> Duration {
    all.sort();
    assert!(all.len() >= 100, "only {} figures", all.len());
    all[all.len() * 99 / 100]
}

impl Figures {
    fn add(&self, (phase, began): Begun) {
        if let Some(phase) = phase {
            self.0.lock().unwrap().entry(phase).or_default().push(began.elapsed());
        }
    }

    /// What is wrong, if anything.
    fn judge(&self, what: &str) -> Result<(), String> {
        let mut kinds: BTreeMap<Option<Flood>, Vec<Duration>> = BTreeMap::new();
        let mut groups = vec![Vec::new(); GROUPS];
        for ((number, flood), figures) in &*self.0.lock().unwrap() {
            kinds.entry(*flood).or_default().extend(figures);
            if flood.is_none() {
                groups[number / 2 % GROUPS].extend(figures);
            }
        }
        let quiet = p99(kinds.remove(&None).unwrap());
        let groups: Vec<_> = groups.into_iter().map(p99).collect();
        let noise = *groups.iter().max().unwrap() - *groups.iter().min().unwrap();
        assert!(!kinds.is_empty());
        let mut verdict = Ok(());
        for (flood, figures) in kinds {
            let (flood, noisy) = (flood.unwrap(), p99(figures));
            let told = format!(
                "{what}: p99 {quiet:.2?} quiet (in groups {groups:.2?}), {noisy:.2?} beside {flood:?}, ratio {:.2}",
                noisy.as_secs_f64() / quiet.as_secs_f64()
            );
            println!("{told}");
            if noisy > quiet.mul_f64(SLOWER) + noise {
                verdict = Err(told);
            }
        }
        verdict
    }
}

/// Up to [`ATTEMPTS`] runs, until one is good.
async fn in_some_run<F: Future<Output = Result<(), String>>>(run: impl Fn() -> F) {
    let mut verdicts = Vec::new();
    while verdicts.len() < ATTEMPTS {
        match run().await {
            Ok(()) => return,
            Err(verdict) => verdicts.push(verdict),
        }
    }
    panic!("{verdicts:#?}");
}

/// A healthy device: reads its orders, reports twice a second; `now` tells which phase it is.
async fn healthy(address: SocketAddr, n: usize, now: Arc<Phase>, figures: Arc<Figures>, got: mpsc::Sender<String>) {
    let mut options = MqttOptions::new(id(n).to_string(), address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(60)).set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 100);
    client.subscribe(format!("devices/{}/execute", id(n)), QoS::AtLeastOnce).await.unwrap();
    let sent: Mutex<VecDeque<Begun>> = Mutex::default();
    let listening = async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(Incoming::PubAck(_)) => {
                    figures.add(sent.lock().unwrap().pop_front().unwrap());
                }
                Event::Incoming(Incoming::Publish(order)) => {
                    let _ = got.send(String::from_utf8_lossy(&order.payload).into_owned()).await;
                }
                _ => {}
            }
        }
    };
    let reporting = async {
        sleep(Duration::from_millis(fastrand::u64(500..1_000))).await;
        let mut every = tokio::time::interval(Duration::from_millis(500));
        loop {
            every.tick().await;
            sent.lock().unwrap().push_back((now.measured(), Instant::now()));
            let (topic, payload) =
                (format!("devices/{}/telemetry", id(n)), format!(r#"{{"x":{}}}"#, fastrand::u32(..)));
            client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        }
    };
    tokio::join!(listening, reporting);
}

/// A device that takes orders and never acknowledges one, nor says anything.
async fn hung(address: SocketAddr, n: usize) {
    use tokio::io::AsyncWriteExt;
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut bytes = bytes::BytesMut::new();
    let connect = rumqttc::Connect { keep_alive: 0, ..rumqttc::Connect::new(id(n).to_string()) };
    rumqttc::Packet::Connect(connect).write(&mut bytes, 1_000).unwrap();
    let mut subscribe = rumqttc::Subscribe::new(format!("devices/{}/execute", id(n)), QoS::AtLeastOnce);
    subscribe.pkid = 1;
    rumqttc::Packet::Subscribe(subscribe).write(&mut bytes, 1_000).unwrap();
    stream.write_all(&bytes).await.unwrap();
    std::future::pending::<()>().await;
}

/// A device that sends as fast as it is read, while the phase is noisy.
async fn flooding(address: SocketAddr, n: usize, now: Arc<Phase>) {
    let mut options = MqttOptions::new(id(n).to_string(), address.ip().to_string(), address.port());
    options.set_inflight(1_000);
    let (client, mut events) = AsyncClient::new(options, 1_000);
    let listening = async {
        loop {
            events.poll().await.unwrap();
        }
    };
    let sending = async {
        loop {
            while now.flood().is_none() {
                sleep(Duration::from_millis(10)).await;
            }
            let topic = format!("devices/{}/telemetry", id(n));
            client.publish(topic, QoS::AtLeastOnce, false, r#"{"x":1}"#).await.unwrap();
        }
    };
    tokio::join!(listening, sending);
}

/// In noisy phases the hung device gets ten orders a second, more than a plant ever sends to one; none is acknowledged.
async fn orders_for_nobody(handle: EndpointHandle, hung: usize, now: Arc<Phase>) {
    loop {
        sleep(Duration::from_millis(100)).await;
        if now.flood().is_some() {
            let (handle, deadline) = (handle.clone(), Instant::now() + Duration::from_secs(1));
            tokio::spawn(async move { handle.publish_once(&id(hung), Bytes::from_static(b"{}"), deadline).await });
        }
    }
}

/// Orders go round the healthy devices; how long each took to arrive.
async fn orders(
    handle: EndpointHandle,
    devices: usize,
    now: Arc<Phase>,
    mut got: mpsc::Receiver<String>,
    figures: Arc<Figures>,
) {
    for n in 0.. {
        let (phase, started) = (now.measured(), Instant::now());
        let (order, handle) = (format!("order {n}"), handle.clone());
        let (payload, deadline) = (Bytes::from(order.clone()), started + Duration::from_secs(5));
        tokio::spawn(async move { handle.publish_once(&id(n % devices), payload, deadline).await });
        while got.recv().await.expect("devices are there") != order {}
        figures.add((phase, started));
        sleep(Duration::from_millis(3)).await;
    }
}

async fn on_the_endpoint(devices: usize, phase: Duration, floods: &[Flood]) -> Result<(), String> {
    let house = house(devices + 2);
    let intake = Arc::new(house.intake.slowing(Rates::default()));
    let attached = (0..devices + 2).map(id).collect();
    let config = EndpointConfig::new((Ipv4Addr::LOCALHOST, 0).into());
    let sessions = Arc::new(MemorySessions::default());
    let endpoint = Endpoint::bind(config, intake, TopicScheme::default(), attached, sessions).await.unwrap();
    let (address, handle, stop) = (endpoint.local_addr(), endpoint.handle(), CancellationToken::new());
    tokio::spawn(endpoint.run(stop.clone()));
    let (now, commits, executes) =
        (Arc::new(Phase::default()), Arc::new(Figures::default()), Arc::new(Figures::default()));
    let (got, orders_got) = mpsc::channel(1_000);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..devices {
        let healthy = healthy(address, n, Arc::clone(&now), Arc::clone(&commits), got.clone());
        tasks.spawn(healthy);
    }
    tasks.spawn(hung(address, devices));
    let flooding = flooding(address, devices + 1, Arc::clone(&now));
    tasks.spawn(flooding);
    let all_here = async {
        while handle.stats().devices < devices + 2 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_here).await.unwrap_or_else(|_| panic!("{:?}", handle.stats()));
    sleep(Duration::from_secs(1)).await;
    tasks.spawn(orders_for_nobody(handle.clone(), devices, Arc::clone(&now)));
    tasks.spawn(orders(handle.clone(), devices, Arc::clone(&now), orders_got, Arc::clone(&executes)));
    now.run(phase, floods).await;
    tasks.shutdown().await;
    stop.cancel();
    house.store.close().await.unwrap();
    let (commits, executes) =
        (commits.judge("endpoint, report to PUBACK"), executes.judge("endpoint, order to device"));
    commits.and(executes)
}

/// Publishes a flood of 1,000 messages a second while there is one.
async fn flood_the_broker(broker: Broker, n: usize, now: Arc<Phase>) {
    let mut every = tokio::time::interval(Duration::from_millis(10));
    loop {
        every.tick().await;
        let Some(flood) = now.flood() else { continue };
        let (kind, payload) = match flood {
            Flood::Readings => ("telemetry", r#"{"x":1}"#),
            Flood::States => ("state", r#"{"online":true}"#),
            Flood::Nonsense => ("telemetry", "no reading"),
        };
        for _ in 0..10 {
            broker.publish(&format!("devices/{}/{kind}", id(n)), payload, false);
        }
    }
}

/// Takes the times of what the broker was acknowledged; a report's payload tells its number.
async fn acknowledged(broker: Broker, sent: Arc<Mutex<Vec<Begun>>>, figures: Arc<Figures>) {
    let mut changes = broker.changes();
    loop {
        changes.changed().await.unwrap();
        for payload in std::mem::take(&mut broker.lock().log.acknowledged) {
            let number = payload.strip_prefix(br#"{"number":"#).and_then(|rest| rest.strip_suffix(b"}"));
            let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
            if let Some(number) = number {
                figures.add(sent.lock().unwrap()[number]);
            }
        }
    }
}

/// A link behind a broker with a window of 20, as mosquitto has: all devices' messages come over it, and nothing comes
/// beyond the window before the PUBACKs, which leave in the order of receipt.
async fn on_a_shared_link(devices: usize, every: Duration, phase: Duration, floods: &[Flood]) -> Result<(), String> {
    let house = house(devices + 1);
    // Nobody had been silent, so nothing was kept: the flood is one from the start, whatever its connections.
    let silences: Silences = (0..=devices).map(|n| (id(n), Duration::ZERO)).collect();
    let (intake, runner) = house.intake.declaring(Rates::default(), silences);
    let (stop, broker) = (CancellationToken::new(), Broker::start().await);
    broker.lock().faults.window = Some(20);
    tokio::spawn(runner.run(stop.clone()));
    let config = running::config(&broker, &["devices/+/telemetry", "devices/+/state"]);
    let (link, runner) = Link::new(config, Arc::new(intake), None, Clock::system(Trust::Always));
    let running = tokio::spawn(runner.run(stop.clone()));
    link.state().wait_for(|state| state.up).await.unwrap();
    let (now, figures, sent) =
        (Arc::new(Phase::default()), Arc::new(Figures::default()), Arc::<Mutex<Vec<Begun>>>::default());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(acknowledged(broker.clone(), Arc::clone(&sent), Arc::clone(&figures)));
    for n in 0..devices {
        let (broker, now, sent) = (broker.clone(), Arc::clone(&now), Arc::clone(&sent));
        tasks.spawn(async move {
            sleep(every.mul_f64(fastrand::f64())).await;
            let mut every = tokio::time::interval(every);
            loop {
                every.tick().await;
                let number = {
                    let mut sent = sent.lock().unwrap();
                    sent.push((now.measured(), Instant::now()));
                    sent.len() - 1
                };
                broker.publish(&format!("devices/{}/telemetry", id(n)), format!(r#"{{"number":{number}}}"#), false);
            }
        });
    }
    tasks.spawn(flood_the_broker(broker.clone(), devices, Arc::clone(&now)));
    now.run(phase, floods).await;
    tasks.shutdown().await;
    stop.cancel();
    running.await.unwrap();
    house.store.close().await.unwrap();
    figures.judge("shared link, report to PUBACK")
}

const KINDS: [Flood; 9] = {
    let [a, b, c] = [Flood::Readings, Flood::States, Flood::Nonsense];
    [a, b, c, a, b, c, a, b, c]
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_and_a_flooding_device_delay_nobody_on_the_endpoint() {
    in_some_run(|| on_the_endpoint(49, Duration::from_millis(500), &[Flood::Readings; 8])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooding_device_delays_nobody_on_a_shared_link() {
    in_some_run(|| on_a_shared_link(49, Duration::from_millis(250), Duration::from_millis(500), &KINDS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; `cargo xtask measure` runs it"]
async fn of_five_hundred_devices_a_hung_and_a_flooding_one_delay_nobody() {
    in_some_run(|| on_the_endpoint(499, Duration::from_secs(2), &[Flood::Readings; 9])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; `cargo xtask measure` runs it"]
async fn of_five_hundred_devices_on_a_shared_link_a_flooding_one_delays_nobody() {
    // Every 5 s, as devices report by default.
    in_some_run(|| on_a_shared_link(499, Duration::from_secs(5), Duration::from_secs(2), &KINDS)).await;
}
