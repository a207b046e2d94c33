//! The certificate: read at the start, and again while it is served, so that a renewed one needs no restart.
//!
//! * The two files are looked at every [`READ_AGAIN_EVERY`] and at SIGHUP, by their content: a link that was turned round and a
//!   file that kept its date count as well.
//! * A pair that cannot be used (unreadable, no PEM, a key of another certificate) changes nothing: the one before goes on being
//!   served, and the log says why, once for each content. A pair of which only one file is new so far is of that kind; the next
//!   look finds the other one.
//! * Connections that stand keep what they began with. What a certificate says (names, dates) is for its clients to judge.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
pub(super) const READ_AGAIN_EVERY: Duration = Duration::from_secs(60);
/// Largest file that is read; a chain has a few KiB.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A certificate chain with its key, as the files had it when they could last be used.
#[derive(Debug)]
pub(super) struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    served: RwLock<Arc<CertifiedKey>>,
    /// What the files were like at the last look: a digest, or why they could not be read.
    seen: Mutex<Result<[u8; 32], String>>,
}

/// What a look at the files came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Looked {
    /// As at the last look.
    Same,
    /// New, and served from now on.
    Renewed,
    /// New, and of no use; why.
    Kept(String),
}

impl Pair {
    /// Reads both files.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn open(certificate: &Path, key: &Path) -> Result<Self, String> {
        let (digest, chain, private) = contents(certificate, key)?;
        let served = RwLock::new(certified(certificate, &chain, key, &private)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), served, seen: Mutex::new(Ok(digest)) })
    }

    /// Looks at the files again, and takes them if they are new and can be used.
    pub(super) fn look(&self) -> Looked {
        let read = contents(&self.certificate, &self.key);
        let found = read.as_ref().map(|(digest, ..)| *digest).map_err(Clone::clone);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == found {
            return Looked::Same;
        }
        *seen = found;
        let new = read.and_then(|(_, chain, private)| certified(&self.certificate, &chain, &self.key, &private));
        match new {
            Err(why) => Looked::Kept(why),
            Ok(new) => {
                *self.served.write().unwrap_or_else(PoisonError::into_inner) = new;
                Looked::Renewed
            }
        }
    }

    /// Whether this is the certificate of the next handshake.
    #[cfg(test)]
    pub(super) fn serves(&self, certificate: &CertificateDer<'_>) -> bool {
        self.served.read().unwrap_or_else(PoisonError::into_inner).end_entity_cert().is_ok_and(|one| one == certificate)
    }

    /// What answers handshakes with it.
    ///
    /// # Errors
    /// If rustls cannot be set up.
    pub(super) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut server = builder.with_no_client_auth().with_cert_resolver(Arc::clone(self) as _);
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(server)))
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Looks at the files every [`READ_AGAIN_EVERY`] and at SIGHUP, for as long as it is polled.
pub(super) async fn watch(pair: Arc<Pair>, mut hangup: Option<Signal>) {
    loop {
        let asked = async {
            match &mut hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        let asked = tokio::time::timeout(READ_AGAIN_EVERY, asked).await.is_ok();
        let pair = Arc::clone(&pair);
        // A file system may hang.
        match tokio::task::spawn_blocking(move || pair.look()).await {
            Ok(Looked::Renewed) => tracing::info!("a new certificate is served"),
            Ok(Looked::Kept(why)) => tracing::error!(%why, "the new certificate is not used, the one before still is"),
            Ok(Looked::Same) if asked => tracing::info!("the certificate's files are as they were"),
            Ok(Looked::Same) => {}
            Err(error) => tracing::error!(%error, "the certificate's files were not looked at"),
        }
    }
}

/// SIGHUP from now on; it ends the program no more.
pub(super) fn hangup() -> Option<Signal> {
    signal(SignalKind::hangup()).ok()
}

/// Takes SIGHUP where there is no certificate to read again: whoever sends it to all servers ends none.
pub(super) async fn nothing_to_renew(hangup: Option<Signal>) {
    let Some(mut hangup) = hangup else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: no certificate is served, so there is nothing to read again");
    }
}

type Contents = ([u8; 32], Vec<u8>, Vec<u8>);

fn contents(certificate: &Path, key: &Path) -> Result<Contents, String> {
    let (chain, private) = (read(certificate)?, read(key)?);
    let mut digest = Sha256::new();
    digest.update(chain.len().to_le_bytes());
    digest.update(&chain);
    digest.update(&private);
    Ok((digest.finalize().into(), chain, private))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(path, &error))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| wrong(path, &error))?;
    let fits = u64::try_from(content.len()).is_ok_and(|bytes| bytes <= FILE_BYTES_MAX);
    if fits { Ok(content) } else { Err(wrong(path, &"it is larger than 1 MiB")) }
}

fn certified(certificate: &Path, chain: &[u8], key: &Path, private: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| wrong(certificate, &error))?;
    if chain.is_empty() {
        return Err(wrong(certificate, &"it holds no certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(private).map_err(|error| wrong(key, &error))?;
    let pair = CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider());
    match pair {
        Ok(pair) => Ok(Arc::new(pair)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(wrong(key, &format!("it is not the key of `{}`", certificate.display())))
        }
        Err(error) => Err(wrong(certificate, &error)),
    }
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> String {
    format!("cannot use `{}` for TLS: {why}", path.display())
}
