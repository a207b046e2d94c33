//! Who may do what with which token, over HTTP: operator × tool × command × fault of the token. What is not permitted must not
//! have reached the tools.

use super::*;
use crate::identity::testing::with;

const DEVICE: &str = "SENSOR-LINE7-PRESS-001";

/// Groups of an operator, whether it may read, and the commands it may send.
const OPERATORS: [(&[&str], bool, &[&str]); 5] = [
    (&[], false, &[]),
    (&["visitors", "not_senior_operator"], false, &[]),
    (&["operators"], true, &["recalibrate", "update_config"]),
    (&["senior_operator"], true, &["recalibrate", "update_config", "reboot", "set_status"]),
    (&["operators", "senior_operator"], true, &["recalibrate", "update_config", "reboot", "set_status"]),
];

const COMMANDS: [&str; 6] = ["recalibrate", "update_config", "reboot", "set_status", "explode", ""];

const READS: [&str; 5] =
    ["get_device_status", "list_devices", "get_telemetry_history", "get_command_status", "list_commands"];

/// What is wrong with a token, what it changes in the claims, and the status of a read and of a command.
fn faults() -> Vec<(&'static str, Value, u16, u16)> {
    vec![
        ("none", json!({}), 200, 200),
        ("no scope for commands", json!({"scope": "iot/read openid"}), 200, 403),
        ("no scope for reads", json!({"scope": "iot/command"}), 403, 403),
        ("no scope", json!({"scope": null}), 403, 403),
        ("Cognito's scope without OAuth", json!({"scope": "aws.cognito.signin.user.admin"}), 403, 403),
        ("expired", json!({"exp": NOW - 61}), 401, 401),
        ("not yet valid", json!({"nbf": NOW + 61}), 401, 401),
        ("another issuer", json!({"iss": "https://evil.example"}), 401, 401),
        ("an ID token", json!({"token_use": "id"}), 401, 401),
        ("another client's", json!({"client_id": "other"}), 401, 401),
        ("no subject", json!({"sub": null}), 401, 401),
        ("a subject that reads backwards", json!({"sub": "\u{202e}ssob"}), 401, 401),
        ("scopes as a list", json!({"scope": null, "scp": ["iot/read", "iot/command"]}), 200, 200),
    ]
}

fn arguments(tool: &str) -> Value {
    match tool {
        "list_devices" | "list_commands" => json!({}),
        "get_command_status" => json!({"device_id": DEVICE, "command_id": "c1"}),
        _ => json!({"device_id": DEVICE}),
    }
}

#[tokio::test]
async fn who_may_do_what_with_which_token() {
    let fixture = fixture(config()).await;
    let mut judged = 0;
    for (groups, may_read, may_send) in OPERATORS {
        for (fault, changes, read_status, command_status) in faults() {
            let token = fixture.signer.token(&with(claims(groups), &changes));
            for tool in READS {
                let before = fixture.tools.calls().len();
                let (status, answer) = fixture.call(&token, tool, &arguments(tool)).await;
                let permitted = read_status == 200 && may_read;
                let place = format!("{groups:?}, token {fault}, {tool}: {answer}");
                assert_eq!(status.as_u16(), read_status, "{place}");
                assert_eq!(fixture.tools.calls().len() - before, usize::from(permitted), "{place}");
                assert_eq!(!result(&answer).0 && status == StatusCode::OK, permitted, "{place}");
                judged += 1;
            }
            for command in COMMANDS {
                let before = fixture.tools.calls().len();
                let sent = json!({"device_id": DEVICE, "command": command, "dry_run": command == "explode"});
                let (status, answer) = fixture.call(&token, "send_command", &sent).await;
                let permitted = command_status == 200 && may_send.contains(&command);
                let place = format!("{groups:?}, token {fault}, {command}: {answer}");
                assert_eq!(status.as_u16(), command_status, "{place}");
                assert_eq!(fixture.tools.calls().len() - before, usize::from(permitted), "{place}");
                if command_status == 200 && !permitted {
                    let (error, text) = result(&answer);
                    assert!(error && text.starts_with("AuthorizeActionException - Tool Execution Denied:"), "{place}");
                }
                judged += 1;
            }
        }
    }
    assert_eq!(judged, 5 * 13 * 11);
}

