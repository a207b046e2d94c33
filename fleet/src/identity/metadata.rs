//! What a client is told about getting a token: the protected-resource document (RFC 9728) and the `WWW-Authenticate` header
//! (RFC 6750, as the MCP authorization specification wants it).

use serde_json::{Value, json};

use super::Refusal;

/// Path of the document; RFC 9728 §3.1 puts the resource's own path behind it.
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// This server as a protected resource.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its address as clients know it: `https://fleet.example/mcp`.
    pub url: String,
    /// Who issues its tokens.
    pub issuer: String,
    /// What a token may have to carry, most common first.
    pub scopes: Vec<String>,
}

/// An HTTP answer to a request without a good token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// 400, 401, 403 or 503.
    pub status: u16,
    /// The header; none where a token would not help.
    pub authenticate: Option<String>,
}

impl Resource {
    /// `https://fleet.example` and `/mcp`.
    fn split(&self) -> (&str, &str) {
        let host = self.url.find("://").map_or(0, |at| at + 3);
        let path = self.url[host..].find('/').map_or(self.url.len(), |at| host + at);
        (&self.url[..path], self.url[path..].trim_end_matches('/'))
    }

    /// The paths at which the document is served: at the root, and with the resource's path behind it.
    pub fn paths(&self) -> Vec<String> {
        let (_, path) = self.split();
        let mut paths = vec![WELL_KNOWN.to_owned()];
        if !path.is_empty() {
            paths.push(format!("{WELL_KNOWN}{path}"));
        }
        paths
    }

    /// The document itself.
    pub fn document(&self) -> Value {
        json!({
            "resource": self.url,
            "authorization_servers": [self.issuer],
            "scopes_supported": self.scopes,
            "bearer_methods_supported": ["header"],
            "resource_name": "floorgate fleet tools",
        })
    }

    /// How a refusal is said in HTTP.
    pub fn challenge(&self, refusal: &Refusal) -> Challenge {
        let (origin, path) = self.split();
        let metadata = format!("resource_metadata=\"{origin}{WELL_KNOWN}{path}\"");
        let error = |code: &str| format!("error=\"{code}\", error_description=\"{refusal}\"");
        let scopes = self.scopes.first().map(|scope| format!(", scope=\"{scope}\"")).unwrap_or_default();
        let (status, said) = match refusal {
            Refusal::Missing => (401, Some(format!("{metadata}{scopes}"))),
            Refusal::Malformed(_) => (400, Some(format!("{}, {metadata}", error("invalid_request")))),
            Refusal::Invalid(_) => (401, Some(format!("{}, {metadata}{scopes}", error("invalid_token")))),
            Refusal::Scope(scope) => {
                (403, Some(format!("{}, scope=\"{scope}\", {metadata}", error("insufficient_scope"))))
            }
            Refusal::Unavailable => (503, None),
        };
        Challenge { status, authenticate: said.map(|said| format!("Bearer {said}")) }
    }
}
