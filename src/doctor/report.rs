//! What the doctor says: findings with stable names, as JSON and as text.

use std::fmt::Write;
use std::time::Duration;

/// What was looked at. The names are stable; `docs/operations.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "`docs/operations.md` says what each looks at; the texts of the findings too")]
pub enum Check {
    Configuration,
    Access,
    Daemon,
    Clock,
    DiskSpace,
    Mount,
    Flash,
    Certificate,
    FloorBroker,
    CloudBroker,
    Credentials,
    Table,
    Permission,
    Store,
    Commands,
    Outbox,
    Link,
    Devices,
    Reload,
}

impl Check {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 19] = [
        Self::Configuration,
        Self::Access,
        Self::Daemon,
        Self::Clock,
        Self::DiskSpace,
        Self::Mount,
        Self::Flash,
        Self::Certificate,
        Self::FloorBroker,
        Self::CloudBroker,
        Self::Credentials,
        Self::Table,
        Self::Permission,
        Self::Store,
        Self::Commands,
        Self::Outbox,
        Self::Link,
        Self::Devices,
        Self::Reload,
    ];

    /// The stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Access => "access",
            Self::Daemon => "daemon",
            Self::Clock => "clock",
            Self::DiskSpace => "disk_space",
            Self::Mount => "mount",
            Self::Flash => "flash",
            Self::Certificate => "certificate",
            Self::FloorBroker => "floor_broker",
            Self::CloudBroker => "cloud_broker",
            Self::Credentials => "credentials",
            Self::Table => "table",
            Self::Permission => "permission",
            Self::Store => "store",
            Self::Commands => "commands",
            Self::Outbox => "outbox",
            Self::Link => "link",
            Self::Devices => "devices",
            Self::Reload => "reload",
        }
    }
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing to do.
    Ok,
    /// It could not be looked at, or there is nothing to look at; what was found says why.
    Skipped,
    /// It works, and will not for ever, or not well.
    Warn,
    /// Something the gateway is for does not work, or is not safe.
    Fail,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Which one, where there are several: a file, a table, a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; there for every `warn` and `fail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: Check, state: State, found: impl Into<String>, advice: Option<String>) -> Self {
        Self { check, subject: None, state, found: found.into(), advice }
    }

    /// Nothing to do.
    #[must_use]
    pub fn ok(check: Check, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found, None)
    }

    /// Not looked at, and why.
    #[must_use]
    pub fn skipped(check: Check, why: impl Into<String>) -> Self {
        Self::new(check, State::Skipped, why, None)
    }

    /// Something to see to.
    #[must_use]
    pub fn warn(check: Check, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Warn, found, Some(advice.into()))
    }

    /// Something broken.
    #[must_use]
    pub fn fail(check: Check, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Fail, found, Some(advice.into()))
    }

    /// Which one of several it is.
    #[must_use]
    pub fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
}

/// All findings.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The worst of the findings; `ok` if nothing is to be done.
    pub result: State,
    /// The doctor's version.
    pub version: String,
    /// How long it took.
    pub took_ms: u64,
    /// In the order of [`Check::ALL`].
    pub checks: Vec<Finding>,
}

impl Report {
    pub(super) fn new(mut checks: Vec<Finding>, took: Duration) -> Self {
        checks.sort_by_key(|finding| finding.check);
        let worst = checks.iter().map(|finding| finding.state).filter(|state| *state != State::Skipped).max();
        Self {
            result: worst.unwrap_or(State::Ok),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            checks,
        }
    }

    /// As people read it: a line for each finding, and below it what to do.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // What devices, brokers and files say must not play with the terminal.
        let plain = |text: &str| text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>();
        for finding in &self.checks {
            let state = match finding.state {
                State::Ok => "ok",
                State::Skipped => "-",
                State::Warn => "WARN",
                State::Fail => "FAIL",
            };
            let subject = finding.subject.as_deref().map(|subject| format!(" {}", plain(subject))).unwrap_or_default();
            let _ = writeln!(text, "{state:<5} {}{subject}: {}", finding.check.as_str(), plain(&finding.found));
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "      -> {}", plain(advice));
            }
        }
        let count = |state| self.checks.iter().filter(|finding| finding.state == state).count();
        let _ = writeln!(
            text,
            "{} checks: {} failed, {} warnings, {} skipped ({}.{} s)",
            self.checks.len(),
            count(State::Fail),
            count(State::Warn),
            count(State::Skipped),
            self.took_ms / 1_000,
            self.took_ms % 1_000 / 100
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_same_in_text_in_json_and_in_the_documentation() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
        for check in Check::ALL {
            assert_eq!(serde_json::to_value(check).unwrap(), check.as_str());
            assert!(page.contains(&format!("| `{}` |", check.as_str())), "docs/operations.md does not list {check:?}");
        }
    }

    #[test]
    fn the_worst_finding_is_the_result_and_each_line_tells_what_to_do() {
        let mut checks = vec![
            Finding::skipped(Check::Flash, "not shown"),
            Finding::ok(Check::Clock, "right"),
            Finding::warn(Check::Mount, "an \u{1b}[31m option", "change it").of("/var"),
        ];
        assert_eq!(Report::new(checks[..2].to_vec(), Duration::ZERO).result, State::Ok);
        assert_eq!(Report::new(checks.clone(), Duration::ZERO).result, State::Warn);
        checks.push(Finding::fail(Check::Daemon, "away", "start it"));
        let report = Report::new(checks, Duration::from_millis(1_250));
        assert_eq!(report.result, State::Fail);
        let expected = "FAIL  daemon: away\n      -> start it\nok    clock: right\n\
            WARN  mount /var: an \u{fffd}[31m option\n      -> change it\n-     flash: not shown\n\
            4 checks: 1 failed, 1 warnings, 1 skipped (1.2 s)\n";
        assert_eq!(report.text(), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["checks"][0],
            serde_json::json!({"check": "daemon", "state": "fail", "found": "away", "advice": "start it"})
        );
        assert_eq!(json["checks"][2]["subject"], "/var");
    }
}
