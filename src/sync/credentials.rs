//! Who the gateway is to AWS: fixed keys, the shared credentials file, or the AWS IoT credential provider.
//!
//! # Guarantees
//!
//! * Credentials are fetched once and kept; many requests at once cause one fetch.
//! * Those of the IoT provider are renewed early: [`RENEW_BEFORE`] or a fifth of their life before they end, whichever
//!   is more (at most half their life), drawn apart by up to a twentieth, so that a fleet does not renew at one instant.
//! * A failed renewal keeps the old ones until they end, and is tried again every [`RENEW_RETRY`].
//! * What AWS rejected is fetched anew (a rotated file is read again) before the next request.
//!
//! Nothing here reads the environment: the configuration does, and hands values over. Secrets never show in `Debug`.

mod file;
mod iot;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError as SdkCredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use floorgate_model::Timestamp;
use tokio::sync::Mutex;

use super::dynamo::date::to_system_time;
use crate::clock::Clock;

/// Renewal begins at least this long before the end.
pub const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// How long after a failed renewal the next is tried, while the old credentials are still good.
pub const RENEW_RETRY: Duration = Duration::from_secs(30);

/// Where credentials come from.
#[derive(Clone)]
pub enum CredentialsConfig {
    /// Fixed keys (`AWS_ACCESS_KEY_ID` and its companions).
    Static {
        /// Access key id.
        access_key_id: String,
        /// Its secret.
        secret_access_key: String,
        /// Token of temporary keys.
        session_token: Option<String>,
    },
    /// The shared credentials file.
    SharedFile {
        /// The file (`AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`).
        path: PathBuf,
        /// The profile (`AWS_PROFILE`, else `default`).
        profile: String,
    },
    /// The AWS IoT credential provider: the device certificate buys temporary keys of a role.
    Iot(IotConfig),
}

/// How to reach the AWS IoT credential provider.
#[derive(Clone)]
pub struct IotConfig {
    /// Host, as `aws iot describe-endpoint --endpoint-type iot:CredentialProvider` prints it; port 443 unless given.
    pub endpoint: String,
    /// Role alias.
    pub role_alias: String,
    /// Thing name; the certificate must be attached to this thing.
    pub thing_name: String,
    /// Certificate authorities, PEM; `None` for the machine's own.
    pub ca: Option<Vec<u8>>,
    /// Client certificate with its chain, PEM.
    pub cert: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for CredentialsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { access_key_id, .. } => write!(f, "Static({access_key_id}, secret)"),
            Self::SharedFile { path, profile } => write!(f, "SharedFile({}, {profile})", path.display()),
            Self::Iot(iot) => iot.fmt(f),
        }
    }
}

impl fmt::Debug for IotConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iot({}, {}, {}, certificate and key)", self.endpoint, self.role_alias, self.thing_name)
    }
}

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The shared file cannot be used.
    #[error("credentials file `{path}`: {what}")]
    File {
        /// Which.
        path: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Certificate, key or names do not make a request.
    #[error("[dynamodb.credentials] cannot be used: {0}")]
    Settings(String),
    /// No answer.
    #[error("the credential provider `{endpoint}` cannot be reached: {cause}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the system says.
        cause: String,
    },
    /// It said no.
    #[error(
        "the credential provider refuses thing `{thing}` the role alias `{alias}` (HTTP {status}: {message}); \
         attach the certificate to the thing and allow it iot:AssumeRoleWithCertificate"
    )]
    Refused {
        /// Thing name.
        thing: String,
        /// Role alias.
        alias: String,
        /// HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// It answered something else.
    #[error("the credential provider `{endpoint}` answered unreadably: {cause}")]
    Unreadable {
        /// Where.
        endpoint: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// The access key id of a profile of the shared credentials file, if its keys can be used. Reads the file.
///
/// For the configuration, which wants to know at the start; the keys themselves are read when they are needed.
///
/// # Errors
/// [`CredentialsError::File`] if the file cannot be read, or the profile has no keys.
pub fn shared_access_key(path: &Path, profile: &str) -> Result<String, CredentialsError> {
    file::read(path, profile).map(|keys| keys.access_key_id)
}

/// Keys as they were handed out.
#[derive(Clone)]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    /// How long they last from when they were fetched; `None` for keys that do not end.
    life: Option<Duration>,
}

/// Keys, and by boot time, milliseconds, when to fetch the next and when they end: no step of the wall clock makes keys
/// old or young.
#[derive(Clone)]
struct Cached {
    keys: Keys,
    renew_at: Option<i64>,
    ends: Option<i64>,
}

/// Hands credentials to the SDK. Clones share one cache.
#[derive(Clone)]
pub struct CredentialSource(Arc<Inner>);

struct Inner {
    config: CredentialsConfig,
    clock: Clock,
    cache: Mutex<Option<Cached>>,
    rejected: AtomicBool,
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.config.fmt(f)
    }
}

