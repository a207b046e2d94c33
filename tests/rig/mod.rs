//! The whole system on loopback for one test: table, cloud broker, the daemon as a child process, devices.
//!
//! Real parts only. `FLOORGATE_TEST_FLOOR_BROKER`, `FLOORGATE_TEST_CLOUD_BROKER` (host:port) and
//! `FLOORGATE_TEST_DYNAMODB` (URL) put other implementations in the places of the built-in endpoint, the demo's broker
//! and the demo's table; `FLOORGATE_TEST_BINARY` another daemon. `cargo xtask brokers` does so.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own parts; each test uses some"
)]

pub mod client;
pub mod daemon;
pub mod device;
pub mod disk;
pub mod sender;
pub mod table;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use floorgate_demo::broker::Broker;
use floorgate_demo::proxy::Proxy;
use floorgate_demo::table::Table;
use serde_json::{Value, json};

use client::Client;
use daemon::Daemon;
use device::{Behaviour, Device};
use table::Items;

/// What differs from test to test.
pub struct Options {
    /// (suffix of the id, type, sample rate in seconds).
    pub devices: Vec<(&'static str, &'static str, u32)>,
    /// More TOML, appended.
    pub extra: String,
    /// Telemetry's commit interval.
    pub commit_interval: &'static str,
    /// The tables have the names of the seed, which its Lambda has built in.
    pub seed_tables: bool,
    /// A plant's broker in the place of the built-in endpoint.
    pub floor_broker: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        let devices = vec![("PRESS-001", "pressure_sensor", 5), ("VALVE-001", "valve_actuator", 5)];
        Self { devices, extra: String::new(), commit_interval: "100ms", seed_tables: false, floor_broker: None }
    }
}

/// Everything of one test; dropping it ends every process it started.
pub struct Rig {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
    pub gateway: String,
    pub prefix: String,
    pub floor: SocketAddr,
    pub cloud: SocketAddr,
    pub items: Items,
    pub daemon: Daemon,
    pub broker: Option<Broker>,
    pub table: Option<Table>,
    /// Between the daemon and the cloud's broker.
    pub cloud_cable: Proxy,
    /// Between the daemon and the table.
    pub table_cable: Proxy,
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn from_environment(name: &str) -> Option<SocketAddr> {
    std::env::var(name).ok().map(|text| text.parse().expect("host:port"))
}

impl Rig {
    pub async fn start(options: Options) -> Self {
        let mut rig = Self::prepare(options).await;
        rig.daemon.provision().await;
        rig.daemon.run().await;
        rig
    }

