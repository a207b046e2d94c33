//! Where a broker is: `mqtt://host[:port]` or `mqtts://host[:port]`.

use std::fmt;
use std::str::FromStr;

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `mqtts://`.
    pub tls: bool,
    /// Name or IP address, without brackets.
    pub host: String,
    /// 1883, or 8883 with TLS, unless given.
    pub port: u16,
}

/// Why a text is no address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another scheme.
    #[error("must begin with mqtt:// or mqtts://")]
    Scheme,
    /// No host, or one with characters no host has.
    #[error("must have a host: mqtt://HOST[:PORT]")]
    Host,
    /// A port that is none.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// User name, password, path or query.
    #[error("must have nothing but host and port; user name and password have their own keys")]
    More,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (tls, rest) = match (text.strip_prefix("mqtts://"), text.strip_prefix("mqtt://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(AddressError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(AddressError::More);
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(AddressError::Host)?;
                let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(AddressError::Port)?) };
                (host, port)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(allowed) {
            return Err(AddressError::Host);
        }
        let port = match port {
            None if tls => 8_883,
            None => 1_883,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(AddressError::Port)?,
        };
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

/// `host:port`, as it appears in messages.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_contract_are_read() {
        for (text, tls, shown) in [
            ("mqtt://127.0.0.1:1883", false, "127.0.0.1:1883"),
            ("mqtt://broker", false, "broker:1883"),
            ("mqtts://x-ats.iot.us-east-1.amazonaws.com", true, "x-ats.iot.us-east-1.amazonaws.com:8883"),
            ("mqtts://x:443/", true, "x:443"),
            ("mqtt://[::1]:1884", false, "[::1]:1884"),
            ("mqtt://[::1]", false, "[::1]:1883"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.tls, address.to_string().as_str()), (tls, shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, error) in [
            ("tcp://x", AddressError::Scheme),
            ("x:1883", AddressError::Scheme),
            ("mqtt://", AddressError::Host),
            ("mqtt://a b", AddressError::Host),
            ("mqtt://x:0", AddressError::Port),
            ("mqtt://x:99999", AddressError::Port),
            ("mqtt://u:p@x", AddressError::More),
            ("mqtt://x/path", AddressError::More),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
    }
}
