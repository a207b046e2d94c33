//! Who asks.
//!
//! A [`Caller`] is made by a door from what it verified: a token's claims, the surroundings of a Lambda, the user of
//! this machine. Nothing in it comes from a request's body. It goes into `issuer` of every command and into the log.

/// Longest `issuer`, characters; the gateway refuses a longer one.
pub const ISSUER_MAX: usize = 256;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Stable and unique: `sub` of a token, `os:1000`, `agentcore:GATEWAY`. Budgets and idempotency keys belong to it.
    pub subject: String,
    /// For people; may be empty.
    pub name: String,
    /// Groups it is in (`cognito:groups`).
    pub groups: Vec<String>,
    /// What its token allows (`iot/read`, `iot/command`).
    pub scopes: Vec<String>,
    /// The program it uses, as the token names it; may be empty.
    pub client_id: String,
}

impl Caller {
    /// The `issuer` of its commands: `name (subject)`, one line, at most [`ISSUER_MAX`] characters.
    #[must_use]
    pub fn issuer(&self) -> String {
        let whole = match (self.name.is_empty(), self.subject.is_empty()) {
            (true, true) => "unknown".to_owned(),
            (true, false) => self.subject.clone(),
            (false, true) => self.name.clone(),
            (false, false) => format!("{} ({})", self.name, self.subject),
        };
        // A line break in a name would make two lines of one in a log.
        whole.chars().filter(|c| !c.is_control()).take(ISSUER_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_is_one_line_that_the_gateway_takes() {
        let caller = |subject: &str, name: &str| Caller {
            subject: subject.to_owned(),
            name: name.to_owned(),
            ..Caller::default()
        };
        assert_eq!(caller("0b1f", "kim").issuer(), "kim (0b1f)");
        assert_eq!(caller("0b1f", "").issuer(), "0b1f");
        assert_eq!(caller("", "").issuer(), "unknown");
        assert_eq!(caller("x", "kim\nERROR all is lost").issuer(), "kimERROR all is lost (x)");
        assert_eq!(caller(&"ä".repeat(400), "").issuer().chars().count(), ISSUER_MAX);
    }
}
