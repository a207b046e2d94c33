//! One invocation as a call. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::LambdaSettings;
use crate::caller::Caller;
use crate::error::{ToolError, code};

/// Between an AgentCore target's name and the tool's: targets have no underscore, so the first one parts them.
pub(super) const SEPARATOR: &str = "___";

/// The header that names the operator.
pub(super) const OPERATOR_ID: &str = "x-operator-id";
/// The header with the operator's name for people.
pub(super) const OPERATOR_NAME: &str = "x-operator-name";

/// How an answer is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reply {
    /// The tool's JSON, as AgentCore's examples answer.
    #[default]
    Plain,
    /// MCP's `{isError, content}`, as the seed answers.
    Mcp,
}

/// Which tool, with what, for whom.
#[derive(Debug, PartialEq)]
pub(super) struct Invocation {
    pub(super) tool: String,
    pub(super) arguments: Map<String, Value>,
    pub(super) caller: Caller,
    pub(super) reply: Reply,
}

impl Invocation {
    /// Reads an event and the base64-free client context that came with it.
    pub(super) fn read(
        body: &[u8],
        client_context: Option<&str>,
        settings: LambdaSettings,
    ) -> Result<Self, Box<(ToolError, Reply)>> {
        let context: Value = client_context.and_then(json_of).unwrap_or_default();
        let custom = context.get("custom").or_else(|| context.get("Custom")).cloned().unwrap_or_default();
        let caller = caller(&custom, settings.operator_headers).map_err(|error| Box::new((error, settings.reply)))?;
        let event = match serde_json::from_slice(body) {
            Ok(Value::Object(event)) => event,
            // An AgentCore tool without arguments.
            Ok(Value::Null) => Map::new(),
            _ => {
                let message = "the event must be a JSON object: the arguments of a tool";
                return Err(Box::new((ToolError::new(code::INVALID_ARGUMENTS, message), settings.reply)));
            }
        };
        if let Some(named) = custom.get("bedrockAgentCoreToolName").and_then(Value::as_str) {
            let tool = named.split_once(SEPARATOR).map_or(named, |(_, tool)| tool).to_owned();
            return Ok(Self { tool, arguments: event, caller, reply: settings.reply });
        }
        let Some(name) = event.get("name").and_then(Value::as_str) else {
            let message = "no tool is named: neither the client context (bedrockAgentCoreToolName) nor the event \
                           (name, arguments) says which; is this Lambda the target of an AgentCore gateway?";
            return Err(Box::new((ToolError::new(code::UNKNOWN_TOOL, message), settings.reply)));
        };
        let tool = name.split_once(SEPARATOR).map_or(name, |(_, tool)| tool).to_owned();
        match event.get("arguments") {
            None | Some(Value::Null) => Ok(Self { tool, arguments: Map::new(), caller, reply: Reply::Mcp }),
            Some(Value::Object(arguments)) => {
                Ok(Self { tool, arguments: arguments.clone(), caller, reply: Reply::Mcp })
            }
            Some(_) => {
                Err(Box::new((ToolError::new(code::INVALID_ARGUMENTS, "`arguments` must be an object"), Reply::Mcp)))
            }
        }
    }
}

/// The header is JSON; callers of Lambda's Invoke give it in base64, and some stand-ins pass that on.
fn json_of(header: &str) -> Option<Value> {
    serde_json::from_str(header).ok().or_else(|| {
        let decoded = STANDARD.decode(header).ok()?;
        serde_json::from_slice(&decoded).ok()
    })
}

