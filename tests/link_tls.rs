//! The client link over TLS: client certificates, with and without the AWS SDK's set-up, and what is said when they
//! do not fit.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, dead_code, reason = "support code is shared by several tests")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/broker.rs"]
mod broker;
#[path = "support/running.rs"]
mod running;

use std::path::Path;
use std::sync::Arc;

use authority::Authority;
use broker::Broker;
use bytes::Bytes;
use floorgate::mqtt::link::{Handed, LinkConfig, TlsFiles};
use running::{Held, config, run, soon};

impl Authority {
    fn issue(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        use rustls_pki_types::pem::PemObject;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (cert, key) = self.issue("localhost");
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        Arc::new(config).into()
    }

    fn client_files(&self, folder: &Path) -> TlsFiles {
        let (cert, key) = self.issue("GW-1");
        let path = |name: &str| folder.join(name);
        std::fs::write(path("ca.pem"), &self.pem).unwrap();
        std::fs::write(path("cert.pem"), cert.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        TlsFiles { ca: path("ca.pem"), identity: Some((path("cert.pem"), path("key.pem"))) }
    }
}

async fn tls_config(authority: &Authority, folder: &Path) -> (Broker, LinkConfig) {
    let broker = Broker::start_with(Some(authority.acceptor())).await;
    let mut config = config(&broker, &["in"]);
    config.address = format!("mqtts://localhost:{}", broker.address.port()).parse().unwrap();
    config.tls = Some(authority.client_files(folder));
    (broker, config)
}

#[tokio::test]
async fn a_client_certificate_opens_the_connection_with_and_without_the_aws_sdk() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let (broker, mut config) = tls_config(&authority, folder.path()).await;
    for aws_iot in [false, true] {
        config.aws_iot = aws_iot;
        let held = Arc::new(Held { settle_at_once: true, ..Held::default() });
        let running = run(config.clone(), &held, None);
        running.until("up", |state| state.up).await;
        broker.publish("in", "x", false);
        held.received(1).await;
        assert_eq!(running.link.publish_once("t".into(), Bytes::new(), soon()).await, Ok(Handed::Acknowledged));
        running.stop().await;
    }
}

#[tokio::test]
async fn the_wrong_authority_and_a_missing_client_certificate_are_told_in_words() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let (_broker, mut config) = tls_config(&authority, folder.path()).await;
    std::fs::write(folder.path().join("ca.pem"), Authority::new().pem).unwrap();
    let running = run(config.clone(), &Arc::default(), None);
    let state = running.until("refused", |state| state.last_error.is_some()).await;
    let error = state.last_error.unwrap();
    assert!(error.contains("comes from no authority in `") && error.contains("ca.pem`"), "{error}");
    // The files are read anew for each connection: putting the right one in place is enough.
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    running.until("up", |state| state.up).await;
    running.stop().await;

    config.tls.as_mut().unwrap().identity = None;
    let running = run(config, &Arc::default(), None);
    let state = running.until("refused", |state| state.last_error.is_some()).await;
    let error = state.last_error.unwrap();
    assert!(error.contains("CertificateRequired") || error.contains("ertificate"), "{error}");
    running.stop().await;
}
