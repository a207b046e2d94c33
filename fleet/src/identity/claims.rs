//! What the claims of a token with a good signature must say, and the operator they name. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{CLOCK_SKEW_SECONDS, Refusal, SUBJECT_CHARS_MAX, tags};
use crate::Caller;
use crate::caller::is_seen;

/// The tag in which the policies find the operator's groups, as JSON text.
pub const GROUPS_TAG: &str = "cognito:groups";

/// What a token must say to count here.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// `iss`, to the letter.
    pub issuer: String,
    /// `aud` must contain one of these; empty where the issuer sets none, as Cognito does.
    pub audiences: Vec<String>,
    /// `client_id` (else `azp`) must be one of these; empty for any client of the issuer's.
    pub client_ids: Vec<String>,
    /// Whether the client alone decides, whomever `aud` names: where somebody else has judged for whom a token is.
    pub any_audience: bool,
    /// The claim that holds the operator's groups: `cognito:groups`, `groups`.
    pub groups_claim: String,
}

/// The verified person, or service, behind a request.
#[derive(Debug, Clone)]
pub struct Operator {
    /// As the tools know them.
    pub caller: Caller,
    /// Each claim as a string, as the policies know them.
    pub tags: BTreeMap<String, String>,
}

impl Operator {
    /// Whether the token carries a scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.caller.scopes.iter().any(|held| held == scope)
    }
}

impl Rules {
    /// The operator whom these claims name at `now` (seconds since 1970).
    pub(super) fn operator(&self, claims: &Map<String, Value>, now: i64) -> Result<Operator, Refusal> {
        if text(claims, "iss") != Some(self.issuer.as_str()) {
            return Err(Refusal::Invalid("the token is of another issuer"));
        }
        self.lives(claims, now)?;
        self.meant_for_us(claims)?;
        let subject = text(claims, "sub").filter(|subject| is_name(subject));
        let subject = subject.ok_or(Refusal::Invalid("the token names no subject"))?;
        let name = ["username", "cognito:username", "preferred_username", "email"];
        let name = name.iter().filter_map(|claim| text(claims, claim)).map(seen).find(|name| is_name(name));
        let groups = claims.get(&self.groups_claim).filter(|groups| !groups.is_null());
        let caller = Caller {
            subject: subject.to_owned(),
            name: name.unwrap_or_default(),
            groups: groups.into_iter().flat_map(list).filter(is_group).map(str::to_owned).collect(),
            scopes: ["scope", "scp"].iter().filter_map(|claim| claims.get(*claim)).find_map(words).unwrap_or_default(),
            client_id: client(claims).filter(|client| is_name(client)).unwrap_or_default().to_owned(),
        };
        let mut tags = tags::of(claims);
        // The policies ask one tag for groups, whichever claim this issuer has them in; nothing else may fill it. A token
        // without that claim has no such tag, as in AgentCore, so that `hasTag` decides the same here and there.
        tags.remove(GROUPS_TAG);
        if groups.is_some() {
            tags.insert(GROUPS_TAG.to_owned(), Value::from(caller.groups.clone()).to_string());
        }
        Ok(Operator { caller, tags })
    }

    fn lives(&self, claims: &Map<String, Value>, now: i64) -> Result<(), Refusal> {
        let seconds = |claim: &str| match claims.get(claim) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Refusal::Invalid("a time in the token is not a number")),
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in a float for 10^8 years")]
        let (now, skew) = (now as f64, CLOCK_SKEW_SECONDS as f64);
        let expires = seconds("exp")?.ok_or(Refusal::Invalid("the token has no expiry"))?;
        if now >= expires + skew {
            return Err(Refusal::Invalid("the token has expired"));
        }
        for claim in ["nbf", "iat"] {
            if seconds(claim)?.is_some_and(|from| from > now + skew) {
                return Err(Refusal::Invalid("the token is not valid yet"));
            }
        }
        Ok(())
    }

    fn meant_for_us(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        const OTHER: Refusal = Refusal::Invalid("the token was issued for another service");
        let token_use = claims.get("token_use");
        if token_use.is_some_and(|token_use| token_use != "access") {
            return Err(Refusal::Invalid("the token is no access token"));
        }
        let known_client = client(claims).is_some_and(|client| self.client_ids.iter().any(|known| known == client));
        if !self.client_ids.is_empty() && !known_client {
            return Err(Refusal::Invalid("the token was issued to a client that is not known here"));
        }
        let audience = claims.get("aud").filter(|aud| !aud.is_null());
        match audience {
            Some(_) if self.any_audience && known_client => Ok(()),
            // One that names somebody is for whom it names, whoever the client is.
            Some(audience) => {
                let ours = list(audience).any(|one| self.audiences.iter().any(|known| known == one));
                if ours { Ok(()) } else { Err(OTHER) }
            }
            // Cognito: the client stands for the audience, in a token that says itself that it is for access.
            None if known_client && token_use.is_some() => Ok(()),
            None => Err(OTHER),
        }
    }
}

/// The policies look for a group in the list's JSON text (`*"operators"*`), where a quote or a backslash in a name could
/// pass for the end of one. Such a group is not taken over; AgentCore's tags know no better.
fn is_group(name: &&str) -> bool {
    !name.contains(['"', '\\'])
}

fn text<'a>(claims: &'a Map<String, Value>, claim: &str) -> Option<&'a str> {
    claims.get(claim).and_then(Value::as_str)
}

fn client(claims: &Map<String, Value>) -> Option<&str> {
    text(claims, "client_id").or_else(|| text(claims, "azp"))
}

/// It goes into logs, records and topics' payloads, where a character that turns the direction of what follows, breaks a line or
/// takes no room makes one name look like another.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= SUBJECT_CHARS_MAX && name.chars().all(is_seen)
}

/// A name for people, without what nobody sees: some scripts join letters by such characters, and nothing is decided by it.
fn seen(name: &str) -> String {
    name.chars().filter(|c| is_seen(*c)).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &str> {
    let many = value.as_array().map(Vec::as_slice).unwrap_or_default();
    value.as_str().into_iter().chain(many.iter().filter_map(Value::as_str))
}

/// Scopes come as one string with spaces, or as a list; `null` says nothing.
fn words(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.split_ascii_whitespace().map(str::to_owned).collect()),
        value => Some(list(value).map(str::to_owned).collect()),
    }
}
