//! No neighbour suffers (G10): a hung and a flooding device beside healthy ones, on the built-in endpoint and on a link
//! that all share, with a real store. The figures are ratios within one run: phases with and without the two alternate.
//!
//! `cargo test --release --test isolation -- --ignored --nocapture` is the whole of it: 499 + 1 + 1 devices.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "figures")]

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use floorgate::clock::{Clock, Trust};
use floorgate::mqtt::endpoint::{Endpoint, EndpointConfig, EndpointHandle, MemorySessions};
use floorgate::mqtt::intake::{Attached, FloorIntake};
use floorgate::mqtt::limits::Rates;
use floorgate::mqtt::refusals::Refusals;
use floorgate::mqtt::topics::TopicScheme;
use floorgate::mqtt::{Acceptance, Inbound, Intake};
use floorgate::shadow::store::Attachment;
use floorgate::shadow::{Config, Store};
use floorgate_model::{DeviceId, GatewayId, Profile};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// A phase may be slower by this part ...
const SLOWER: f64 = 1.1;
/// ... and this much, which is about one commit: the machine's own noise.
const NOISE: Duration = Duration::from_millis(25);

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

#[derive(Default)]
struct Figures([Mutex<Vec<Duration>>; 2]);

impl Figures {
    fn add(&self, noisy: bool, took: Duration) {
        self.0[usize::from(noisy)].lock().unwrap().push(took);
    }

    /// p99 without and with the two.
    fn p99(&self) -> [Duration; 2] {
        [0, 1].map(|phase| {
            let mut all = self.0[phase].lock().unwrap().clone();
            all.sort();
            assert!(all.len() > 100, "only {} figures", all.len());
            all[all.len() * 99 / 100]
        })
    }

    fn judge(&self, what: &str) {
        let [quiet, noisy] = self.p99();
        let ratio = noisy.as_secs_f64() / quiet.as_secs_f64();
        println!("{what}: p99 {quiet:?} without, {noisy:?} with a hung and a flooding device, ratio {ratio:.2}");
        assert!(noisy <= quiet.mul_f64(SLOWER) + NOISE, "{what}: {quiet:?} became {noisy:?}");
    }
}

/// A healthy device: reads its orders, reports twice a second; `now` tells which phase it is.
async fn healthy(address: SocketAddr, n: usize, now: Arc<Phase>, figures: Arc<Figures>, got: mpsc::Sender<String>) {
    let mut options = MqttOptions::new(id(n).to_string(), address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(60)).set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 100);
    client.subscribe(format!("devices/{}/execute", id(n)), QoS::AtLeastOnce).await.unwrap();
    let sent: Mutex<VecDeque<(bool, Instant)>> = Mutex::default();
    let listening = async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(Incoming::PubAck(_)) => {
                    let (noisy, at) = sent.lock().unwrap().pop_front().unwrap();
                    figures.add(noisy, at.elapsed());
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
            sent.lock().unwrap().push_back((now.noisy(), Instant::now()));
            let (topic, payload) =
                (format!("devices/{}/telemetry", id(n)), format!(r#"{{"x":{}}}"#, fastrand::u32(..)));
            client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        }
    };
    tokio::join!(listening, reporting);
}

#[derive(Default)]
struct Phase {
    noisy: std::sync::atomic::AtomicBool,
}

impl Phase {
    fn noisy(&self) -> bool {
        self.noisy.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn set(&self, noisy: bool) {
        self.noisy.store(noisy, std::sync::atomic::Ordering::Relaxed);
    }
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
            while !now.noisy() {
                sleep(Duration::from_millis(10)).await;
            }
            let topic = format!("devices/{}/telemetry", id(n));
            client.publish(topic, QoS::AtLeastOnce, false, r#"{"x":1}"#).await.unwrap();
        }
    };
    tokio::join!(listening, sending);
}

