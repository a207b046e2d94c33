//! What a broker is like, tried from outside: for `floorgate doctor`.
//!
//! # Guarantees
//!
//! * It never uses the gateway's own client id, whose session it would take away: the probe's is that id and `-doctor`.
//! * It has no last will, and leaves no session and no retained message behind. If it is killed in the middle, its
//!   session with at most [`WINDOW_SENT`] + [`QUEUE_SENT`] small messages stays until the next probe or until it expires.
//! * It ends after the time it is given, and then tells which stage had not been answered.
//!
//! # What is tried
//!
//! Name, TCP, TLS with the link's own certificates, CONNECT with its login; and, for a broker whose messages are to be
//! acknowledged by hand, how it keeps messages for a client that is slow or away (`session.rs`). That publishes small
//! messages on a topic of the probe's own, `floorgate-doctor/…`.
//!
//! # What it cannot see
//!
//! Whether a broker's queue outlives a restart of the broker; and rights that hang on the gateway's own id.

mod line;
mod session;

use std::net::SocketAddr;
use std::time::Duration;

use floorgate_model::Timestamp;
use rumqttc::ConnectReturnCode;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use x509_parser::parse_x509_certificate;

use super::link::{ALPN_AWS_443, LinkConfig, tls_words};
use line::{Line, Stream};
pub use session::{KEEPING_WITHIN, Keeping, QUEUE_SENT, SENDING, SessionFound, WINDOW_SENT};

/// How long one address of a broker may take to answer before the next is tried.
pub const TCP_WAIT: Duration = Duration::from_secs(3);
/// How long is listened for the other side's objection to our certificate: with TLS 1.3 it comes after the handshake.
pub const OBJECTION_WAIT: Duration = Duration::from_millis(500);

/// How far a probe goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// To the end of TLS: nothing is said to the broker.
    Tls,
    /// CONNECT and its answer.
    Connect,
    /// How it keeps messages.
    Session,
}

/// The stages, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The host's name is looked up.
    Name,
    /// A connection is opened.
    Tcp,
    /// Certificates are shown and checked.
    Tls,
    /// CONNECT is answered.
    Connect,
    /// Messages are kept.
    Session,
}

impl Stage {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "looking up its name",
            Self::Tcp => "opening a connection",
            Self::Tls => "TLS",
            Self::Connect => "CONNECT",
            Self::Session => "keeping messages",
        }
    }
}

/// Why a probe came no further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No answer in the time there was.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The broker does not want this client.
    #[error("it refuses the client id `{id}`: {why}")]
    Refused {
        /// The probe's.
        id: String,
        /// In words.
        why: &'static str,
        /// The login is wrong, which holds for the gateway's own id too.
        login: bool,
    },
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerFound {
    /// The stage the probe was in when it ended.
    pub stage: Stage,
    /// Why it ended there; `None`: all was answered.
    pub problem: Option<ProbeError>,
    /// Who answered.
    pub peer: Option<SocketAddr>,
    /// Until when the broker's certificate is good.
    pub certificate_ends: Option<Timestamp>,
    /// How it keeps messages, if that was tried.
    pub session: Option<SessionFound>,
}

/// The probe's client id for a link.
#[must_use]
pub fn probe_id(link: &LinkConfig) -> String {
    format!("{}-doctor", link.client_id)
}

/// Whether a broker is AWS IoT Core, whose policies usually allow no client id but the thing's.
#[must_use]
pub fn is_aws(link: &LinkConfig) -> bool {
    link.address.host.ends_with(".amazonaws.com") || link.address.host.ends_with(".amazonaws.com.cn")
}

/// Tries a broker, `within` this time at most.
///
/// # Cancel safety
/// Dropping it closes its connections; see the module for what may stay behind.
pub async fn probe(link: &LinkConfig, depth: Depth, within: Duration) -> BrokerFound {
    let mut found =
        BrokerFound { stage: Stage::Name, problem: None, peer: None, certificate_ends: None, session: None };
    let ended = timeout(within, walk(link, depth, &mut found)).await;
    found.problem = ended.unwrap_or(Err(ProbeError::Silent(within))).err();
    found
}

