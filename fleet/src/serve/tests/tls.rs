//! Certificates: which one is served, when a new one is, and what becomes of one that is of no use.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::serve::tls::{self, Looked, Pair};

type Made = rcgen::CertifiedKey<rcgen::KeyPair>;

fn made() -> Made {
    rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
}

/// The two files of a server.
struct Files(tempfile::TempDir);

impl Files {
    fn new(made: &Made) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put(Some(made), Some(made));
        files
    }

    fn paths(&self) -> (PathBuf, PathBuf) {
        let folder: &Path = self.0.path();
        (folder.join("chain.pem"), folder.join("key.pem"))
    }

    fn put(&self, certificate: Option<&Made>, key: Option<&Made>) {
        let (chain, private) = self.paths();
        if let Some(made) = certificate {
            std::fs::write(chain, made.cert.pem()).unwrap();
        }
        if let Some(made) = key {
            std::fs::write(private, made.signing_key.serialize_pem()).unwrap();
        }
    }
}

/// A connection of a client that trusts this certificate alone.
async fn connected(address: SocketAddr, trusted: &Made) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = tokio_rustls::TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
    client.connect("localhost".try_into().unwrap(), TcpStream::connect(address).await?).await
}

/// Asks once and leaves the connection open.
async fn healthy(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 256];
    let read = stream.read(&mut answer).await.unwrap();
    answer[..read].starts_with(b"HTTP/1.1 200")
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_pair_is_not() {
    let (first, second, third) = (made(), made(), made());
    let files = Files::new(&first);
    let fixture = fixture(ServeConfig { tls: Some(files.paths()), ..config() }).await;
    let (address, pair) = (fixture.server.address, Arc::clone(&fixture.server.door.tls.as_ref().unwrap().pair));
    let serving = tokio::spawn(fixture.server.run(std::future::pending()));
    let mut standing = connected(address, &first).await.unwrap();
    assert!(healthy(&mut standing).await);
    assert_eq!(pair.look(), Looked::Same);

    files.put(Some(&second), Some(&second));
    assert_eq!(pair.look(), Looked::Renewed);
    assert!(healthy(&mut connected(address, &second).await.unwrap()).await);
    assert!(connected(address, &first).await.is_err(), "the old certificate is served no more");
    assert!(healthy(&mut standing).await, "a connection that stands is not disturbed");

    // Half renewed: its key is still the second's.
    files.put(Some(&third), None);
    let Looked::Kept(why) = pair.look() else { panic!("half a pair was taken") };
    assert!(why.contains("key.pem") && why.contains("it is not the key of") && why.contains("chain.pem"), "{why}");
    assert_eq!(pair.look(), Looked::Same, "it is said once");
    for broken in ["", "no PEM at all", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(files.paths().0, broken).unwrap();
        let Looked::Kept(why) = pair.look() else { panic!("{broken:?} was taken") };
        assert!(why.contains("chain.pem"), "{why}");
    }
    std::fs::remove_file(files.paths().0).unwrap();
    assert!(matches!(pair.look(), Looked::Kept(_)));
    assert!(healthy(&mut connected(address, &second).await.unwrap()).await, "the one before still is");

    files.put(Some(&third), Some(&third));
    assert_eq!(pair.look(), Looked::Renewed);
    assert!(healthy(&mut connected(address, &third).await.unwrap()).await);
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn the_certificate_is_looked_at_again_every_minute() {
    let (first, second) = (made(), made());
    let files = Files::new(&first);
    let (chain, key) = files.paths();
    let pair = Arc::new(Pair::open(&chain, &key).unwrap());
    let watched = tokio::spawn(tls::watch(Arc::clone(&pair), None));
    tokio::task::yield_now().await;
    files.put(Some(&second), Some(&second));
    tokio::time::sleep(tls::READ_AGAIN_EVERY - Duration::from_secs(1)).await;
    assert!(pair.serves(first.cert.der()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(pair.serves(second.cert.der()));
    watched.abort();
}

#[test]
fn a_certificate_file_that_is_no_certificates_is_not_read_to_its_end() {
    let files = Files::new(&made());
    let (chain, key) = files.paths();
    let large = std::fs::File::create(&chain).unwrap();
    large.set_len(tls::FILE_BYTES_MAX + 1).unwrap();
    assert!(Pair::open(&chain, &key).unwrap_err().contains("larger than 1 MiB"));
    large.set_len(tls::FILE_BYTES_MAX).unwrap();
    assert!(Pair::open(&chain, &key).unwrap_err().contains("no certificate"));
}