/// Orders go round the healthy devices, and in noisy phases to the hung one; how long each took to arrive.
async fn orders(
    handle: EndpointHandle,
    devices: usize,
    now: Arc<Phase>,
    mut got: mpsc::Receiver<String>,
    figures: Arc<Figures>,
) {
    for n in 0.. {
        let (noisy, started) = (now.noisy(), Instant::now());
        if noisy {
            let (handle, deadline) = (handle.clone(), Instant::now() + Duration::from_secs(1));
            tokio::spawn(async move { handle.publish_once(&id(devices), Bytes::from_static(b"{}"), deadline).await });
        }
        let (order, handle) = (format!("order {n}"), handle.clone());
        let (payload, deadline) = (Bytes::from(order.clone()), started + Duration::from_secs(5));
        tokio::spawn(async move { handle.publish_once(&id(n % devices), payload, deadline).await });
        while got.recv().await.expect("devices are there") != order {}
        figures.add(noisy, started.elapsed());
        sleep(Duration::from_millis(15)).await;
    }
}

async fn on_the_endpoint(devices: usize, phase: Duration, phases: usize) {
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
    tasks.spawn(orders(handle.clone(), devices, Arc::clone(&now), orders_got, Arc::clone(&executes)));
    for n in 0..phases {
        now.set(n % 2 == 1);
        sleep(phase).await;
    }
    tasks.shutdown().await;
    stop.cancel();
    commits.judge("endpoint, report to PUBACK");
    executes.judge("endpoint, order to device");
    let flood = house.store.stats().await.unwrap();
    println!("{flood:?}");
    house.store.close().await.unwrap();
}

/// A link as a broker with a window of 20 feeds it: one message after another, PUBACKs in the order of receipt.
async fn on_a_shared_link(devices: usize, phase: Duration, phases: usize) {
    let house = house(devices + 2);
    let (intake, runner) = house.intake.declaring(Rates::default());
    let stop = CancellationToken::new();
    tokio::spawn(runner.run(stop.clone()));
    let (now, figures) = (Arc::new(Phase::default()), Arc::new(Figures::default()));
    let (send, mut queue) = mpsc::channel::<(usize, bool, Instant)>(1_000_000);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..devices {
        let (send, now) = (send.clone(), Arc::clone(&now));
        tasks.spawn(async move {
            sleep(Duration::from_millis(fastrand::u64(0..500))).await;
            let mut every = tokio::time::interval(Duration::from_millis(500));
            loop {
                every.tick().await;
                send.send((n, now.noisy(), Instant::now())).await.unwrap();
            }
        });
    }
    let (flood, phase_of_flood) = (send.clone(), Arc::clone(&now));
    tasks.spawn(async move {
        // Ten times the limit: with the others as much as a window of 20 carries at some 15 ms a commit.
        let mut every = tokio::time::interval(Duration::from_millis(5));
        loop {
            every.tick().await;
            if phase_of_flood.noisy() {
                flood.send((devices + 1, true, Instant::now())).await.unwrap();
            }
        }
    });
    let (window, mut unacknowledged) = mpsc::channel(20);
    tasks.spawn(async move {
        while let Some((n, noisy, at)) = queue.recv().await {
            let place = window.reserve().await.unwrap();
            let inbound = Inbound {
                topic: format!("devices/{}/telemetry", id(n)),
                payload: Bytes::from(format!(r#"{{"x":{}}}"#, fastrand::u32(..))),
                retained: false,
                redelivered: false,
            };
            let Acceptance::Pending(receipt) = intake.accept(inbound).await.unwrap() else {
                panic!("settled too early")
            };
            place.send((n, noisy, at, receipt));
        }
    });
    let acknowledged = Arc::clone(&figures);
    tasks.spawn(async move {
        while let Some((n, noisy, at, receipt)) = unacknowledged.recv().await {
            receipt.await.unwrap().unwrap();
            if n < devices {
                acknowledged.add(noisy, at.elapsed());
            }
        }
    });
    for n in 0..phases {
        now.set(n % 2 == 1);
        sleep(phase).await;
    }
    tasks.shutdown().await;
    stop.cancel();
    figures.judge("shared link, report to PUBACK");
    house.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_and_a_flooding_device_delay_nobody_on_the_endpoint() {
    on_the_endpoint(49, Duration::from_secs(2), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooding_device_delays_nobody_on_a_shared_link() {
    on_a_shared_link(49, Duration::from_secs(2), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute and a half: the suite's"]
async fn of_five_hundred_devices_a_hung_and_a_flooding_one_delay_nobody() {
    on_the_endpoint(499, Duration::from_secs(10), 4).await;
    on_a_shared_link(499, Duration::from_secs(10), 4).await;
}
