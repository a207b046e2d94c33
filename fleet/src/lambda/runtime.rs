//! Lambda's Runtime API: the next invocation, its answer or its failure.
//!
//! HTTP/1.1 to an address inside the sandbox, a connection for each request: an invocation has three hops more than that,
//! and a connection that slept through a frozen sandbox cannot be trusted.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Largest event, bytes: Lambda's own limit.
const EVENT_MAX: usize = 6 * 1024 * 1024;
/// An invocation without a deadline has so long.
const TIME_DEFAULT: Duration = Duration::from_secs(20);
const VERSION: &str = "2018-06-01";

/// The Runtime API cannot be spoken with.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answers, or not in HTTP.
    #[error("the Runtime API at {api} does not answer: {reason}")]
    Unreachable {
        /// Its address.
        api: String,
        /// What happened.
        reason: String,
    },
    /// It answers with a refusal.
    #[error("the Runtime API refuses {what}: {status}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// Its word.
        status: StatusCode,
    },
}

/// The Runtime API.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    api: String,
}

/// One invocation.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) client_context: Option<String>,
    /// When Lambda gives up, milliseconds since the epoch.
    deadline_ms: Option<i64>,
}

impl Request {
    /// How long Lambda still waits.
    pub(super) fn time_left(&self) -> Duration {
        let Some(deadline) = self.deadline_ms else { return TIME_DEFAULT };
        let left = deadline.saturating_sub(jiff::Timestamp::now().as_millisecond());
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }
}

impl Runtime {
    pub(super) fn at(api: &str) -> Self {
        Self { api: api.to_owned() }
    }

    /// Waits, as long as it takes, for the next invocation.
    pub(super) async fn next(&self) -> Result<Request, RuntimeError> {
        let answer = self.send("GET", "invocation/next", Bytes::new()).await?;
        if !answer.status().is_success() {
            return Err(RuntimeError::Refused { what: "the next invocation", status: answer.status() });
        }
        let header =
            |name: &str| answer.headers().get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let id = header("lambda-runtime-aws-request-id").unwrap_or_default().to_owned();
        let client_context = header("lambda-runtime-client-context").map(str::to_owned);
        let deadline_ms = header("lambda-runtime-deadline-ms").and_then(|text| text.parse().ok());
        let body = Limited::new(answer.into_body(), EVENT_MAX).collect().await;
        let body = body.map_err(|error| self.unreachable(error))?.to_bytes();
        Ok(Request { id, body, client_context, deadline_ms })
    }

    /// Gives an answer.
    pub(super) async fn respond(&self, id: &str, answer: &Value) -> Result<(), RuntimeError> {
        self.post(&format!("invocation/{id}/response"), answer, "an answer").await
    }

    /// Says that there is no answer.
    pub(super) async fn fail(&self, id: &str, message: &str) -> Result<(), RuntimeError> {
        let failure = json!({"errorMessage": message, "errorType": "AnswerNotTaken", "stackTrace": []});
        self.post(&format!("invocation/{id}/error"), &failure, "a failure").await
    }

    async fn post(&self, path: &str, body: &Value, what: &'static str) -> Result<(), RuntimeError> {
        let answer = self.send("POST", path, Bytes::from(body.to_string())).await?;
        if answer.status().is_success() { Ok(()) } else { Err(RuntimeError::Refused { what, status: answer.status() }) }
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> RuntimeError {
        RuntimeError::Unreachable { api: self.api.clone(), reason: reason.to_string() }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Response<hyper::body::Incoming>, RuntimeError> {
        let stream = TcpStream::connect(&self.api).await.map_err(|error| self.unreachable(error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.unreachable(error))?;
        // Ends with the body of the answer, or with the peer.
        tokio::spawn(connection);
        let request = HttpRequest::builder()
            .method(method)
            .uri(format!("/{VERSION}/runtime/{path}"))
            .header("host", &self.api)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.unreachable(error))?;
        sender.send_request(request).await.map_err(|error| self.unreachable(error))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_event_larger_than_lambdas_own_limit_is_not_read() {
        for (size, fits) in [(EVENT_MAX, true), (EVENT_MAX + 1, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let runtime = Runtime::at(&listener.local_addr().unwrap().to_string());
            let api = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4_096]).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                // The reader may hang up before all of it is written.
                let _ = stream.write_all(&vec![b' '; size]).await;
            };
            let (next, ()) = tokio::join!(runtime.next(), api);
            assert_eq!(next.is_ok(), fits, "{size}");
        }
    }
}
