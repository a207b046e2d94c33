//! What is wrong with a configuration: every problem at once, each with its place.

use std::fmt;
use std::path::{Path, PathBuf};

use super::files::Unread;

/// One thing that is wrong, or that deserves a second look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file it stands in.
    pub file: PathBuf,
    /// The line, if it stands on one; the first is 1.
    pub line: Option<usize>,
    /// Which key, which value, and what is allowed.
    pub text: String,
    /// The file may be good, but this user may not read it.
    pub denied: bool,
}

impl Problem {
    /// A problem at a place.
    #[must_use]
    pub fn new(file: &Path, line: Option<usize>, text: String) -> Self {
        Self { file: file.to_owned(), line, text, denied: false }
    }

    /// A file or folder that could not be `done` (read, listed).
    pub(super) fn unread(file: &Path, done: &str, why: &Unread) -> Self {
        Self { denied: why.is_denied(), ..Self::new(file, None, format!("cannot be {done}: {why}")) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// A configuration that cannot be used, with everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// From at least one problem; they are put in the order of files and lines.
    #[must_use]
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self(problems)
    }

    /// Each problem.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "the configuration has {} error{plural}:", self.0.len())?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn only_what_another_user_could_read_is_denied() {
        let told = |why| Problem::unread(Path::new("floorgate.toml"), "read", &Unread::System(why));
        let denied = told(Error::from_raw_os_error(libc::EACCES));
        assert_eq!(denied.to_string(), "floorgate.toml: cannot be read: permission denied");
        assert!(denied.denied);
        assert!(!told(ErrorKind::NotFound.into()).denied);
        let content = "value \"permission denied\" is not a number";
        assert!(!Problem::new(Path::new("floorgate.toml"), Some(1), content.to_owned()).denied);
    }
}
