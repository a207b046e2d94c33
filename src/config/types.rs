//! The valid configuration: what a [`Config`] holds can be used as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use floorgate_model::{DeviceId, GatewayId, Profile};

use super::problem::Problem;
use crate::clock::Trust;
use crate::mqtt::limits::Rate;
use crate::mqtt::topics::TopicScheme;

/// Everything the daemon is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The main file.
    pub file: PathBuf,
    /// Who this gateway is.
    pub gateway: GatewayConfig,
    /// How devices reach it.
    pub floor: Floor,
    /// The floor's topics.
    pub topics: TopicScheme,
    /// The templates behind [`Self::topics`], in the order of [`crate::mqtt::topics::FloorTopic::ALL`].
    pub topic_templates: [String; 4],
    /// What a device may send that has no limit of its own.
    pub floor_limit: Rate,
    /// The command link; `None`: there is none.
    pub cloud: Option<CloudConfig>,
    /// The tables; `None`: nothing is sent upstream, everything is kept.
    pub dynamodb: Option<DynamoConfig>,
    /// When the clock counts as right.
    pub clock_trust: Trust,
    /// The store.
    pub store: StoreConfig,
    /// Sending upstream.
    pub sync: SyncConfig,
    /// The attached devices, in the order of their ids; the gateway itself is not among them.
    pub devices: Vec<DeviceConfig>,
    /// Profiles of `profiles.d`, by device type.
    pub profiles: BTreeMap<String, Profile>,
    /// What works and deserves a second look.
    pub warnings: Vec<Problem>,
}

/// Who this gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Its id: MQTT client id, IoT thing name, and its id as a device.
    pub id: GatewayId,
    /// Where it stands.
    pub location: String,
}

/// How devices reach the gateway.
#[derive(Debug, Clone)]
pub enum Floor {
    /// At the built-in endpoint.
    Listen(ListenConfig),
    /// Through a broker of the plant's.
    Broker(BrokerConfig),
}

/// The built-in floor endpoint.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// TLS; `None`: plain TCP.
    pub tls: Option<ListenTls>,
    /// The password file, lines `name:secret`; `None`: no passwords.
    pub users: Option<SecretFile>,
    /// User names (or certificate names) that may watch every topic and write none.
    pub watchers: Vec<String>,
    /// Whether a client without a name may speak, for any device. True only on a loopback address without users and
    /// without client certificates.
    pub anonymous: bool,
    /// Connections at a time; one more is refused.
    pub max_connections: u32,
    /// Packets a second of one connection; a faster one is read more slowly.
    pub packets_per_second: u32,
}

/// TLS of the built-in endpoint.
#[derive(Debug, Clone)]
pub struct ListenTls {
    /// Certificate chain and key of the endpoint.
    pub identity: Identity,
    /// Who signs the devices' certificates; a certificate is asked for if it is there.
    pub client_ca: Option<Pem>,
}

/// A broker and how to log in to it.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where it is.
    pub url: BrokerUrl,
    /// MQTT client id; the broker keeps the session under it.
    pub client_id: String,
    /// User name and password.
    pub login: Option<Login>,
    /// TLS; there exactly if the URL says `mqtts`.
    pub tls: Option<LinkTls>,
    /// Longest silence on the connection before a ping.
    pub keep_alive: Duration,
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// `mqtts`.
    pub tls: bool,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port; 1883, or 8883 with TLS, unless given.
    pub port: u16,
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password, from its file.
    pub password: Option<SecretFile>,
}

/// TLS towards a server.
#[derive(Debug, Clone)]
pub struct LinkTls {
    /// Who signs the server's certificate.
    pub ca: Pem,
    /// Our own certificate, where the server asks for one.
    pub identity: Option<Identity>,
}

/// A certificate chain and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The chain, leaf first; at least one certificate.
    pub cert: Pem,
    /// The private key; one.
    pub key: Pem,
}

/// A PEM file as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Never shows the bytes: they may be a key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({}, {} bytes)", self.path.display(), self.bytes.len())
    }
}

/// A secret; shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being shown.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for those who need it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A secret and the file it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its text.
    pub secret: Secret,
}

/// The link that brings commands.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// The broker.
    pub broker: BrokerConfig,
    /// One filter instead of one for each device.
    pub command_filter: Option<String>,
}

/// The tables.
#[derive(Debug, Clone)]
pub struct DynamoConfig {
    /// AWS region.
    pub region: String,
    /// A DynamoDB-compatible store instead of AWS.
    pub endpoint_url: Option<String>,
    /// `iot-devices`.
    pub devices_table: String,
    /// `iot-telemetry-history`.
    pub history_table: String,
    /// `iot-commands`; `None`: not written.
    pub commands_table: Option<String>,
    /// Who we are there.
    pub credentials: CredentialsConfig,
}

/// Where AWS credentials come from.
#[derive(Debug, Clone)]
pub enum CredentialsConfig {
    /// The AWS IoT credential provider, with the gateway's certificate.
    IotRole(IotRoleConfig),
    /// Keys from the environment: the same for as long as the process lives.
    Keys(AwsKeys),
    /// A profile of the shared credentials file, which had keys at the start; whoever uses it reads it again when they
    /// are refused.
    SharedFile {
        /// The file.
        path: PathBuf,
        /// The profile in it.
        profile: String,
    },
}

/// The AWS IoT credential provider.
#[derive(Debug, Clone)]
pub struct IotRoleConfig {
    /// Its host, with `:port` if it is not 443.
    pub iot_endpoint: String,
    /// The role alias.
    pub role_alias: String,
    /// Who signs its certificate.
    pub ca: Pem,
    /// Our certificate.
    pub identity: Identity,
}

/// AWS access keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsKeys {
    /// Key id.
    pub access_key_id: String,
    /// Secret key.
    pub secret_access_key: Secret,
    /// Session token of temporary keys.
    pub session_token: Option<Secret>,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Folder of the state.
    pub state_dir: PathBuf,
    /// Most bytes of the store's files.
    pub quota_bytes: u64,
    /// How long telemetry may wait for its commit.
    pub commit_interval: Duration,
    /// How long the table keeps history.
    pub history_retention: Duration,
}

/// Sending upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncConfig {
    /// How often a device's state is written when nothing urgent happens.
    pub state_interval: Duration,
}

/// How a device is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// Over the floor's MQTT topics.
    Mqtt,
}

impl DriverKind {
    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
        }
    }
}

/// One attached device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceConfig {
    /// Its id.
    pub id: DeviceId,
    /// Its type.
    pub device_type: String,
    /// Where it stands; the gateway's location unless given.
    pub location: String,
    /// How it is reached.
    pub driver: DriverKind,
    /// How often it reports.
    pub sample_interval: Duration,
    /// What it may send; `None`: as all.
    pub limit: Option<Rate>,
    /// Configuration known from commissioning.
    pub configuration: Option<BTreeMap<String, String>>,
    /// What its type allows: from `profiles.d`, else built in.
    pub profile: Profile,
}

/// A file of `profiles.d`, unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileText {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// Reads profiles; its problems are reported with all others.
pub type ProfileReader<'a> = &'a dyn Fn(&[ProfileText]) -> (BTreeMap<String, Profile>, Vec<Problem>);
