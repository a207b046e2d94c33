//! `[floor]` and `[cloud]`: the two sides of the gateway.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use floorgate_model::GatewayId;

use super::files::Folder;
use super::problem::Problem;
use super::section::Section;
use super::types::{BrokerConfig, BrokerUrl, CloudConfig, Floor, LinkTls, ListenConfig, ListenTls, Login};
use crate::mqtt::topics::{FloorTopic, Template, TopicScheme};

/// Where the built-in endpoint listens unless told: reachable from this machine alone.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1883);
/// Connections to the built-in endpoint at a time unless told.
pub const CONNECTIONS: u32 = 1_000;
/// Packets a second of one connection unless told.
pub const PACKETS_PER_SECOND: u32 = 200;
/// Keep-alive of a link unless told; AWS IoT Core takes 30 s to 1,200 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

const LISTEN_KEYS: [&str; 5] = ["users", "watchers", "max_connections", "packets_per_second", "tls"];
const BROKER_KEYS: [&str; 8] = ["username", "password_file", "ca", "cert", "key", "client_id", "keep_alive", "url"];

/// What `[floor]` says: how devices reach the gateway, and the topics.
pub(super) struct FloorPart {
    pub(super) floor: Option<Floor>,
    pub(super) topics: Option<(TopicScheme, [String; 4])>,
    pub(super) warnings: Vec<Problem>,
}

pub(super) fn floor(root: &Section<'_>, folder: &Folder, gateway: Option<&GatewayId>) -> FloorPart {
    let section = root.section("floor");
    let mut warnings = Vec::new();
    let topics_section = section.section("topics");
    let topics = topics(&topics_section);
    topics_section.finish();
    let floor = if section.has("url") {
        for key in LISTEN_KEYS.into_iter().chain(["listen"]).filter(|key| section.has(key)) {
            let name = section.key_name(key);
            section.refuse(
                key,
                format_args!("`floor.url` is there too; `{name}` belongs to the built-in endpoint: keep one of them"),
            );
        }
        let client_id = gateway.map(|id| format!("{id}-floor"));
        broker(&section, folder, client_id).map(Floor::Broker)
    } else {
        for key in BROKER_KEYS.into_iter().filter(|key| section.has(key)) {
            section.refuse(key, "belongs to a broker of the plant's; give its `floor.url`, or remove this");
        }
        listen(&section, folder, &mut warnings).map(Floor::Listen)
    };
    section.finish();
    FloorPart { floor, topics, warnings }
}

fn topics(section: &Section<'_>) -> Option<(TopicScheme, [String; 4])> {
    let read = |key, topic| {
        let standard = match topic {
            FloorTopic::Telemetry => "devices/{device_id}/telemetry",
            FloorTopic::State => "devices/{device_id}/state",
            FloorTopic::Execute => "devices/{device_id}/execute",
            FloorTopic::Result => "devices/{device_id}/result",
        };
        if !section.has(key) {
            return Template::new(standard).ok().map(|template| (template, standard.to_owned()));
        }
        section.parsed(key, |text| Template::new(text).map(|template| (template, text.to_owned())))
    };
    let keys = ["telemetry", "state", "execute", "result"];
    let all: [_; 4] = std::array::from_fn(|n| read(keys[n], FloorTopic::ALL[n]));
    let [telemetry, state, execute, result] = all;
    let (telemetry, state, execute, result) = (telemetry?, state?, execute?, result?);
    let texts = [telemetry.1, state.1, execute.1, result.1];
    let Some(scheme) = TopicScheme::new([telemetry.0, state.0, execute.0, result.0]) else {
        section.blame("`floor.topics`: two templates are equal; each topic needs one of its own");
        return None;
    };
    Some((scheme, texts))
}

