//! One line on how the gateway is, for `systemctl status`: the disk, what waits, each link, the last reload.
//!
//! It is told when it changes, at most once in [`EVERY`]; what changes meanwhile is in the next one. A problem is cut to
//! [`PROBLEM_MAX`] characters, and `floorgate status` has all of it.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::control::Service;
use crate::control::{LinkState, ReloadReport};
use crate::shadow::{Store, StoreHealth, StoreStats};
use crate::systemd;

/// Least time between two lines.
const EVERY: Duration = Duration::from_secs(10);
/// How long the store may take to tell its figures.
const FIGURES_WITHIN: Duration = Duration::from_secs(5);
/// Characters of a problem that are told.
const PROBLEM_MAX: usize = 120;

/// What the line is made of.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) health: StoreHealth,
    /// `None`: the store does not tell them.
    pub(super) figures: Option<StoreStats>,
    /// Floor, cloud, tables: name, whether it stands, what is wrong.
    pub(super) links: Vec<(&'static str, LinkState, Option<String>)>,
    pub(super) reload: Option<ReloadReport>,
}

/// The line.
pub(super) fn line(facts: &Facts) -> String {
    let mut line = facts
        .health
        .reason
        .map_or_else(|| "running".to_owned(), |fault| format!("running; {fault}: commands are refused"));
    match &facts.figures {
        None => line.push_str("; the store does not answer"),
        Some(figures) => {
            let waiting = [
                (figures.outbox_waiting, "results"),
                (figures.states_waiting, "states"),
                (figures.blocks_waiting, "blocks"),
            ];
            let told = waiting.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
            let told = told.collect::<Vec<_>>().join(", ");
            if !told.is_empty() {
                let _ = write!(line, "; waiting: {told}");
            }
            if let Some(seconds) = figures.inhibited_seconds.checked_sub(1) {
                let _ = write!(line, "; commands are inhibited for {} s", seconds + 1);
            }
        }
    }
    for (name, state, problem) in &facts.links {
        let _ = write!(line, "; {name} {}", if *state == LinkState::Up { "up" } else { "down" });
        if let Some(problem) = problem {
            let _ = write!(line, " ({})", cut(problem));
        }
    }
    if let Some(reload) = &facts.reload {
        if !reload.applied {
            let first = reload.problems.first().map(String::as_str).unwrap_or_default();
            let _ = write!(line, "; reload refused, the old configuration counts: {}", cut(first));
        } else if !reload.needs_restart.is_empty() {
            let _ = write!(line, "; a restart is needed for {}", cut(&reload.needs_restart.join(", ")));
        }
    }
    line
}

/// One line of bounded length: a line break would end the message to the service manager.
fn cut(text: &str) -> String {
    let mut short: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(PROBLEM_MAX).collect();
    if text.chars().nth(PROBLEM_MAX).is_some() {
        short.push('…');
    }
    short
}

/// What is to be told now.
pub(super) async fn now(service: &Service) -> String {
    line(&service.facts(FIGURES_WITHIN).await)
}

/// Tells it until `stop`.
pub(super) async fn run(service: std::sync::Arc<Service>, store: Store, stop: CancellationToken) {
    let mut health = store.health();
    let mut said = String::new();
    let telling = async {
        loop {
            let line = now(&service).await;
            if line != said {
                systemd::status(&line);
                said = line;
            }
            tokio::time::sleep(EVERY).await;
            // What changes on the disk after a quiet while is told at once; an error means that the store closes.
            let _ = tokio::time::timeout(EVERY, async {
                if health.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
            .await;
        }
    };
    stop.run_until_cancelled(telling).await.unwrap_or(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::RefusedFor;
    use crate::shadow::Fault;
    use floorgate_model::Timestamp;

    #[test]
    fn all_well_is_short_and_what_waits_or_is_down_is_told() {
        let up = |name| (name, LinkState::Up, None);
        let mut facts = Facts {
            figures: Some(StoreStats::default()),
            links: vec![up("floor"), up("cloud"), up("tables")],
            ..Facts::default()
        };
        assert_eq!(line(&facts), "running; floor up; cloud up; tables up");
        facts.links[1] = ("cloud", LinkState::Down, Some("connection refused".to_owned()));
        facts.figures = Some(StoreStats { outbox_waiting: 3, blocks_waiting: 12, ..StoreStats::default() });
        facts.health.reason = Some(Fault::DiskFull);
        let told = line(&facts);
        assert!(
            told.ends_with("; waiting: 3 results, 12 blocks; floor up; cloud down (connection refused); tables up")
        );
        assert!(told.starts_with("running; ") && told.contains(": commands are refused"), "{told}");
        facts.figures = None;
        assert!(line(&facts).contains("; the store does not answer; "));
    }

    #[test]
    fn a_refused_reload_stays_in_sight_on_one_line() {
        let problem = format!("devices.d/a.toml:3: bad\n{}", "x".repeat(500));
        let report = ReloadReport {
            at: Timestamp::EPOCH,
            applied: false,
            changes: String::new(),
            problems: vec![problem],
            refused_for: Some(RefusedFor::Configuration),
            needs_restart: Vec::new(),
        };
        let told = line(&Facts { reload: Some(report.clone()), ..Facts::default() });
        assert!(told.contains("; reload refused, the old configuration counts: devices.d/a.toml:3: bad x"), "{told}");
        assert!(!told.contains('\n') && told.chars().count() < 300, "{told}");
        let applied = ReloadReport { applied: true, needs_restart: vec!["sync.state_interval".to_owned()], ..report };
        let told = line(&Facts { reload: Some(applied), ..Facts::default() });
        assert!(told.ends_with("; a restart is needed for sync.state_interval"), "{told}");
    }
}
