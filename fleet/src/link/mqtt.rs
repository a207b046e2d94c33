//! Any MQTT broker: a connection for each command.
//!
//! Commands are rare and a Lambda sleeps between calls, so a connection that is kept would be found dead when it is
//! needed. One is made, the command is published with QoS 1, its PUBACK awaited, and it is closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, QoS, TlsConfiguration, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use tracing::error;

use super::{LinkError, PUBLISH_TIMEOUT};

/// Largest packet, bytes: a command has at most 8 KiB.
const PACKET_MAX: usize = 16 * 1024;
/// The connection lives shorter than this.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Where the broker is and who we are to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MqttSettings {
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
    pub url: String,
    /// Certificates that the broker's is checked against; needed for `mqtts`.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, if the broker wants one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User name and the file with its password.
    pub user: Option<(String, PathBuf)>,
}

/// A publisher.
#[derive(Debug, Clone)]
pub struct MqttLink {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    user: Option<(String, String)>,
}

impl MqttLink {
    /// Reads the files; nothing is sent yet.
    ///
    /// # Errors
    /// What is wrong with the address or with which file, for people.
    pub fn new(settings: &MqttSettings) -> Result<Self, String> {
        let url = &settings.url;
        let (tls, rest) = match url.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) => (true, rest),
            _ => return Err(format!("`{url}` is no broker; give mqtt://HOST:PORT or mqtts://HOST:PORT")),
        };
        let standard = if tls { 8883 } else { 1883 };
        let (host, port) = match rest.trim_end_matches('/').rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| format!("`{port}` of `{url}` is not a port"))?),
            None => (rest.trim_end_matches('/'), standard),
        };
        if host.is_empty() {
            return Err(format!("`{url}` names no host"));
        }
        let tls = tls.then(|| client_config(settings)).transpose()?.map(Arc::new);
        let user = match &settings.user {
            None => None,
            Some((name, file)) => {
                let password = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
                Some((name.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
        };
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port, tls, user })
    }

    pub(super) async fn publish(&self, topic: &str, payload: &str) -> Result<(), LinkError> {
        let mut options =
            MqttOptions::new(format!("floorgate-fleet-{:016x}", fastrand::u64(..)), self.host.clone(), self.port);
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(true).set_max_packet_size(PACKET_MAX, PACKET_MAX);
        if let Some((name, password)) = &self.user {
            options.set_credentials(name, password);
        }
        if let Some(tls) = &self.tls {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(tls))));
        }
        let (client, mut events) = AsyncClient::new(options, 2);
        let connected = timeout(PUBLISH_TIMEOUT, connected(&mut events)).await;
        if let Err(reason) = connected.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            error!(host = self.host, port = self.port, reason, "the broker was not reached");
            return Err(LinkError::NotSent("the broker could not be reached".to_owned()));
        }
        let queued = client.try_publish(topic, QoS::AtLeastOnce, false, payload);
        queued.map_err(|error| LinkError::NotSent(error.to_string()))?;
        let acknowledged = timeout(PUBLISH_TIMEOUT, acknowledged(&mut events)).await;
        if let Err(reason) = acknowledged.unwrap_or_else(|_| Err("no acknowledgement in time".to_owned())) {
            error!(host = self.host, port = self.port, reason, "the broker did not acknowledge a command");
            return Err(LinkError::Unknown("the broker did not acknowledge it".to_owned()));
        }
        // A DISCONNECT keeps the broker from calling it a lost connection; nothing depends on it.
        let _ = client.try_disconnect();
        let _ = timeout(Duration::from_millis(200), events.poll()).await;
        Ok(())
    }
}

async fn connected(events: &mut EventLoop) -> Result<(), String> {
    loop {
        if let Event::Incoming(Incoming::ConnAck(_)) = events.poll().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
    }
}

async fn acknowledged(events: &mut EventLoop) -> Result<(), String> {
    loop {
        if let Event::Incoming(Incoming::PubAck(_)) = events.poll().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
    }
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot read `{}`: {error}", file.display())
}

fn client_config(settings: &MqttSettings) -> Result<ClientConfig, String> {
    let ca = settings.ca.as_ref().ok_or("mqtts needs the certificates that the broker's is checked against")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unreadable(ca, &error))? {
        let certificate = certificate.map_err(|error| unreadable(ca, &error))?;
        roots.add(certificate).map_err(|error| unreadable(ca, &error))?;
    }
    if roots.is_empty() {
        return Err(format!("`{}` holds no certificate", ca.display()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &settings.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| unreadable(certificate, &error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| unreadable(certificate, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| unreadable(certificate, &error))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn link(url: &str) -> Result<MqttLink, String> {
        MqttLink::new(&MqttSettings { url: url.to_owned(), ..MqttSettings::default() })
    }

    #[test]
    fn an_address_is_read_with_its_standard_port() {
        let read = |url: &str| link(url).map(|link| (link.host, link.port));
        assert_eq!(read("mqtt://broker"), Ok(("broker".to_owned(), 1883)));
        assert_eq!(read("mqtt://10.0.0.7:1884/"), Ok(("10.0.0.7".to_owned(), 1884)));
        assert!(read("mqtts://broker").unwrap_err().contains("certificates"));
        for wrong in ["broker:1883", "http://broker", "mqtt://", "mqtt://broker:many"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_means_not_sent() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sent = link(&format!("mqtt://{free}")).unwrap().publish("devices/A/commands", "{}").await;
        assert!(matches!(sent, Err(LinkError::NotSent(_))), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_does_not_acknowledge_is_waited_for_five_seconds() {
        // Idle, the paused clock leaps to the next time-out: it may do so once the broker has the message.
        let busy = tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = link(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap();
        let began = tokio::time::Instant::now();
        let broker = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut packet = [0; 512];
            assert!(stream.read(&mut packet).await.unwrap() > 0, "CONNECT");
            stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
            assert!(stream.read(&mut packet).await.unwrap() > 0, "PUBLISH");
            busy.abort();
            // Silent, and there, for longer than anybody waits.
            tokio::time::sleep(Duration::from_secs(600)).await;
        };
        let sent = tokio::select! {
            sent = link.publish("devices/A/commands", "{}") => sent,
            () = broker => panic!("nobody gave up"),
        };
        assert!(matches!(sent, Err(LinkError::Unknown(_))), "{sent:?}");
        assert_eq!(began.elapsed(), PUBLISH_TIMEOUT);
    }
}