fn listen(section: &Section<'_>, folder: &Folder, warnings: &mut Vec<Problem>) -> Option<ListenConfig> {
    let given = section.has("listen");
    let address = section.parsed("listen", |text| {
        text.parse::<SocketAddr>().map_err(|_| "must be an address and a port, such as \"127.0.0.1:1883\"")
    });
    let tls_section = section.optional_section("tls");
    let has_tls = tls_section.is_some();
    let tls = tls_section.and_then(|section| listen_tls(section, folder));
    let has_users = section.has("users");
    let users = folder.users(section, "users");
    let watchers = section.texts("watchers");
    let max_connections = section.integer("max_connections", 1, 65_535);
    let packets_per_second = section.integer("packets_per_second", 1, 1_000_000);
    let address = if given { address? } else { LISTEN };
    let client_certificates = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let named = has_users || client_certificates;
    if !address.ip().is_loopback() {
        // With a broken [floor.tls] its own problem is enough.
        if !named && (!has_tls || tls.is_some()) {
            section.refuse(
                "listen",
                "is reachable from other machines, and anybody there could speak for any device; give `floor.users` \
                 (a password file) or `floor.tls.client_ca` (client certificates), or listen on 127.0.0.1",
            );
        } else if !has_tls && has_users {
            let text = format!("`floor.listen` = \"{address}\": passwords travel unencrypted; consider [floor.tls]");
            warnings.extend(section.spot("listen").map(|spot| Problem::new(&spot.file, Some(spot.line), text)));
        }
    }
    if has_users && client_certificates {
        let text = "`floor.users`: nobody is asked for a password, because `floor.tls.client_ca` demands a certificate of \
                    every client; remove one of the two";
        warnings.extend(section.spot("users").map(|spot| Problem::new(&spot.file, Some(spot.line), text.to_owned())));
    }
    if !watchers.is_empty() && !named {
        section.refuse("watchers", "names of watchers need `floor.users` or `floor.tls.client_ca`");
    }
    Some(ListenConfig {
        address,
        tls,
        users,
        watchers,
        anonymous: !named,
        max_connections: max_connections.unwrap_or(CONNECTIONS),
        packets_per_second: packets_per_second.unwrap_or(PACKETS_PER_SECOND),
    })
}

fn listen_tls(section: Section<'_>, folder: &Folder) -> Option<ListenTls> {
    if !section.has("cert") && !section.has("key") {
        section.missing("cert", "the certificate of the endpoint, a PEM file, and its `key`");
    }
    let identity = folder.identity(&section);
    let client_ca = folder.certificates(&section, "client_ca");
    let complete = client_ca.is_some() || !section.has("client_ca");
    section.finish();
    identity.filter(|_| complete).map(|identity| ListenTls { identity, client_ca })
}

pub(super) fn cloud(
    root: &Section<'_>,
    folder: &Folder,
    gateway: Option<&GatewayId>,
) -> (Option<CloudConfig>, Vec<Problem>) {
    let Some(section) = root.optional_section("cloud") else {
        return (None, Vec::new());
    };
    if !section.has("url") {
        section.missing("url", "the broker that brings commands, such as \"mqtts://…-ats.iot.….amazonaws.com:8883\"");
    }
    let broker = broker(&section, folder, gateway.map(ToString::to_string));
    let command_filter = section.parsed("command_filter", |text| {
        if filter_is_valid(text) {
            Ok(text.to_owned())
        } else {
            Err("must be an MQTT topic filter, such as \"devices/+/commands\"")
        }
    });
    let mut warnings = Vec::new();
    if let Some(broker) = broker.as_ref().filter(|broker| !broker.url.tls && !is_local(&broker.url.host)) {
        let text = format!("`cloud.url` = \"{}\": commands travel unencrypted; consider mqtts://", broker.url);
        warnings.extend(section.spot("url").map(|spot| Problem::new(&spot.file, Some(spot.line), text)));
    }
    section.finish();
    (broker.map(|broker| CloudConfig { broker, command_filter }), warnings)
}

