//! The MCP server: the fleet's tools over Streamable HTTP, for plants without an AgentCore gateway and for tests of one.
//!
//! ```text
//!  client ──TLS──▶ listen ──▶ pages ──▶ guard ──▶ rmcp ──▶ mcp ──▶ policy ──▶ Fleet::call
//!                             │ Origin   │ token, size, number         │ denied: a tool error, AgentCore's words
//!                             └ 403      └ 400 401 403 408 413 429 503
//! ```
//!
//! # What is served
//!
//! * `POST /mcp`: MCP revisions 2026-07-28, 2025-11-25 and 2025-06-18 ([`mcp::VERSIONS`]), all without sessions: nothing is kept
//!   between two requests of a client, so there is nothing to bound, restore or steal. Answers are one JSON document.
//! * `GET /.well-known/oauth-protected-resource`, also with `/mcp` behind it: RFC 9728, without a token.
//! * `GET /healthz`: `ok`, without a token, while the process takes requests.
//!
//! # What is guaranteed
//!
//! * Nothing reaches a tool without a verified operator, who alone fills the [`Caller`](crate::Caller); a name, group or id in a
//!   request's body or headers has no say. The scope that a tool needs is checked twice: by the guard, which answers 403 as the
//!   authorization specification asks, and again where the tool is called.
//! * Nothing reaches a tool that the policies do not permit, nor a command without a status read before it ([`crate::policy`]).
//! * Bounds, each with what happens there, are the constants of [`guard`] and [`listen`].
//! * TLS by rustls, 1.2 and 1.3; without a certificate it listens on loopback only. A renewed certificate needs no restart ([`tls`]).
//! * On a stop it takes no new connection, lets what runs end for [`listen::STOP_GRACE`] and then drops it. A dropped command was
//!   sent or not; `get_command_status` tells.
//!
//! # What it does not do
//!
//! No HTTP/2, no server-to-client requests, no prompts, resources or tasks. It keeps no audit of its own: who did what is in
//! `iot-commands`, and one log line per call has the operator, the tool, the device and the outcome.

mod arguments;
mod guard;
mod listen;
mod mcp;
mod outgoing;
mod pages;
#[cfg(test)]
mod tests;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Map, Value};
use tokio::signal::unix::{Signal, SignalKind};
use tokio_util::sync::CancellationToken;

pub use self::arguments::{ServeArguments, TokenArguments};
use crate::identity::{Fetch, Identity, KeyCache, KeySource, Now, Resource, Rules};
use crate::policy::{Policies, StatusReads, embedded, read_folder};
use crate::tools::definitions;
use crate::{Caller, Fleet, ToolError};

/// What the server calls; [`Fleet`], or a double.
pub trait ToolCalls: Send + Sync {
    /// Does what a tool says, as [`Fleet::call`].
    fn call<'a>(
        &'a self,
        caller: &'a Caller,
        tool: &'a str,
        arguments: Map<String, Value>,
    ) -> BoxFuture<'a, Result<Value, ToolError>>;
}

impl ToolCalls for Fleet {
    fn call<'a>(
        &'a self,
        caller: &'a Caller,
        tool: &'a str,
        arguments: Map<String, Value>,
    ) -> BoxFuture<'a, Result<Value, ToolError>> {
        Box::pin(Self::call(self, caller, tool, arguments))
    }
}

/// Where the issuer's keys come from.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Its discovery document names them.
    Discovery,
    /// This address.
    Address(String),
    /// This file, for a plant without a way to its issuer.
    File(PathBuf),
}

/// Everything the server has to know.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Where to listen; port 0 takes any.
    pub listen: SocketAddr,
    /// The address under which clients reach it, `https://fleet.example/mcp`; by default made from `listen`.
    pub url: Option<String>,
    /// Certificate chain and key, PEM. Required unless `listen` is loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// What a token must say.
    pub rules: Rules,
    /// Where the issuer's keys come from.
    pub keys: Keys,
    /// Certificates to trust for the issuer instead of the system's, PEM.
    pub issuer_ca: Option<PathBuf>,
    /// The scope that every request needs; none: any token will do.
    pub read_scope: Option<String>,
    /// The scope that a tool needs which changes something.
    pub command_scope: Option<String>,
    /// Web pages that may call, and are let in by their browsers: `https://console.example`. Others get 403.
    pub allowed_origins: Vec<String>,
    /// Folder with `*.cedar`; by default the policies that come with floorgate.
    pub policies: Option<PathBuf>,
    /// What stands for `${GatewayArn}` in them.
    pub gateway_arn: String,
}

/// Why the server does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Something in the configuration cannot be.
    #[error("{0}")]
    Config(String),
    /// The policies cannot be used: one line for each fault.
    #[error("the policies cannot be used, nothing is served:\n{0}")]
    Policies(String),
    /// It cannot listen.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// A server that listens and does not answer yet.
pub struct Server {
    door: listen::Door,
    /// Where it listens.
    pub address: SocketAddr,
    /// The address for clients.
    pub url: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads everything, asks the issuer for its keys, and listens. An issuer that does not answer is no reason not to start:
    /// the log says so, and requests get 503 until it does.
    ///
    /// # Errors
    /// Everything that would otherwise be found at the first request.
    pub async fn bind(config: ServeConfig, tools: Arc<dyn ToolCalls>, now: Now) -> Result<Self, ServeError> {
        let fetch = fetch(&config.keys, &config.rules.issuer, config.issuer_ca.as_ref())?;
        Self::bind_with(config, Box::new(fetch), tools, now).await
    }