impl CredentialSource {
    /// A source that has fetched nothing yet.
    #[must_use]
    pub fn new(config: CredentialsConfig, clock: Clock) -> Self {
        Self(Arc::new(Inner { config, clock, cache: Mutex::new(None), rejected: AtomicBool::new(false) }))
    }

    /// Tells that AWS did not accept what was given last.
    pub(super) fn rejected(&self) {
        self.0.rejected.store(true, Ordering::Relaxed);
    }

    /// Credentials that are good now. Waits for a fetch that is running; dropping it cancels the fetch.
    ///
    /// # Errors
    /// [`CredentialsError`] if there are none and none can be had.
    pub async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        let mut cache = self.0.cache.lock().await;
        let now = self.0.clock.boot_ms();
        let rejected = self.0.rejected.swap(false, Ordering::Relaxed);
        if let Some(cached) = cache.as_ref().filter(|_| !rejected)
            && cached.renew_at.is_none_or(|at| now < at)
        {
            return Ok(cached.keys.to_sdk(cached.left(now), self.0.clock.now()));
        }
        match self.fetch().await {
            Ok(keys) => {
                let renew_at = keys.life.map(|life| after(now, renew_after(life, fastrand::f64())));
                let ends = keys.life.map(|life| after(now, life));
                let sdk = keys.to_sdk(keys.life, self.0.clock.now());
                *cache = Some(Cached { keys, renew_at, ends });
                Ok(sdk)
            }
            Err(error) => match cache.as_mut() {
                // Still good, and nobody said otherwise: the renewal can wait.
                Some(cached) if !rejected && cached.ends.is_none_or(|ends| now < ends) => {
                    tracing::warn!(%error, "credentials not renewed; the old ones are good for a while");
                    cached.renew_at = Some(after(now, RENEW_RETRY));
                    Ok(cached.keys.to_sdk(cached.left(now), self.0.clock.now()))
                }
                _ => {
                    *cache = None;
                    Err(error)
                }
            },
        }
    }

    async fn fetch(&self) -> Result<Keys, CredentialsError> {
        match &self.0.config {
            CredentialsConfig::Static { access_key_id, secret_access_key, session_token } => Ok(Keys {
                access_key_id: access_key_id.clone(),
                secret_access_key: secret_access_key.clone(),
                session_token: session_token.clone(),
                life: None,
            }),
            CredentialsConfig::SharedFile { path, profile } => file::read(path, profile),
            CredentialsConfig::Iot(iot) => iot::fetch(iot, self.0.clock.now()).await,
        }
    }
}

impl Keys {
    /// As the SDK wants them, with `left` to live from `wall` on.
    fn to_sdk(&self, left: Option<Duration>, wall: Timestamp) -> Credentials {
        let ends = left.map(|left| to_system_time(wall.saturating_add(left)));
        Credentials::new(&self.access_key_id, &self.secret_access_key, self.session_token.clone(), ends, "floorgate")
    }
}

impl Cached {
    fn left(&self, now: i64) -> Option<Duration> {
        self.ends.map(|ends| Duration::from_millis(u64::try_from(ends.saturating_sub(now)).unwrap_or(0)))
    }
}

/// A later boot time, milliseconds.
fn after(now: i64, time: Duration) -> i64 {
    now.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// After how long to renew keys that last for `life`; `random` evenly from `0.0..1.0`.
fn renew_after(life: Duration, random: f64) -> Duration {
    let early = RENEW_BEFORE.max(life / 5).min(life / 2) + (life / 20).mul_f64(random.clamp(0.0, 1.0));
    life.saturating_sub(early)
}

impl ProvideCredentials for CredentialSource {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.credentials().await.map_err(|error| match error {
                CredentialsError::Unreachable { .. } => SdkCredentialsError::provider_error(error),
                _ => SdkCredentialsError::invalid_configuration(error),
            })
        })
    }
}

#[cfg(test)]
mod tests;
