//! What MCP says about revisions, results and errors.

use super::*;
use crate::tools::definitions;

#[tokio::test]
async fn each_revision_is_served_without_a_session() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    for version in ["2025-06-18", "2025-11-25"] {
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": version,
            "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
        let (status, headers, body) =
            fixture.send(post(Some(&token)).body(Body::from(hello.to_string())).unwrap()).await;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &answer["result"]["protocolVersion"]), (StatusCode::OK, &json!(version)));
        assert_eq!(answer["result"]["serverInfo"]["name"], "floorgate-fleet");
        assert!(!headers.contains_key("mcp-session-id"));
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(fixture.rpc(&token, &ready).await.0, StatusCode::ACCEPTED);
    }
    let (status, answer) = stateless(&fixture, "server/discover", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["result"]["supportedVersions"], json!(["2025-06-18", "2025-11-25", "2026-07-28"]));
    let (status, answer) = stateless(&fixture, "tools/list", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["result"]["cacheScope"], "private", "what is listed depends on who asks");
    assert_eq!(answer["result"]["resultType"], "complete");
}

/// A request of revision 2026-07-28: everything in each request.
async fn stateless(fixture: &Fixture, method: &str, params: Value) -> (StatusCode, Value) {
    let mut params = params;
    params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"}});
    let message = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
    let mut request = post(Some(&fixture.token(&["operators"])))
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", method);
    if let Some(name) = params["name"].as_str() {
        request = request.header("mcp-name", name);
    }
    let (status, _, body) = fixture.send(request.body(Body::from(message.to_string())).unwrap()).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn every_tool_answers_structured_and_as_the_same_text() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    fixture.call(&token, "get_device_status", &json!({"device_id": "D"})).await;
    let arguments = json!({"device_id": "D", "command": "recalibrate", "command_id": "c"});
    for tool in definitions() {
        for (status, answer) in [
            fixture.call(&token, tool.name, &arguments).await,
            stateless(&fixture, "tools/call", json!({"name": tool.name, "arguments": arguments})).await,
        ] {
            assert_eq!(status, StatusCode::OK);
            assert_eq!(answer["result"]["structuredContent"]["tool"], tool.name, "{answer}");
            let text: Value = serde_json::from_str(&result(&answer).1).unwrap();
            assert_eq!(text, answer["result"]["structuredContent"]);
        }
    }
}

#[tokio::test]
async fn agentcores_name_of_a_tool_is_the_same_tool_and_the_same_policy() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    let (_, answer) = fixture.call(&token, "IoTDeviceTools___get_device_status", &json!({"device_id": "D"})).await;
    assert_eq!(answer["result"]["structuredContent"]["tool"], "get_device_status");
    let reboot = json!({"device_id": "D", "command": "reboot"});
    assert!(result(&fixture.call(&token, "IoTDeviceTools___send_command", &reboot).await.1).0);
}

#[tokio::test]
async fn a_failed_tool_is_a_result_that_says_so_and_nothing_structured() {
    let fixture = fixture(config()).await;
    let error = ToolError::new("UNKNOWN_DEVICE", "no device `D`").with("did_you_mean", json!(["E"]));
    fixture.tools.answers.lock().unwrap().push(Err(error));
    let (status, answer) =
        fixture.call(&fixture.token(&["operators"]), "get_device_status", &json!({"device_id": "D"})).await;
    assert_eq!(status, StatusCode::OK);
    let (is_error, text) = result(&answer);
    let text: Value = serde_json::from_str(&text).unwrap();
    assert!(is_error && answer["result"].get("structuredContent").is_none(), "{answer}");
    assert_eq!(text, json!({"error": "no device `D`", "error_code": "UNKNOWN_DEVICE", "did_you_mean": ["E"]}));
}

