//! Web pages: which of them may call, and what a browser has to be told so that it lets them (CORS, the Fetch standard §3.2).
//!
//! * A request with an `Origin` that is not configured is answered 403, on every path and whatever its token, and nothing in the
//!   answer lets a page read it. A client without `Origin` is no page.
//! * A configured one may ask with the methods and headers that MCP needs: its browser's question (preflight) is answered without a
//!   token, for [`PREFLIGHT_FOR`]. Every answer names the origin, exactly, errors included, and lets the page read the headers that
//!   say how to get a token. No cookies or other credentials of the browser's are ever allowed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::guard::{answer, unread};

/// How long a browser may remember the answer to its question; Chromium keeps none longer than 2 h.
pub(super) const PREFLIGHT_FOR: Duration = Duration::from_secs(600);

/// MCP's own headers, as a client sends them.
const ASKED: [HeaderName; 5] = [
    HeaderName::from_static("mcp-protocol-version"),
    HeaderName::from_static("mcp-session-id"),
    HeaderName::from_static("mcp-method"),
    HeaderName::from_static("mcp-name"),
    HeaderName::from_static("last-event-id"),
];
/// What a page may read beside what every page may.
const TOLD: [HeaderName; 3] = [WWW_AUTHENTICATE, RETRY_AFTER, HeaderName::from_static("mcp-session-id")];

/// Whether a word is an origin as a browser writes it, `https://console.example:8443`: a scheme and a host, nothing behind,
/// nobody before it, and no port that the scheme has anyway. Another spelling would match no page.
pub(super) fn is_origin(word: &str) -> bool {
    let uri = word.parse::<http::Uri>().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?)));
    parts.is_some_and(|(scheme, authority)| {
        let usual = matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443)));
        !usual && !authority.as_str().contains('@') && format!("{scheme}://{authority}").eq_ignore_ascii_case(word)
    })
}

/// The same routes, for no pages but those of these origins.
pub(super) fn only(allowed: Vec<String>, routes: Router) -> Router {
    let allowed: Arc<[String]> = allowed.into();
    let routes = if allowed.is_empty() { routes } else { routes.layer(told(Arc::clone(&allowed))) };
    // The last one is the first to see a request.
    routes.layer(from_fn_with_state(allowed, of_these))
}

fn told(allowed: Arc<[String]>) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| is_one_of(&allowed, origin)))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([ACCEPT, AUTHORIZATION, CONTENT_TYPE].into_iter().chain(ASKED).collect::<Vec<_>>())
        .expose_headers(TOLD)
        .max_age(PREFLIGHT_FOR)
}

async fn of_these(State(allowed): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let mut origins = request.headers().get_all(ORIGIN).iter();
    if origins.all(|origin| is_one_of(&allowed, origin)) {
        return next.run(request).await;
    }
    let said = "this Origin is not allowed".to_owned();
    unread(request.into_body(), answer(StatusCode::FORBIDDEN, "text/plain; charset=utf-8", said)).await
}

fn is_one_of(allowed: &[String], origin: &HeaderValue) -> bool {
    allowed.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
}