/// Reads the keys that both links share.
fn broker(section: &Section<'_>, folder: &Folder, client_id: Option<String>) -> Option<BrokerConfig> {
    let url = section.parsed("url", broker_url);
    let username = section.text("username").map(str::to_owned);
    let password = folder.password(section, "password_file");
    if username.is_none() && section.has("password_file") {
        section.refuse(
            "password_file",
            format_args!(
                "`{}` is missing: MQTT 3.1.1 has no password without a user name",
                section.key_name("username")
            ),
        );
    }
    let tls = match &url {
        Some(url) if url.tls => link_tls(section, folder),
        Some(_) => {
            for key in ["ca", "cert", "key"].into_iter().filter(|key| section.has(key)) {
                section.refuse(key, format_args!("needs TLS; make `{}` begin with mqtts://", section.key_name("url")));
            }
            None
        }
        None => {
            // The URL's own problem is enough; these keys are known all the same.
            for key in ["ca", "cert", "key"] {
                section.has(key);
            }
            None
        }
    };
    let keep_alive = section.duration("keep_alive", Duration::from_secs(5), Duration::from_secs(1_200));
    let given_id = section.parsed("client_id", |text| {
        if text.len() <= 128 { Ok(text.to_owned()) } else { Err("must be at most 128 bytes long (AWS IoT Core)") }
    });
    let url = url?;
    if url.tls && tls.is_none() {
        return None;
    }
    let login = username.map(|username| Login { username, password });
    let keep_alive = keep_alive.unwrap_or(KEEP_ALIVE);
    Some(BrokerConfig { url, client_id: given_id.or(client_id)?, login, tls, keep_alive })
}

fn link_tls(section: &Section<'_>, folder: &Folder) -> Option<LinkTls> {
    if !section.has("ca") {
        section.missing("ca", "mqtts:// needs the certificate that signs the server's, a PEM file");
    }
    let ca = folder.certificates(section, "ca");
    let wants_identity = section.has("cert") || section.has("key");
    let identity = folder.identity(section);
    let ca = ca?;
    (identity.is_some() || !wants_identity).then_some(LinkTls { ca, identity })
}

fn broker_url(text: &str) -> Result<BrokerUrl, &'static str> {
    const ALLOWED: &str = "must be mqtt://HOST[:PORT] or mqtts://HOST[:PORT], without user, path or query";
    let (scheme, rest) = text.split_once("://").ok_or(ALLOWED)?;
    let tls = match scheme {
        "mqtt" => false,
        "mqtts" => true,
        _ => return Err(ALLOWED),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = host_and_port(rest).ok_or(ALLOWED)?;
    Ok(BrokerUrl { tls, host, port: port.unwrap_or(if tls { 8883 } else { 1883 }) })
}

/// `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`.
pub(super) fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > 255 || !host.chars().all(allowed) {
        return None;
    }
    let port = match port {
        Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port > 0)?),
        None => None,
    };
    Some((host.to_owned(), port))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn filter_is_valid(filter: &str) -> bool {
    let levels: Vec<_> = filter.split('/').collect();
    let last = levels.len() - 1;
    let fits = |(n, level): (usize, &&str)| match *level {
        "+" => true,
        "#" => n == last,
        other => !other.contains(['+', '#']),
    };
    filter.len() <= 256 && levels.iter().enumerate().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_brokers_read_back_and_have_their_standard_ports() {
        for (text, shown) in [
            ("mqtt://127.0.0.1", "mqtt://127.0.0.1:1883"),
            (
                "mqtts://example-ats.iot.us-east-1.amazonaws.com/",
                "mqtts://example-ats.iot.us-east-1.amazonaws.com:8883",
            ),
            ("mqtt://[::1]:99", "mqtt://[::1]:99"),
        ] {
            assert_eq!(broker_url(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_broker_is_no_url() {
        for bad in [
            "",
            "host",
            "tcp://host",
            "mqtt://",
            "mqtt://a:0",
            "mqtt://a:65536",
            "mqtt://u@h",
            "mqtt://h/x",
            "mqtt://::1",
            "mqtt://[x]",
        ] {
            assert!(broker_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wild_cards_stand_alone_and_the_many_level_one_last() {
        for good in ["devices/+/commands", "#", "+", "a/#"] {
            assert!(filter_is_valid(good), "{good}");
        }
        for bad in ["a/#/b", "a+", "a/b#"] {
            assert!(!filter_is_valid(bad), "{bad}");
        }
    }
}
