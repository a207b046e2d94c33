//! MCP's two requests about tools, for a verified operator.
//!
//! What goes wrong is said as the specification says: an unknown tool is JSON-RPC error -32602; arguments that do not fit, a
//! denial and a failed tool are *results* with `isError`, which a model reads and can act upon. Errors carry the JSON of
//! [`ToolError`] as text and no `structuredContent`, which would have to fit the tool's output schema.
//!
//! Who hangs up ends what only reads. A command that was begun goes on to its end, so that it is not left between its record
//! and its message; its request keeps its place meanwhile ([`super::guard`]).

use std::borrow::Cow;
use std::sync::Arc;

use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, Implementation,
    ListToolsResult, PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Map, Value};

use super::ToolCalls;
use crate::ToolError;
use crate::caller::is_seen;
use crate::error::code;
use crate::identity::{Now, Operator};
use crate::policy::{Policies, StatusReads, TARGET, Verdict, denial, normal, status_first_denial};
use crate::tools::{Tool, definitions, find};

/// The revisions that are served; older ones want sessions of the old transport, or batches.
pub(super) const VERSIONS: [ProtocolVersion; 3] =
    [ProtocolVersion::V_2025_06_18, ProtocolVersion::V_2025_11_25, ProtocolVersion::V_2026_07_28];

const INSTRUCTIONS: &str = "Tools for the devices on the factory floor. Read a device's status before you send it a command: \
    a command without a status read of the same device within the last five minutes is denied. `delivered` is true only \
    when the gateway accepted the command; `stale` means that what you read may no longer be so.";

/// What all requests share.
pub(super) struct Inside {
    pub(super) policies: Policies,
    pub(super) reads: StatusReads,
    pub(super) tools: Arc<dyn ToolCalls>,
    pub(super) command_scope: Option<String>,
    pub(super) now: Now,
}

/// The server as rmcp sees it; a clone for each request.
#[derive(Clone)]
pub(super) struct FleetService(Arc<Inside>);

/// A tool by the name a client gives it: bare, or as AgentCore shows it.
pub(super) fn named(name: &str) -> Option<&'static Tool> {
    let bare = name.strip_prefix(TARGET).and_then(|name| name.strip_prefix("___"));
    find(bare.unwrap_or(name))
}

fn shown(tool: &Tool) -> rmcp::model::Tool {
    let schema = |schema: &Value| Arc::new(schema.as_object().cloned().unwrap_or_default());
    let mut shown = rmcp::model::Tool::new(tool.name, tool.description, schema(&tool.input_schema));
    shown.title = Some(tool.title.to_owned());
    shown.output_schema = Some(schema(&tool.output_schema));
    shown.annotations = Some(ToolAnnotations::from_raw(
        Some(tool.title.to_owned()),
        Some(tool.annotations.read_only_hint),
        Some(tool.annotations.destructive_hint),
        Some(tool.annotations.idempotent_hint),
        Some(tool.annotations.open_world_hint),
    ));
    shown
}

fn operator(context: &RequestContext<RoleServer>) -> Result<Operator, ErrorData> {
    let parts = context.extensions.get::<http::request::Parts>();
    let operator = parts.and_then(|parts| parts.extensions.get::<Operator>()).cloned();
    // The guard lets nothing pass without one; if it ever did, this is the second lock.
    operator.ok_or_else(|| ErrorData::internal_error("no verified operator", None))
}

fn failed(text: String) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(text)])
}

impl FleetService {
    pub(super) fn new(inside: Inside) -> Self {
        Self(Arc::new(inside))
    }

    /// Why this operator may not make this call now; the text of a tool error.
    fn refusal(&self, operator: &Operator, tool: &Tool, arguments: &Map<String, Value>) -> Option<String> {
        let inside = &self.0;
        let changes = !tool.annotations.read_only_hint;
        if let Some(scope) = self.missing_scope(operator, tool) {
            return Some(denial(&format!("The token does not carry the scope {scope}.")));
        }
        let now = jiff::Timestamp::from_second((inside.now)()).unwrap_or_default();
        let now = now.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string();
        match inside.policies.decide(operator, tool.name, arguments, &now) {
            Err(misfit) => {
                let mut error = ToolError::new(code::INVALID_ARGUMENTS, misfit.to_string());
                if changes {
                    // As every refusal of a command.
                    for name in ["device_id", "command"] {
                        let given = arguments.get(name).and_then(Value::as_str).unwrap_or_default();
                        error = error.with(name, given.chars().take(64).collect::<String>());
                    }
                    error = error.with("delivered", false);
                }
                Some(error.to_json().to_string())
            }
            Ok(Verdict::Denied(text)) => Some(text),
            Ok(Verdict::Permitted) if changes && !self.knows_status(operator, arguments) => Some(status_first_denial()),
            Ok(Verdict::Permitted) => None,
        }
    }

