//! The door from outside: requests over HTTP, tools that only remember what reached them.

mod bounds;
mod matrix;
mod pages;
mod protocol;
mod tls;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::identity::testing::{NOW, Published, Signer, Source, claims, cognito};

/// By whom, which tool, with what.
type Called = (Caller, String, Map<String, Value>);

/// Tools that write down who called what, and answer what they are told to.
#[derive(Default)]
pub(super) struct Recorder {
    calls: Mutex<Vec<Called>>,
    answers: Mutex<Vec<Result<Value, ToolError>>>,
    takes: Mutex<Duration>,
    running: Arc<AtomicUsize>,
}

/// A tool at work; however it ends, it is counted off.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Recorder {
    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(super) fn calls(&self) -> Vec<Called> {
        self.calls.lock().unwrap().clone()
    }
}

impl ToolCalls for Recorder {
    fn call<'a>(
        &'a self,
        caller: &'a Caller,
        tool: &'a str,
        arguments: Map<String, Value>,
    ) -> BoxFuture<'a, Result<Value, ToolError>> {
        self.calls.lock().unwrap().push((caller.clone(), tool.to_owned(), arguments));
        let takes = *self.takes.lock().unwrap();
        let answer = self.answers.lock().unwrap().pop().unwrap_or_else(|| Ok(json!({"tool": tool})));
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.running));
        Box::pin(async move {
            let _running = running;
            tokio::time::sleep(takes).await;
            answer
        })
    }
}

pub(super) fn config() -> ServeConfig {
    ServeConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        url: None,
        tls: None,
        rules: cognito(),
        keys: Keys::Discovery,
        issuer_ca: None,
        read_scope: Some("iot/read".to_owned()),
        command_scope: Some("iot/command".to_owned()),
        allowed_origins: vec!["https://console.example".to_owned()],
        policies: None,
        gateway_arn: "arn:aws:bedrock-agentcore:us-east-1:123456789012:gateway/test-0123456789".to_owned(),
    }
}

/// A server without sockets, its issuer, and its tools.
pub(super) struct Fixture {
    pub(super) signer: Signer,
    pub(super) tools: Arc<Recorder>,
    pub(super) server: Server,
}

pub(super) async fn fixture(config: ServeConfig) -> Fixture {
    let signer = Signer::new("k1");
    let published = Arc::new(Published::default());
    published.publish(&[signer.jwk()]);
    let tools = Arc::new(Recorder::default());
    let calls: Arc<dyn ToolCalls> = Arc::clone(&tools) as _;
    let server = Server::bind_with(config, Box::new(Source(published)), calls, Arc::new(|| NOW)).await.unwrap();
    Fixture { signer, tools, server }
}

impl Fixture {
    pub(super) fn token(&self, groups: &[&str]) -> String {
        self.signer.token(&claims(groups))
    }

    pub(super) async fn send(&self, request: Request<Body>) -> (StatusCode, http::HeaderMap, Vec<u8>) {
        let response = self.server.door.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
    }

    /// A message in the revision with `initialize`, as a client sends it after that.
    pub(super) async fn rpc(&self, token: &str, message: &Value) -> (StatusCode, Value) {
        let request = post(Some(token)).header("mcp-protocol-version", "2025-11-25");
        let (status, _, body) = self.send(request.body(Body::from(message.to_string())).unwrap()).await;
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    pub(super) async fn call(&self, token: &str, tool: &str, arguments: &Value) -> (StatusCode, Value) {
        self.rpc(token, &tool_call(tool, arguments)).await
    }
}

pub(super) fn tool_call(tool: &str, arguments: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

pub(super) fn post(token: Option<&str>) -> http::request::Builder {
    let request = Request::post("/mcp").header("host", "127.0.0.1").header("content-type", "application/json");
    let request = request.header("accept", "application/json, text/event-stream");
    match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    }
}

/// Text of a tool result, and whether it is an error.
pub(super) fn result(answer: &Value) -> (bool, String) {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    (answer["result"]["isError"] == true, text)
}
