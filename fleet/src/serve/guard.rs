//! What a request must pass before MCP sees it, in this order: whose it is, how many there are, how large it is, what it may be
//! about. Which page it comes from was looked at before ([`super::pages`]).
//!
//! | what | answer |
//! |---|---|
//! | no token, a bad one, too little scope | 401, 400, 403 with `WWW-Authenticate` ([`crate::identity`]) |
//! | more than [`REQUESTS_MAX`] requests in hand | 503, `Retry-After` |
//! | more than [`OPERATOR_REQUESTS_MAX`] of one operator in hand | 429, `Retry-After` |
//! | a body over [`BODY_BYTES_MAX`] | 413 |
//! | a body that takes over [`BODY_WITHIN`] | 408 |
//! | a body that is no JSON, or no object | 400 with JSON-RPC error -32700, -32600 |
//! | an answer that takes over [`ANSWER_WITHIN`] | 504 |
//!
//! Only who has a token holds one of the places, and holds it until its tool is at its end: also when the client has hung up
//! or was told 504, because a tool that was begun may run on ([`Place`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{any, get};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::mcp::{FleetService, named};
use crate::identity::{Identity, Operator, Refusal, Resource};

/// Largest request body. The largest command is 8 KiB.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long a body may take to arrive.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How long a body that is not wanted is waited for, so that its connection can be used again.
pub(super) const UNREAD_WITHIN: Duration = Duration::from_secs(1);
/// How long an answer may take; the longest wait of a tool is 60 s.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// Requests in hand at once.
pub(super) const REQUESTS_MAX: usize = 256;
/// Requests in hand at once of one operator.
pub(super) const OPERATOR_REQUESTS_MAX: usize = 16;

type Mcp = StreamableHttpService<FleetService, NeverSessionManager>;

pub(super) struct Guard {
    pub(super) identity: Identity,
    pub(super) resource: Resource,
    pub(super) read_scope: Option<String>,
    pub(super) command_scope: Option<String>,
    pub(super) in_hand: Arc<InHand>,
}

/// How many requests are in hand, in all and of whom.
pub(super) struct InHand {
    all: Arc<Semaphore>,
    of: Mutex<HashMap<String, usize>>,
}

impl Default for InHand {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(REQUESTS_MAX)), of: Mutex::default() }
    }
}

/// The place of a request in hand; given back when the last copy is dropped. It goes with the request to the tool.
#[derive(Clone)]
pub(super) struct Place {
    _held: Arc<(OwnedSemaphorePermit, Counted)>,
}

/// One request of an operator's, counted until it is dropped.
struct Counted(Arc<InHand>, String);

impl InHand {
    /// A place for a request of this operator, or what to say instead.
    fn place(self: &Arc<Self>, subject: &str) -> Result<Place, Box<Response>> {
        let all = Arc::clone(&self.all).try_acquire_owned();
        let all = all.map_err(|_| Box::new(busy(StatusCode::SERVICE_UNAVAILABLE, "too many requests in hand")))?;
        let said = "too many requests of this operator in hand";
        let own = self.count(subject).ok_or_else(|| Box::new(busy(StatusCode::TOO_MANY_REQUESTS, said)))?;
        Ok(Place { _held: Arc::new((all, own)) })
    }

    fn count(self: &Arc<Self>, subject: &str) -> Option<Counted> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of.entry(subject.to_owned()).or_default();
        if *count >= OPERATOR_REQUESTS_MAX {
            return None;
        }
        *count += 1;
        Some(Counted(Arc::clone(self), subject.to_owned()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut of = self.0.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                of.remove(&self.1);
            }
        }
    }
}

pub(super) fn router(guard: Guard, mcp: Mcp) -> Router {
    let mut router = Router::new();
    for path in guard.resource.paths() {
        let document = guard.resource.document();
        router = router.route(&path, get(move || std::future::ready(json_answer(StatusCode::OK, &document))));
    }
    let shared = Arc::new((guard, mcp));
    router.route("/healthz", get(|| std::future::ready("ok"))).route("/mcp", any(receive)).with_state(shared)
}

pub(super) fn answer(status: StatusCode, kind: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    answer(status, "application/json", body.to_string())
}

fn busy(status: StatusCode, said: &str) -> Response {
    let mut response = answer(status, "text/plain; charset=utf-8", said.to_owned());
    response.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("1"));
    response
}

fn rpc_error(code: i64, message: &str) -> Response {
    let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}});
    json_answer(StatusCode::BAD_REQUEST, &error)
}

