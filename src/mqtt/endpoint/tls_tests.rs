//! TLS: the client certificate is the identity.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use floorgate_model::DeviceId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, EndpointConfig, EndpointHandle, EndpointTls, MemorySessions};
use crate::mqtt::topics::TopicScheme;
use crate::mqtt::{Acceptance, BoxFuture, Inbound, Intake};
use crate::shadow::StoreError;

struct Settling;

impl Intake for Settling {
    fn accept(&self, _: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        Box::pin(std::future::ready(Ok(Acceptance::Settled)))
    }
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key, PEM.
    fn issue(&self, common_name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

async fn start(folder: &Path, authority: &Authority) -> (u16, EndpointHandle) {
    let (cert, key) = authority.issue("endpoint");
    for (name, text) in [("cert", &cert), ("key", &key), ("ca", &authority.pem)] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let mut config = EndpointConfig::new((Ipv4Addr::LOCALHOST, 0).into());
    let client_ca = Some(folder.join("ca"));
    config.tls = Some(EndpointTls { cert: folder.join("cert"), key: folder.join("key"), client_ca });
    let attached = [DeviceId::new("A").unwrap()].into();
    let (scheme, sessions) = (TopicScheme::default(), Arc::new(MemorySessions::default()));
    let endpoint = Endpoint::bind(config, Arc::new(Settling), scheme, attached, sessions).await.unwrap();
    let (port, handle) = (endpoint.local_addr().port(), endpoint.handle());
    tokio::spawn(endpoint.run(CancellationToken::new()));
    (port, handle)
}

async fn dial(port: u16, authority: &Authority, identity: Option<(String, String)>) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

/// Says these and returns all packets that come until the endpoint closes or has said `count`.
async fn converse(stream: &mut TlsStream<TcpStream>, say: &[Packet], count: usize) -> Vec<Packet> {
    let (mut bytes, mut heard) = (BytesMut::new(), Vec::new());
    for packet in say {
        packet.write(&mut bytes, 1_000).unwrap();
    }
    let _ = stream.write_all(&bytes).await;
    let _ = stream.flush().await;
    bytes.clear();
    while heard.len() < count {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut bytes)).await.unwrap();
        if read.unwrap_or(0) == 0 {
            break;
        }
        while let Ok(packet) = Packet::read(&mut bytes, 1_000) {
            heard.push(packet);
        }
    }
    heard
}

fn code(heard: &[Packet]) -> Option<ConnectReturnCode> {
    if let Some(Packet::ConnAck(ack)) = heard.first() { Some(ack.code) } else { None }
}

#[tokio::test]
async fn the_common_name_of_the_certificate_is_the_identity_whatever_the_client_id() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let (port, handle) = start(folder.path(), &authority).await;
    let mut device = dial(port, &authority, Some(authority.issue("A"))).await;
    let publish = |topic: &str| {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, "{}");
        publish.pkid = 1;
        Packet::Publish(publish)
    };
    let say = [Packet::Connect(Connect::new("anything")), publish("devices/A/telemetry")];
    let heard = converse(&mut device, &say, 2).await;
    assert_eq!(code(&heard), Some(ConnectReturnCode::Success));
    assert!(matches!(heard[1], Packet::PubAck(_)));
    assert_eq!(converse(&mut device, &[publish("devices/B/telemetry")], 1).await, []);
    let mut stranger = dial(port, &authority, Some(authority.issue("stranger"))).await;
    let heard = converse(&mut stranger, &[Packet::Connect(Connect::new("A"))], 1).await;
    assert_eq!(code(&heard), Some(ConnectReturnCode::NotAuthorized));
    assert_eq!(handle.stats().refused["forbidden_publish"], 1);
}

#[tokio::test]
async fn without_a_certificate_of_the_right_authority_nobody_gets_a_word() {
    let (folder, authority, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let (port, handle) = start(folder.path(), &authority).await;
    for identity in [None, Some(other.issue("A"))] {
        let mut client = dial(port, &authority, identity).await;
        assert_eq!(converse(&mut client, &[Packet::Connect(Connect::new("A"))], 1).await, []);
    }
    assert_eq!(handle.stats().refused["tls_handshake"], 2);
}

#[tokio::test]
async fn a_handshake_that_hangs_holds_up_nobody() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let (port, _handle) = start(folder.path(), &authority).await;
    let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut device = dial(port, &authority, Some(authority.issue("A"))).await;
    let heard = converse(&mut device, &[Packet::Connect(Connect::new("A"))], 1).await;
    assert_eq!(code(&heard), Some(ConnectReturnCode::Success));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = EndpointConfig::new((Ipv4Addr::LOCALHOST, 0).into());
    let cert = folder.path().join("cert");
    config.tls = Some(EndpointTls { cert: cert.clone(), key: cert.clone(), client_ca: None });
    std::fs::write(&cert, "no certificate").unwrap();
    let (scheme, sessions) = (TopicScheme::default(), Arc::new(MemorySessions::default()));
    let error = Endpoint::bind(config, Arc::new(Settling), scheme, HashSet::new(), sessions).await.err().unwrap();
    let expected = format!("cannot use `{}` for TLS: there is no certificate in it", cert.display());
    assert_eq!(error.to_string(), expected);
}