    /// Everything but the running daemon.
    pub async fn prepare(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let prefix = format!("T{:08x}", fastrand::u32(..));
        let gateway = format!("{prefix}-GATEWAY");
        let (cloud, broker) = match from_environment("FLOORGATE_TEST_CLOUD_BROKER") {
            Some(address) => (address, None),
            None => {
                let broker = Broker::start().await.unwrap();
                (broker.address(), Some(broker))
            }
        };
        let (endpoint, table) = match std::env::var("FLOORGATE_TEST_DYNAMODB") {
            Ok(url) => (url, None),
            Err(_) => {
                let table = Table::start(&folder.path().join("table")).await.unwrap();
                (table.endpoint_url(), Some(table))
            }
        };
        let (floor, floor_toml) = match options.floor_broker.or_else(|| from_environment("FLOORGATE_TEST_FLOOR_BROKER"))
        {
            Some(address) => (address, format!("url = \"mqtt://{address}\"")),
            None => {
                let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
                (address, format!("listen = \"{address}\""))
            }
        };
        let cloud_cable = Proxy::start(cloud).await.unwrap();
        let table_address: SocketAddr = endpoint.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
        let table_cable = Proxy::start(table_address).await.unwrap();
        let (cloud_end, table_end) = (cloud_cable.address(), table_cable.address());
        let items = Items::new(&endpoint, if options.seed_tables { None } else { Some(&prefix) });
        let [devices, history, commands] = ["devices", "history", "commands"].map(|table| items.name(table));
        let mut toml = format!(
            "[gateway]\nid = \"{gateway}\"\nlocation = \"factory-floor-1\"\n[floor]\n{floor_toml}\n[cloud]\nurl = \"mqtt://{cloud_end}\"\n\
             [dynamodb]\nregion = \"us-east-1\"\nendpoint_url = \"http://{table_end}\"\ndevices_table = \"{devices}\"\n\
             history_table = \"{history}\"\ncommands_table = \"{commands}\"\n[clock]\ntrust = \"always\"\n\
             [store]\nstate_dir = \"{}\"\ncommit_interval = \"{}\"\n[sync]\nstate_interval = \"1s\"\n",
            folder.path().join("state").display(),
            options.commit_interval
        );
        for (suffix, device_type, seconds) in &options.devices {
            toml += &format!(
                "[[device]]\nid = \"{prefix}-{suffix}\"\ntype = \"{device_type}\"\nlocation = \"factory-floor-1/line-7\"\n\
                 driver = \"mqtt\"\nsample_rate_seconds = {seconds}\n"
            );
        }
        toml += &options.extra;
        let config = folder.path().join("floorgate.toml");
        std::fs::write(&config, toml).unwrap();
        let daemon = Daemon::new(&config, &folder.path().join("daemon.log"));
        Self { folder, config, gateway, prefix, floor, cloud, items, daemon, broker, table, cloud_cable, table_cable }
    }

    pub fn id(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.prefix)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Replaces a part of the configuration file: another part of the test takes a place of the rig's.
    pub fn put_in_config(&self, old: &str, new: &str) {
        let text = read(&self.config);
        assert!(text.contains(old), "`{old}` does not stand in the configuration");
        std::fs::write(&self.config, text.replace(old, new)).unwrap();
    }

    /// A device on the floor, announced and listening for orders.
    pub async fn device(&self, suffix: &str, behaviour: Behaviour) -> Device {
        Device::connect(self.floor, &self.id(suffix), behaviour).await
    }

    /// One that never tells its configuration.
    pub async fn bare_device(&self, suffix: &str, behaviour: Behaviour) -> Device {
        Device::connect_bare(self.floor, &self.id(suffix), behaviour).await
    }

    /// A client of the cloud's broker, listening for results.
    pub async fn operator(&self) -> Client {
        let mut client = Client::connect(self.cloud, &format!("{}-operator-{}", self.prefix, fastrand::u16(..))).await;
        client.subscribe("devices/+/commands/result").await;
        client
    }

    /// The seed's payload, as its Lambda publishes it.
    pub fn command(command: &str, parameters: Value, issued: &str) -> Value {
        json!({"command": command, "parameters": parameters, "timestamp": issued})
    }

    /// The upstream cable is pulled: no commands, no table.
    pub async fn cut(&self) {
        self.cloud_cable.cut().await;
        self.table_cable.cut().await;
    }

    pub async fn restore(&self) {
        self.cloud_cable.restore().await.unwrap();
        self.table_cable.restore().await.unwrap();
    }

    /// Waits until the table's item of a device fits.
    pub async fn item(&self, what: &str, device: &str, seconds: u64, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let item = self.items.device(device).await.unwrap_or_default();
            if fits(&item) {
                return item;
            }
            assert!(Instant::now() < deadline, "{what} not within {seconds} s: {item:#}\n{}", self.daemon.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn status(&self) -> Value {
        self.daemon.json(&["status"]).await
    }
}

/// Waits until `probe` answers, at most `seconds`.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, seconds: u64, mut probe: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {seconds} s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Now, and some seconds earlier (or, negative, later), as python's isoformat writes it.
pub fn isoformat(seconds_ago: i64) -> String {
    let now = jiff::Timestamp::now().as_microsecond() - seconds_ago * 1_000_000;
    let text = format!("{:.6}", jiff::Timestamp::from_microsecond(now).unwrap());
    text.replace('Z', "+00:00")
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
