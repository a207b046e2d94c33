//! The Cedar schema of the tools, by `cedar-policy-mcp-schema-generator`, and names in it.

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};
use cedar_policy_mcp_schema_generator::{SchemaGenerator, SchemaGeneratorConfig};
use mcp_tools_sdk::description::ServerDescription;
use serde_json::{Value, json};

use super::TARGET;
use crate::tools::{Tool, agentcore_schema};

/// What AgentCore gives before any tool is known.
const STUB: &str = r#"
namespace AgentCore {
    @mcp_principal("OAuthUser")
    entity OAuthUser = { id: String } tags String;
    @mcp_resource("Gateway")
    entity Gateway;
    @mcp_context("system")
    type System = { now: datetime };
    action "Mcp";
    @mcp_action("CallTool")
    action "CallTool" in [Action::"Mcp"];
}
"#;

/// `IoTDeviceTools___send_command` for `send_command`.
pub(super) fn action_name(tool: &str) -> String {
    format!("{TARGET}___{tool}")
}

/// `AgentCore::<kind>::"<id>"`; the id is taken as it is, whatever is in it.
pub(super) fn entity(kind: &str, id: &str) -> Result<EntityUid, String> {
    let name: EntityTypeName = format!("AgentCore::{kind}").parse().map_err(|error| format!("{kind}: {error}"))?;
    Ok(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
}

/// The schema of these tools, as text and ready for use.
pub(super) fn generate(tools: &[Tool]) -> Result<(String, Schema), String> {
    let tools: Vec<Value> = tools
        .iter()
        .map(|tool| {
            json!({"name": action_name(tool.name), "description": tool.description,
                "inputSchema": agentcore_schema(&tool.input_schema)})
        })
        .collect();
    let description = json!({"result": {"tools": tools}}).to_string();
    let description = ServerDescription::from_json_str(&description).map_err(|error| error.to_string())?;
    let config = SchemaGeneratorConfig::default().objects_as_records(true).encode_numbers_as_decimal(true);
    let generator = SchemaGenerator::from_cedarschema_str_with_config(STUB, config);
    let mut generator = generator.map_err(|error| error.to_string())?;
    generator.add_actions_from_server_description(&description).map_err(|error| error.to_string())?;
    let text = generator.get_schema_as_str();
    let (schema, _) = Schema::from_cedarschema_str(&text).map_err(|error| error.to_string())?;
    Ok((text, schema))
}