    async fn bind_with(
        mut config: ServeConfig,
        source: Box<dyn KeySource>,
        tools: Arc<dyn ToolCalls>,
        now: Now,
    ) -> Result<Self, ServeError> {
        let policies = load_policies(&config)?;
        let (listener, tls) = listen::open(&config).await?;
        if config.url.is_none() && config.listen.ip().is_unspecified() {
            let text = "is every address of this machine, and clients have to know one: give --url, as they call it";
            return Err(ServeError::Config(format!("{} {text}", config.listen)));
        }
        if let Some(wrong) = config.allowed_origins.iter().find(|word| !pages::is_origin(word)) {
            let text = "is no origin of a page: a scheme and a host, nothing behind, as in https://console.example";
            return Err(ServeError::Config(format!("--allow-origin: {wrong} {text}")));
        }
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address: config.listen, source })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = config.url.clone().unwrap_or_else(|| format!("{scheme}://{address}/mcp"));
        if config.rules.audiences.is_empty() {
            // RFC 8707: a token for this server names it.
            config.rules.audiences.push(url.clone());
        }
        let keys = Arc::new(KeyCache::new(source));
        if let Err(error) = keys.refresh().await {
            tracing::error!(%error, "nobody gets in before the issuer's keys are there");
        }
        let scopes = [&config.read_scope, &config.command_scope].into_iter().flatten().cloned().collect();
        let resource = Resource { url: url.clone(), issuer: config.rules.issuer.clone(), scopes };
        let service = mcp::FleetService::new(mcp::Inside {
            policies,
            reads: StatusReads::default(),
            tools,
            command_scope: config.command_scope.clone(),
            now: Arc::clone(&now),
        });
        let stop = CancellationToken::new();
        let transport = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(true)
            .with_sse_keep_alive(None)
            .with_max_request_body_bytes(guard::BODY_BYTES_MAX)
            .with_allowed_hosts(hosts(&url, address))
            .with_cancellation_token(stop.clone());
        let mcp = StreamableHttpService::new(
            move || Ok(service.clone()),
            Arc::new(NeverSessionManager::default()),
            transport,
        );
        let guard = guard::Guard {
            identity: Identity::new(config.rules, keys, now),
            resource,
            read_scope: config.read_scope,
            command_scope: config.command_scope,
            in_hand: Arc::default(),
        };
        let router = pages::only(config.allowed_origins, guard::router(guard, mcp));
        let door = listen::Door { listener, tls, router, stop, hangup: tls::hangup() };
        Ok(Self { door, address, url })
    }

    /// Serves until `stop` ends, then stops as the module says.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        tracing::info!(url = %self.url, "serving the fleet's tools");
        self.door.serve(stop).await;
        tracing::info!("stopped");
    }
}

/// Serves `tools` as configured until `stop` ends.
///
/// # Errors
/// As [`Server::bind`].
pub async fn run(
    config: ServeConfig,
    tools: Arc<dyn ToolCalls>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let now: Now = Arc::new(|| jiff::Timestamp::now().as_second());
    let mut stop = std::pin::pin!(stop);
    // The issuer's keys may be slow to come.
    let server = tokio::select! {
        server = Server::bind(config, tools, now) => server?,
        () = &mut stop => return Ok(()),
    };
    server.run(stop).await;
    Ok(())
}

/// Ends at SIGTERM or SIGINT, both of which count from this call on and not from the first poll: whoever waits for what this returns
/// may be polled for the first time long after it is said that calls are served. Where signals cannot be had, it never ends.
pub fn stop_signal() -> impl Future<Output = ()> + Send {
    let signal = |kind| tokio::signal::unix::signal(kind).ok();
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let wait = async |signal: Option<Signal>| match signal {
        Some(mut signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    };
    async move {
        tokio::select! {
            () = wait(terminate) => {}
            () = wait(interrupt) => {}
        }
    }
}

fn fetch(keys: &Keys, issuer: &str, ca: Option<&PathBuf>) -> Result<Fetch, ServeError> {
    let fetch = match keys {
        Keys::Discovery => Fetch::discovery(issuer, ca),
        Keys::Address(address) => Fetch::address(address, ca),
        Keys::File(path) => Fetch::file(path.clone(), ca),
    };
    fetch.map_err(|error| ServeError::Config(error.to_string()))
}

fn load_policies(config: &ServeConfig) -> Result<Policies, ServeError> {
    let told = |faults: Vec<crate::policy::Fault>| {
        ServeError::Policies(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    let files = config.policies.as_deref().map_or_else(|| Ok(embedded()), read_folder).map_err(told)?;
    Policies::load(&files, definitions(), &config.gateway_arn).map_err(told)
}

/// Names under which a request may ask for this server; others are a page that points its name at our address.
fn hosts(url: &str, address: SocketAddr) -> Vec<String> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), address.ip().to_string()];
    hosts.extend(url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)));
    hosts
}
