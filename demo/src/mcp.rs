//! A small MCP client, as an agent has one: Streamable HTTP, a bearer token, tools.
//!
//! It knows of the server only what the protocol says (`initialize`, `tools/list`, `tools/call`) and shares no code with it.
//! It keeps no session, because revision 2025-11-25 allows a server to have none and this one has none; and it reads answers
//! that are one JSON document, not streams of events, which the specification lets a server choose. It retries nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::http;

/// The revision it speaks.
const REVISION: &str = "2025-11-25";
/// Longest wait for an answer: `send_command` itself may wait for 60 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// What a tool answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The tool did what it says.
    Told(Value),
    /// It did not: a denial of the policies, or the tool's own refusal.
    Refused(Refusal),
}

/// Why a tool was not permitted, or refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// For people and models.
    pub text: String,
    /// The tool's own fields (`error_code`, …); empty for a denial, which is plain text.
    pub fields: Map<String, Value>,
}

impl Refusal {
    fn read(text: &str) -> Self {
        let fields = serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default();
        let said = fields.get("error").and_then(Value::as_str).unwrap_or(text);
        Self { text: said.to_owned(), fields }
    }

    /// The tool's code, none for a denial.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.fields.get("error_code").and_then(Value::as_str)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{} [{code}]", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl Answer {
    /// What the tool told.
    ///
    /// # Errors
    /// It refused.
    pub fn told(self) -> Result<Value> {
        match self {
            Self::Told(told) => Ok(told),
            Self::Refused(refusal) => bail!("the tool refused: {refusal}"),
        }
    }

    /// Why the tool refused.
    ///
    /// # Errors
    /// It did not.
    pub fn refused(self) -> Result<Refusal> {
        match self {
            Self::Refused(refusal) => Ok(refusal),
            Self::Told(told) => bail!("the tool did not refuse, it answered {told}"),
        }
    }
}

/// A client of one server with one token.
pub struct Client {
    address: SocketAddr,
    bearer: String,
    numbers: AtomicU64,
}

impl std::fmt::Debug for Client {
    // Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects as the protocol says: `initialize`, then `notifications/initialized`.
    ///
    /// # Errors
    /// Nobody answers, the token does not count, or it is not floorgate's server.
    pub async fn connect(address: SocketAddr, token: &str) -> Result<Self> {
        let client = Self { address, bearer: format!("Bearer {token}"), numbers: AtomicU64::new(0) };
        let own = json!({"name": "floorgate-demo", "version": env!("CARGO_PKG_VERSION")});
        let about = json!({"protocolVersion": REVISION, "capabilities": {}, "clientInfo": own});
        let server = client.ask("initialize", &about).await?;
        let (name, revision) = (&server["serverInfo"]["name"], &server["protocolVersion"]);
        ensure!(name == "floorgate-fleet" && revision == REVISION, "{address} is {name} with MCP {revision}");
        let (status, _) = client.post(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await?;
        ensure!(status == 202, "the server answers {status} to `notifications/initialized`");
        Ok(client)
    }

    /// The names of the tools that this token could be permitted to call.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn tools(&self) -> Result<Vec<String>> {
        let listed = self.ask("tools/list", &json!({})).await?;
        let tools = listed["tools"].as_array().context("`tools/list` lists nothing")?;
        Ok(tools.iter().filter_map(|tool| Some(tool["name"].as_str()?.to_owned())).collect())
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// The server does not answer, or answers no result of a tool; a refusal is an [`Answer`].
    pub async fn call(&self, tool: &str, arguments: Value) -> Result<Answer> {
        let result = self.ask("tools/call", &json!({"name": tool, "arguments": arguments})).await?;
        if result["isError"] == true {
            let text = result["content"][0]["text"].as_str().context("an error without a text")?;
            return Ok(Answer::Refused(Refusal::read(text)));
        }
        let told = result.get("structuredContent").cloned();
        told.map(Answer::Told).with_context(|| format!("`{tool}` answered without structured content: {result}"))
    }

    async fn ask(&self, method: &str, parameters: &Value) -> Result<Value> {
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let question = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters});
        let (status, body) = self.post(&question).await?;
        let wrong = || format!("`{method}` was answered with {status}: {}", String::from_utf8_lossy(&body));
        let mut answer: Value = serde_json::from_slice(&body).with_context(wrong)?;
        ensure!(status == 200 && answer["id"] == id && answer["result"].is_object(), wrong());
        Ok(answer["result"].take())
    }

    async fn post(&self, message: &Value) -> Result<(u16, Vec<u8>)> {
        let headers = [
            ("authorization", self.bearer.as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-protocol-version", REVISION),
        ];
        let body = message.to_string().into_bytes();
        let answer = http::post(self.address, "/mcp", &headers, body, ANSWER_WITHIN).await;
        let answer = answer.map_err(|error| anyhow::anyhow!("the tools' server does not answer: {error}"))?;
        ensure!(
            !answer.content_type.starts_with("text/event-stream"),
            "the answer is a stream, which is not read here"
        );
        Ok((answer.status, answer.body.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_text_or_the_fields_of_the_tool() {
        let denial = Refusal::read("Tool Execution Denied [no policy]");
        assert_eq!((denial.code(), denial.to_string().as_str()), (None, "Tool Execution Denied [no policy]"));
        let own = Refusal::read(r#"{"error": "too many", "error_code": "RATE_LIMITED", "retry_after_seconds": 7}"#);
        assert_eq!((own.code(), own.to_string().as_str()), (Some("RATE_LIMITED"), "too many [RATE_LIMITED]"));
        assert_eq!(own.fields["retry_after_seconds"], 7);
        assert!(Answer::Refused(own).told().is_err());
        assert!(Answer::Told(json!({})).refused().is_err());
    }
}