/// As much of a body as decides which scope it needs. A body that hides it from this look meets the same check in `mcp`.
#[derive(Deserialize)]
struct Glance {
    method: Option<String>,
    params: Option<GlanceParams>,
}

#[derive(Deserialize)]
struct GlanceParams {
    name: Option<String>,
}

impl Guard {
    fn refused(&self, refusal: &Refusal) -> Response {
        let challenge = self.resource.challenge(refusal);
        let status = StatusCode::from_u16(challenge.status).unwrap_or(StatusCode::UNAUTHORIZED);
        let mut response = json_answer(status, &json!({"error": refusal.to_string()}));
        if let Some(value) = challenge.authenticate.and_then(|said| said.parse().ok()) {
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("10"));
        }
        response
    }

    async fn operator(&self, headers: &HeaderMap) -> Result<Operator, Refusal> {
        let values: Vec<&[u8]> = headers.get_all(AUTHORIZATION).iter().map(http::HeaderValue::as_bytes).collect();
        let operator = self.identity.verify(&values).await?;
        match &self.read_scope {
            Some(scope) if !operator.has_scope(scope) => Err(Refusal::Scope(scope.clone())),
            _ => Ok(operator),
        }
    }

    /// The scope that the body needs and the operator does not have.
    fn missing_scope(&self, operator: &Operator, glance: &Glance) -> Option<Refusal> {
        let scope = self.command_scope.as_ref()?;
        let name = glance.params.as_ref()?.name.as_deref()?;
        let changes = named(name).is_some_and(|tool| !tool.annotations.read_only_hint);
        let called = glance.method.as_deref() == Some("tools/call");
        (called && changes && !operator.has_scope(scope)).then(|| Refusal::Scope(scope.clone()))
    }
}

async fn receive(State(shared): State<Arc<(Guard, Mcp)>>, request: Request<Body>) -> Response {
    let (guard, mcp) = &*shared;
    let (mut parts, body) = request.into_parts();
    let operator = match guard.operator(&parts.headers).await {
        Ok(operator) => operator,
        Err(refusal) => {
            tracing::debug!(%refusal, "a request without a good token");
            return unread(body, guard.refused(&refusal)).await;
        }
    };
    let place = match guard.in_hand.place(&operator.caller.subject) {
        Ok(place) => place,
        Err(said) => return unread(body, *said).await,
    };
    let body = match read(body).await {
        Ok(body) => body,
        Err(response) => return closing(response),
    };
    if parts.method == Method::POST {
        match glance(&body) {
            Ok(Some(seen)) => {
                if let Some(refusal) = guard.missing_scope(&operator, &seen) {
                    return guard.refused(&refusal);
                }
            }
            Ok(None) => {}
            Err(response) => return *response,
        }
    }
    // The token has done its work; nothing behind this line sees it.
    parts.headers.remove(AUTHORIZATION);
    parts.extensions.insert(operator);
    parts.extensions.insert(place);
    let request = Request::from_parts(parts, http_body_util::Full::new(body));
    let mut mcp = mcp.clone();
    match tokio::time::timeout(ANSWER_WITHIN, mcp.call(request)).await {
        Ok(Ok(response)) => response.map(Body::new),
        Err(_) => answer(StatusCode::GATEWAY_TIMEOUT, "text/plain; charset=utf-8", "no answer in time".to_owned()),
    }
}

/// An answer to a request whose body nobody wants. It is read all the same, briefly: a connection that is closed on unread bytes
/// may take the answer with it, and a client that keeps it for the next request would find it gone.
pub(super) async fn unread(body: Body, response: Response) -> Response {
    let read = tokio::time::timeout(UNREAD_WITHIN, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    if matches!(read, Ok(Ok(_))) { response } else { closing(response) }
}

fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("close"));
    response
}

async fn read(body: Body) -> Result<Bytes, Response> {
    let text = |status, said: &str| answer(status, "text/plain; charset=utf-8", said.to_owned());
    let collected = tokio::time::timeout(BODY_WITHIN, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match collected {
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"))
        }
        Ok(Err(_)) => Err(text(StatusCode::BAD_REQUEST, "the body cannot be read")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// What a body is about, if it shows; an error if it is no JSON object.
fn glance(body: &[u8]) -> Result<Option<Glance>, Box<Response>> {
    match serde_json::from_slice::<Value>(body) {
        Err(_) => Err(Box::new(rpc_error(-32_700, "Parse error: the body is not JSON"))),
        Ok(Value::Object(object)) => Ok(Glance::deserialize(Value::Object(object)).ok()),
        Ok(_) => Err(Box::new(rpc_error(-32_600, "Invalid request: one JSON-RPC message a body, no batches"))),
    }
}