/// By itself the gateway tells nothing of who asks: the caller is the gateway. With an interceptor it is whom that named,
/// and a call in nobody's name, or in two, is refused: then it was not the interceptor that wrote these headers.
fn caller(custom: &Value, operator_headers: bool) -> Result<Caller, ToolError> {
    let of = |name: &str| custom.get(name).and_then(Value::as_str).unwrap_or_default();
    let gateway = match of("bedrockAgentCoreGatewayId") {
        "" => "lambda".to_owned(),
        id => format!("agentcore:{id}"),
    };
    let unknown = Caller { subject: gateway.clone(), client_id: gateway.clone(), ..Caller::default() };
    if !operator_headers {
        return Ok(unknown);
    }
    let headers = match custom.get("bedrockAgentCorePropagatedHeaders") {
        // Some runtimes give the object as a text.
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        Some(value) => value.clone(),
        None => Value::Null,
    };
    let header = |wanted: &str| {
        let mut named = headers.as_object().into_iter().flatten().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let (only, other) = (named.next(), named.next());
        let value = only.filter(|_| other.is_none()).and_then(|(_, value)| value.as_str());
        value.map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned)
    };
    let Some(subject) = header(OPERATOR_ID) else {
        let message = "nobody is named as the operator of this call (one x-operator-id, written by the gateway's \
                       interceptor); nothing was done. Without an interceptor start without operator headers";
        return Err(ToolError::new(code::OPERATOR_UNKNOWN, message));
    };
    let list = |name: &str| {
        let whole = header(name).unwrap_or_default();
        whole.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    Ok(Caller {
        subject,
        name: header(OPERATOR_NAME).unwrap_or_default(),
        groups: list("x-operator-groups"),
        scopes: list("x-operator-scopes"),
        client_id: gateway,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLAIN: LambdaSettings = LambdaSettings { reply: Reply::Plain, operator_headers: false, status_first: false };
    const TRUSTING: LambdaSettings = LambdaSettings { operator_headers: true, ..PLAIN };

    fn read(
        event: Value,
        context: Option<Value>,
        settings: LambdaSettings,
    ) -> Result<Invocation, Box<(ToolError, Reply)>> {
        let context = context.map(|context| context.to_string());
        Invocation::read(event.to_string().as_bytes(), context.as_deref(), settings)
    }

    fn context(more: Value) -> Value {
        let mut custom = json!({"bedrockAgentCoreToolName": "IoTDeviceTools___send_command",
            "bedrockAgentCoreGatewayId": "gw-1", "bedrockAgentCoreMessageVersion": "1.0"});
        custom.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "custom": custom })
    }

    #[test]
    fn an_argument_called_name_does_not_make_a_bare_call_the_seeds() {
        let read = read(json!({"name": "reboot", "arguments": {}}), Some(context(json!({}))), PLAIN).unwrap();
        assert_eq!((read.tool.as_str(), read.arguments.len(), read.reply), ("send_command", 2, Reply::Plain));
    }

    #[test]
    fn nested_and_null_members_of_the_context_do_no_harm() {
        for more in [
            json!({"bedrockAgentCorePropagatedHeaders": {"x-operator-id": "op-1"}}),
            json!({"bedrockAgentCorePropagatedHeaders": null, "x": [1, {"y": null}]}),
            json!({"bedrockAgentCorePropagatedQueryParameters": {"version": "v1"}}),
        ] {
            assert_eq!(read(json!({}), Some(context(more)), PLAIN).unwrap().tool, "send_command");
        }
        let mut odd = context(json!({}));
        odd.as_object_mut().unwrap().extend([("client".to_owned(), Value::Null), ("env".to_owned(), Value::Null)]);
        assert!(read(json!({}), Some(odd), PLAIN).is_ok());
    }

    #[test]
    fn headers_name_the_operator_only_where_an_interceptor_writes_them() {
        let headers = json!({"X-Operator-Id": "op-1", "x-operator-groups": "operators, senior_operator"});
        for shape in [headers.clone(), json!(headers.to_string())] {
            let context = context(json!({"bedrockAgentCorePropagatedHeaders": shape}));
            let trusted = read(json!({}), Some(context.clone()), TRUSTING).unwrap().caller;
            assert_eq!((trusted.subject.as_str(), trusted.client_id.as_str()), ("op-1", "agentcore:gw-1"));
            assert_eq!(trusted.groups, ["operators", "senior_operator"]);
            assert_eq!(read(json!({}), Some(context), PLAIN).unwrap().caller.subject, "agentcore:gw-1");
        }
    }

    #[test]
    fn the_body_never_says_who_asks() {
        let body = json!({"device_id": "A", "operator_id": "boss", "issuer": "boss"});
        let plain = read(body.clone(), Some(context(json!({}))), PLAIN).unwrap();
        assert_eq!(plain.caller.subject, "agentcore:gw-1");
        assert_eq!(read(body, Some(context(json!({}))), TRUSTING).unwrap_err().0.code, "OPERATOR_UNKNOWN");
    }

    #[test]
    fn a_call_in_nobodys_name_or_in_two_is_refused_where_an_interceptor_names_operators() {
        for headers in [
            json!({}),
            json!(null),
            json!("no json"),
            json!({"x-operator-id": " "}),
            json!({"x-operator-id": 7}),
            json!({"x-operator-id": ["op-1"]}),
            json!({"x-operator-id": "op-1", "X-Operator-Id": "boss"}),
            json!({"X-OPERATOR-ID": "boss", "x-operator-id": "op-1"}),
        ] {
            let context = context(json!({"bedrockAgentCorePropagatedHeaders": headers}));
            let refused = read(json!({}), Some(context), TRUSTING).unwrap_err();
            assert_eq!(refused.0.code, "OPERATOR_UNKNOWN", "{headers}");
        }
        assert_eq!(read(json!({"name": "list_devices"}), None, TRUSTING).unwrap_err().0.code, "OPERATOR_UNKNOWN");
    }

    #[test]
    fn what_is_no_call_is_answered_and_not_raised() {
        for (body, context) in [("[]", None), ("not json", None), ("{}", None), ("{\"name\":5}", None)] {
            assert!(Invocation::read(body.as_bytes(), context, PLAIN).is_err(), "{body}");
        }
    }
}
