//! The password file: `user:$7$iterations$salt$hash` lines, as `mosquitto_passwd` writes them.
//!
//! PBKDF2 with HMAC-SHA-512. Checking is meant to cost time, so it runs on threads for blocking work, at most
//! [`CHECKS_AT_ONCE`] at a time; others wait. An unknown name costs as much as a wrong password.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::pbkdf2;
use tokio::sync::Semaphore;

/// Passwords checked at the same time; one keeps a second core free for the floor's messages.
pub const CHECKS_AT_ONCE: usize = 1;
/// Most iterations a line may ask for: about two seconds of a small ARM core.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Most users of one file.
pub const USERS_MAX: usize = 10_000;

/// Why a password file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("cannot read the password file `{path}`: {cause}")]
    Read {
        /// Which file.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// A line of it is wrong.
    #[error("`{path}` line {line}: {problem}; write it with `mosquitto_passwd`")]
    Line {
        /// Which file.
        path: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

#[derive(Debug, Clone)]
struct Secret {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl Secret {
    fn verify(&self, password: &[u8]) -> bool {
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, self.iterations, &self.salt, password, &self.hash).is_ok()
    }
}

/// All users with their hashes.
#[derive(Debug)]
pub struct Users {
    secrets: HashMap<String, Secret>,
    /// Checked in place of an unknown user's, so that time does not tell names.
    nobody: Secret,
    checks: Semaphore,
}

impl Users {
    /// Reads a password file.
    ///
    /// # Errors
    /// [`UsersError`] if it cannot be read, or at its first wrong line.
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let shown = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &shown),
            Err(error) => Err(UsersError::Read { path: shown, cause: error.to_string() }),
        }
    }

    /// Reads the text of a password file; `path` is for the errors.
    ///
    /// # Errors
    /// [`UsersError::Line`] at the first wrong line.
    pub fn parse(text: &str, path: &str) -> Result<Self, UsersError> {
        let mut secrets = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem| UsersError::Line { path: path.to_owned(), line: index + 1, problem };
            let (user, secret) = parse_line(line).map_err(wrong)?;
            if secrets.len() == USERS_MAX {
                return Err(wrong("more than 10,000 users"));
            }
            if secrets.insert(user, secret).is_some() {
                return Err(wrong("this user is there already"));
            }
        }
        let iterations = secrets.values().map(|secret: &Secret| secret.iterations).max().unwrap_or(NonZeroU32::MIN);
        let nobody = Secret { iterations, salt: vec![0; 12], hash: vec![0; 64] };
        Ok(Self { secrets, nobody, checks: Semaphore::new(CHECKS_AT_ONCE) })
    }

    /// Whether this is the user's password. Waits for its turn; cancel safe.
    pub async fn verify(&self, user: &str, password: String) -> bool {
        let known = self.secrets.get(user);
        let secret = known.unwrap_or(&self.nobody).clone();
        let Ok(_turn) = self.checks.acquire().await else { return false };
        let right = tokio::task::spawn_blocking(move || secret.verify(password.as_bytes())).await;
        right.unwrap_or(false) && known.is_some()
    }
}

/// Where a connection looks up passwords: all share one.
pub(super) type SharedUsers = Arc<Users>;

fn parse_line(line: &str) -> Result<(String, Secret), &'static str> {
    let (user, secret) = line.split_once(':').ok_or("no `:` between user and password")?;
    if user.is_empty() || user.chars().any(char::is_control) {
        return Err("the user name is empty or has control characters");
    }
    let rest = secret.strip_prefix("$7$").ok_or("the password is not in the form `$7$iterations$salt$hash`")?;
    let mut parts = rest.split('$');
    let (Some(iterations), Some(salt), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("the password is not in the form `$7$iterations$salt$hash`");
    };
    let iterations: u32 = iterations.parse().map_err(|_| "the number of iterations is no number")?;
    let iterations = NonZeroU32::new(iterations).filter(|count| count.get() <= ITERATIONS_MAX);
    let iterations = iterations.ok_or("the number of iterations is not within 1 to 1,000,000")?;
    let salt = STANDARD.decode(salt).map_err(|_| "the salt is not base64")?;
    let hash = STANDARD.decode(hash).map_err(|_| "the hash is not base64")?;
    if salt.is_empty() || hash.len() != 64 {
        return Err("the salt is empty or the hash is not 64 bytes long");
    }
    Ok((user.to_owned(), Secret { iterations, salt, hash }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `mosquitto_passwd` 2.0.11 with the password `secret`.
    const LINE: &str = "SENSOR-1:$7$101$6NjKSEb5ZYkqS0xS$\
        YlnidZRKxdsAFNTHW26CkjtjWmo0ownFxcZW6VJwh6wZ46rNIXVJS1NbJNV7jdwzW+6EEwMXYhok1fMeXt9bkA==";

    #[tokio::test]
    async fn a_line_of_mosquitto_passwd_verifies_its_password_and_no_other() {
        let users = Users::parse(&format!("# floor\n\n{LINE}\n"), "users").unwrap();
        assert!(users.verify("SENSOR-1", "secret".to_owned()).await);
        assert!(!users.verify("SENSOR-1", "Secret".to_owned()).await);
        assert!(!users.verify("SENSOR-1", String::new()).await);
        assert!(!users.verify("SENSOR-2", "secret".to_owned()).await);
    }

    #[test]
    fn a_wrong_line_is_named_with_its_number() {
        for (line, problem) in [
            ("nobody", "no `:` between user and password"),
            (":$7$1$AA==$AA==", "the user name is empty or has control characters"),
            ("a:$6$salt$hash", "the password is not in the form `$7$iterations$salt$hash`"),
            ("a:plain", "the password is not in the form `$7$iterations$salt$hash`"),
            ("a:$7$101$only-salt", "the password is not in the form `$7$iterations$salt$hash`"),
            ("a:$7$many$AA==$AA==", "the number of iterations is no number"),
            ("a:$7$0$AA==$AA==", "the number of iterations is not within 1 to 1,000,000"),
            ("a:$7$1000001$AA==$AA==", "the number of iterations is not within 1 to 1,000,000"),
            ("a:$7$101$!$AA==", "the salt is not base64"),
            ("a:$7$101$AA==$!", "the hash is not base64"),
            ("a:$7$101$AA==$AA==", "the salt is empty or the hash is not 64 bytes long"),
            (LINE, "this user is there already"),
        ] {
            let found = Users::parse(&format!("{LINE}\n\n{line}"), "/etc/users").unwrap_err();
            assert_eq!(found, UsersError::Line { path: "/etc/users".to_owned(), line: 3, problem });
        }
    }

    #[test]
    fn a_missing_file_is_one_clear_sentence() {
        let error = Users::load(Path::new("/nonexistent/users")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the password file `/nonexistent/users`: No such file"), "{error}");
    }
}
