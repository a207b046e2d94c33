//! The IoT provider against a TLS server that demands the gateway's certificate and its thing name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const NOW: i64 = 1_795_341_600_000;
const LIFE: Duration = Duration::from_secs(3_600);

fn now() -> Timestamp {
    Timestamp::from_millis(NOW)
}

/// Certificates of one authority: itself, a server for 127.0.0.1, a client.
struct Certificates {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.ca).unwrap(), key)
    }
}

/// A credential provider. It refuses a TLS client without a certificate of its authority, answers 403 unless the
/// certificate's common name and the thing name are both `GW-1`, and can be told to fail.
struct Provider {
    port: u16,
    requests: Arc<AtomicUsize>,
    status: Arc<AtomicU16>,
    serving: tokio::task::JoinHandle<()>,
}

impl Provider {
    async fn start(certificates: &Certificates) -> Self {
        let (cert, key) = certificates.issue("provider");
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificates.ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&ring)).build().unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, status) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU16::new(200)));
        let (counted, wanted) = (Arc::clone(&requests), Arc::clone(&status));
        let serving = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(tls));
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                let peer = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
                let mut request = vec![0; 8_192];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).to_ascii_lowercase();
                let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                let ours = peer.windows(4).any(|bytes| bytes == b"GW-1")
                    && request.contains("x-amzn-iot-thingname: gw-1\r\n")
                    && request.starts_with("get /role-aliases/floorgate/credentials http/1.1\r\n");
                let status = if ours { wanted.load(Ordering::SeqCst) } else { 403 };
                let body = if status == 200 {
                    let expiration = now().saturating_add(LIFE);
                    format!(
                        "{{\"credentials\":{{\"accessKeyId\":\"AKIA{number}\",\"secretAccessKey\":\"s\",\
                         \"sessionToken\":\"t\",\"expiration\":\"{expiration}\"}}}}"
                    )
                } else {
                    "{\"message\":\"Access Denied\"}".to_owned()
                };
                let answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { port, requests, status, serving }
    }

    fn source(&self, certificates: &Certificates, thing: &str, clock: &Clock) -> CredentialSource {
        let (cert, key) = certificates.issue("GW-1");
        let config = IotConfig {
            endpoint: format!("127.0.0.1:{}", self.port),
            role_alias: "floorgate".into(),
            thing_name: thing.into(),
            ca: Some(certificates.ca.pem().into_bytes()),
            cert: cert.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        };
        CredentialSource::new(CredentialsConfig::Iot(config), clock.clone())
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn many_calls_make_one_request_and_renewal_comes_before_the_end() {
    let certificates = Certificates::new();
    let provider = Provider::start(&certificates).await;
    let clock = Clock::set_to(now());
    let source = provider.source(&certificates, "GW-1", &clock);
    let calls = (0..50).map(|_| source.credentials());
    let all = futures_util::future::join_all(calls).await;
    assert!(all.into_iter().all(|keys| keys.unwrap().access_key_id() == "AKIA1"));
    assert_eq!(provider.requests(), 1);

    // A fifth of an hour early, and up to a twentieth before that.
    clock.pass_boot(Duration::from_secs(3_600 - 720 - 180 - 1));
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "AKIA1");
    clock.pass_boot(Duration::from_secs(181));
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "AKIA2");
    assert_eq!(provider.requests(), 2);
}

#[tokio::test]
async fn no_step_of_the_wall_clock_makes_keys_old_or_young() {
    let certificates = Certificates::new();
    let provider = Provider::start(&certificates).await;
    let clock = Clock::set_to(now());
    let source = provider.source(&certificates, "GW-1", &clock);
    source.credentials().await.unwrap();
    for year in [31_536_000_000, -31_536_000_000, -31_536_000_000] {
        clock.step(year);
        let keys = source.credentials().await.unwrap();
        assert_eq!((keys.access_key_id(), provider.requests()), ("AKIA1", 1));
        let left = keys.expiry().unwrap().duration_since(to_system_time(clock.now())).unwrap();
        assert_eq!(left, LIFE, "as the SDK sees it");
    }
    clock.pass_boot(LIFE);
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "AKIA2");
}

#[tokio::test]
async fn what_aws_rejected_is_fetched_anew() {
    let certificates = Certificates::new();
    let provider = Provider::start(&certificates).await;
    let source = provider.source(&certificates, "GW-1", &Clock::set_to(now()));
    source.credentials().await.unwrap();
    source.rejected();
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "AKIA2");
}

#[tokio::test]
async fn a_refusal_says_which_thing_and_what_to_do() {
    let certificates = Certificates::new();
    let provider = Provider::start(&certificates).await;
    let source = provider.source(&certificates, "GW-9", &Clock::set_to(now()));
    let error = source.credentials().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the credential provider refuses thing `GW-9` the role alias `floorgate` (HTTP 403: Access Denied); \
         attach the certificate to the thing and allow it iot:AssumeRoleWithCertificate"
    );
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_nothing() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let provider = Provider::start(&ours).await;
    let mut config = match &provider.source(&theirs, "GW-1", &Clock::set_to(now())).0.config {
        CredentialsConfig::Iot(config) => config.clone(),
        other => panic!("{other:?}"),
    };
    config.ca = Some(ours.ca.pem().into_bytes());
    let source = CredentialSource::new(CredentialsConfig::Iot(config), Clock::set_to(now()));
    let error = source.credentials().await.unwrap_err();
    assert!(matches!(error, CredentialsError::Unreachable { .. }), "{error:?}");
    assert_eq!(provider.requests(), 0);
}

#[tokio::test]
async fn old_credentials_serve_until_they_end_while_the_provider_is_away() {
    let certificates = Certificates::new();
    let provider = Provider::start(&certificates).await;
    let clock = Clock::set_to(now());
    let source = provider.source(&certificates, "GW-1", &clock);
    source.credentials().await.unwrap();

    provider.status.store(503, Ordering::SeqCst);
    clock.pass_boot(Duration::from_secs(3_000));
    for _ in 0..5 {
        assert_eq!(source.credentials().await.unwrap().access_key_id(), "AKIA1");
    }
    assert_eq!(provider.requests(), 2, "a failed renewal waits before the next");

    provider.serving.abort();
    clock.pass_boot(LIFE - Duration::from_secs(3_001));
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "AKIA1");
    clock.pass_boot(Duration::from_secs(32));
    let error = source.credentials().await.unwrap_err();
    assert!(matches!(error, CredentialsError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_rotated_file_is_read_again_when_its_keys_were_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    let write = |key| std::fs::write(&path, format!("[x]\naws_access_key_id={key}\naws_secret_access_key=s\n"));
    write("OLD").unwrap();
    let config = CredentialsConfig::SharedFile { path: path.clone(), profile: "x".into() };
    let source = CredentialSource::new(config, Clock::set_to(now()));
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "OLD");
    write("NEW").unwrap();
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "OLD");
    source.rejected();
    assert_eq!(source.credentials().await.unwrap().access_key_id(), "NEW");
}

#[test]
fn short_lived_keys_are_renewed_at_half_their_life_and_secrets_are_not_shown() {
    assert_eq!(renew_after(Duration::from_secs(400), 0.0), Duration::from_secs(200));
    let config = CredentialsConfig::Static {
        access_key_id: "AKIA".into(),
        secret_access_key: "hidden".into(),
        session_token: Some("hidden".into()),
    };
    assert!(!format!("{config:?}").contains("hidden"));
}
