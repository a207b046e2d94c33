//! A REQUEST interceptor of an AgentCore gateway: who asks is told to the function with the tools.
//!
//! By itself a gateway tells a Lambda target nothing of the caller. It does hand a target those headers that the target
//! allows, also where an interceptor wrote them. So this one
//!
//! 1. refuses a request that brings a header of these names itself: what comes from a client is nobody's word, however the
//!    gateway joins a client's headers with an interceptor's;
//! 2. verifies the bearer token again, as the MCP server does ([`crate::identity`]): nothing rests on the order in which a
//!    gateway does things, and a gateway that was set up without an authorizer lets nobody in;
//! 3. demands the scope `iot/command` for a tool that changes something, which a gateway can demand only for all or none;
//! 4. passes the request on as it came, with `x-operator-id` (the token's `sub`) and, where there is one that fits into a
//!    header, `x-operator-name`. No groups and scopes: the gateway's policies judge those, and Lambda's client context has
//!    no room for them (3,583 bytes).
//!
//! Everything else is answered in the gateway's place with a status and a JSON-RPC error, and reaches no tool: a token that
//! does not count, headers that are not passed on (`passRequestHeaders`), an event of another shape. Shapes are those of
//! AWS's pages (`interceptorInputVersion` 1.0); it was never run against AWS.

use http::StatusCode;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::event::{OPERATOR_ID, OPERATOR_NAME, SEPARATOR};
use super::{RuntimeError, serve};
use crate::caller::is_seen;
use crate::identity::{Identity, Refusal};
use crate::tools;

/// Headers that only an interceptor writes begin so.
const OPERATOR: &str = "x-operator-";
/// The version of the gateway's words that this speaks.
const VERSION: &str = "1.0";
/// JSON-RPC's number for a refusal of a server's own.
const REFUSED: i64 = -32_001;

/// The scope that a tool needs which changes something.
const COMMAND_SCOPE: &str = "iot/command";

/// Serves invocations from the Runtime API at `host:port` until it goes away.
///
/// # Errors
/// [`RuntimeError`] if the Runtime API cannot be spoken with; Lambda then starts a new process.
pub async fn run(identity: &Identity, api: &str) -> Result<(), RuntimeError> {
    serve(api, async |request| intercepted(identity, &request.body).await).await
}

/// Why a request goes no further.
struct Stop {
    status: StatusCode,
    why: String,
}

/// The interceptor's word on one event. Cancel safe.
async fn intercepted(identity: &Identity, event: &[u8]) -> Value {
    let event: Value = serde_json::from_slice(event).unwrap_or_default();
    let request = &event["mcp"]["gatewayRequest"];
    let body = request.get("body").cloned().unwrap_or_default();
    let word = match headers(identity, request).await {
        Ok(headers) => json!({"transformedGatewayRequest": {"headers": headers, "body": body}}),
        Err(Stop { status, why }) => {
            warn!(status = status.as_u16(), why, "refused");
            let error = json!({"code": REFUSED, "message": why});
            let body = json!({"jsonrpc": "2.0", "id": body.get("id").cloned().unwrap_or_default(), "error": error});
            json!({"transformedGatewayResponse": {"statusCode": status.as_u16(), "body": body}})
        }
    };
    json!({"interceptorOutputVersion": VERSION, "mcp": word})
}

