//! What the running daemon says of itself, over its control socket.

use std::path::Path;
use std::time::Duration;

use floorgate_model::{DeviceStatus, Timestamp};
use serde_json::Value;

use super::report::{Check, Finding};
use super::service::{self, Unit};
use crate::cli::words;
use crate::control::{AskError, DeviceReport, LinkReport, LinkState, StatusReport, SyncReport};

/// What waits longer than this for the tables is told.
const WAITING_MAX: Duration = Duration::from_secs(300);
/// A backup of `state.db` older than this is told; one is made every hour.
const BACKUP_AGE_MAX: Duration = Duration::from_secs(2 * 3_600);
/// Damage is told for so long.
const DAMAGE_TOLD_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Devices that are named; of more only the number is.
const NAMED_MAX: usize = 5;

/// Everything the daemon was asked for.
pub(super) type Answer = Result<(StatusReport, Vec<DeviceReport>), AskError>;

/// `unit`: the service that runs this configuration; `folder`: where the state is.
pub(super) fn judge(answer: &Answer, now: Timestamp, unit: Option<&Unit>, folder: &Path) -> Vec<Finding> {
    let (status, devices) = match answer {
        Ok(answer) => answer,
        Err(error) => return silent(error, unit),
    };
    let sandboxed = unit.is_some_and(|unit| unit.forbids_writing(folder).is_some());
    let store = store(status, now, sandboxed.then_some(folder));
    let mut findings = vec![runs(status), store, commands(status), outbox(status)];
    findings.push(link("floor", &status.floor, now));
    findings.extend(status.cloud.as_ref().map(|report| link("cloud", report, now)));
    findings.extend(status.sync.as_ref().map(|report| tables(report, now)));
    findings.extend(fresh(devices, now));
    if !status.pending_devices.is_empty() {
        let found = format!("heard and not attached: {}", named(status.pending_devices.iter().map(String::as_str)));
        findings.push(Finding::warn(
            Check::Devices,
            found,
            "attach them ([[device]], then `systemctl reload floorgate`), or switch them off",
        ));
    }
    findings.extend(reload(status));
    findings
}

fn silent(error: &AskError, unit: Option<&Unit>) -> Vec<Finding> {
    let denied = matches!(error, AskError::Unreachable { cause, .. } if cause.contains("ermission denied"));
    // Who is not let in cannot tell a service that does not answer from one that does.
    let service = unit.filter(|unit| !(denied && unit.is_active())).and_then(Unit::not_running);
    let daemon = match error {
        AskError::Unreachable { .. } if service.is_some() => service.unwrap_or_else(absent),
        AskError::Unreachable { .. } if denied => Finding::warn(
            Check::Daemon,
            error.to_string(),
            "ask as root or as the service's user: `sudo floorgate doctor`",
        ),
        AskError::Unreachable { .. } => absent(),
        AskError::Broken { .. } | AskError::Refused(_) => Finding::fail(
            Check::Daemon,
            error.to_string(),
            "look into its log (`journalctl -u floorgate`); if it hangs, `systemctl restart floorgate`",
        ),
    };
    let rest = [Check::Store, Check::Commands, Check::Outbox, Check::Link, Check::Devices];
    let skipped = rest.map(|check| Finding::skipped(check, "the daemon was not heard"));
    std::iter::once(daemon).chain(skipped).collect()
}

/// Nobody says that it should run.
fn absent() -> Finding {
    Finding::warn(
        Check::Daemon,
        "does not run, or not with this configuration",
        "start it (`systemctl start floorgate`); if it does not stay, `journalctl -u floorgate` says why",
    )
}

fn runs(status: &StatusReport) -> Finding {
    let up = words::duration(Duration::from_secs(status.uptime_seconds));
    let found = format!("{} runs floorgate {} for {up}", status.gateway_id, status.version);
    if status.version == env!("CARGO_PKG_VERSION") {
        Finding::ok(Check::Daemon, found)
    } else {
        let found = format!("{found}, and {} is installed", env!("CARGO_PKG_VERSION"));
        Finding::warn(Check::Daemon, found, "restart it: `systemctl restart floorgate`")
    }
}

/// Whether the store says that it takes no writes, and why.
fn takes_nothing(status: &StatusReport) -> Option<&str> {
    let health = status.store.get("health")?;
    let ill = health.get("ok").and_then(Value::as_bool) == Some(false);
    ill.then(|| health.get("reason").and_then(Value::as_str).unwrap_or("other"))
}

