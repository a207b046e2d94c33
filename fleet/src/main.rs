//! `floorgate-fleet`: the doors to the fleet's tools.
//!
//! Exit codes: 0; 1 failure (`call`: the tool answered an error); 64 usage; 78 configuration.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use floorgate_fleet::lambda::{LambdaSettings, Reply};
use floorgate_fleet::serve::{ServeArguments, ServeError, TokenArguments};
use floorgate_fleet::settings::Settings;
use floorgate_fleet::{call, lambda, serve, tools};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

const FAILURE: u8 = 1;
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

#[derive(Debug, Parser)]
#[command(name = "floorgate-fleet", version, about = "The doors to the fleet's tools")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Call one tool: floorgate-fleet call get_device_status device_id=SENSOR-LINE7-PRESS-001
    Call {
        /// Its name, as `schema` lists it.
        tool: String,
        /// key=value; parameters.NAME=value for a command's parameters.
        arguments: Vec<String>,
    },
    /// Serve as an AWS Lambda function (AWS_LAMBDA_RUNTIME_API), a target of an AgentCore gateway.
    Lambda {
        /// Answer bare calls with MCP's {isError, content} instead of the plain JSON.
        #[arg(long, env = "FLOORGATE_MCP_REPLY")]
        mcp_reply: bool,
        /// An interceptor of the gateway writes the operator into x-operator-id, -name, -groups, -scopes.
        #[arg(long, env = "FLOORGATE_OPERATOR_HEADERS")]
        operator_headers: bool,
        /// Take a command also without a status read of the same device within the five minutes before it.
        #[arg(long, env = "FLOORGATE_WITHOUT_STATUS_FIRST")]
        without_status_first: bool,
    },
    /// Serve as a REQUEST interceptor of an AgentCore gateway: it names the operator to the function with the tools.
    Interceptor(Box<TokenArguments>),
    /// Serve the tools to MCP clients over HTTP, for operators with a token of the issuer's.
    Serve(Box<ServeArguments>),
    /// Print the tools with their schemas, as JSON.
    Schema {
        /// As `toolSchema.inlinePayload` of an AgentCore Lambda target.
        #[arg(long)]
        agentcore: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let task = match Arguments::try_parse() {
        Ok(arguments) => arguments.task,
        Err(error) => {
            // Help and version are no failures, and go to standard output.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match task {
        Task::Call { tool, arguments } => call_once(&tool, &arguments).await,
        Task::Lambda { mcp_reply, operator_headers, without_status_first } => {
            let reply = if mcp_reply { Reply::Mcp } else { Reply::Plain };
            serve_lambda(LambdaSettings { reply, operator_headers, status_first: !without_status_first }).await
        }
        Task::Interceptor(tokens) => serve_interceptor(*tokens).await,
        Task::Serve(arguments) => serve_mcp(*arguments).await,
        Task::Schema { agentcore } => {
            let tools = if agentcore {
                tools::agentcore()
            } else {
                serde_json::to_value(tools::definitions()).unwrap_or_default()
            };
            print(&tools)
        }
    }
}

/// A pipe that was closed is not worth a panic.
fn print(value: &Value) -> ExitCode {
    match writeln!(std::io::stdout(), "{value:#}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILURE),
    }
}

fn failed(code: u8, error: impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "floorgate-fleet: {error}");
    ExitCode::from(code)
}

fn log_to_stderr(json: bool, default: &str) {
    let filter = EnvFilter::try_from_env("FLOORGATE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}

async fn call_once(tool: &str, words: &[String]) -> ExitCode {
    log_to_stderr(false, "error");
    let arguments = match call::arguments(tool, words) {
        Ok(arguments) => arguments,
        Err(error) => return failed(USAGE, error),
    };
    let fleet = match Settings::from_environment() {
        Ok(settings) => settings.fleet().await,
        Err(error) => Err(error),
    };
    match fleet {
        Err(error) => failed(CONFIGURATION, error),
        Ok(fleet) => match fleet.call(&call::caller(), tool, arguments).await {
            Ok(answer) => print(&answer),
            Err(error) => {
                print(&error.to_json());
                ExitCode::from(FAILURE)
            }
        },
    }
}

/// Where Lambda's Runtime API is.
fn runtime_api() -> Result<String, &'static str> {
    let missing = "AWS_LAMBDA_RUNTIME_API is not set; `lambda` and `interceptor` run inside AWS Lambda";
    std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(|_| missing)
}

async fn serve_interceptor(tokens: TokenArguments) -> ExitCode {
    log_to_stderr(true, "info");
    let now = Arc::new(|| jiff::Timestamp::now().as_second());
    match (runtime_api(), tokens.identity(now)) {
        (Err(error), _) => failed(CONFIGURATION, error),
        (_, Err(error)) => failed(CONFIGURATION, error),
        (Ok(api), Ok(identity)) => match lambda::intercept(&identity, &api).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(FAILURE, error),
        },
    }
}

async fn serve_lambda(settings: LambdaSettings) -> ExitCode {
    log_to_stderr(true, "info");
    let api = match runtime_api() {
        Ok(api) => api,
        Err(error) => return failed(CONFIGURATION, error),
    };
    let fleet = match Settings::from_environment() {
        Ok(settings) => settings.fleet().await,
        Err(error) => Err(error),
    };
    match fleet {
        Err(error) => failed(CONFIGURATION, error),
        Ok(fleet) => match lambda::run(&fleet, settings, &api).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(FAILURE, error),
        },
    }
}

async fn serve_mcp(arguments: ServeArguments) -> ExitCode {
    // The SDK's two lines for each request say nothing that ours does not.
    log_to_stderr(false, "info,rmcp=warn");
    let fleet = match Settings::from_environment() {
        Ok(settings) => settings.fleet().await,
        Err(error) => Err(error),
    };
    let served = match fleet {
        Err(error) => return failed(CONFIGURATION, error),
        Ok(fleet) => serve::run(arguments.into(), Arc::new(fleet), serve::stop_signal()).await,
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ ServeError::Listen { .. }) => failed(FAILURE, error),
        Err(error) => failed(CONFIGURATION, error),
    }
}
