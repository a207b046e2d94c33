//! Tokens that count and tokens that do not, keys that change, issuers that vanish.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::{CLIENT, ISSUER, NOW, Signer, claims, cognito, identity, with};
use super::*;

async fn verify(identity: &Identity, token: &str) -> Result<Operator, Refusal> {
    identity.verify(&[format!("Bearer {token}").as_bytes()]).await
}

fn reason(result: Result<Operator, Refusal>) -> String {
    result.map(|operator| operator.caller.subject).unwrap_err().to_string()
}

#[tokio::test]
async fn a_cognito_access_token_names_its_operator() {
    let signer = Signer::new("k1");
    let (identity, _) = identity(cognito(), &signer);
    let operator = verify(&identity, &signer.token(&claims(&["operators"]))).await.unwrap();
    assert_eq!(operator.caller.subject, "6f1c2f4e-0000-4000-8000-000000000001");
    assert_eq!(operator.caller.name, "operator-7");
    assert_eq!(operator.caller.groups, ["operators"]);
    assert_eq!(operator.caller.client_id, CLIENT);
    assert!(operator.has_scope("iot/read") && operator.has_scope("iot/command") && !operator.has_scope("iot"));
}

#[tokio::test]
async fn claims_become_tags_as_agentcore_makes_them() {
    let signer = Signer::new("k1");
    let (identity, _) = identity(cognito(), &signer);
    let odd = json!({"custom:shift": 3, "mfa": true, "nothing": Value::Null, "address": {"floor": 1}, "ratio": 0.5});
    let mut odd = with(claims(&["operators", "senior_operator"]), &odd);
    odd["nothing"] = Value::Null;
    let tags = verify(&identity, &signer.token(&odd)).await.unwrap().tags;
    assert_eq!(tags["cognito:groups"], r#"["operators","senior_operator"]"#);
    assert_eq!(tags["exp"], (NOW + 3_600).to_string());
    assert_eq!((tags["mfa"].as_str(), tags["custom:shift"].as_str(), tags["ratio"].as_str()), ("true", "3", "0.5"));
    assert_eq!(tags["address"], r#"{"floor":1}"#);
    assert!(!tags.contains_key("nothing"));
}

#[tokio::test]
async fn groups_of_another_claim_fill_the_policies_tag_and_nothing_else_does() {
    let signer = Signer::new("k1");
    let rules = Rules { groups_claim: "groups".to_owned(), ..cognito() };
    let (identity, _) = identity(rules, &signer);
    let forged = with(claims(&["senior_operator"]), &json!({"groups": ["operators"]}));
    let operator = verify(&identity, &signer.token(&forged)).await.unwrap();
    assert_eq!(operator.tags[GROUPS_TAG], r#"["operators"]"#);
    assert_eq!(operator.caller.groups, ["operators"]);
}

#[tokio::test]
async fn without_a_groups_claim_there_is_no_groups_tag_as_in_agentcore() {
    let signer = Signer::new("k1");
    let elsewhere = Rules { groups_claim: "groups".to_owned(), ..cognito() };
    for (rules, changes, tag) in [
        (cognito(), json!({"cognito:groups": []}), Some("[]")),
        (cognito(), json!({"cognito:groups": null}), None),
        (elsewhere.clone(), json!({"cognito:groups": ["senior_operator"]}), None),
        (elsewhere, json!({"cognito:groups": null, "groups": []}), Some("[]")),
    ] {
        let (identity, _) = identity(rules, &signer);
        let operator = verify(&identity, &signer.token(&with(claims(&[]), &changes))).await.unwrap();
        assert_eq!(operator.tags.get(GROUPS_TAG).map(String::as_str), tag, "{changes}");
        assert!(operator.caller.groups.is_empty());
    }
    let (identity, _) = identity(cognito(), &signer);
    let mut said_null = claims(&["operators"]);
    said_null["cognito:groups"] = Value::Null;
    assert!(!verify(&identity, &signer.token(&said_null)).await.unwrap().tags.contains_key(GROUPS_TAG));
}

#[tokio::test]
async fn what_nobody_sees_in_a_name_goes_into_no_log_and_no_record() {
    let signer = Signer::new("k1");
    let rules = Rules { audiences: vec!["https://fleet.example/mcp".to_owned()], client_ids: Vec::new(), ..cognito() };
    let (identity, _) = identity(rules, &signer);
    let ours = with(claims(&["operators"]), &json!({"aud": "https://fleet.example/mcp"}));
    for unseen in ["\u{202e}", "\u{200b}", "\u{2028}", "\u{2029}", "\u{feff}", "\u{2066}", "\u{ad}", "\n", "\u{85}"] {
        let odd = format!("a{unseen}b");
        let token = signer.token(&with(ours.clone(), &json!({"sub": odd})));
        assert!(reason(verify(&identity, &token).await).contains("names no subject"), "{unseen:?}");
        let named = with(ours.clone(), &json!({"username": odd, "client_id": odd}));
        let caller = verify(&identity, &signer.token(&named)).await.unwrap().caller;
        assert_eq!((caller.name.as_str(), caller.client_id.as_str()), ("ab", ""), "{unseen:?}");
    }
    let blank = with(ours.clone(), &json!({"username": "\u{200b}\u{202e}", "email": "kim@plant.example"}));
    assert_eq!(verify(&identity, &signer.token(&blank)).await.unwrap().caller.name, "kim@plant.example");
    let written = with(ours, &json!({"sub": "Žofie 張偉 😀", "username": "می‌خواهم"}));
    let caller = verify(&identity, &signer.token(&written)).await.unwrap().caller;
    assert_eq!((caller.subject.as_str(), caller.name.as_str()), ("Žofie 張偉 😀", "میخواهم"));
}

#[tokio::test]
async fn a_scope_of_null_hides_no_list_of_scopes() {
    let signer = Signer::new("k1");
    let (identity, _) = identity(cognito(), &signer);
    for (scope, scp, held) in [
        (Some(Value::Null), Some(json!(["iot/read"])), true),
        (None, Some(json!("iot/read iot/command")), true),
        (Some(json!("iot/read")), Some(Value::Null), true),
        (Some(json!("openid")), Some(json!(["iot/read"])), false),
        (Some(Value::Null), Some(Value::Null), false),
        (None, None, false),
    ] {
        let mut token = with(claims(&[]), &json!({"scope": null}));
        let object = token.as_object_mut().unwrap();
        object.extend(scope.map(|scope| ("scope".to_owned(), scope)));
        object.extend(scp.map(|scp| ("scp".to_owned(), scp)));
        let operator = verify(&identity, &signer.token(&token)).await.unwrap();
        assert_eq!(operator.has_scope("iot/read"), held, "{token}");
    }
}

/// What is wrong with a token, what its claims are, and what its sender is told.
fn faults() -> Vec<(&'static str, Value, &'static str)> {
    let wrong = |changes: Value| with(claims(&["operators"]), &changes);
    let several = "issued for another service";
    vec![
        ("another issuer", wrong(json!({"iss": "https://evil.example"})), "another issuer"),
        ("a longer issuer", wrong(json!({"iss": format!("{ISSUER}.evil.example")})), "another issuer"),
        ("no issuer", wrong(json!({"iss": null})), "another issuer"),
        ("expired", wrong(json!({"exp": NOW - 60})), "expired"),
        ("no expiry", wrong(json!({"exp": null})), "no expiry"),
        ("an expiry as text", wrong(json!({"exp": "never"})), "not a number"),
        ("not yet", wrong(json!({"nbf": NOW + 61})), "not valid yet"),
        ("from the future", wrong(json!({"iat": NOW + 61})), "not valid yet"),
        ("an ID token", wrong(json!({"token_use": "id", "aud": CLIENT, "client_id": null})), "no access token"),
        ("a token use that is no text", wrong(json!({"token_use": ["access"]})), "no access token"),
        ("another client", wrong(json!({"client_id": "other"})), "client"),
        ("no client", wrong(json!({"client_id": null})), "client"),
        ("no token use and no audience", wrong(json!({"token_use": null})), several),
        ("no subject", wrong(json!({"sub": null})), "no subject"),
        ("an empty subject", wrong(json!({"sub": ""})), "no subject"),
        ("a subject that is two log lines", wrong(json!({"sub": "a\nb"})), "no subject"),
        ("a subject without end", wrong(json!({"sub": "x".repeat(256)})), "no subject"),
    ]
}

#[tokio::test]
async fn a_token_with_one_fault_names_nobody() {
    let signer = Signer::new("k1");
    let (identity, _) = identity(cognito(), &signer);
    for (fault, claims, said) in faults() {
        let reason = reason(verify(&identity, &signer.token(&claims)).await);
        assert!(reason.contains(said), "{fault}: {reason}");
    }
}

#[tokio::test]
async fn the_skew_of_a_minute_is_granted_and_not_a_second_more() {
    let signer = Signer::new("k1");
    let (identity, _) = identity(cognito(), &signer);
    for (changes, counts) in [
        (json!({"exp": NOW - 59}), true),
        (json!({"exp": NOW - 60}), false),
        (json!({"nbf": NOW + 60, "iat": NOW + 60}), true),
        (json!({"nbf": NOW + 61}), false),
    ] {
        let token = signer.token(&with(claims(&[]), &changes));
        assert_eq!(verify(&identity, &token).await.is_ok(), counts, "{changes}");
    }
}

#[tokio::test]
async fn where_audiences_are_configured_the_token_is_for_one_of_them() {
    let signer = Signer::new("k1");
    let resource = "https://fleet.example/mcp";
    let rules = Rules { audiences: vec![resource.to_owned()], client_ids: Vec::new(), ..cognito() };
    let (identity, _) = identity(rules, &signer);
    let generic = with(claims(&[]), &json!({"token_use": null, "client_id": null}));
    for (audience, counts) in [
        (json!(resource), true),
        (json!(["https://other.example", resource]), true),
        (json!("https://other.example"), false),
        (json!("https://fleet.example/mcp/"), false),
        (json!([]), false),
        (json!({"0": resource}), false),
        (Value::Null, false),
    ] {
        let token = signer.token(&with(generic.clone(), &json!({"aud": audience})));
        assert_eq!(verify(&identity, &token).await.is_ok(), counts, "{audience}");
    }
}

#[tokio::test]
async fn a_known_client_and_a_foreign_audience_do_not_make_a_token_ours() {
    let signer = Signer::new("k1");
    let rules = Rules { audiences: vec!["https://fleet.example/mcp".to_owned()], ..cognito() };
    let (identity, _) = identity(rules, &signer);
    let token = signer.token(&with(claims(&[]), &json!({"aud": "https://billing.example"})));
    assert!(reason(verify(&identity, &token).await).contains("another service"));
    let token = signer.token(&claims(&[]));
    assert!(verify(&identity, &token).await.is_ok(), "Cognito sets no audience");
}

#[tokio::test]
async fn an_audience_counts_also_where_none_is_configured() {
    let signer = Signer::new("k1");
    let (strict, _) = identity(cognito(), &signer);
    let (behind, _) = identity(Rules { any_audience: true, ..cognito() }, &signer);
    let billing = with(claims(&[]), &json!({"aud": "https://billing.example"}));
    assert!(reason(verify(&strict, &signer.token(&billing)).await).contains("another service"));
    assert!(verify(&behind, &signer.token(&billing)).await.is_ok(), "a gateway before us has judged it");
    let stranger = signer.token(&with(billing, &json!({"client_id": "other"})));
    assert!(verify(&behind, &stranger).await.is_err());
}

#[tokio::test]
async fn a_group_whose_name_could_pass_for_another_is_not_taken_over() {
    let signer = Signer::new("k1");
    let (identity, _) = identity(cognito(), &signer);
    let odd = claims(&["x\"senior_operator", "senior_operator\\", "operators"]);
    let operator = verify(&identity, &signer.token(&odd)).await.unwrap();
    assert_eq!(
        (operator.caller.groups, operator.tags[GROUPS_TAG].as_str()),
        (vec!["operators".to_owned()], r#"["operators"]"#)
    );
}

#[tokio::test]
async fn what_is_no_signed_token_of_an_accepted_kind_is_refused() {
    let signer = Signer::new("k1");
    let (identity, published) = identity(cognito(), &signer);
    let claims = claims(&["operators"]);
    let good = signer.token(&claims);
    let sign = |header: Value| signer.sign(&header, &claims);
    let stranger = Signer::new("k1").token(&claims);
    let (head, tail) = good.rsplit_once('.').unwrap();
    let tampered = format!("{}x.{tail}", head.strip_suffix(|_: char| true).unwrap());
    for (fault, token) in [
        ("no algorithm", sign(json!({"alg": "none", "kid": "k1"}))),
        ("HMAC with the public key", sign(json!({"alg": "HS256", "kid": "k1"}))),
        ("the algorithm of another key", sign(json!({"alg": "RS256", "kid": "k1"}))),
        ("an algorithm that is not accepted", sign(json!({"alg": "ES384", "kid": "k1"}))),
        ("no key", sign(json!({"alg": "ES256"}))),
        ("a critical extension", sign(json!({"alg": "ES256", "kid": "k1", "crit": ["b64"], "b64": false}))),
        ("another type", sign(json!({"alg": "ES256", "kid": "k1", "typ": "logout+jwt"}))),
        ("a stranger's key of the same name", stranger),
        ("changed claims", tampered),
        ("no signature", format!("{head}.")),
        ("two parts", head.to_owned()),
        ("four parts", format!("{good}.x")),
        ("no parts", "x".to_owned()),
    ] {
        assert!(verify(&identity, &token).await.is_err(), "{fault}");
    }
    for typ in [json!("JWT"), json!("at+jwt"), json!("application/at+JWT")] {
        assert!(verify(&identity, &sign(json!({"alg": "ES256", "kid": "k1", "typ": typ}))).await.is_ok(), "{typ}");
    }
    assert!(published.asked() <= 1, "none of these is a reason to ask the issuer again");
}

#[tokio::test]
async fn a_header_that_is_not_one_bearer_token_is_refused_before_it_is_parsed() {
    let signer = Signer::new("k1");
    let (identity, published) = identity(cognito(), &signer);
    let good = format!("bearer  {}", signer.token(&claims(&[])));
    assert_eq!(identity.verify(&[]).await.unwrap_err(), Refusal::Missing);
    assert_eq!(identity.verify(&[b"Basic b3A6cHc="]).await.unwrap_err(), Refusal::Missing);
    let long = format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX + 1));
    for header in ["Bearer", "Bearer ", "Bearer a b", "Bearer a,b", "Bearer \u{e9}", long.as_str()] {
        let refusal = identity.verify(&[header.as_bytes()]).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Malformed(_)), "{header:.20}: {refusal}");
    }
    let twice = identity.verify(&[good.as_bytes(), good.as_bytes()]).await.unwrap_err();
    assert!(matches!(twice, Refusal::Malformed(_)));
    assert_eq!(published.asked(), 0);
    assert!(identity.verify(&[good.as_bytes()]).await.is_ok());
}