/// `sandboxed`: the state folder, if the unit keeps it read-only.
fn store(status: &StatusReport, now: Timestamp, sandboxed: Option<&Path>) -> Finding {
    let (check, store) = (Check::Store, &status.store);
    if let Some(reason) = takes_nothing(status) {
        let advice = match (reason, sandboxed) {
            ("disk_full", _) => "make room on the disk of the state folder; it goes on by itself".to_owned(),
            ("read_only", Some(folder)) => service::let_it_write(folder),
            ("read_only", None) => "if the line `disk_space` is green, the service's sandbox may keep it read-only \
                (docs/operations.md, \"State elsewhere\"); else look why the file system went read-only (`dmesg`) and mount it \
                writable: it goes on by itself"
                .to_owned(),
            _ => "look at the disk (`dmesg`) and plan to replace it; docs/damage.md says how to move the state folder".to_owned(),
        };
        return Finding::fail(check, format!("takes no writes ({})", reason.replace('_', " ")), advice);
    }
    if store.get("full").and_then(Value::as_bool) == Some(true) {
        let advice = "let the tables take what waits (line `link tables`), or raise `quota` under [store] and restart";
        return Finding::fail(check, "is full: readings stay with their senders", advice);
    }
    let recent = status.rescues.iter().find(|rescue| now.since(rescue.at) < DAMAGE_TOLD_FOR);
    if let Some(rescue) = recent {
        let found = format!("`{}` was damaged {} ago", rescue.file, words::duration(now.since(rescue.at)));
        return Finding::warn(check, found, "docs/damage.md says what it cost; after a second time replace the disk");
    }
    let age = store.get("backup_age_seconds").and_then(Value::as_u64).map(Duration::from_secs);
    if let Some(age) = age.filter(|age| *age > BACKUP_AGE_MAX) {
        let found = format!("the last backup of state.db is {} old", words::duration(age));
        return Finding::warn(check, found, "the log says why the hourly one fails; most often the disk has no room");
    }
    let bytes = store.get("bytes_on_disk").and_then(Value::as_u64).unwrap_or(0);
    let backup = age.map(|age| format!(", backed up {} ago", words::duration(age))).unwrap_or_default();
    Finding::ok(check, format!("takes writes, {} on disk{backup}", words::bytes(bytes)))
}

fn commands(status: &StatusReport) -> Finding {
    if takes_nothing(status).is_some() {
        let found = "are refused, because nothing can be journalled";
        return Finding::fail(
            Check::Commands,
            found,
            "see the line `store`; they are taken again as soon as it takes writes",
        );
    }
    match &status.inhibited {
        None => Finding::ok(Check::Commands, format!("are taken, {} open", status.commands_open)),
        Some(inhibited) => {
            let left = words::duration(Duration::from_secs(inhibited.seconds_left));
            let found = format!("are inhibited for {left} more: {}", inhibited.why);
            Finding::warn(Check::Commands, found, "wait; why they are, and what works meanwhile, is in docs/damage.md")
        }
    }
}

fn outbox(status: &StatusReport) -> Finding {
    let check = Check::Outbox;
    if status.sync.is_none() {
        return Finding::skipped(check, "nothing is sent upstream: there is no [dynamodb]");
    }
    let figure = |name: &str| status.store.get(name).and_then(Value::as_u64).unwrap_or(0);
    let oldest = Duration::from_secs(figure("oldest_waiting_seconds"));
    let found = format!(
        "{} outcomes, {} states and {} blocks wait, the oldest for {}",
        figure("outbox_waiting"),
        figure("states_waiting"),
        figure("blocks_waiting"),
        words::duration(oldest)
    );
    if oldest > WAITING_MAX {
        let advice = "look at the lines `link tables`, `table` and `permission`; if they are green it is catching up";
        return Finding::warn(check, found, advice);
    }
    if figure("blocks_parked") > 0 {
        let found = format!("{} blocks were refused by the table for good", figure("blocks_parked"));
        return Finding::warn(check, found, "the log says why; they are kept and counted, docs/history.md");
    }
    Finding::ok(check, found)
}

fn link(name: &str, report: &LinkReport, now: Timestamp) -> Finding {
    let since = report.since.map(|since| format!(" for {}", words::duration(now.since(since)))).unwrap_or_default();
    match (report.state, &report.problem) {
        (LinkState::Up, None) => Finding::ok(Check::Link, format!("{} is up{since}", report.address)),
        (LinkState::Up, Some(problem)) => {
            let advice =
                "the problem names what to change at the broker: its rules for topics, or another client with this id";
            Finding::warn(Check::Link, format!("{} is up, but {problem}", report.address), advice)
        }
        (LinkState::Down, problem) => {
            let problem = problem.as_deref().unwrap_or("not connected yet");
            let advice = format!("see the line `{name}_broker`; the daemon goes on trying by itself");
            Finding::fail(Check::Link, format!("{} is down{since}: {problem}", report.address), advice)
        }
    }
    .of(name)
}

