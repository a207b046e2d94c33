//! Who is asking: every HTTP request carries a bearer token, and this room says whose it is, or why it does not count.
//!
//! floorgate is a *resource server*: it never issues, stores, forwards or logs a token. [`Identity::verify`] takes the value
//! of the `Authorization` header and answers an [`Operator`]; everything that later names the operator (the `issuer` of a
//! command, the policies, the log) comes from there and from nowhere else, least of all from the request's body.
//!
//! # What a token must be
//!
//! 1. At most [`TOKEN_BYTES_MAX`] bytes, three parts, `alg` one of RS256, PS256, ES256 **and** the algorithm of the key it
//!    names; never one the token chooses. `typ` absent, `JWT` or `at+jwt`; no `crit`. `jku`, `x5u`, `jwk` are not looked at.
//! 2. Signed by a key of the issuer's key set with its `kid` ([`keys`]: bounded in size, age and how often it is asked for).
//! 3. `iss` exactly the configured issuer. `exp` present and not past, `nbf` and `iat` not in the future, each with
//!    [`CLOCK_SKEW_SECONDS`] of patience.
//! 4. For this server: `aud` contains one of the configured audiences; or, where there is no `aud`, as in Cognito's access
//!    tokens, `token_use` is `access` and `client_id` is one of the configured clients. Where clients are configured, `client_id`
//!    (else `azp`) must be one of them in any case. A `token_use` other than `access` is refused: an ID token is no key.
//! 5. `sub` present: 1 to [`SUBJECT_CHARS_MAX`] characters, each of which can be seen: no control characters, no line breaks, none
//!    that turn the direction of a text or take no room (U+202E, U+200B, U+2028). From a name for people such characters are
//!    taken out, and a client id that has one is not taken over: all three stand in logs and records.
//!
//! Scopes are checked by the door ([`Operator::has_scope`]): which one is needed depends on the tool.
//!
//! # What a token becomes
//!
//! A [`Caller`](crate::Caller) for the tools, and one string *tag* per claim for the policies, exactly as AgentCore makes them (`tags`), so
//! that one policy file decides the same here and there.
//!
//! # What it does not do
//!
//! No introspection, no opaque tokens, no revocation list: a token counts until it expires. Short lives are the issuer's job.
//! A client certificate (RFC 8705) or DPoP binding in a token is not checked.

mod claims;
mod fetch;
mod keys;
mod metadata;
mod signature;
mod tags;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};

pub use self::claims::{GROUPS_TAG, Operator, Rules};
pub use self::fetch::{Fetch, FetchError};
pub use self::keys::{KeyCache, KeySource, KeysError};
pub use self::metadata::{Challenge, Resource};

/// Longest token that is looked at. The largest groups claim seen in practice is 2 KiB; servers before us stop at 8 KiB of headers.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the issuer's clock and ours may be apart, in seconds.
pub const CLOCK_SKEW_SECONDS: i64 = 60;
/// Longest `sub`; OpenID Connect Core §2 allows 255.
pub const SUBJECT_CHARS_MAX: usize = 255;

/// The time of day in seconds since 1970; a function, so that tests set it.
pub type Now = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Why a request has no operator. The texts go to the client: they name the fault, never the token's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Authorization` header: the client learns where to get a token.
    #[error("a bearer token is required")]
    Missing,
    /// A header that cannot be one bearer token.
    #[error("{0}")]
    Malformed(&'static str),
    /// A token that does not count.
    #[error("{0}")]
    Invalid(&'static str),
    /// A good token without the scope that this request needs.
    #[error("the scope {0} is required")]
    Scope(String),
    /// The issuer's keys cannot be had, so nothing can be checked.
    #[error("the issuer's keys are not available; try again later")]
    Unavailable,
}

/// Checks tokens of one issuer.
pub struct Identity {
    rules: Rules,
    keys: Arc<KeyCache>,
    now: Now,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Identity {
    /// Tokens as `rules` want them, signed by a key of `keys`, at the time `now` tells.
    pub fn new(rules: Rules, keys: Arc<KeyCache>, now: Now) -> Self {
        signature::install();
        Self { rules, keys, now }
    }

    /// Whose request this is, from the values of its `Authorization` headers.
    ///
    /// May ask the issuer for its keys, which takes at most [`fetch::TIMEOUT`]. Cancel safe.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing of the request may be acted upon then.
    pub async fn verify(&self, authorization: &[&[u8]]) -> Result<Operator, Refusal> {
        let token = bearer(authorization)?;
        let header = decode_header(token).map_err(|_| Refusal::Invalid("the token is not a signed JWT"))?;
        if !signature::ALGORITHMS.contains(&header.alg) {
            return Err(Refusal::Invalid("the token's algorithm is not accepted"));
        }
        if header.crit.is_some() || !header.typ.as_deref().is_none_or(is_token_type) {
            return Err(Refusal::Invalid("the token is of a type that is not accepted"));
        }
        let kid = header.kid.as_deref().ok_or(Refusal::Invalid("the token names no key"))?;
        let key = self.keys.find(kid).await?;
        if key.algorithm != header.alg {
            return Err(Refusal::Invalid("the token's algorithm is not its key's"));
        }
        // The signature alone: jsonwebtoken would take the time from the system, and knows one kind of audience.
        let mut validation = Validation::new(key.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let decoded = decode::<Map<String, Value>>(token, &key.key, &validation);
        let claims = decoded.map_err(|_| Refusal::Invalid("the token's signature does not hold"))?.claims;
        self.rules.operator(&claims, (self.now)())
    }
}

fn is_token_type(typ: &str) -> bool {
    let typ = typ.strip_prefix("application/").unwrap_or(typ);
    typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("at+jwt")
}

/// The one token of a request's `Authorization` headers.
fn bearer<'a>(authorization: &[&'a [u8]]) -> Result<&'a str, Refusal> {
    let value = match authorization {
        [] => return Err(Refusal::Missing),
        [one] => *one,
        _ => return Err(Refusal::Malformed("more than one Authorization header")),
    };
    // `Bearer ` and the token.
    if value.len() > TOKEN_BYTES_MAX + 7 {
        return Err(Refusal::Malformed("the token is too long"));
    }
    let text = std::str::from_utf8(value).map_err(|_| Refusal::Malformed("the Authorization header is not text"))?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::Missing);
    }
    let token = token.trim_matches(' ');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '+' | '/' | '=');
    if token.is_empty() || !token.chars().all(plain) {
        return Err(Refusal::Malformed("the Authorization header holds no bearer token"));
    }
    Ok(token)
}
