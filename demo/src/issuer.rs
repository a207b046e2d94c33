//! Who the demo's people are, and the tokens that say so.
//!
//! A real plant has an issuer (Cognito, or any OpenID provider); the demo has this. Its tokens look like Cognito's access
//! tokens: the client instead of an audience, `token_use`, scopes, groups. They are signed (ES256) with a key that is made at
//! each start and never leaves the memory of the demo; the tools get its public half as a key set (JWKS) in a file. So a
//! token of one demo opens nothing in the next, and nothing anywhere else. Each counts for [`LIFETIME`], which is a working
//! day of trying it out with one that was copied.
//!
//! It issues to whoever asks in this process and knows no passwords: nothing of it is for a plant.

use std::time::Duration;

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use floorgate_model::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

/// The issuer's name. It is no place on the net: its keys are in a file.
pub const ISSUER: &str = "https://issuer.floorgate-demo.invalid";
/// The client to which every token is issued.
pub const CLIENT_ID: &str = "floorgate-demo";
/// How long a token counts.
pub const LIFETIME: Duration = Duration::from_secs(8 * 3_600);
const KEY_ID: &str = "floorgate-demo-key";

/// Somebody with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    /// The subject of the token: budgets and status reads are counted by it.
    pub subject: &'static str,
    /// The name, which the commands carry.
    pub name: &'static str,
    /// The group, which the policies know.
    pub group: &'static str,
}

/// Plays in the acts: may read, recalibrate and configure.
pub const OPERATOR: Person = Person { subject: "demo-operator", name: "operator", group: OPERATORS };
/// Plays in the acts: may also reboot and set maintenance.
pub const SENIOR: Person = Person { subject: "demo-senior", name: "senior operator", group: SENIOR_OPERATORS };
/// Plays in the acts: an operator whose agent means too well.
pub const HASTY: Person = Person { subject: "demo-hasty", name: "hasty operator", group: OPERATORS };
/// For whoever tries the demo; what the acts did does not count against this one's budgets.
pub const YOUR_OPERATOR: Person = Person { subject: "your-operator", name: "your operator", group: OPERATORS };
/// The same, as a senior operator.
pub const YOUR_SENIOR: Person =
    Person { subject: "your-senior", name: "your senior operator", group: SENIOR_OPERATORS };

const OPERATORS: &str = "operators";
const SENIOR_OPERATORS: &str = "senior_operator";

impl Person {
    /// How the commands of this person name their issuer.
    #[must_use]
    pub fn issuer(&self) -> String {
        format!("{} ({})", self.name, self.subject)
    }
}

/// Signs tokens.
pub struct Issuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer with a new key.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new() -> Result<Self> {
        let random = SystemRandom::new();
        let failed = |_| anyhow!("the system has no randomness for a key");
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(failed)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random);
        Ok(Self { key: key.map_err(|error| anyhow!("the new key cannot be used: {error}"))?, random })
    }

    /// The public key, as issuers publish theirs (RFC 7517).
    #[must_use]
    pub fn key_set(&self) -> Value {
        // An uncompressed point: one byte that says so, then x and y.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID, "x": x, "y": y}]})
    }

    /// A token for this person, from `now` on.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn token(&self, person: &Person, now: Timestamp) -> Result<String> {
        let (issued, ends) = (now.as_seconds(), now.saturating_add(LIFETIME).as_seconds());
        let header = json!({"alg": "ES256", "kid": KEY_ID, "typ": "JWT"});
        let claims = json!({
            "iss": ISSUER, "sub": person.subject, "username": person.name, "client_id": CLIENT_ID, "token_use": "access",
            "scope": "iot/read iot/command", "cognito:groups": [person.group],
            "iat": issued, "auth_time": issued, "exp": ends,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&self.random, message.as_bytes());
        let signature = signature.map_err(|_| anyhow!("the system has no randomness for a signature"))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    fn decoded(part: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(part).unwrap()
    }

    #[test]
    fn the_key_set_verifies_the_tokens_of_its_own_issuer_alone() {
        let now = Timestamp::parse("2026-11-23T08:00:00Z").unwrap();
        let (issuer, other) = (Issuer::new().unwrap(), Issuer::new().unwrap());
        let token = issuer.token(&SENIOR, now).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let verified = |issuer: &Issuer| {
            let key = &issuer.key_set()["keys"][0];
            let coordinate = |name: &str| decoded(key[name].as_str().unwrap());
            let point = [vec![4], coordinate("x"), coordinate("y")].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message.as_bytes(), &decoded(signature))
        };
        assert!(verified(&issuer).is_ok());
        assert!(verified(&other).is_err(), "a key of another start must not count");

        let claims: Value = serde_json::from_slice(&decoded(message.split_once('.').unwrap().1)).unwrap();
        assert_eq!((&claims["sub"], &claims["cognito:groups"]), (&json!("demo-senior"), &json!(["senior_operator"])));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 8 * 3_600);
    }
}
