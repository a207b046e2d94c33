//! Who asks.
//!
//! A [`Caller`] is made by a door from what it verified: a token's claims, the surroundings of a Lambda, the user of
//! this machine. Nothing in it comes from a request's body. It goes into `issuer` of every command and into the log.

use sha2::{Digest, Sha256};

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
    ///
    /// The subject is what an issuer vouches for; a name its bearer may often choose. So a name is cut to the room that the
    /// subject leaves, has no round brackets, and nothing that is not seen: what stands in the last brackets is the subject.
    #[must_use]
    pub fn issuer(&self) -> String {
        let subject: String = self.subject.chars().filter(|c| is_seen(*c)).take(ISSUER_MAX).collect();
        let room = ISSUER_MAX.saturating_sub(if subject.is_empty() { 0 } else { subject.chars().count() + 3 });
        let plain = |c: char| match c {
            '(' => '[',
            ')' => ']',
            c => c,
        };
        let name: String = self.name.trim().chars().filter(|c| is_seen(*c)).map(plain).take(room).collect();
        match (name.trim_end(), subject.is_empty()) {
            ("", true) => "unknown".to_owned(),
            ("", false) => subject,
            (name, true) => name.to_owned(),
            (name, false) => format!("{name} ({subject})"),
        }
    }

    /// Which caller, as it may stand in a table: a digest of the subject, which is of any length and nobody's business.
    #[must_use]
    pub fn key(&self) -> String {
        Sha256::digest(self.subject.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether a character can be seen, or parts words: no line breaks, which make two lines of one in a log, and none of those
/// that turn the direction of what follows or take no room.
pub(crate) fn is_seen(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
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

    #[test]
    fn no_name_however_long_or_odd_hides_the_subject_or_passes_for_another() {
        let issuer = |subject: &str, name: &str| {
            Caller { subject: subject.to_owned(), name: name.to_owned(), ..Caller::default() }.issuer()
        };
        let padded = issuer("mallory", &format!("boss (sub-boss){}", " ".repeat(240)));
        assert_eq!(padded, "boss [sub-boss] (mallory)");
        let long = issuer("mallory", &"x".repeat(255));
        assert!(long.ends_with("x (mallory)") && long.chars().count() == ISSUER_MAX, "{long}");
        assert_eq!(issuer(&"s".repeat(255), "kim"), "s".repeat(255));
        assert_eq!(issuer("mallory", "\u{202e}ssob\u{200b}\u{2028}\u{feff}"), "ssob (mallory)");
        assert_eq!(issuer("mallory", "\u{3164}\u{2060}"), "mallory");
    }
}