async fn walk(link: &LinkConfig, depth: Depth, found: &mut BrokerFound) -> Result<(), ProbeError> {
    let mut stream = open(link, found).await?;
    if depth == Depth::Tls {
        return objection(link, &mut stream).await;
    }
    found.stage = Stage::Connect;
    let mut line = Line::new(stream);
    let answer = line.connect(link, &probe_id(link), true).await;
    let answer = answer.map_err(|error| match error {
        // With TLS 1.3 the objection to our certificate comes after the handshake.
        ProbeError::Broken(text) if link.address.tls && text.contains("fatal alert") => {
            found.stage = Stage::Tls;
            ProbeError::Broken(tls_words(&text, link))
        }
        other => other,
    })?;
    accepted(link, answer.code)?;
    line.disconnect().await;
    if depth == Depth::Session {
        found.stage = Stage::Session;
        session::try_keeping(link, found).await?;
    }
    Ok(())
}

fn accepted(link: &LinkConfig, code: ConnectReturnCode) -> Result<(), ProbeError> {
    let (why, login) = match code {
        ConnectReturnCode::Success => return Ok(()),
        ConnectReturnCode::BadUserNamePassword => ("bad user name or password", true),
        ConnectReturnCode::NotAuthorized => ("not authorized", false),
        ConnectReturnCode::BadClientId => ("not this client id", false),
        ConnectReturnCode::ServiceUnavailable => ("service unavailable", false),
        _ => ("it does not speak MQTT 3.1.1", false),
    };
    Err(ProbeError::Refused { id: probe_id(link), why, login })
}

/// Opens a connection as the link would, up to the end of TLS.
async fn open(link: &LinkConfig, found: &mut BrokerFound) -> Result<Stream, ProbeError> {
    let broken = |text: String| ProbeError::Broken(text);
    found.stage = Stage::Name;
    let (host, port) = (link.address.host.as_str(), link.address.port);
    let addresses = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<_> = addresses.map_err(|error| broken(format!("`{host}` has no address: {error}")))?.collect();
    found.stage = Stage::Tcp;
    let mut tcp = Err(broken(format!("`{host}` has no address")));
    for address in addresses {
        tcp = match timeout(TCP_WAIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Ok((address, stream)),
            Ok(Err(error)) => Err(broken(format!("{address}: {error}"))),
            Err(_) => Err(broken(format!("{address} does not answer within {} s", TCP_WAIT.as_secs()))),
        };
        if tcp.is_ok() {
            break;
        }
    }
    let (address, tcp) = tcp?;
    // Otherwise many small messages wait for one another.
    let _ = tcp.set_nodelay(true);
    found.peer = Some(address);
    if !link.address.tls {
        return Ok(Box::new(tcp));
    }
    found.stage = Stage::Tls;
    let files = link.tls.as_ref().ok_or_else(|| broken("mqtts:// needs certificates; name a `ca`".to_owned()))?;
    let alpn = (link.aws_iot && port == 443).then_some(ALPN_AWS_443);
    let pem = files.read().await.map_err(broken)?;
    let config = files.client_config(&pem, alpn).map_err(broken)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| broken(format!("`{host}` is no host name")))?;
    let connected = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
    let stream = connected.map_err(|error| broken(tls_words(&error.to_string(), link)))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    found.certificate_ends = chain.first().and_then(|leaf| {
        let (_, parsed) = parse_x509_certificate(leaf).ok()?;
        parsed.validity().not_after.timestamp().checked_mul(1_000).map(Timestamp::from_millis)
    });
    Ok(Box::new(stream))
}

/// Listens whether the other side ends the connection that it has just accepted.
async fn objection(link: &LinkConfig, stream: &mut Stream) -> Result<(), ProbeError> {
    use tokio::io::AsyncReadExt;
    let mut byte = [0];
    match timeout(OBJECTION_WAIT, stream.read(&mut byte)).await {
        Ok(Ok(0)) => Err(ProbeError::Broken("it closed the connection before anything was said".to_owned())),
        Ok(Err(error)) => Err(ProbeError::Broken(tls_words(&error.to_string(), link))),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}
