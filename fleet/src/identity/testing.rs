//! An issuer for tests: a key made on the spot, tokens as asked for, and a key set that can be changed or made unreachable.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::{Identity, KeyCache, KeySource, KeysError, Operator, Rules};

/// The time at which all tests take place, in seconds since 1970.
pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const ISSUER: &str = "https://cognito-idp.us-east-1.amazonaws.com/us-east-1_EXAMPLE";
pub(crate) const CLIENT: &str = "7client";

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// One signing key of the issuer.
pub(crate) struct Signer {
    pub(crate) kid: String,
    pair: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new(kid: &str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        Self { kid: kid.to_owned(), pair }
    }

    pub(crate) fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": encode(&point[1..33]), "y": encode(&point[33..65])})
    }

    /// A token with this header and these claims, signed as ES256 whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature))
    }

    /// A token as the issuer makes them.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"}), claims)
    }
}

/// The claims of an operator's access token, as Cognito makes them.
pub(crate) fn claims(groups: &[&str]) -> Value {
    json!({"iss": ISSUER, "sub": "6f1c2f4e-0000-4000-8000-000000000001", "client_id": CLIENT, "token_use": "access",
        "scope": "iot/read iot/command", "username": "operator-7", "cognito:groups": groups, "auth_time": NOW - 60,
        "iat": NOW - 60, "exp": NOW + 3_600})
}

/// `base` with some claims changed; `null` removes one.
pub(crate) fn with(mut base: Value, changes: &Value) -> Value {
    for (claim, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => base.as_object_mut().unwrap().remove(claim),
            value => base.as_object_mut().unwrap().insert(claim.clone(), value.clone()),
        };
    }
    base
}

/// The issuer's key set, as a test sets it. `None`: the issuer does not answer.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) document: Mutex<Option<Vec<u8>>>,
    pub(crate) asked: AtomicUsize,
}

impl Published {
    pub(crate) fn publish(&self, keys: &[Value]) {
        *self.document.lock().unwrap() = Some(json!({"keys": keys}).to_string().into_bytes());
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

pub(crate) struct Source(pub(crate) Arc<Published>);

impl KeySource for Source {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, KeysError>> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let document = self.0.document.lock().unwrap().clone();
        Box::pin(async move { document.ok_or_else(|| KeysError::Source("unreachable".to_owned())) })
    }
}

pub(crate) fn cognito() -> Rules {
    Rules {
        issuer: ISSUER.to_owned(),
        audiences: Vec::new(),
        client_ids: vec![CLIENT.to_owned()],
        any_audience: false,
        groups_claim: "cognito:groups".to_owned(),
    }
}

/// An identity room that trusts `signer`, at [`NOW`].
pub(crate) fn identity(rules: Rules, signer: &Signer) -> (Identity, Arc<Published>) {
    let published = Arc::new(Published::default());
    published.publish(&[signer.jwk()]);
    let keys = Arc::new(KeyCache::new(Box::new(Source(Arc::clone(&published)))));
    (Identity::new(rules, keys, Arc::new(|| NOW)), published)
}

impl Rules {
    /// The operator of these claims, without a token around them.
    pub(crate) fn for_tests(&self, claims: Value) -> Operator {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        self.operator(&claims, NOW).unwrap()
    }
}
