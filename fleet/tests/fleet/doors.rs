//! The doors: Lambda through a played Runtime API, the command line as a program, AWS IoT's data plane as a played server.

use std::process::Stdio;

use floorgate_fleet::lambda::{LambdaSettings, Reply};
use floorgate_fleet::link::{IotLink, Link};
use floorgate_fleet::store::Tables;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

use super::bench::{self, Bench, Gateway, PRESSURE};
use super::runtime_api::{self, Event};

const PLAIN: LambdaSettings = LambdaSettings { reply: Reply::Plain, operator_headers: false, status_first: false };
const TRUSTING: LambdaSettings = LambdaSettings { operator_headers: true, ..PLAIN };

fn reboot() -> Value {
    json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 5})
}

#[tokio::test]
async fn header_propagation_names_the_operator_and_breaks_nothing() {
    let bench = Bench::start().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let headers = json!({"bedrockAgentCorePropagatedHeaders": {"x-operator-id": "op-1", "x-operator-name": "Kim"},
        "bedrockAgentCorePropagatedQueryParameters": {"version": "v1"}, "odd": null});
    let posted = runtime_api::run(&bench.fleet, TRUSTING, vec![Event::bare("send_command", &reboot(), &headers)]).await;
    assert_eq!((&posted[0].body["delivered"], &posted[0].body["issuer"]), (&json!(true), &json!("Kim (op-1)")));
    assert_eq!(gateway.received()[0].1["issuer"], "Kim (op-1)");
    assert_eq!(posted[0].path, "/2018-06-01/runtime/invocation/id-7/response");
}

#[tokio::test]
async fn without_an_interceptor_the_gateway_itself_is_the_issuer() {
    let bench = Bench::start().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let headers = json!({"bedrockAgentCorePropagatedHeaders": {"x-operator-id": "anybody"}});
    let event = Event::bare("send_command", &reboot(), &headers);
    let posted = runtime_api::run(&bench.fleet, PLAIN, vec![event]).await;
    assert_eq!(posted[0].body["issuer"], "agentcore:gw-1");
}

#[tokio::test]
async fn whatever_comes_is_answered_and_the_door_goes_on() {
    let bench = Bench::start().await;
    let raw = |body: &str| Event { body: body.to_owned(), context: None };
    let mut odd = Event::bare("list_devices", &json!({}), &json!({}));
    odd.context = odd.context.map(|context| context.replacen('{', "{\"client\":null,\"env\":null,", 1));
    let events = vec![
        raw("not json"),
        raw("[]"),
        raw("{}"),
        Event { body: "{}".to_owned(), context: Some("%%%".to_owned()) },
        Event::bare("explode", &json!({}), &json!({})),
        Event::seed(&json!({"name": "list_devices", "arguments": "all"})),
        Event::seed(&json!({"name": "list_devices"})),
        odd,
    ];
    let posted = runtime_api::run(&bench.fleet, LambdaSettings::default(), events).await;
    assert!(posted.iter().all(|posted| posted.path.ends_with("/response")));
    let codes: Vec<_> = posted[..5].iter().map(|posted| posted.body["error_code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["INVALID_ARGUMENTS", "INVALID_ARGUMENTS", "UNKNOWN_TOOL", "UNKNOWN_TOOL", "UNKNOWN_TOOL"]);
    assert_eq!((&posted[5].body["isError"], &posted[6].body["isError"]), (&json!(true), &json!(false)));
    assert_eq!(posted[7].body["count"], 5);
    let mcp = LambdaSettings { reply: Reply::Mcp, ..PLAIN };
    let wrapped = runtime_api::run(&bench.fleet, mcp, vec![Event::bare("explode", &json!({}), &json!({}))]).await;
    assert_eq!(wrapped[0].body["isError"], true);
}

/// Runs the program against the bench; exit code and standard output.
async fn program(bench: &Bench, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_floorgate-fleet"))
        .args(arguments)
        .env("AWS_ENDPOINT_URL_DYNAMODB", &bench.endpoint)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "us-east-1")
        .env("FLOORGATE_MQTT_URL", bench.broker.url())
        .env_remove("FLOORGATE_LOG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_person_calls_a_tool_from_the_command_line() {
    // The program has the clock of this machine.
    let bench = bench_of_now().await;
    let gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let device = format!("device_id={PRESSURE}");
    let (code, told, _) = program(&bench, &["call", "get_device_status", &device]).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["device_id"], &told["stale"]), (Some(0), &json!(PRESSURE), &json!(false)));
    let send = ["call", "send_command", &device, "command=update_config", "parameters.sample_rate_seconds=10"];
    let (code, told, _) = program(&bench, &send).await;
    assert_eq!(code, Some(0), "{told}");
    let (_, payload) = &gateway.received()[0];
    assert_eq!(payload["parameters"], json!({"sample_rate_seconds": 10}));
    assert!(payload["issuer"].as_str().unwrap().contains("os:"), "{payload}");
    let (code, told, _) = program(&bench, &["call", "get_device_status", "device_id=NOBODY"]).await;
    assert_eq!(code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["error_code"], "UNKNOWN_DEVICE");
}

/// A table with the devices, whose gateway was heard by the clock of this machine.
async fn bench_of_now() -> Bench {
    let bench = Bench::start().await;
    bench.set(bench::GATEWAY, "last_seen_at", json!(jiff::Timestamp::now().to_string())).await;
    bench
}

