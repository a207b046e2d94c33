//! The AWS IoT credential provider: one GET over TLS with the gateway's certificate.
//!
//! The answer's `Date` tells how much life the keys have left, so a gateway whose clock is wrong still renews in time.

use std::sync::Arc;
use std::time::Duration;

use floorgate_model::Timestamp;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{CredentialsError, IotConfig, Keys};
use crate::sync::dynamo::date::read_date;

/// The whole exchange, name resolution and TLS included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, bytes; a real one has about 1,500.
const ANSWER_MAX: usize = 64 * 1024;
/// Bundles of the usual systems, for a configuration without `ca`.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

#[derive(serde::Deserialize)]
struct Answer {
    credentials: AnswerKeys,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerKeys {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: Timestamp,
}

/// Fetches keys; `now` is our clock's time.
pub(super) async fn fetch(config: &IotConfig, now: Timestamp) -> Result<Keys, CredentialsError> {
    let unreachable = |cause: String| CredentialsError::Unreachable { endpoint: config.endpoint.clone(), cause };
    let exchange = tokio::time::timeout(TIMEOUT, exchange(config)).await;
    let (status, date, body) = exchange.map_err(|_| unreachable(format!("no answer in {} s", TIMEOUT.as_secs())))??;
    if status != 200 {
        let message = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let message = message.and_then(|body| Some(body.get("message")?.as_str()?.to_owned()));
        return Err(match status {
            400..=499 => CredentialsError::Refused {
                thing: config.thing_name.clone(),
                alias: config.role_alias.clone(),
                status,
                message: message.unwrap_or_else(|| "no reason given".to_owned()),
            },
            _ => unreachable(format!("HTTP {status}")),
        });
    }
    let answer: Answer = serde_json::from_slice(&body).map_err(|cause| CredentialsError::Unreadable {
        endpoint: config.endpoint.clone(),
        cause: cause.to_string(),
    })?;
    let keys = answer.credentials;
    let life = keys.expiration.since(date.unwrap_or(now));
    Ok(Keys {
        access_key_id: keys.access_key_id,
        secret_access_key: keys.secret_access_key,
        session_token: Some(keys.session_token),
        life: Some(life),
    })
}

async fn exchange(config: &IotConfig) -> Result<(u16, Option<Timestamp>, Bytes), CredentialsError> {
    let unreachable = |cause: &dyn std::fmt::Display| CredentialsError::Unreachable {
        endpoint: config.endpoint.clone(),
        cause: cause.to_string(),
    };
    let unreadable = |cause: String| CredentialsError::Unreadable { endpoint: config.endpoint.clone(), cause };
    let (host, port) = host_and_port(&config.endpoint)?;
    let tls = client_config(config)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| CredentialsError::Settings(format!("`iot_endpoint` {host:?} is no host name")))?;
    let tcp = TcpStream::connect((host, port)).await.map_err(|cause| unreachable(&cause))?;
    let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|cause| unreachable(&cause))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|cause| unreachable(&cause))?;
    let request = hyper::Request::get(format!("/role-aliases/{}/credentials", config.role_alias))
        .header("host", host)
        .header("x-amzn-iot-thingname", &config.thing_name)
        .body(Empty::<Bytes>::new())
        .map_err(|cause| CredentialsError::Settings(format!("`role_alias` or the thing name: {cause}")))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|cause| unreachable(&cause))?;
        let status = response.status().as_u16();
        let date = response.headers().get("date").and_then(|header| read_date(header.to_str().ok()?));
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok((status, date, body.map_err(|cause| unreadable(cause.to_string()))?.to_bytes()))
    };
    tokio::pin!(answered);
    // The connection has to be driven beside the request; it ends when the answer is complete.
    tokio::select! {
        answer = &mut answered => answer,
        ended = connection => match ended {
            Ok(()) => answered.await,
            Err(cause) => Err(unreachable(&cause)),
        },
    }
}

fn host_and_port(endpoint: &str) -> Result<(&str, u16), CredentialsError> {
    match endpoint.rsplit_once(':') {
        None => Ok((endpoint, 443)),
        Some((host, port)) => {
            let port = port.parse();
            let wrong = |_| CredentialsError::Settings(format!("`iot_endpoint` {endpoint:?} has no valid port"));
            Ok((host, port.map_err(wrong)?))
        }
    }
}

fn client_config(config: &IotConfig) -> Result<rustls::ClientConfig, CredentialsError> {
    let wrong = |what: &str, cause: &dyn std::fmt::Display| {
        CredentialsError::Settings(format!("{what} cannot be used: {cause}; give PEM"))
    };
    let mut roots = RootCertStore::empty();
    let bundle = match &config.ca {
        Some(pem) => pem.clone(),
        None => SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default(),
    };
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).flatten());
    if roots.is_empty() {
        return Err(wrong("`ca`", &"it holds no certificate"));
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&config.cert).collect();
    let chain = chain.map_err(|cause| wrong("`cert`", &cause))?;
    let key = PrivateKeyDer::from_pem_slice(&config.key).map_err(|cause| wrong("`key`", &cause))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| wrong("TLS", &cause))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|cause| wrong("`cert` with `key`", &cause))
}
