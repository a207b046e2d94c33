//! The door on AWS Lambda, for an AgentCore gateway's Lambda target.
//!
//! * [`event`]: one invocation as a call. The gateway sends the bare arguments and names the tool `target___tool` in the
//!   client context; the seed's `{name, arguments}` is taken too.
//! * [`interceptor`]: the other handler of the same program, which names the operator to the one that has the tools.
//! * [`runtime`]: the Runtime API over HTTP. Not by the `lambda_runtime` crate: it reads the client context into a map of
//!   texts before the handler sees it, so the nested objects that header propagation adds there would fail every
//!   invocation (docs/decisions/0023).
//!
//! One invocation at a time, as Lambda wants it. An answer is always valid JSON: a tool's error is an answer, not a failed
//! function, because the gateway hides the text of a failed one. Never run against AWS: the tests play the Runtime API.

mod event;
mod interceptor;
mod runtime;

use std::time::Duration;

use serde_json::{Value, json};
use tracing::{error, info};

pub use event::Reply;
pub use interceptor::run as intercept;
pub use runtime::RuntimeError;

use crate::error::{ToolError, code};
use crate::fleet::Fleet;
use event::Invocation;
use runtime::Runtime;

/// Kept of an invocation's time for the way back.
const ANSWER_TAKES: Duration = Duration::from_millis(500);

/// Largest answer, bytes: Lambda takes 6 MiB, and the gateway's copy of it is a text in JSON again.
const ANSWER_MAX: usize = 5 * 1024 * 1024;

/// What a deployment decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LambdaSettings {
    /// How a bare call is answered.
    pub reply: Reply,
    /// An interceptor of the gateway writes the operator's identity into propagated headers (`x-operator-id`, …) and
    /// removes what a client sent there. Without one these headers are anybody's words, and are not read.
    pub operator_headers: bool,
    /// A command needs a status read of the same device within five minutes before it.
    pub status_first: bool,
}

impl Default for LambdaSettings {
    fn default() -> Self {
        Self { reply: Reply::Plain, operator_headers: false, status_first: true }
    }
}

/// Serves invocations from the Runtime API at `host:port` until it goes away.
///
/// # Errors
/// [`RuntimeError`] if the Runtime API cannot be spoken with; Lambda then starts a new process.
pub async fn run(fleet: &Fleet, settings: LambdaSettings, api: &str) -> Result<(), RuntimeError> {
    let fleet = if settings.status_first { fleet.with_status_first() } else { fleet.clone() };
    serve(api, async |request| answer(&fleet, settings, request).await).await
}

/// One invocation after the other.
async fn serve(api: &str, answer: impl AsyncFn(runtime::Request) -> Value) -> Result<(), RuntimeError> {
    let runtime = Runtime::at(api);
    info!(api, "waiting for invocations");
    loop {
        let request = runtime.next().await?;
        let id = request.id.clone();
        let answer = answer(request).await;
        // Larger than Lambda takes, or the API refuses it: say that, so that the caller does not wait for nothing.
        if let Err(failure) = runtime.respond(&id, &answer).await {
            error!(%failure, "an answer was not taken");
            runtime.fail(&id, "the answer could not be given; ask for less").await?;
        }
    }
}

async fn answer(fleet: &Fleet, settings: LambdaSettings, request: runtime::Request) -> Value {
    let time = request.time_left().saturating_sub(ANSWER_TAKES);
    match Invocation::read(&request.body, request.client_context.as_deref(), settings) {
        Ok(Invocation { tool, arguments, caller, reply }) => {
            reply.wrap(fitting(fleet.call_within(&caller, &tool, arguments, time).await))
        }
        Err(refused) => {
            let (error, reply) = *refused;
            reply.wrap(Err(error))
        }
    }
}

/// An answer that Lambda would not take is an error that says what to do; a failed function says "try again".
fn fitting(answer: Result<Value, ToolError>) -> Result<Value, ToolError> {
    let size = answer.as_ref().map_or(0, |answer| answer.to_string().len());
    if size <= ANSWER_MAX {
        return answer;
    }
    let message = format!(
        "the answer has {size} bytes, and {ANSWER_MAX} is the most that can be given; ask for less: a smaller `limit`, one `metric`, \
         `points`, a shorter range"
    );
    Err(ToolError::new(code::RANGE_TOO_LARGE, message))
}

impl Reply {
    fn wrap(self, answer: Result<Value, ToolError>) -> Value {
        let is_error = answer.is_err();
        let plain = answer.unwrap_or_else(|error| error.to_json());
        match self {
            Self::Plain => plain,
            Self::Mcp => {
                let text = plain.to_string();
                json!({"isError": is_error, "content": [{"type": "text", "text": text}]})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_lambda_would_not_take_is_an_error_that_says_what_to_do() {
        let answer = |bytes: usize| fitting(Ok(Value::String("x".repeat(bytes - 2))));
        assert!(answer(ANSWER_MAX).is_ok());
        let error = answer(ANSWER_MAX + 1).unwrap_err();
        assert!(error.code == code::RANGE_TOO_LARGE && error.message.contains("`limit`"), "{error}");
    }
}