fn tables(report: &SyncReport, now: Timestamp) -> Finding {
    let last = report.last_success_at.map(|at| format!(", last reached {} ago", words::duration(now.since(at))));
    let last = last.unwrap_or_default();
    match report.state {
        LinkState::Up => Finding::ok(Check::Link, format!("{} answers{last}", report.address)),
        LinkState::Down => {
            let problem = report.problem.as_deref().unwrap_or("nothing was sent yet");
            let advice =
                "see the lines `credentials`, `table` and `permission`; everything is kept until they are green";
            Finding::fail(Check::Link, format!("{} does not: {problem}{last}", report.address), advice)
        }
    }
    .of("tables")
}

/// Which devices are not heard, or not ours.
fn fresh(devices: &[DeviceReport], now: Timestamp) -> Vec<Finding> {
    let (check, mut findings) = (Check::Devices, Vec::new());
    let silent: Vec<_> = devices.iter().filter(|device| device.observed == DeviceStatus::Offline).collect();
    if silent.is_empty() {
        findings.push(Finding::ok(check, format!("all {} are heard", devices.len())));
    } else {
        let told: Vec<_> = silent
            .iter()
            .map(|device| format!("{} ({})", device.device_id, words::age(now, device.last_seen_at)))
            .collect();
        let found =
            format!("{} of {} are silent: {}", silent.len(), devices.len(), named(told.iter().map(String::as_str)));
        let advice = "check their power, network and login at the floor's broker; a device with `-` was never heard";
        findings.push(Finding::warn(check, found, advice));
    }
    for device in devices.iter().filter(|device| device.taken_over_by.is_some()).take(NAMED_MAX) {
        let by = device.taken_over_by.as_ref().map(ToString::to_string).unwrap_or_default();
        let found = format!("gateway {by} writes its item; this one leaves it alone");
        findings
            .push(Finding::warn(check, found, "detach it from one of the two gateways").of(device.device_id.as_str()));
    }
    findings
}

fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<_> = names.collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    let mut text = all.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn reload(status: &StatusReport) -> Option<Finding> {
    let reload = status.reload.as_ref()?;
    if !reload.applied {
        let first = reload.problems.first().map_or("", String::as_str);
        let found = format!("the last one was refused, the old configuration counts: {first}");
        return Some(Finding::warn(Check::Reload, found, "correct it (`floorgate check`) and reload again"));
    }
    if !reload.needs_restart.is_empty() {
        let found = format!("these keys have changed and count after a restart: {}", reload.needs_restart.join(", "));
        return Some(Finding::warn(Check::Reload, found, "`systemctl restart floorgate` when it suits"));
    }
    Some(Finding::ok(Check::Reload, "the last one was carried out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;
    use serde_json::json;

    fn now() -> Timestamp {
        Timestamp::parse("2026-11-23T12:00:00Z").unwrap()
    }

    fn answer(change: impl FnOnce(&mut Value)) -> Vec<Finding> {
        let mut status = json!({
            "gateway_id": "GW-1", "version": env!("CARGO_PKG_VERSION"), "started_at": "2026-11-23T11:00:00.000Z",
            "uptime_seconds": 3600,
            "clock": {"synchronised_by_kernel": true, "table_agreed_seconds_ago": null, "trusted": true, "quality": "synchronised",
                "now": "2026-11-23T12:00:00.000Z", "floor": "2026-11-23T12:00:00.000Z",
                "boot_id": "c5a3f0de-0001-4cbb-9e5d-0123456789ab", "boot_seconds": 4000},
            "store": {"health": {"ok": true}, "bytes_on_disk": 1_000_000, "backup_age_seconds": 100},
            "floor": {"address": "127.0.0.1:1883", "state": "up"},
            "cloud": {"address": "mqtts://c:8883", "state": "up"},
            "sync": {"address": "us-east-1", "state": "up"},
            "refused": {}, "pending_devices": [], "devices": {}, "commands_open": 0,
        });
        change(&mut status);
        judge(&Ok((serde_json::from_value(status).unwrap(), Vec::new())), now(), None, Path::new("/s"))
    }

    fn only(findings: &[Finding]) -> &Finding {
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.state > State::Skipped).collect();
        assert_eq!(wrong.len(), 1, "{wrong:#?}");
        assert!(wrong[0].advice.as_ref().is_some_and(|advice| !advice.is_empty()));
        wrong[0]
    }

    #[test]
    fn a_gateway_that_is_well_is_green_all_over() {
        let all = answer(|_| {});
        assert!(all.iter().all(|finding| finding.state == State::Ok), "{all:#?}");
    }

    #[test]
    fn each_trouble_of_the_daemon_is_one_line_that_is_not_green() {
        type Change = fn(&mut Value);
        let troubles: [(Change, State, Check, &str); 9] = [
            (|s| s["store"]["full"] = json!(true), State::Fail, Check::Store, "is full"),
            (|s| s["store"]["backup_age_seconds"] = json!(9_000), State::Warn, Check::Store, "2 h old"),
            (
                |s| s["inhibited"] = json!({"seconds_left": 600, "why": "damage"}),
                State::Warn,
                Check::Commands,
                "10 min",
            ),
            (|s| s["store"]["oldest_waiting_seconds"] = json!(4_000), State::Warn, Check::Outbox, "66 min"),
            (|s| s["store"]["blocks_parked"] = json!(2), State::Warn, Check::Outbox, "2 blocks"),
            (
                |s| s["cloud"] = json!({"address": "c", "state": "down", "problem": "refused"}),
                State::Fail,
                Check::Link,
                "refused",
            ),
            (|s| s["floor"]["problem"] = json!("the broker refuses a/b"), State::Warn, Check::Link, "refuses a/b"),
            (|s| s["sync"] = json!({"address": "t", "state": "down"}), State::Fail, Check::Link, "nothing was sent"),
            (
                |s| s["pending_devices"] = json!(["A", "B", "C", "D", "E", "F"]),
                State::Warn,
                Check::Devices,
                "A, B, C, D, E and 1 more",
            ),
        ];
        for (change, state, check, says) in troubles {
            let all = answer(change);
            let finding = only(&all);
            assert_eq!((finding.state, finding.check), (state, check), "{finding:?}");
            assert!(finding.found.contains(says), "{finding:?}");
        }
        let refused = json!({"at": "2026-11-23T11:00:00.000Z", "applied": false, "problems": ["a.toml:3: bad"]});
        assert!(only(&answer(|s| s["reload"] = refused)).found.contains("a.toml:3"));
        let other = answer(|s| s["version"] = json!("0.0.1"));
        assert!(only(&other).found.contains("0.0.1"));
    }

    #[test]
    fn a_daemon_that_does_not_run_is_a_note_and_what_only_it_knows_is_skipped() {
        let away = AskError::Unreachable { path: "s".into(), cause: "nobody listens".into() };
        let all = judge(&Err(away), now(), None, Path::new("/s"));
        assert_eq!(all.iter().filter(|finding| finding.state == State::Skipped).count(), 5);
        assert!(only(&all).found.contains("does not run"));
        let denied = AskError::Unreachable { path: "s".into(), cause: "Permission denied (os error 13)".into() };
        assert!(only(&judge(&Err(denied), now(), None, Path::new("/s"))).advice.as_ref().unwrap().contains("sudo"));
        let hung = AskError::Broken { path: "s".into(), cause: "timed out".into() };
        assert_eq!(only(&judge(&Err(hung), now(), None, Path::new("/s"))).state, State::Fail);
    }

    #[test]
    fn a_store_that_takes_nothing_means_commands_that_are_not_taken_either() {
        for (reason, says) in [("disk_full", "make room"), ("read_only", "sandbox"), ("io_error", "replace")] {
            let all = answer(|s| s["store"]["health"] = json!({"ok": false, "reason": reason}));
            let red: Vec<_> = all.iter().filter(|finding| finding.state == State::Fail).collect();
            assert_eq!(red.iter().map(|finding| finding.check).collect::<Vec<_>>(), [Check::Store, Check::Commands]);
            assert!(red[0].advice.as_ref().unwrap().contains(says), "{red:?}");
            assert!(red[1].found.contains("refused"), "{red:?}");
        }
    }

    #[test]
    fn a_service_that_should_run_and_does_not_is_red_and_one_that_is_switched_off_is_not() {
        let away = || AskError::Unreachable { path: "s".into(), cause: "nobody listens".into() };
        let told = |error: AskError, unit: &str| {
            let unit = Unit::parse(&format!("LoadState=loaded\n{unit}")).unwrap();
            let all = judge(&Err(error), now(), Some(&unit), Path::new("/s"));
            only(&all).clone()
        };
        let failed = "ActiveState=failed\nUnitFileState=enabled\nResult=exit-code\nExecMainStatus=78";
        let red = told(away(), failed);
        assert!(red.state == State::Fail && red.found.contains("exit 78"), "{red:?}");
        assert_eq!(told(away(), "ActiveState=inactive\nUnitFileState=enabled").state, State::Fail);
        assert_eq!(told(away(), "ActiveState=inactive\nUnitFileState=disabled").state, State::Warn);
        let denied = || AskError::Unreachable { path: "s".into(), cause: "Permission denied (os error 13)".into() };
        assert_eq!(told(denied(), "ActiveState=active").state, State::Warn, "who may not ask cannot know");
        assert_eq!(told(denied(), failed).state, State::Fail, "but systemd does");
    }
}