#[tokio::test]
async fn bad_input_gets_the_error_that_the_specification_names_and_reaches_no_tool() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["senior_operator"]);
    let call = |params: Value| json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    for (what, body, status, code) in [
        ("no JSON", "{\"jsonrpc\":".to_owned(), 400, -32_700),
        ("nothing", String::new(), 400, -32_700),
        ("bytes", "\u{0}\u{1}".to_owned(), 400, -32_700),
        ("brackets without end", "[".repeat(30_000), 400, -32_700),
        ("a batch", format!("[{}]", call(json!({"name": "list_devices"}))), 400, -32_600),
        ("a number", "7".to_owned(), 400, -32_600),
        ("an unknown tool", call(json!({"name": "drop_tables", "arguments": {}})), 200, -32_602),
        ("an unknown tool of the target", call(json!({"name": "IoTDeviceTools___x"})), 200, -32_602),
        ("an unknown method", json!({"jsonrpc": "2.0", "id": 1, "method": "shell/run"}).to_string(), 404, -32_601),
        (
            "a list page",
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": "x"}}).to_string(),
            200,
            -32_602,
        ),
    ] {
        let request = post(Some(&token)).header("mcp-protocol-version", "2025-11-25");
        let (answered, _, body) = fixture.send(request.body(Body::from(body)).unwrap()).await;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!(answer["error"]["code"], code, "{what}: {answered} {}", String::from_utf8_lossy(&body));
        // Revisions with `initialize` say a JSON-RPC error in a 200.
        assert!(answered.as_u16() == status || answered == StatusCode::OK, "{what}: {answered}");
    }
    for body in [
        "{}",
        "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"tools/list\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"x\"}",
    ] {
        let (answered, _, _) = fixture.send(post(Some(&token)).body(Body::from(body)).unwrap()).await;
        assert!(answered.is_client_error(), "{body}: {answered}");
    }
    assert_eq!(fixture.tools.calls(), []);
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_a_tool_error_and_reach_no_tool() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["senior_operator"]);
    for arguments in [
        json!({}),
        json!({"device_id": 7}),
        json!({"device_id": ["D"]}),
        json!({"device_id": {"S": "D"}}),
        json!({"device_id": null}),
    ] {
        let (status, answer) = fixture.call(&token, "get_device_status", &arguments).await;
        let (is_error, text) = result(&answer);
        assert!(status == StatusCode::OK && is_error && text.contains("INVALID_ARGUMENTS"), "{arguments}: {answer}");
    }
    assert_eq!(fixture.tools.calls(), []);
}

#[tokio::test]
async fn a_header_that_contradicts_its_body_is_refused() {
    let fixture = fixture(config()).await;
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "send_command",
        "arguments": {}, "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}}}});
    let request = post(Some(&fixture.token(&["operators"])))
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "list_devices");
    let (status, _, body) = fixture.send(request.body(Body::from(message.to_string())).unwrap()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(-32_020)));
    let request = post(Some(&fixture.token(&["operators"]))).header("mcp-protocol-version", "1999-01-01");
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    assert_eq!(fixture.send(request.body(Body::from(list.to_string())).unwrap()).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(fixture.tools.calls(), []);
}

#[tokio::test]
async fn what_needs_no_token_is_the_metadata_and_the_health() {
    let fixture = fixture(config()).await;
    for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
        let (status, _, body) = fixture.send(Request::get(path).body(Body::empty()).unwrap()).await;
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &document["resource"]), (StatusCode::OK, &json!(fixture.server.url)));
        assert_eq!(document["scopes_supported"], json!(["iot/read", "iot/command"]));
    }
    assert_eq!(fixture.send(Request::get("/healthz").body(Body::empty()).unwrap()).await.0, StatusCode::OK);
    assert_eq!(fixture.send(Request::get("/metrics").body(Body::empty()).unwrap()).await.0, StatusCode::NOT_FOUND);
    for method in ["GET", "DELETE", "PUT"] {
        let request = post(Some(&fixture.token(&["operators"]))).method(method).body(Body::empty()).unwrap();
        assert_eq!(fixture.send(request).await.0, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
}
