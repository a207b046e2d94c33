//! The tools: one definition of each, shared by every door, by the policies' schema and by the AWS template.
//!
//! Schemas are JSON Schema 2020-12. They have no `enum`, because AgentCore refuses it and because the Cedar schema
//! made from them would differ between there and here: allowed words stand in the descriptions and are checked by
//! the code. [`agentcore`] leaves of a schema what a Lambda target of an AgentCore gateway takes.
//!
//! What a schema says is also checked by the code ([`crate::fleet`]), in its own words: no door has to validate first.

mod input;
mod output;

use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Map, Value};

pub use input::{
    LIMIT_DEFAULT, LIMIT_MAX, POINTS_MAX, SAMPLES_DEFAULT, SAMPLES_MAX, TEXT_MAX, WAIT_SECONDS_DEFAULT,
    WAIT_SECONDS_MAX,
};

/// One tool, as `tools/list` of MCP shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tool {
    /// The seed's name, where the seed has it.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// For the model that chooses: what it does, what it does not.
    pub description: &'static str,
    /// JSON Schema of the arguments; an object without further members.
    pub input_schema: Value,
    /// JSON Schema of a good answer. An error has the shape of [`crate::ToolError`] instead.
    pub output_schema: Value,
    /// Hints of MCP.
    pub annotations: Annotations,
}

/// Hints of MCP: what a client may assume. Hints only; policies decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Annotations {
    /// It changes nothing.
    pub read_only_hint: bool,
    /// It may undo or stop something.
    pub destructive_hint: bool,
    /// A repeat with the same arguments changes nothing more.
    pub idempotent_hint: bool,
    /// It speaks with things outside the tables.
    pub open_world_hint: bool,
}

const READS: Annotations =
    Annotations { read_only_hint: true, destructive_hint: false, idempotent_hint: true, open_world_hint: false };
/// Without an idempotency key a second call is a second command.
const COMMANDS: Annotations =
    Annotations { read_only_hint: false, destructive_hint: true, idempotent_hint: false, open_world_hint: true };

/// Every tool, always in this order.
#[must_use]
pub fn definitions() -> &'static [Tool] {
    static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(all);
    &TOOLS
}

/// The tool of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Tool> {
    definitions().iter().find(|tool| tool.name == name)
}

fn all() -> Vec<Tool> {
    let tool = |name, title, description, input_schema, output_schema, annotations| Tool {
        name,
        title,
        description,
        input_schema,
        output_schema,
        annotations,
    };
    vec![
        tool(
            "get_device_status",
            "Device status",
            "Everything known of one device: status, newest readings, configuration, last command and its outcome, and \
             how old that is. `stale` true means that its gateway is silent and the rest may no longer be so.",
            input::get_device_status(),
            output::device(),
            READS,
        ),
        tool(
            "list_devices",
            "List devices",
            "Devices by location, status and type; all filters combine. `count` is the number in this answer; only with \
             `complete` true it is all there are, else go on with `next_cursor`.",
            input::list_devices(),
            output::devices(),
            READS,
        ),
        tool(
            "send_command",
            "Send a command",
            "Sends one command to one device and waits for its gateway's word. `delivered` is true only if the gateway \
             accepted it; `status` and `reason` say what came of it. Repeating a call with the same `idempotency_key` \
             answers the first one's outcome and is never executed twice. Use `dry_run` to ask whether it would be accepted.",
            input::send_command(),
            output::command(),
            COMMANDS,
        ),
        tool(
            "get_telemetry_history",
            "Telemetry history",
            "Readings of one device over a time range, oldest first, as they were sampled or down-sampled to `points` \
             intervals with min, max and mean. Readings that are known to be lost are listed as `gaps`.",
            input::get_telemetry_history(),
            output::history(),
            READS,
        ),
        tool(
            "get_command_status",
            "Command status",
            "What became of one command: the gateway's record of it as it stands now.",
            input::get_command_status(),
            output::command(),
            READS,
        ),
        tool(
            "list_commands",
            "List commands",
            "Commands of one device, newest first, or of the fleet page by page: who asked what, and what came of it. Only with \
             `newest_first` true are later pages older; a device with very many commands is told page by page too.",
            input::list_commands(),
            output::commands(),
            READS,
        ),
    ]
}

/// What of a schema a Lambda target of an AgentCore gateway takes: `type`, `properties`, `required`, `items`,
/// `description`, at every depth.
#[must_use]
pub fn agentcore_schema(schema: &Value) -> Value {
    let Value::Object(members) = schema else { return schema.clone() };
    let mut kept = Map::new();
    for (name, value) in members {
        let value = match (name.as_str(), value) {
            ("type" | "required" | "description", value) => value.clone(),
            ("items", value) => agentcore_schema(value),
            ("properties", Value::Object(properties)) => {
                properties.iter().map(|(name, schema)| (name.clone(), agentcore_schema(schema))).collect()
            }
            _ => continue,
        };
        kept.insert(name.clone(), value);
    }
    Value::Object(kept)
}

/// The tools as `toolSchema.inlinePayload` of an AgentCore Lambda target.
#[must_use]
pub fn agentcore() -> Value {
    let tools = definitions().iter().map(|tool| {
        serde_json::json!({
            "name": tool.name,
            "description": tool.description,
            "inputSchema": agentcore_schema(&tool.input_schema),
            "outputSchema": agentcore_schema(&tool.output_schema),
        })
    });
    tools.collect()
}

#[cfg(test)]
mod tests;