    /// The scope that this tool needs and the operator does not have.
    fn missing_scope(&self, operator: &Operator, tool: &Tool) -> Option<&str> {
        let scope = self.0.command_scope.as_deref()?;
        (!tool.annotations.read_only_hint && !operator.has_scope(scope)).then_some(scope)
    }

    fn knows_status(&self, operator: &Operator, arguments: &Map<String, Value>) -> bool {
        device(arguments).is_some_and(|device| self.0.reads.recent(&operator.caller.subject, device))
    }

    async fn answer(&self, operator: &Operator, tool: &'static Tool, arguments: Map<String, Value>) -> CallToolResult {
        // A caller's word: one short line of the log.
        let device_id: String =
            device(&arguments).unwrap_or_default().chars().filter(|c| is_seen(*c)).take(64).collect();
        let caller = &operator.caller;
        if let Some(text) = self.refusal(operator, tool, &arguments) {
            tracing::warn!(operator = %caller.issuer(), client = %caller.client_id, tool = tool.name, device_id, reason = %text, "refused");
            return failed(text);
        }
        match self.0.tools.call(caller, tool.name, arguments).await {
            Ok(answer) => {
                if tool.name == "get_device_status" {
                    // Not longer than what is logged: it is the id of a device that is there.
                    self.0.reads.note(&caller.subject, &device_id);
                }
                tracing::info!(operator = %caller.issuer(), client = %caller.client_id, tool = tool.name, device_id, "answered");
                CallToolResult::structured(answer)
            }
            Err(error) => {
                tracing::info!(operator = %caller.issuer(), client = %caller.client_id, tool = tool.name, device_id, code = %error.code, "failed");
                failed(error.to_json().to_string())
            }
        }
    }
}

fn device(arguments: &Map<String, Value>) -> Option<&str> {
    arguments.get("device_id").and_then(Value::as_str)
}

impl ServerHandler for FleetService {
    fn get_info(&self) -> ServerConfig {
        let mut own = Implementation::new("floorgate-fleet", env!("CARGO_PKG_VERSION"));
        own.title = Some("floorgate fleet tools".to_owned());
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = own;
        info.instructions = Some(INSTRUCTIONS.to_owned());
        info
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Owned(VERSIONS.to_vec())
    }

    fn get_tool(&self, name: &str) -> Option<rmcp::model::Tool> {
        named(name).map(shown)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        if request.is_some_and(|request| request.cursor.is_some()) {
            return Err(ErrorData::invalid_params("there is one page; no cursor was given out", None));
        }
        let operator = operator(&context)?;
        // A scope that is missing hides nothing: a client that calls the tool is told which one to ask its issuer for.
        let permitted = definitions().iter().filter(|tool| self.0.policies.could(&operator, tool.name));
        let mut result = ListToolsResult::with_all_items(permitted.map(shown).collect());
        // What is listed depends on who asks.
        result.cache_scope = Some(CacheScope::Private);
        result.ttl_ms = Some(60_000);
        Ok(result)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let operator = operator(&context)?;
        let Some(tool) = named(&request.name) else {
            let name: String = request.name.chars().filter(|c| is_seen(*c)).take(64).collect();
            return Err(ErrorData::invalid_params(format!("Unknown tool: {name}"), None));
        };
        let answer = self.answer(&operator, tool, normal(&tool.input_schema, request.arguments.unwrap_or_default()));
        if !tool.annotations.read_only_hint {
            return Ok(answer.await.into());
        }
        // The place in `context` is given back at the end of this call, whoever still waits for it.
        tokio::select! {
            answer = answer => Ok(answer.into()),
            () = context.ct.cancelled() => Err(ErrorData::internal_error("nobody waits for the answer any more", None)),
        }
    }
}