#[tokio::test]
#[ignore = "wants the package; `cargo xtask lambda` makes it and runs this"]
async fn what_is_packaged_for_lambda_answers_as_both_of_its_handlers() {
    let folder = std::env::var("FLOORGATE_TEST_LAMBDA").expect("FLOORGATE_TEST_LAMBDA names the unpacked package");
    let bench = bench_of_now().await;
    let _gateway = Gateway::saying(&bench, json!({"status": "succeeded"}));
    let started = async |handler: &str, events: Vec<Event>| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut program = Command::new(format!("{folder}/bootstrap"));
        program.env_clear().env("PATH", "/usr/bin:/bin").env("LAMBDA_TASK_ROOT", &folder).env("_HANDLER", handler);
        program.env("AWS_LAMBDA_RUNTIME_API", listener.local_addr().unwrap().to_string());
        program.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")]);
        program.env("AWS_ENDPOINT_URL_DYNAMODB", &bench.endpoint).env("FLOORGATE_MQTT_URL", bench.broker.url());
        program.env("FLOORGATE_ISSUER", "https://127.0.0.1:9").env("FLOORGATE_CLIENT_IDS", "c");
        let mut child = program.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        runtime_api::play(&listener, child.wait(), events).await
    };
    let (device, none) = (json!({ "device_id": PRESSURE }), json!({}));
    let events = vec![
        Event::bare("send_command", &reboot(), &none),
        Event::bare("get_device_status", &device, &none),
        Event::bare("send_command", &reboot(), &none),
    ];
    let posted = started("lambda", events).await;
    assert_eq!(posted[0].body["error_code"], "STATUS_FIRST", "{posted:?}");
    assert_eq!(
        (&posted[1].body["device_id"], &posted[1].body["stale"]),
        (&json!(PRESSURE), &json!(false)),
        "{posted:?}"
    );
    assert_eq!((&posted[2].body["status"], &posted[2].body["delivered"]), (&json!("succeeded"), &json!(true)));
    let request = json!({"headers": {}, "body": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}});
    let event = json!({"interceptorInputVersion": "1.0", "mcp": {"gatewayRequest": request}});
    let posted = started("interceptor", vec![Event::seed(&event)]).await;
    assert_eq!(posted[0].body["mcp"]["transformedGatewayResponse"]["statusCode"], 401, "{posted:?}");
}

#[tokio::test]
async fn wrong_words_are_usage_and_schemas_need_no_table() {
    let bench = Bench::empty().await;
    for wrong in [&["call"][..], &["call", "list_devices", "nonsense"], &["dance"], &[]] {
        let (code, _, said) = program(&bench, wrong).await;
        assert_eq!(code, Some(64), "{wrong:?}: {said}");
        assert!(!said.is_empty());
    }
    let (code, plain, _) = program(&bench, &["schema"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Value>(&plain).unwrap()[2]["annotations"]["destructiveHint"], true);
    let (_, agentcore, _) = program(&bench, &["schema", "--agentcore"]).await;
    assert!(serde_json::from_str::<Value>(&agentcore).unwrap()[2].get("annotations").is_none());
    let (code, _, said) = program(&bench, &["lambda"]).await;
    assert_eq!(code, Some(78));
    assert!(said.contains("AWS_LAMBDA_RUNTIME_API"), "{said}");
}

/// A data plane that answers one status; gives what was asked of it.
async fn data_plane(status: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        let mut part = [0; 4_096];
        while !String::from_utf8_lossy(&asked).contains("\"timestamp\"") {
            let n = stream.read(&mut part).await.unwrap();
            asked.extend_from_slice(&part[..n]);
        }
        let body = "{\"message\":\"x\"}";
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&asked).into_owned()
    });
    (url, served)
}

#[tokio::test]
async fn aws_iot_gets_a_signed_publish_with_qos_1() {
    let bench = Bench::start().await;
    let (url, served) = data_plane("200 OK").await;
    let fleet =
        bench::fleet(&bench.endpoint, Tables::default(), Link::Iot(IotLink::new(&bench::aws(), &url)), &bench.clock);
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 0});
    let answer = bench::call(&fleet, "send_command", ask).await.unwrap();
    assert_eq!(answer["status"], "created");
    let asked = served.await.unwrap();
    let line = asked.lines().next().unwrap();
    assert!(line.starts_with(&format!("POST /topics/devices%2F{PRESSURE}%2Fcommands?")), "{line}");
    assert!(line.contains("qos=1") && !line.contains("retain=true"), "{line}");
    assert!(
        asked.contains("AWS4-HMAC-SHA256 Credential=test/") && asked.contains("/us-east-1/iotdata/aws4_request"),
        "{asked}"
    );
    assert!(asked.contains(answer["command_id"].as_str().unwrap()));
}

#[tokio::test]
async fn what_aws_iot_refuses_was_not_sent() {
    let bench = Bench::start().await;
    let (url, served) = data_plane("403 Forbidden").await;
    let fleet =
        bench::fleet(&bench.endpoint, Tables::default(), Link::Iot(IotLink::new(&bench::aws(), &url)), &bench.clock);
    let error = bench::call(&fleet, "send_command", reboot()).await.unwrap_err();
    assert_eq!(error.code, "NOT_SENT");
    served.await.unwrap();
    assert_eq!(bench.commands().await[0]["reason"], "NOT_SENT");
}
