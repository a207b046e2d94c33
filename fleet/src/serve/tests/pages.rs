//! A browser's questions, and what its page may read.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, VARY,
};
use http::{HeaderMap, HeaderName};

use super::*;
use crate::serve::pages;

const CONSOLE: &str = "https://console.example";
const METADATA: &str = "/.well-known/oauth-protected-resource/mcp";

fn words(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let all = headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_lowercase()).collect::<Vec<_>>();
    all.iter().flat_map(|value| value.split(',')).map(|word| word.trim().to_owned()).collect()
}

fn crossing(headers: &HeaderMap) -> Vec<&str> {
    headers.keys().map(HeaderName::as_str).filter(|name| name.starts_with("access-control")).collect()
}

/// What a browser asks before it sends a page's request.
fn question(path: &str, origin: &str) -> Request<Body> {
    let request = Request::options(path).header("host", "127.0.0.1").header("origin", origin);
    let request = request.header("access-control-request-method", "POST");
    let asked = "authorization,content-type,mcp-method,mcp-name,mcp-protocol-version,mcp-session-id";
    request.header("access-control-request-headers", asked).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_browser_of_a_configured_page_is_told_without_a_token_what_it_may_ask() {
    let fixture = fixture(config()).await;
    for path in ["/mcp", METADATA] {
        let (status, headers, _) = fixture.send(question(path, CONSOLE)).await;
        assert!(status.is_success(), "{path} {status}");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], CONSOLE);
        assert_eq!(headers[ACCESS_CONTROL_MAX_AGE], pages::PREFLIGHT_FOR.as_secs().to_string().as_str());
        assert!(words(&headers, VARY).contains(&"origin".to_owned()), "{headers:?}");
        let methods = words(&headers, ACCESS_CONTROL_ALLOW_METHODS);
        assert!(["get", "post"].iter().all(|method| methods.contains(&(*method).to_owned())), "{methods:?}");
        let allowed = words(&headers, ACCESS_CONTROL_ALLOW_HEADERS);
        for asked in
            ["authorization", "content-type", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id"]
        {
            assert!(allowed.contains(&asked.to_owned()), "{asked} {allowed:?}");
        }
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }
    assert!(fixture.tools.calls().is_empty());
}

#[tokio::test]
async fn a_configured_page_may_read_answers_and_refusals_alike() {
    let fixture = fixture(config()).await;
    let list = || Body::from(tool_call("list_devices", &json!({})).to_string());
    let send = || Body::from(tool_call("send_command", &json!({})).to_string());
    let operator = fixture.token(&["operators"]);
    let reads = crate::identity::testing::with(claims(&["operators"]), &json!({"scope": "iot/read"}));
    let reader = fixture.signer.token(&reads);
    let metadata = Request::get(METADATA).header("host", "127.0.0.1").header("origin", CONSOLE);
    let from_console = |token: Option<&str>| post(token).header("origin", CONSOLE);
    for (request, status) in [
        (from_console(Some(&operator)).body(list()), 200),
        (from_console(None).body(list()), 401),
        (from_console(Some("no token")).body(list()), 400),
        (from_console(Some(&reader)).body(send()), 403),
        (from_console(Some(&operator)).body(Body::from("no JSON")), 400),
        (from_console(Some(&operator)).body(Body::from(vec![b' '; 70_000])), 413),
        (metadata.body(Body::empty()), 200),
    ] {
        let (found, headers, _) = fixture.send(request.unwrap()).await;
        assert_eq!(found.as_u16(), status);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], CONSOLE, "{status}");
        let told = words(&headers, ACCESS_CONTROL_EXPOSE_HEADERS);
        assert!(["www-authenticate", "mcp-session-id"].iter().all(|name| told.contains(&(*name).to_owned())));
        assert!(words(&headers, VARY).contains(&"origin".to_owned()), "{headers:?}");
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }
}

#[tokio::test]
async fn no_other_page_is_told_anything() {
    let mut servers = vec![fixture(config()).await];
    servers.push(fixture(ServeConfig { allowed_origins: Vec::new(), ..config() }).await);
    for (at, fixture) in servers.iter().enumerate() {
        for origin in ["https://evil.example", "http://console.example", "https://console.example:8443", "null", ""] {
            let token = fixture.token(&["operators"]);
            let list = Body::from(tool_call("list_devices", &json!({})).to_string());
            let metadata = Request::get(METADATA).header("host", "127.0.0.1").header("origin", origin);
            let twice = post(Some(&token)).header("origin", CONSOLE).header("origin", origin);
            for request in [
                question("/mcp", origin),
                question(METADATA, origin),
                post(Some(&token)).header("origin", origin).body(list).unwrap(),
                twice.body(Body::empty()).unwrap(),
                metadata.body(Body::empty()).unwrap(),
            ] {
                let (status, headers, _) = fixture.send(request).await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{at} {origin}");
                assert!(crossing(&headers).is_empty(), "{origin} {headers:?}");
            }
        }
        assert!(fixture.tools.calls().is_empty());
    }
    // Where no page may call, nothing is said of pages.
    let (status, headers, _) = servers[1].send(Request::options("/mcp").body(Body::empty()).unwrap()).await;
    assert_eq!((status, crossing(&headers).len()), (StatusCode::UNAUTHORIZED, 0));
}

#[tokio::test]
async fn what_is_no_origin_is_a_fault_of_the_configuration() {
    let unlike_a_browser = ["https://console.example:443", "http://console.example:80", "https://me@console.example"];
    let no_origin =
        ["*", "null", "console.example", "https://console.example/", "https://console.example/app", "https://"];
    for wrong in no_origin.into_iter().chain(unlike_a_browser) {
        let config = ServeConfig { allowed_origins: vec![CONSOLE.to_owned(), wrong.to_owned()], ..config() };
        let calls: Arc<dyn ToolCalls> = Arc::new(Recorder::default());
        let source = Box::new(Source(Arc::default()));
        let Err(ServeError::Config(said)) = Server::bind_with(config, source, calls, Arc::new(|| NOW)).await else {
            panic!("{wrong} was taken");
        };
        assert!(said.contains("--allow-origin") && said.contains(wrong), "{said}");
    }
    for right in ["http://localhost:6274", "https://Console.example", "https://[::1]:8443", "app://desk"] {
        assert!(pages::is_origin(right), "{right}");
    }
}