#[tokio::test]
async fn rsa_tokens_of_another_implementation_are_verified() {
    let vector: Value = serde_json::from_str(include_str!("rsa.test.json")).unwrap();
    for (alg, field, other) in [("RS256", "rs256", "ps256"), ("PS256", "ps256", "rs256")] {
        let (identity, published) = identity(cognito(), &Signer::new("unused"));
        published.publish(&[json!({"kty": "RSA", "kid": "rsa-1", "alg": alg, "e": "AQAB", "n": vector["n"]})]);
        let token = vector[field].as_str().unwrap();
        assert_eq!(verify(&identity, token).await.unwrap().caller.name, "operator-7");
        assert!(reason(verify(&identity, vector[other].as_str().unwrap()).await).contains("not its key's"));
        let (head, _) = token.rsplit_once('.').unwrap();
        let (_, wrong) = vector[other].as_str().unwrap().rsplit_once('.').unwrap();
        assert!(reason(verify(&identity, &format!("{head}.{wrong}")).await).contains("signature"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_asked_for_once_and_a_flood_of_unknown_ones_every_ten_seconds() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let (identity, published) = identity(cognito(), &old);
    verify(&identity, &old.token(&claims(&[]))).await.unwrap();
    assert_eq!(published.asked(), 1);
    published.publish(&[old.jwk(), new.jwk()]);
    // The issuer was asked just now.
    assert!(reason(verify(&identity, &new.token(&claims(&[]))).await).contains("does not have"));
    tokio::time::advance(keys::REFRESH_EVERY).await;
    verify(&identity, &new.token(&claims(&[]))).await.unwrap();
    assert_eq!(published.asked(), 2);
    for stranger in 0..1_000 {
        let stranger = Signer::new(&format!("k{stranger}"));
        assert!(verify(&identity, &stranger.token(&claims(&[]))).await.is_err());
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!((11..=12).contains(&published.asked()), "{} questions in 100 s", published.asked());
}

/// An issuer whose answers take a second.
struct Slow(Arc<testing::Published>);

impl KeySource for Slow {
    fn fetch(&self) -> futures_util::future::BoxFuture<'_, Result<Vec<u8>, KeysError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            testing::Source(Arc::clone(&self.0)).fetch().await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_does_not_take_the_question_for_new_keys_with_it() {
    let signer = Signer::new("k1");
    let published = Arc::new(testing::Published::default());
    published.publish(&[signer.jwk()]);
    let keys = Arc::new(KeyCache::new(Box::new(Slow(Arc::clone(&published)))));
    let identity = Identity::new(cognito(), keys, Arc::new(|| NOW));
    let stranger = Signer::new("k2").token(&claims(&[]));
    for _ in 0..20 {
        let given_up = tokio::time::timeout(Duration::from_millis(10), verify(&identity, &stranger)).await;
        assert!(given_up.is_err());
    }
    assert!(verify(&identity, &signer.token(&claims(&["operators"]))).await.is_ok());
    assert_eq!(published.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn old_keys_count_for_a_day_when_the_issuer_is_gone_and_then_nobody_gets_in() {
    let signer = Signer::new("k1");
    let (identity, published) = identity(cognito(), &signer);
    let token = signer.token(&claims(&[]));
    verify(&identity, &token).await.unwrap();
    *published.document.lock().unwrap() = None;
    tokio::time::advance(keys::AGE_MAX.checked_sub(Duration::from_secs(1)).unwrap()).await;
    verify(&identity, &token).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(verify(&identity, &token).await.unwrap_err(), Refusal::Unavailable);
    published.publish(&[signer.jwk()]);
    tokio::time::advance(keys::REFRESH_EVERY).await;
    verify(&identity, &token).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_of_an_unreachable_issuer_is_not_called_unknown() {
    let signer = Signer::new("k1");
    let (identity, published) = identity(cognito(), &signer);
    *published.document.lock().unwrap() = None;
    let token = signer.token(&claims(&[]));
    assert_eq!(verify(&identity, &token).await.unwrap_err(), Refusal::Unavailable);
    assert_eq!(verify(&identity, &token).await.unwrap_err(), Refusal::Unavailable);
    assert_eq!(published.asked(), 1, "ten seconds between two questions, failed ones too");
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_key_counts_for_ten_minutes_and_one_request() {
    let (gone, kept) = (Signer::new("gone"), Signer::new("kept"));
    let (identity, published) = identity(cognito(), &gone);
    let token = gone.token(&claims(&[]));
    verify(&identity, &token).await.unwrap();
    published.publish(&[kept.jwk()]);
    tokio::time::advance(keys::FRESH_FOR).await;
    verify(&identity, &token).await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(verify(&identity, &token).await.is_err());
    verify(&identity, &kept.token(&claims(&[]))).await.unwrap();
}

#[tokio::test]
async fn a_key_set_that_is_none_or_too_large_lets_nobody_in() {
    let signer = Signer::new("k1");
    let mut encryption = signer.jwk();
    encryption["use"] = json!("enc");
    let mut other_curve = signer.jwk();
    other_curve["crv"] = json!("P-384");
    let many: Vec<_> = (0..=keys::KEYS_MAX).map(|n| with(signer.jwk(), &json!({"kid": format!("k{n}")}))).collect();
    let weak = json!({"kty": "RSA", "kid": "k1", "alg": "RS256", "e": "AQAB", "n": "AAEC"});
    let long = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(keys::SET_BYTES_MAX));
    for (what, document) in [
        ("not JSON", "<html>".to_owned()),
        ("no keys", json!({"keys": []}).to_string()),
        ("a key to encrypt with", json!({"keys": [encryption]}).to_string()),
        ("a curve of another name", json!({"keys": [other_curve]}).to_string()),
        ("two of one name", json!({"keys": [signer.jwk(), signer.jwk()]}).to_string()),
        ("too many", json!({"keys": many}).to_string()),
        ("an RSA key of 24 bits", json!({"keys": [weak]}).to_string()),
        ("too long", long),
    ] {
        let (identity, published) = identity(cognito(), &signer);
        *published.document.lock().unwrap() = Some(document.into_bytes());
        let refusal = verify(&identity, &signer.token(&claims(&[]))).await.unwrap_err();
        assert_eq!(refusal, Refusal::Unavailable, "{what}");
    }
}

#[tokio::test]
async fn a_key_of_an_unknown_kind_does_not_cost_the_others() {
    let signer = Signer::new("k1");
    let (identity, published) = identity(cognito(), &signer);
    published.publish(&[json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA"}), signer.jwk()]);
    assert!(verify(&identity, &signer.token(&claims(&[]))).await.is_ok());
}

#[tokio::test]
async fn only_https_and_loopback_are_asked() {
    for address in ["http://idp.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "idp.example", ""] {
        let source = Fetch::address(address, None).unwrap();
        let error = source.fetch().await.unwrap_err().to_string();
        assert!(error.contains("no https address"), "{address}: {error}");
    }
    for (host, loopback) in
        [("localhost", true), ("127.8.8.8", true), ("[::1]", true), ("localhost.evil.example", false)]
    {
        assert_eq!(fetch::is_loopback(host), loopback, "{host}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_says_nothing_is_waited_for_five_seconds() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/keys", listener.local_addr().unwrap());
    let began = tokio::time::Instant::now();
    let fetch = Fetch::address(&address, None).unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(600), fetch.fetch()).await.expect("it gives up by itself");
    assert!(asked.unwrap_err().to_string().contains("within 5 s"));
    assert_eq!(began.elapsed(), fetch::TIMEOUT);
}

#[test]
fn a_refusal_tells_the_client_where_tokens_come_from() {
    let resource = Resource {
        url: "https://fleet.example/mcp".to_owned(),
        issuer: ISSUER.to_owned(),
        scopes: vec!["iot/read".to_owned(), "iot/command".to_owned()],
    };
    let metadata = "resource_metadata=\"https://fleet.example/.well-known/oauth-protected-resource/mcp\"";
    let paths = ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"];
    assert_eq!(resource.paths(), paths);
    assert_eq!(resource.document()["authorization_servers"], json!([ISSUER]));
    let said = |refusal: Refusal| {
        let challenge = resource.challenge(&refusal);
        (challenge.status, challenge.authenticate.unwrap_or_default())
    };
    assert_eq!(said(Refusal::Missing), (401, format!("Bearer {metadata}, scope=\"iot/read\"")));
    let (status, header) = said(Refusal::Invalid("the token has expired"));
    assert_eq!(status, 401);
    assert!(header.starts_with("Bearer error=\"invalid_token\"") && header.contains(metadata), "{header}");
    let (status, header) = said(Refusal::Scope("iot/command".to_owned()));
    assert_eq!(status, 403);
    assert!(header.contains("error=\"insufficient_scope\"") && header.contains("scope=\"iot/command\""), "{header}");
    assert_eq!(said(Refusal::Malformed("x")).0, 400);
    assert_eq!(said(Refusal::Unavailable), (503, String::new()));
}

proptest! {
    #[test]
    fn no_header_however_strange_is_anything_but_refused(header in proptest::collection::vec(any::<u8>(), 0..200)) {
        let signer = Signer::new("k1");
        let (identity, published) = identity(cognito(), &signer);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bearer = [b"Bearer ".as_slice(), &header].concat();
        prop_assert!(runtime.block_on(identity.verify(&[&header])).is_err());
        prop_assert!(runtime.block_on(identity.verify(&[&bearer])).is_err());
        prop_assert_eq!(published.asked(), 0);
    }

    #[test]
    fn a_token_with_any_byte_changed_is_refused(at in 0usize..400, to in proptest::char::range('0', 'z')) {
        let signer = Signer::new("k1");
        let (identity, _) = identity(cognito(), &signer);
        let token = signer.token(&claims(&["operators"]));
        let mut changed: Vec<char> = token.chars().collect();
        let at = at % changed.len();
        // The last sign of a part carries bits that decode to nothing.
        prop_assume!(changed[at] != to && changed.get(at + 1).is_some_and(|next| *next != '.'));
        changed[at] = to;
        let changed: String = changed.into_iter().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        prop_assert!(runtime.block_on(verify(&identity, &changed)).is_err());
    }
}
