//! Getting the issuer's documents: HTTPS (rustls, ring), or plain HTTP on loopback for an issuer on this machine. Bounded in
//! time and size, no redirects, no proxies.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

use super::keys::{KeySource, KeysError, SET_BYTES_MAX};

/// Longest wait for one document.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a document cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not an address that may be asked.
    #[error("`{0}` is no https address (plain http is for loopback alone)")]
    Address(String),
    /// No answer, or not the document.
    #[error("{address}: {what}")]
    Answer {
        /// What was asked.
        address: String,
        /// What came instead.
        what: String,
    },
    /// The roots to trust cannot be read.
    #[error("cannot read the certificates to trust: {0}")]
    Roots(String),
}

/// Where the keys are.
#[derive(Debug, Clone)]
enum Place {
    Discovery(String),
    Address(String),
    File(PathBuf),
}

/// Fetches key sets by discovery, from an address, or from a file.
#[derive(Debug, Clone)]
pub struct Fetch {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    place: Place,
}

impl Fetch {
    /// Asks the issuer's `/.well-known/openid-configuration` where its keys are, each time anew.
    ///
    /// # Errors
    /// [`FetchError::Roots`] if `ca`, or without it the system's roots, cannot be read.
    pub fn discovery(issuer: &str, ca: Option<&PathBuf>) -> Result<Self, FetchError> {
        Ok(Self { client: client(ca)?, place: Place::Discovery(issuer.to_owned()) })
    }

    /// Gets the keys from one address.
    ///
    /// # Errors
    /// As [`Fetch::discovery`].
    pub fn address(address: &str, ca: Option<&PathBuf>) -> Result<Self, FetchError> {
        Ok(Self { client: client(ca)?, place: Place::Address(address.to_owned()) })
    }

    /// Reads the keys from a file, for a plant without a way to its issuer.
    ///
    /// # Errors
    /// As [`Fetch::discovery`].
    pub fn file(path: PathBuf, ca: Option<&PathBuf>) -> Result<Self, FetchError> {
        Ok(Self { client: client(ca)?, place: Place::File(path) })
    }

    async fn keys(&self) -> Result<Vec<u8>, KeysError> {
        let source = |error: FetchError| KeysError::Source(error.to_string());
        match &self.place {
            Place::File(path) => {
                let read = tokio::fs::read(path).await;
                read.map_err(|error| KeysError::Source(format!("`{}`: {error}", path.display())))
            }
            Place::Address(address) => self.get(address).await.map_err(source),
            Place::Discovery(issuer) => {
                let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let document = self.get(&address).await.map_err(source)?;
                let document: Value = serde_json::from_slice(&document)
                    .map_err(|error| KeysError::Source(format!("{address}: {error}")))?;
                // OpenID Connect Discovery §4.3: whoever answers for another issuer is not believed.
                if document.get("issuer").and_then(Value::as_str) != Some(issuer) {
                    return Err(KeysError::Source(format!("{address} answers for another issuer than `{issuer}`")));
                }
                let keys = document.get("jwks_uri").and_then(Value::as_str);
                let keys = keys.ok_or_else(|| KeysError::Source(format!("{address} names no `jwks_uri`")))?;
                self.get(keys).await.map_err(source)
            }
        }
    }

    /// A document of at most [`SET_BYTES_MAX`] bytes, within [`TIMEOUT`].
    async fn get(&self, address: &str) -> Result<Vec<u8>, FetchError> {
        let answer = |what: String| FetchError::Answer { address: address.to_owned(), what };
        let uri = allowed(address)?;
        let asked = async {
            let response = self.client.get(uri).await.map_err(|error| answer(chain(&error)))?;
            if response.status() != http::StatusCode::OK {
                return Err(answer(format!("answered {}", response.status())));
            }
            let body = Limited::new(response.into_body(), SET_BYTES_MAX).collect().await;
            body.map(|body| body.to_bytes().to_vec()).map_err(|error| answer(error.to_string()))
        };
        let timeout = tokio::time::timeout(TIMEOUT, asked).await;
        timeout.unwrap_or_else(|_| Err(answer(format!("no answer within {} s", TIMEOUT.as_secs()))))
    }
}

impl KeySource for Fetch {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, KeysError>> {
        Box::pin(self.keys())
    }
}

/// An error with what caused it; hyper's own texts say only that something failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Whether a host is this machine, by its literal address or the one name that means it.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn allowed(address: &str) -> Result<Uri, FetchError> {
    let refused = || FetchError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| refused())?;
    let host = uri.host().ok_or_else(refused)?;
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_loopback(host) => Ok(uri),
        _ => Err(refused()),
    }
}

fn client(ca: Option<&PathBuf>) -> Result<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, FetchError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let wrong = |what: &dyn std::fmt::Display| FetchError::Roots(format!("`{}`: {what}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"no certificate in it"));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| FetchError::Roots(error.to_string()))?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
