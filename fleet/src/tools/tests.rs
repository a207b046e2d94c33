use super::*;
use serde_json::json;

#[test]
fn the_seeds_tools_and_arguments_are_there() {
    let argument = |tool: &str, name: &str| find(tool).unwrap().input_schema["properties"].get(name).is_some();
    assert!(argument("get_device_status", "device_id"));
    assert!(["location", "status", "device_type"].iter().all(|name| argument("list_devices", name)));
    assert!(["device_id", "command", "parameters"].iter().all(|name| argument("send_command", name)));
    assert_eq!(definitions().len(), 6);
    assert_eq!(find("send_command").unwrap().input_schema["required"], json!(["device_id", "command"]));
}

/// Keywords of a schema at every depth, names of properties left out.
fn keywords(schema: &Value, found: &mut std::collections::BTreeSet<String>) {
    for (name, value) in schema.as_object().into_iter().flatten() {
        found.insert(name.clone());
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values().for_each(|schema| keywords(schema, found)),
            ("items", schema) => keywords(schema, found),
            _ => {}
        }
    }
}

#[test]
fn agentcore_gets_only_the_keywords_it_takes() {
    let tools = agentcore();
    for tool in tools.as_array().unwrap() {
        let mut found = std::collections::BTreeSet::new();
        keywords(&tool["inputSchema"], &mut found);
        keywords(&tool["outputSchema"], &mut found);
        for keyword in found {
            assert!(["type", "properties", "required", "items", "description"].contains(&&*keyword), "{keyword}");
        }
    }
    let send = tools.as_array().unwrap().iter().find(|tool| tool["name"] == "send_command").unwrap();
    assert_eq!(send["inputSchema"]["properties"]["parameters"]["properties"]["status"]["type"], "string");
}

#[test]
fn no_schema_has_an_enum_because_the_policies_would_differ() {
    for tool in definitions() {
        let mut found = std::collections::BTreeSet::new();
        keywords(&tool.input_schema, &mut found);
        assert!(!found.contains("enum"), "{}", tool.name);
        assert!(found.contains("additionalProperties"), "{}", tool.name);
    }
}

#[test]
fn a_policy_sees_every_parameter_of_the_catalogue_by_name() {
    let parameters = &find("send_command").unwrap().input_schema["properties"]["parameters"]["properties"];
    for name in ["status", "reference_value", "sample_rate_seconds", "alert_threshold_psi", "alert_threshold_c"] {
        assert!(parameters.get(name).is_some(), "{name}");
    }
    assert!(parameters.get("emergency_shutoff").is_none());
}

#[test]
fn only_send_command_is_said_to_change_anything() {
    for tool in definitions() {
        assert_eq!(tool.annotations.read_only_hint, tool.name != "send_command", "{}", tool.name);
    }
    let shown = serde_json::to_value(find("send_command").unwrap()).unwrap();
    assert_eq!(shown["annotations"]["destructiveHint"], true);
    assert!(shown["inputSchema"].is_object() && shown["outputSchema"].is_object());
}
