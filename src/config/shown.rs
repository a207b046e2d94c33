//! A value as problems quote it: secrets that someone wrote into it by mistake are left out.
//!
//! Problems go to the terminal, the journal, `status` and `doctor --json`, which people send to others. A password belongs
//! into a file of its own, but `mqtt://user:password@host` and `password = "…"` are what one writes first.

use super::tree::Node;

/// Keys whose values are addresses, with or without `scheme://`.
const ADDRESSES: [&str; 3] = ["url", "endpoint_url", "iot_endpoint"];
/// Parts of names by which a key that nobody knows may hold a secret.
const SECRETS: [&str; 5] = ["pass", "secret", "token", "credential", "private"];

/// The value of `key`, without what may be a secret.
pub(super) fn value(key: &str, node: &Node) -> String {
    match node {
        Node::Text(text) if ADDRESSES.contains(&key) || text.contains("://") => {
            Node::Text(without_userinfo(text)).to_string()
        }
        other => other.to_string(),
    }
}

/// The value of a key that nobody knows.
pub(super) fn unknown(key: &str, node: &Node) -> String {
    let key_words = key.to_lowercase();
    if SECRETS.iter().any(|word| key_words.contains(word)) { "…".to_owned() } else { value(key, node) }
}

/// An address without user and password. Up to the last `@`, because a password may hold `@` and `/` itself.
fn without_userinfo(text: &str) -> String {
    let Some((before, host)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}…@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_of_an_address_are_never_quoted() {
        let shown = |key, text: &str| value(key, &Node::Text(text.to_owned()));
        for (text, expected) in [
            ("mqtt://user:topsecret@host", "\"mqtt://…@host\""),
            ("mqtts://user:top@sec/ret@host:1/x", "\"mqtts://…@host:1/x\""),
            ("user:topsecret@host", "\"…@host\""),
            ("mqtt://host/x", "\"mqtt://host/x\""),
        ] {
            assert_eq!(shown("url", text), expected);
        }
        assert_eq!(shown("client_id", "http://me:topsecret@h"), "\"http://…@h\"");
        assert_eq!(shown("role_alias", "a@b"), "\"a@b\"", "what is no address stands as it is");
        let long = format!("mqtt://{}:topsecret@host", "u".repeat(100));
        assert_eq!(shown("url", &long), "\"mqtt://…@host\"", "it is cut out before the rest is cut short");
    }

    #[test]
    fn what_is_called_a_password_is_not_quoted_even_where_no_such_key_exists() {
        let text = Node::Text("topsecret".to_owned());
        assert_eq!(unknown("password", &text), "…");
        assert_eq!(unknown("AWS_SECRET_ACCESS_KEY", &text), "…");
        assert_eq!(unknown("ulr", &Node::Text("mqtt://u:topsecret@h".to_owned())), "\"mqtt://…@h\"");
    }
}