/// The request's headers with those that name its operator.
async fn headers(identity: &Identity, request: &Value) -> Result<Map<String, Value>, Stop> {
    let stop = |status, why: &str| Stop { status, why: why.to_owned() };
    let Some(given) = request.get("headers").and_then(Value::as_object) else {
        return Err(stop(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the gateway does not pass its request's headers to the interceptor",
        ));
    };
    // A prefix by bytes: a name may hold anything.
    let names_an_operator = |name: &str| {
        name.trim()
            .as_bytes()
            .get(..OPERATOR.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(OPERATOR.as_bytes()))
    };
    if given.keys().any(|name| names_an_operator(name)) {
        return Err(stop(StatusCode::FORBIDDEN, "a client may not name the operator: leave x-operator-… out"));
    }
    let tokens = given.iter().filter(|(name, _)| name.trim().eq_ignore_ascii_case("authorization"));
    let tokens: Vec<&[u8]> = tokens.map(|(_, value)| value.as_str().unwrap_or_default().as_bytes()).collect();
    let operator = identity.verify(&tokens).await.map_err(|refusal| {
        let status = match refusal {
            Refusal::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Scope(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        Stop { status, why: refusal.to_string() }
    })?;
    if changes(&request["body"]) && !operator.has_scope(COMMAND_SCOPE) {
        let refusal = Refusal::Scope(COMMAND_SCOPE.to_owned());
        return Err(Stop { status: StatusCode::FORBIDDEN, why: refusal.to_string() });
    }
    let caller = operator.caller;
    if !fits_a_header(&caller.subject) {
        return Err(stop(StatusCode::FORBIDDEN, "the token's subject has characters that no header can carry"));
    }
    let mut headers = given.clone();
    headers.insert(OPERATOR_ID.to_owned(), caller.subject.as_str().into());
    if fits_a_header(&caller.name) {
        headers.insert(OPERATOR_NAME.to_owned(), caller.name.as_str().into());
    }
    info!(operator = caller.issuer(), client = caller.client_id, method = loggable(&request["body"]), "passed on");
    Ok(headers)
}

/// Whether a body calls a tool that changes something; also one of several messages, should a gateway take them.
fn changes(body: &Value) -> bool {
    let called = |message: &Value| {
        let tool = message["params"]["name"].as_str().unwrap_or_default();
        let tool = tools::find(tool.split_once(SEPARATOR).map_or(tool, |(_, tool)| tool));
        message["method"] == "tools/call" && tool.is_some_and(|tool| !tool.annotations.read_only_hint)
    };
    called(body) || body.as_array().is_some_and(|messages| messages.iter().any(called))
}

/// As it is, and not by being read another way at the other end: visible ASCII, spaces only inside.
fn fits_a_header(text: &str) -> bool {
    !text.is_empty() && text == text.trim() && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

fn loggable(body: &Value) -> String {
    let method = body["method"].as_str().unwrap_or_default();
    method.chars().filter(|c| is_seen(*c)).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{Signer, claims, cognito, identity, with};

    /// As AWS's page on interceptors has it.
    fn event(headers: &Value) -> Value {
        json!({"interceptorInputVersion": "1.0", "mcp": {"rawGatewayRequest": {"body": "…"}, "gatewayRequest": {
            "path": "/mcp", "httpMethod": "POST", "headers": headers,
            "body": {"jsonrpc": "2.0", "id": 7, "method": "tools/call",
                "params": {"name": "IoTDeviceTools___send_command", "arguments": {"device_id": "A", "command": "reboot"}}}}}})
    }

    async fn word(headers: Value) -> Value {
        let signer = Signer::new("k1");
        let token = signer.token(&claims(&["operators"]));
        let headers = headers.to_string().replace("TOKEN", &token);
        let (identity, _) = identity(cognito(), &signer);
        let event = event(&serde_json::from_str(&headers).unwrap());
        intercepted(&identity, event.to_string().as_bytes()).await
    }

    fn stopped(word: &Value) -> u64 {
        assert!(word["mcp"].get("transformedGatewayRequest").is_none(), "{word}");
        word["mcp"]["transformedGatewayResponse"]["statusCode"].as_u64().unwrap()
    }

    #[tokio::test]
    async fn a_request_goes_on_as_it_came_with_the_operator_of_its_token() {
        let word = word(json!({"Authorization": "Bearer TOKEN", "Mcp-Protocol-Version": "2025-11-25"})).await;
        assert_eq!(word["interceptorOutputVersion"], "1.0");
        let passed = &word["mcp"]["transformedGatewayRequest"];
        assert_eq!(passed["body"], event(&json!({}))["mcp"]["gatewayRequest"]["body"]);
        let headers = passed["headers"].as_object().unwrap();
        assert_eq!(headers["x-operator-id"], "6f1c2f4e-0000-4000-8000-000000000001");
        assert_eq!((&headers["x-operator-name"], headers.len()), (&json!("operator-7"), 4));
        assert_eq!(headers["Mcp-Protocol-Version"], "2025-11-25");
        assert!(word["mcp"].get("transformedGatewayResponse").is_none());
    }

    #[tokio::test]
    async fn a_client_that_names_an_operator_itself_gets_no_further() {
        for name in ["x-operator-id", "X-Operator-Id", "X-OPERATOR-NAME", "x-operator-groups", " x-operator-id"] {
            let refused = word(json!({"Authorization": "Bearer TOKEN", name: "boss"})).await;
            assert_eq!(stopped(&refused), 403, "{name}");
        }
    }

    #[tokio::test]
    async fn a_request_without_a_token_that_counts_gets_no_further() {
        for headers in [
            json!({}),
            json!({"Authorization": "Bearer x.y.z"}),
            json!({"Authorization": "TOKEN"}),
            json!({"Authorization": 7}),
            json!({"Authorization": "Bearer TOKENx"}),
            json!({"Authorization": "Bearer TOKEN", "authorization": "Bearer TOKEN"}),
        ] {
            let refused = word(headers.clone()).await;
            assert_eq!(stopped(&refused), 401, "{headers}");
            let body = &refused["mcp"]["transformedGatewayResponse"]["body"];
            assert_eq!(
                (&body["id"], &body["jsonrpc"], &body["error"]["code"]),
                (&json!(7), &json!("2.0"), &json!(-32_001))
            );
        }
        assert_eq!(stopped(&word(Value::Null).await), 500);
    }

    #[tokio::test]
    async fn a_command_needs_its_scope_and_reading_does_not() {
        let signer = Signer::new("k1");
        let (identity, _) = identity(cognito(), &signer);
        let token = signer.token(&with(claims(&["operators"]), &json!({"scope": "iot/read"})));
        let ask = async |body: Value| {
            let mut event = event(&json!({"Authorization": format!("Bearer {token}")}));
            event["mcp"]["gatewayRequest"]["body"] = body;
            intercepted(&identity, event.to_string().as_bytes()).await
        };
        let call = |tool: &str| json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}});
        for body in [call("IoTDeviceTools___send_command"), call("send_command"), json!([call("send_command")])] {
            assert_eq!(stopped(&ask(body.clone()).await), 403, "{body}");
        }
        for body in [call("IoTDeviceTools___list_devices"), json!({"method": "tools/list"}), Value::Null] {
            assert!(ask(body).await["mcp"].get("transformedGatewayRequest").is_some());
        }
    }

    #[tokio::test]
    async fn an_event_of_another_shape_or_an_issuer_that_is_away_lets_nobody_through() {
        let signer = Signer::new("k1");
        let (identity, published) = identity(cognito(), &signer);
        for event in ["", "no json", "[]", "{}", "{\"mcp\":7}", "{\"http\":{\"gatewayRequest\":{\"headers\":{}}}}"] {
            assert_eq!(stopped(&intercepted(&identity, event.as_bytes()).await), 500, "{event}");
        }
        *published.document.lock().unwrap() = None;
        let token = signer.token(&claims(&["operators"]));
        let event = event(&json!({"Authorization": format!("Bearer {token}")}));
        assert_eq!(stopped(&intercepted(&identity, event.to_string().as_bytes()).await), 503);
    }

    #[tokio::test]
    async fn a_name_that_no_header_can_carry_is_left_out_and_such_a_subject_refused() {
        let signer = Signer::new("k1");
        let (identity, _) = identity(cognito(), &signer);
        let ask = async |changes: &Value| {
            let token = signer.token(&with(claims(&["operators"]), changes));
            let event = event(&json!({"Authorization": format!("Bearer {token}")}));
            intercepted(&identity, event.to_string().as_bytes()).await
        };
        let named = ask(&json!({"username": "Jürgen"})).await;
        let headers = &named["mcp"]["transformedGatewayRequest"]["headers"];
        assert!(headers.get("x-operator-name").is_none() && headers.get("x-operator-id").is_some(), "{named}");
        for subject in ["Jürgen", " boss", "boss "] {
            assert_eq!(stopped(&ask(&json!({ "sub": subject })).await), 403, "{subject:?}");
        }
    }
}