#[tokio::test]
async fn without_a_token_or_with_a_broken_one_nothing_is_said_but_where_to_get_one() {
    let fixture = fixture(config()).await;
    let stranger = Signer::new("k1").token(&claims(&["senior_operator"]));
    let body = tool_call("list_devices", &json!({})).to_string();
    for (token, status, error) in
        [(None, 401, ""), (Some("x.y.z"), 401, "invalid_token"), (Some(stranger.as_str()), 401, "invalid_token")]
    {
        let (answered, headers, body) = fixture.send(post(token).body(Body::from(body.clone())).unwrap()).await;
        assert_eq!(answered.as_u16(), status);
        let header = headers["www-authenticate"].to_str().unwrap();
        let metadata =
            format!("resource_metadata=\"http://{}/.well-known/oauth-protected-resource/mcp\"", fixture.server.address);
        assert!(header.starts_with("Bearer") && header.contains(&metadata) && header.contains(error), "{header}");
        assert!(!String::from_utf8_lossy(&body).contains("devices"));
    }
    assert_eq!(fixture.tools.calls(), []);
}

#[tokio::test]
async fn the_caller_is_the_tokens_whatever_the_request_says() {
    let fixture = fixture(config()).await;
    let arguments =
        json!({"device_id": DEVICE, "operator_id": "root", "issuer": "root", "caller": {"subject": "root"}});
    let mut message = tool_call("get_device_status", &arguments);
    message["params"]["_meta"] = json!({"operator": "root", "sub": "root"});
    let request = post(Some(&fixture.token(&["operators"])))
        .header("x-operator-id", "root")
        .header("x-operator-groups", "senior_operator")
        .header("mcp-session-id", "somebody-elses-session");
    fixture.send(request.body(Body::from(message.to_string())).unwrap()).await;
    let [(caller, _, _)] = &fixture.tools.calls()[..] else { panic!("one call") };
    assert_eq!(caller.subject, "6f1c2f4e-0000-4000-8000-000000000001");
    assert_eq!((caller.name.as_str(), caller.client_id.as_str()), ("operator-7", "7client"));
    assert_eq!(caller.groups, ["operators"]);
}

#[tokio::test]
async fn the_list_shows_an_operator_its_tools_and_a_visitor_none() {
    let fixture = fixture(config()).await;
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    for (groups, count) in [(&["operators"] as &[&str], 6), (&["senior_operator"], 6), (&["visitors"], 0), (&[], 0)] {
        let (status, answer) = fixture.rpc(&fixture.token(groups), &list).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer["result"]["tools"].as_array().unwrap().len(), count, "{groups:?}");
    }
    let (_, answer) = fixture.rpc(&fixture.token(&["operators"]), &list).await;
    let shown = &answer["result"]["tools"][2];
    assert_eq!(shown["name"], "send_command");
    assert_eq!(shown["annotations"]["destructiveHint"], true);
    assert!(shown["inputSchema"]["properties"]["device_id"].is_object() && shown["outputSchema"].is_object());
}

#[tokio::test(start_paused = true)]
async fn a_command_without_a_status_read_of_that_device_is_denied() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    let command = json!({"device_id": DEVICE, "command": "recalibrate"});
    let denied = |answer: &Value| result(answer).0 && result(answer).1.contains("read it first");
    assert!(denied(&fixture.call(&token, "send_command", &command).await.1));
    // A list is no status, another device is another device, and a read that failed told nothing.
    fixture.call(&token, "list_devices", &json!({})).await;
    fixture.call(&token, "get_device_status", &json!({"device_id": "OTHER"})).await;
    fixture.tools.answers.lock().unwrap().push(Err(ToolError::new("UNKNOWN_DEVICE", "no such device")));
    fixture.call(&token, "get_device_status", &json!({"device_id": DEVICE})).await;
    assert!(denied(&fixture.call(&token, "send_command", &command).await.1));
    fixture.call(&token, "get_device_status", &json!({"device_id": DEVICE})).await;
    assert!(!result(&fixture.call(&token, "send_command", &command).await.1).0);
    let other = fixture.signer.token(&with(claims(&["operators"]), &json!({"sub": "another"})));
    assert!(denied(&fixture.call(&other, "send_command", &command).await.1));
    tokio::time::advance(Duration::from_secs(301)).await;
    assert!(denied(&fixture.call(&token, "send_command", &command).await.1));
}
