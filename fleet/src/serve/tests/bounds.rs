//! Pages, sizes, numbers, slow clients, TLS, and how it stops.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::serve::{guard, listen};

#[tokio::test]
async fn a_page_of_another_origin_or_host_is_refused_before_its_token_is_looked_at() {
    let fixture = fixture(config()).await;
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    for (origin, host, status) in [
        (None, "127.0.0.1", 200),
        (Some("https://console.example"), "127.0.0.1", 200),
        (Some("https://evil.example"), "127.0.0.1", 403),
        (Some("https://console.example.evil.example"), "127.0.0.1", 403),
        (Some("null"), "127.0.0.1", 403),
        (Some("http://console.example"), "127.0.0.1", 403),
        (None, "evil.example", 403),
    ] {
        let token = fixture.token(&["operators"]);
        let mut request = post(Some(&token)).body(Body::from(list.clone())).unwrap();
        request.headers_mut().insert("host", host.parse().unwrap());
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        assert_eq!(fixture.send(request).await.0.as_u16(), status, "{origin:?} {host}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_unread() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    let padded = |bytes: usize| {
        let mut text = tool_call("list_devices", &json!({})).to_string();
        text.push_str(&" ".repeat(bytes - text.len()));
        post(Some(&token)).body(Body::from(text)).unwrap()
    };
    assert_eq!(fixture.send(padded(guard::BODY_BYTES_MAX)).await.0, StatusCode::OK);
    assert_eq!(fixture.send(padded(guard::BODY_BYTES_MAX + 1)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(fixture.tools.calls().len(), 1);
}

/// A body that never ends and never says anything.
struct Silent;

impl hyper::body::Body for Silent {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up() {
    let fixture = fixture(config()).await;
    let request = post(Some(&fixture.token(&["operators"]))).body(Body::new(Silent)).unwrap();
    let started = tokio::time::Instant::now();
    assert_eq!(fixture.send(request).await.0, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(started.elapsed().as_secs(), guard::BODY_WITHIN.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_does_not_answer_is_given_up() {
    let fixture = fixture(config()).await;
    *fixture.tools.takes.lock().unwrap() = Duration::from_secs(3_600);
    let (status, _) = fixture.call(&fixture.token(&["operators"]), "list_devices", &json!({})).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn one_operator_holds_sixteen_requests_and_leaves_the_rest_to_others() {
    let fixture = fixture(config()).await;
    *fixture.tools.takes.lock().unwrap() = Duration::from_secs(5);
    let greedy = fixture.token(&["operators"]);
    let other =
        fixture.signer.token(&crate::identity::testing::with(claims(&["operators"]), &json!({"sub": "another"})));
    let none = json!({});
    let calls = (0..20).map(|_| fixture.call(&greedy, "list_devices", &none));
    let others = fixture.call(&other, "list_devices", &none);
    let (answers, (status, _)) = tokio::join!(futures_util::future::join_all(calls), others);
    let count = |wanted| answers.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!(count(StatusCode::OK), guard::OPERATOR_REQUESTS_MAX);
    assert_eq!(count(StatusCode::TOO_MANY_REQUESTS), 4);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(fixture.call(&greedy, "list_devices", &none).await.0, StatusCode::OK, "places are given back");
}

#[tokio::test(start_paused = true)]
async fn all_operators_together_hold_a_bounded_number_of_requests() {
    let fixture = fixture(config()).await;
    *fixture.tools.takes.lock().unwrap() = Duration::from_secs(5);
    let token = |who: usize| {
        let sub = json!({"sub": format!("operator-{}", who % 40)});
        fixture.signer.token(&crate::identity::testing::with(claims(&["operators"]), &sub))
    };
    let tokens: Vec<_> = (0..guard::REQUESTS_MAX + 10).map(token).collect();
    let none = json!({});
    let answers =
        futures_util::future::join_all(tokens.iter().map(|token| fixture.call(token, "list_devices", &none))).await;
    let busy = answers.iter().filter(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE).count();
    assert_eq!(busy, 10);
    assert_eq!(fixture.tools.calls().len(), guard::REQUESTS_MAX);
}

/// Begins a call and hangs up once its tool is at work.
async fn hang_up(fixture: &Fixture, token: &str, tool: &str, arguments: &Value) {
    let before = fixture.tools.calls().len();
    let began = async {
        while fixture.tools.calls().len() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        (status, answer) = fixture.call(token, tool, arguments) => panic!("{status}: {answer}"),
        () = began => {}
    }
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_ends_what_only_reads_and_its_place_is_free() {
    let fixture = fixture(config()).await;
    *fixture.tools.takes.lock().unwrap() = Duration::from_secs(50);
    let token = fixture.token(&["operators"]);
    for _ in 0..100 {
        hang_up(&fixture, &token, "list_devices", &json!({})).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(fixture.tools.running(), 0, "nobody waits for it");
    }
    assert_eq!(fixture.call(&token, "list_devices", &json!({})).await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_command_runs_to_its_end_and_holds_its_place_when_its_client_hangs_up() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    let device = json!({"device_id": "A"});
    assert_eq!(fixture.call(&token, "get_device_status", &device).await.0, StatusCode::OK);
    *fixture.tools.takes.lock().unwrap() = Duration::from_secs(50);
    let command = json!({"device_id": "A", "command": "recalibrate"});
    for _ in 0..guard::OPERATOR_REQUESTS_MAX {
        hang_up(&fixture, &token, "send_command", &command).await;
    }
    assert_eq!(fixture.tools.running(), guard::OPERATOR_REQUESTS_MAX);
    let (status, _) = fixture.call(&token, "list_devices", &json!({})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    tokio::time::sleep(Duration::from_secs(51)).await;
    assert_eq!(fixture.tools.running(), 0);
    *fixture.tools.takes.lock().unwrap() = Duration::ZERO;
    assert_eq!(fixture.call(&token, "list_devices", &json!({})).await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_token_hold_no_place_of_those_with_one() {
    let fixture = fixture(config()).await;
    let token = fixture.token(&["operators"]);
    let strangers = (0..2 * guard::REQUESTS_MAX).map(|_| {
        let request = post(None).body(Body::new(Silent)).unwrap();
        fixture.send(request)
    });
    let good = async {
        // All of them wait for their bodies now.
        tokio::time::sleep(guard::UNREAD_WITHIN / 2).await;
        fixture.call(&token, "list_devices", &json!({})).await
    };
    let (strangers, (status, _)) = tokio::join!(futures_util::future::join_all(strangers), good);
    assert_eq!(status, StatusCode::OK);
    assert!(strangers.iter().all(|(status, _, _)| *status == StatusCode::UNAUTHORIZED));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_wants_is_waited_for_a_second() {
    let fixture = fixture(config()).await;
    let began = tokio::time::Instant::now();
    let (status, headers, _) = fixture.send(post(None).body(Body::new(Silent)).unwrap()).await;
    assert_eq!((status, began.elapsed()), (StatusCode::UNAUTHORIZED, guard::UNREAD_WITHIN));
    assert_eq!(headers["connection"], "close");
}

#[tokio::test]
async fn every_address_of_a_machine_is_none_that_clients_know() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = ServeConfig { listen: "0.0.0.0:0".parse().unwrap(), tls: Some((certificate, key)), ..config() };
    let source = Box::new(Source(Arc::default()));
    let error = Server::bind_with(config, source, Arc::new(Recorder::default()), Arc::new(|| NOW)).await.unwrap_err();
    assert!(error.to_string().contains("--url"), "{error}");
}

#[tokio::test]
async fn a_broken_policy_refuses_to_start_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own.cedar"), "// mine\npermit (principal, action, resource\n);").unwrap();
    let config = ServeConfig { policies: Some(folder.path().to_owned()), ..config() };
    let source = Box::new(Source(Arc::default()));
    let error = Server::bind_with(config, source, Arc::new(Recorder::default()), Arc::new(|| NOW)).await.unwrap_err();
    assert!(error.to_string().contains("own.cedar") && error.to_string().contains("resource must be"), "{error}");
}

#[tokio::test]
async fn other_than_loopback_without_a_certificate_is_refused() {
    let config = ServeConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() };
    let source = Box::new(Source(Arc::default()));
    let error = Server::bind_with(config, source, Arc::new(Recorder::default()), Arc::new(|| NOW)).await.unwrap_err();
    assert!(error.to_string().contains("--tls-cert"), "{error}");
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_is_no_reason_not_to_start() {
    let signer = Signer::new("k1");
    let published = Arc::new(Published::default());
    let tools = Arc::new(Recorder::default());
    let source = Box::new(Source(Arc::clone(&published)));
    let server = Server::bind_with(config(), source, tools.clone(), Arc::new(|| NOW)).await.unwrap();
    let fixture = Fixture { signer, tools, server };
    let (status, _) = fixture.call(&fixture.token(&["operators"]), "list_devices", &json!({})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fixture.tools.calls(), []);
}

/// One request over a connection of its own; everything that comes back.
async fn raw(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn with_a_certificate_it_speaks_tls_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let fixture = fixture(ServeConfig { tls: Some((certificate, key)), ..config() }).await;
    assert!(fixture.server.url.starts_with("https://"));
    let address = fixture.server.address;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(fixture.server.run(async { drop(stopped.await) }));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = tokio_rustls::TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = client.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    assert!(raw(stream, HEALTH).await.starts_with("HTTP/1.1 200"));
    assert!(!raw(TcpStream::connect(address).await.unwrap(), HEALTH).await.contains("200"));
    stop.send(()).unwrap();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_connection_on_which_a_token_was_missing_serves_the_next_request() {
    let fixture = fixture(config()).await;
    let address = fixture.server.address;
    let (_stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(fixture.server.run(async { drop(stopped.await) }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The body comes after its head, as it does from most clients.
    stream.write_all(b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n").await.unwrap();
    let mut early = [0; 1];
    let waited = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut early)).await;
    assert!(waited.is_err(), "the answer waits for the body");
    stream.write_all(b"{}").await.unwrap();
    let answers = raw(stream, HEALTH).await;
    assert!(answers.starts_with("HTTP/1.1 401") && answers.contains("HTTP/1.1 200"), "{answers}");
    serving.abort();
}

#[tokio::test]
async fn a_head_over_the_limit_ends_its_connection() {
    let fixture = fixture(config()).await;
    let address = fixture.server.address;
    let (_stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(fixture.server.run(async { drop(stopped.await) }));
    // hyper looks at the limit between two reads, so a head may go over it by one read.
    let padding = "x".repeat(3 * listen::HEAD_BYTES_MAX);
    let long = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: {padding}\r\n\r\n");
    let answer = raw(TcpStream::connect(address).await.unwrap(), &long).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer:.80}");
    assert!(raw(TcpStream::connect(address).await.unwrap(), HEALTH).await.starts_with("HTTP/1.1 200"));
    serving.abort();
}

/// How long a connection on which nothing is said stays open.
async fn silence(config: ServeConfig) -> Duration {
    let fixture = fixture(config).await;
    let address = fixture.server.address;
    let serving = tokio::spawn(fixture.server.run(std::future::pending()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let began = tokio::time::Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(600), stream.read(&mut [0; 1])).await;
    assert!(ended.is_ok(), "it is never closed");
    serving.abort();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_is_said_is_closed() {
    let waited = silence(config()).await;
    assert_eq!(waited.as_secs(), listen::HEAD_WITHIN.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_that_does_not_come_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let waited = silence(ServeConfig { tls: Some((certificate, key)), ..config() }).await;
    assert_eq!(waited.as_secs(), listen::HANDSHAKE_WITHIN.as_secs());
}

#[tokio::test]
async fn one_connection_more_than_there_are_places_waits_until_one_is_free() {
    let fixture = fixture(config()).await;
    let address = fixture.server.address;
    let serving = tokio::spawn(fixture.server.run(std::future::pending()));
    let mut held = Vec::new();
    for _ in 0..listen::CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Half a head: the place is taken, and kept.
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    let mut next = tokio::spawn(async move { raw(TcpStream::connect(address).await.unwrap(), HEALTH).await });
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut next).await.is_err(), "it has no place");
    held.pop();
    assert!(next.await.unwrap().starts_with("HTTP/1.1 200"));
    serving.abort();
}

#[tokio::test]
async fn what_runs_at_a_stop_ends_and_nothing_new_begins() {
    let fixture = fixture(config()).await;
    *fixture.tools.takes.lock().unwrap() = Duration::from_millis(300);
    let (address, token, tools) = (fixture.server.address, fixture.token(&["operators"]), fixture.tools.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(fixture.server.run(async { drop(stopped.await) }));
    let body = tool_call("list_devices", &json!({})).to_string();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = TcpStream::connect(address).await.unwrap();
    let running = tokio::spawn(async move { raw(stream, &request).await });
    while tools.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.send(()).unwrap();
    assert!(running.await.unwrap().contains("list_devices"));
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

fn hostile() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        Just(json!("\u{202e}\u{0}'; DROP TABLE iot-devices; --")),
        Just(json!({"__entity": {"type": "AgentCore::OAuthUser", "id": "root"}})),
        Just(json!("x".repeat(20_000))),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map("[a-z_]{1,12}|device_id|command|parameters|.{0,8}", inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_arguments_however_hostile_are_a_server_error_or_a_command(arguments in hostile(), raw in any::<Vec<u8>>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = fixture(config()).await;
            let token = fixture.token(&["operators"]);
            for tool in ["send_command", "get_device_status"] {
                let (status, _) = fixture.call(&token, tool, &arguments).await;
                assert!(!status.is_server_error(), "{status}: {arguments}");
            }
            let request = post(Some(&token)).body(Body::from(raw)).unwrap();
            assert!(fixture.send(request).await.0.is_client_error());
            // What passes has the declared types; a command cannot, as no status was read before it.
            for (_, tool, arguments) in fixture.tools.calls() {
                assert!(tool == "get_device_status" && arguments["device_id"].is_string());
            }
        });
    }
}

#[tokio::test]
async fn a_stop_counts_from_when_it_is_made_and_not_from_when_it_is_waited_for() {
    let stop = stop_signal();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
    tokio::time::timeout(Duration::from_secs(20), stop).await.expect("the signal was lost");
}

#[tokio::test]
async fn a_stop_ends_a_start_that_waits_for_the_issuers_keys() {
    // An issuer that takes the connection and says nothing.
    let issuer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}/keys", issuer.local_addr().unwrap());
    let config = ServeConfig { keys: Keys::Address(address), ..config() };
    let mut held = None;
    let began = std::time::Instant::now();
    run(config, Arc::new(Recorder::default()), async { held = issuer.accept().await.ok() }).await.unwrap();
    assert!(held.is_some() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
