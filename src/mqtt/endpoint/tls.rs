//! TLS of the endpoint: its own certificate, and the client's as identity.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::parse_x509_certificate;

/// Files for TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointTls {
    /// The endpoint's certificate, then its intermediates.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of client certificates. If given, every client must have one, and its common name is who it is.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use `{path}` for TLS: {cause}")]
pub struct TlsError {
    /// Which file.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

fn wrong(path: &Path, cause: impl ToString) -> TlsError {
    TlsError { path: path.display().to_string(), cause: cause.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(list) if list.is_empty() => Err(wrong(path, "there is no certificate in it")),
        Ok(list) => Ok(list),
        Err(error) => Err(wrong(path, error)),
    }
}

/// Reads the files.
pub(super) fn acceptor(files: &EndpointTls) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, error))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.cert, error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong(path, error))?)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong(
            &files.key,
            format!("it is not the key of `{}`; give the pair that belongs together", files.cert.display()),
        ),
        other => wrong(&files.key, other),
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The common name of a certificate; `None` unless it has exactly one, in UTF-8.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let (first, None) = (names.next()?, names.next()) else { return None };
    first.as_str().ok().map(str::to_owned)
}
