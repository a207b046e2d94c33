//! The issuer's public keys, kept at hand.
//!
//! | | |
//! |---|---|
//! | a set is fresh for | [`FRESH_FOR`]; the first request after that starts one refresh in the background and is served with what is there |
//! | an unknown `kid` | one refresh, then refused; those who ask meanwhile wait for the same one |
//! | refreshes | at most one every [`REFRESH_EVERY`], whoever asks and however it ended; each in a task of its own, so that a request that is given up takes none with it |
//! | an issuer that does not answer | the old keys count until they are [`AGE_MAX`] old, then nobody gets in |
//! | size | [`SET_BYTES_MAX`] bytes, [`KEYS_MAX`] usable keys; a set that is larger or holds none is refused as a whole |
//!
//! A key that the issuer has withdrawn counts for [`FRESH_FOR`] more, and a request. Ages are told by the monotonic clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde_json::Value;
use tokio::time::Instant;

use super::Refusal;

/// How long a key set is used without asking again.
pub(crate) const FRESH_FOR: Duration = Duration::from_secs(600);
/// Least time between two questions to the issuer.
pub(crate) const REFRESH_EVERY: Duration = Duration::from_secs(10);
/// How long old keys count while the issuer does not answer.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Largest key set document that is read.
pub(crate) const SET_BYTES_MAX: usize = 64 * 1024;
/// Most keys of a set; issuers have two to six.
pub(crate) const KEYS_MAX: usize = 32;
/// Longest `kid` that is kept.
const KID_BYTES_MAX: usize = 256;

/// Where key sets come from.
pub trait KeySource: Send + Sync {
    /// The key set document as it is now, at most [`SET_BYTES_MAX`] bytes of it.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, KeysError>>;
}

/// Why there is no new key set.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be fetched or read.
    #[error("cannot get the issuer's keys: {0}")]
    Source(String),
    /// It is no usable key set.
    #[error("the issuer's key set is not usable: {0}")]
    Set(String),
}

/// A key and the one algorithm it is for.
#[derive(Debug, Clone)]
pub(super) struct SigningKey {
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

#[derive(Debug, Default)]
struct Held {
    keys: HashMap<String, SigningKey>,
    fetched: Option<Instant>,
    asked: Option<Instant>,
}

/// The keys of one issuer.
pub struct KeyCache {
    source: Box<dyn KeySource>,
    held: Mutex<Held>,
    refreshing: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyCache").field("held", &self.held).finish_non_exhaustive()
    }
}

impl KeyCache {
    /// An empty cache; nothing is asked yet.
    pub fn new(source: Box<dyn KeySource>) -> Self {
        Self { source, held: Mutex::default(), refreshing: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the issuer now, so that a wrong address is found at start and not at the first request.
    ///
    /// # Errors
    /// As [`KeySource::fetch`], or if what came is no key set.
    pub async fn refresh(&self) -> Result<(), KeysError> {
        self.held().asked = Some(Instant::now());
        let keys = parse(&self.source.fetch().await?)?;
        let mut held = self.held();
        held.keys = keys;
        held.fetched = Some(Instant::now());
        Ok(())
    }

    /// The key with this id.
    pub(super) async fn find(self: &Arc<Self>, kid: &str) -> Result<SigningKey, Refusal> {
        if let Some(found) = self.at_hand(kid) {
            return Ok(found);
        }
        let refreshed = self.refresh_once().await;
        if let Some(found) = self.at_hand(kid) {
            return Ok(found);
        }
        // Without a current set nobody can say that the key is unknown.
        if refreshed && !self.too_old() {
            return Err(Refusal::Invalid("the token is signed with a key that its issuer does not have"));
        }
        Err(Refusal::Unavailable)
    }

    fn too_old(&self) -> bool {
        self.held().fetched.is_none_or(|fetched| fetched.elapsed() >= AGE_MAX)
    }

    fn at_hand(self: &Arc<Self>, kid: &str) -> Option<SigningKey> {
        let (found, stale) = {
            let held = self.held();
            let age = held.fetched?.elapsed();
            if age >= AGE_MAX {
                return None;
            }
            (held.keys.get(kid)?.clone(), age >= FRESH_FOR && may_ask(&held))
        };
        if stale {
            let cache = Arc::clone(self);
            tokio::spawn(async move { cache.refresh_once().await });
        }
        Some(found)
    }

    /// One refresh for all who wait, if one is due. `true` if the set at hand is from the latest question.
    ///
    /// Cancel safe: whoever gives up waiting stops nothing. Anybody can make a request and hang up, and if that ended the
    /// question, the next one would have to wait for [`REFRESH_EVERY`], again and again.
    async fn refresh_once(self: &Arc<Self>) -> bool {
        let alone = Arc::clone(&self.refreshing).lock_owned().await;
        if may_ask(&self.held()) {
            let cache = Arc::clone(self);
            let asking = tokio::spawn(async move {
                if let Err(error) = cache.refresh().await {
                    tracing::warn!(%error, "keeping the issuer's keys of before");
                }
                drop(alone);
            });
            // It does not panic; if it did, the keys at hand would be those of before.
            let _ = asking.await;
        }
        let held = self.held();
        held.fetched.zip(held.asked).is_some_and(|(fetched, asked)| fetched >= asked)
    }
}

fn may_ask(held: &Held) -> bool {
    held.asked.is_none_or(|asked| asked.elapsed() >= REFRESH_EVERY)
}

/// The usable keys of a set. Keys for other things than signing, or of kinds that are not accepted, are left out.
fn parse(document: &[u8]) -> Result<HashMap<String, SigningKey>, KeysError> {
    let wrong = |what: &str| KeysError::Set(what.to_owned());
    if document.len() > SET_BYTES_MAX {
        return Err(KeysError::Set(format!("longer than {SET_BYTES_MAX} bytes")));
    }
    let document: Value = serde_json::from_slice(document).map_err(|error| KeysError::Set(error.to_string()))?;
    let listed = document.get("keys").and_then(Value::as_array).ok_or_else(|| wrong("no list `keys`"))?;
    let mut keys = HashMap::new();
    for jwk in listed {
        // One by one: a key of a kind that is not known here must not cost the others.
        let Ok(jwk) = serde_json::from_value::<Jwk>(jwk.clone()) else { continue };
        let Some((kid, key)) = usable(&jwk) else { continue };
        if keys.len() == KEYS_MAX {
            return Err(KeysError::Set(format!("more than {KEYS_MAX} keys")));
        }
        if keys.insert(kid, key).is_some() {
            return Err(wrong("two keys with one `kid`"));
        }
    }
    if keys.is_empty() { Err(wrong("no RSA or P-256 signing key with a `kid`")) } else { Ok(keys) }
}

fn usable(jwk: &Jwk) -> Option<(String, SigningKey)> {
    let kid = jwk.common.key_id.clone().filter(|kid| kid.len() <= KID_BYTES_MAX)?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
        (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
        (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::PS256)) => Algorithm::PS256,
        (AlgorithmParameters::EllipticCurve(curve), None | Some(KeyAlgorithm::ES256))
            if curve.curve == EllipticCurve::P256 =>
        {
            Algorithm::ES256
        }
        _ => return None,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    // ring takes 2,048 to 8,192 bits; a key that can verify nothing is none.
    let sound = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => (256..=1024).contains(&n.len()),
        DecodingKeyKind::SecretOrDer(point) => point.len() == 65,
    };
    sound.then_some((kid, SigningKey { algorithm, key }))
}
