//! Answers as people read them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use floorgate_model::{ExecutionRecord, Timestamp};
use serde_json::{Map, Value};

use crate::cli::table::Table;
use crate::cli::words;
use crate::clock::Quality;
use crate::control::{DeviceReport, LinkReport, LinkState, ReloadReport, StatusReport, SyncReport};
use crate::shadow::rescue::Rescue;

/// Unattached ids that are named; of more only the number is.
const PENDING_SHOWN: usize = 8;
/// Damages that are told; `--json` has all that are remembered.
const RESCUES_SHOWN: usize = 3;

pub(super) fn status(report: &StatusReport, now: Timestamp) -> String {
    let mut table = Table::plain();
    let mut row = |name: &str, text: String| table.row([name.to_owned(), text]);
    let up = words::duration(Duration::from_secs(report.uptime_seconds));
    row("gateway", format!("{}, floorgate {}, up {up}", report.gateway_id, report.version));
    row("floor", link(&report.floor, now));
    row("cloud", report.cloud.as_ref().map_or_else(|| "no command link".to_owned(), |report| link(report, now)));
    row(
        "tables",
        report.sync.as_ref().map_or_else(|| "nothing is sent upstream".to_owned(), |report| sync(report, now)),
    );
    row("clock", clock(report));
    let total: u64 = report.devices.values().sum();
    row("devices", format!("{total}{}", list(": ", report.devices.iter().map(|(status, n)| format!("{n} {status}")))));
    let refused: u64 = report.commands_refused.values().sum();
    let reasons = list(": ", report.commands_refused.iter().map(|(reason, n)| format!("{reason} {n}")));
    let refused = if refused > 0 { format!(", {refused} refused since start{reasons}") } else { String::new() };
    row("commands", format!("{}{refused}", commands_open(report)));
    row("store", store(&report.store, now, report.sync.is_some()));
    if let Some(reload) = &report.reload {
        row("reload", reloaded(reload, now));
    }
    for rescue in report.rescues.iter().take(RESCUES_SHOWN) {
        row("damaged", damaged(rescue, now));
    }
    if !report.refused.is_empty() {
        let refused = report.refused.iter().map(|(reason, n)| format!("{reason} {n}"));
        row("refused", list("", refused));
    }
    if !report.pending_devices.is_empty() {
        let more = report.pending_devices.len().saturating_sub(PENDING_SHOWN);
        let more = (more > 0).then(|| format!("and {more} more"));
        let named = report.pending_devices.iter().take(PENDING_SHOWN).cloned();
        row("pending", format!("{} (heard, not attached)", list("", named.chain(more))));
    }
    table.to_string()
}

fn commands_open(report: &StatusReport) -> String {
    let open = format!("{} open", report.commands_open);
    match &report.inhibited {
        None => open,
        Some(inhibited) => {
            let left = words::duration(Duration::from_secs(inhibited.seconds_left));
            format!("{open}, INHIBITED for {left} more: {}", inhibited.why)
        }
    }
}

fn reloaded(reload: &ReloadReport, now: Timestamp) -> String {
    let ago = words::duration(now.since(reload.at));
    if !reload.applied {
        let problems = list("", reload.problems.iter().cloned());
        return format!("REFUSED {ago} ago, the old configuration counts: {problems}");
    }
    let restart = list("; a restart is needed for: ", reload.needs_restart.iter().cloned());
    format!("{ago} ago: {}{restart}", reload.changes)
}

/// A reload that is done, and what it left for a restart.
pub(super) fn applied(report: &ReloadReport) -> String {
    let restart = list("these keys count after a restart: ", report.needs_restart.iter().cloned());
    let end = if restart.is_empty() { "" } else { "\n" };
    format!("read again: {}\n{restart}{end}", report.changes)
}

/// A reload that changed nothing, and why.
pub(super) fn refused(report: &ReloadReport) -> String {
    let problems: String = report.problems.iter().map(|problem| format!("\n  {problem}")).collect();
    format!("the reload is refused, devices and profiles stay as they were:{problems}")
}

fn damaged(rescue: &Rescue, now: Timestamp) -> String {
    let items = |map: &BTreeMap<String, u64>| {
        map.iter().map(|(name, n)| format!("{n} {}", name.replace('_', " "))).collect::<Vec<_>>()
    };
    let mut text =
        format!("{}, {} ago: {}; {}", rescue.file, words::duration(now.since(rescue.at)), rescue.cause, rescue.outcome);
    for (word, map) in [("saved", &rescue.saved), ("lost", &rescue.lost)] {
        text.push_str(&list(&format!("; {word}: "), items(map).into_iter()));
    }
    if let Some(aside) = &rescue.aside {
        text.push_str(&format!("; the damaged copy is {aside}"));
    }
    text
}

fn list(before: &str, items: impl Iterator<Item = String>) -> String {
    let items = items.collect::<Vec<_>>().join(", ");
    if items.is_empty() { items } else { format!("{before}{items}") }
}

fn state(state: LinkState) -> &'static str {
    match state {
        LinkState::Up => "up",
        LinkState::Down => "down",
    }
}

fn link(report: &LinkReport, now: Timestamp) -> String {
    let mut text = format!("{}, {}", state(report.state), report.address);
    if let Some(since) = report.since {
        text.push_str(&format!(", for {}", words::duration(now.since(since))));
    }
    if let Some(clients) = report.connections {
        text.push_str(&format!(", {clients} client{}", if clients == 1 { "" } else { "s" }));
    }
    if let Some(problem) = &report.problem {
        text.push_str(&format!(": {problem}"));
    }
    text
}

fn sync(report: &SyncReport, now: Timestamp) -> String {
    let last = report.last_success_at.map(|then| format!(", last written {} ago", words::duration(now.since(then))));
    let problem = report.problem.as_ref().map(|problem| format!(": {problem}"));
    let (last, problem) = (last.unwrap_or_default(), problem.unwrap_or_default());
    format!("{}, {}{last}{problem}", state(report.state), report.address)
}

fn clock(report: &StatusReport) -> String {
    let clock = &report.clock;
    let why = match (clock.synchronised_by_kernel, clock.table_agreed_seconds_ago) {
        (true, _) => "synchronised by the kernel".to_owned(),
        (false, Some(seconds)) => {
            format!("the table agreed {} ago", words::duration(Duration::from_secs(seconds)))
        }
        (false, None) => "neither synchronised nor confirmed by the table".to_owned(),
    };
    let mut text =
        if clock.trusted { format!("trusted, {why}") } else { format!("NOT trusted, {why}: commands are refused") };
    match clock.quality {
        Quality::Synchronised | Quality::Agreed | Quality::Declared => {}
        Quality::HeldOver => text.push_str(", held over since it last was"),
        Quality::Told => text.push_str(", readings are stamped with the time the table tells"),
        Quality::Unsynchronised => text.push_str(&format!(", a guess not before {}", clock.floor)),
    }
    let waiting = report.store.get("samples_provisional").and_then(Value::as_u64).unwrap_or(0);
    if waiting > 0 {
        text.push_str(&format!(", {waiting} samples wait for their right time"));
    }
    text
}

/// `sends`: there are tables that what is stored goes to.
fn store(stats: &Value, now: Timestamp, sends: bool) -> String {
    let figure = |name: &str| stats.get(name).and_then(Value::as_u64).unwrap_or(0);
    let mut text = format!(
        "{} on disk, {} samples {}",
        words::bytes(figure("bytes_on_disk")),
        figure("samples_waiting") + figure("samples_open"),
        if sends { "waiting to be sent" } else { "kept" }
    );
    for (name, words) in [("outbox_waiting", "outcomes"), ("states_waiting", "device states")] {
        if figure(name) > 0 {
            text.push_str(&format!(", {} {words} waiting", figure(name)));
        }
    }
    let oldest = figure("oldest_waiting_seconds");
    if oldest > 0 {
        text.push_str(&format!(", the oldest for {}", words::duration(Duration::from_secs(oldest))));
    }
    let health = stats.get("health");
    if health.and_then(|health| health.get("ok")).and_then(Value::as_bool) == Some(false) {
        let told = |name: &str| health.and_then(|health| health.get(name)).and_then(Value::as_str);
        let since = told("failing_since").and_then(|text| Timestamp::parse(text).ok());
        let since = since.map(|since| format!(" for {}", words::duration(now.since(since)))).unwrap_or_default();
        let reason = told("reason").unwrap_or("other").replace('_', " ");
        text.push_str(&format!(
            ", NOT WRITING{since} ({reason}): commands are refused, readings stay with their senders"
        ));
    }
    if stats.get("full").and_then(Value::as_bool) == Some(true) {
        text.push_str(", FULL: readings are left with their senders until the table takes what waits");
    }
    if let Some(age) = stats.get("backup_age_seconds").and_then(Value::as_u64) {
        text.push_str(&format!(", backed up {} ago", words::duration(Duration::from_secs(age))));
    }
    for (name, words) in [
        ("store_failures", "failures"),
        ("commands_refused", "commands refused for the disk"),
        ("blocks_parked", "blocks refused by the table"),
        ("refused_not_announced", "refused commands forgotten before they were announced"),
    ] {
        if figure(name) > 0 {
            text.push_str(&format!(", {} {words}", figure(name)));
        }
    }
    text.push_str(&lost(stats));
    text
}

/// Readings lost, with the reasons; nothing if there are none.
fn lost(stats: &Value) -> String {
    let counts = stats.pointer("/ledger/lost").and_then(Value::as_object);
    let reasons: Vec<(&String, u64)> =
        counts.into_iter().flatten().filter_map(|(reason, count)| Some((reason, count.as_u64()?))).collect();
    if reasons.is_empty() {
        return String::new();
    }
    let total: u64 = reasons.iter().map(|(_, count)| count).sum();
    let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!(", {total} readings LOST ({})", reasons.join(", "))
}

pub(super) fn devices(devices: &[DeviceReport], now: Timestamp) -> String {
    if devices.is_empty() {
        return "no devices\n".to_owned();
    }
    let mut table = Table::new(["DEVICE", "STATUS", "SEEN", "READINGS", "LAST COMMAND"]);
    for device in devices {
        let command = device.last_execution.as_ref().map(|record| format!("{} {}", record.command, record.status));
        table.row([
            device.device_id.to_string(),
            device.status.to_string(),
            words::age(now, device.last_seen_at),
            words::readings(&device.last_readings),
            command.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.to_string()
}

pub(super) fn device(device: &DeviceReport, now: Timestamp) -> String {
    let mut table = Table::plain();
    let mut row = |name: &str, text: String| table.row([name.to_owned(), text]);
    let ago = |then| words::duration(now.since(then));
    row("device", format!("{}, {}", device.device_id, device.device_type));
    row("location", device.location.clone());
    let reason = device.status_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    row("status", format!("{}{reason}, for {}", device.status, ago(device.status_since)));
    if device.observed != device.status {
        row("observed", device.observed.to_string());
    }
    row("seen", device.last_seen_at.map_or_else(|| "never".to_owned(), |then| format!("{} ago", ago(then))));
    let measured = device.last_reading_at.map(|then| format!(" ({} ago)", ago(then))).unwrap_or_default();
    if !device.last_readings.is_empty() {
        row("readings", format!("{}{measured}", words::readings(&device.last_readings)));
    }
    row("firmware", or_unknown(device.firmware_version.as_ref()));
    row("boots", or_unknown(device.boot_count.as_ref()));
    for (n, (key, value)) in device.configuration.iter().flatten().enumerate() {
        row(if n == 0 { "configuration" } else { "" }, format!("{key} = {value}"));
    }
    if let Some(commands) = &device.declared_commands {
        row("can", list("", commands.iter().map(ToString::to_string)));
    }
    row("open", format!("{} commands", device.commands_open));
    if let Some(record) = &device.last_execution {
        row("last command", line(record, now));
    }
    if let Some(gateway) = &device.taken_over_by {
        row("taken over", format!("by {gateway}: its item is left alone"));
    }
    table.to_string()
}

fn or_unknown(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// One execution: `recalibrate succeeded, 12 s ago`.
fn line(record: &ExecutionRecord, now: Timestamp) -> String {
    format!(
        "{} {}{}, {} ago",
        record.command,
        record.status,
        reason(record),
        words::duration(now.since(record.received_at))
    )
}

fn reason(record: &ExecutionRecord) -> String {
    record.reason.map(|reason| format!(" {reason}")).unwrap_or_default()
}

pub(super) fn commands(records: &[ExecutionRecord], now: Timestamp) -> String {
    if records.is_empty() {
        return "no commands\n".to_owned();
    }
    let mut table = Table::new(["AGE", "DEVICE", "COMMAND", "PARAMETERS", "STATUS", "REASON", "TOOK", "BY"]);
    for record in records {
        let took = record.completed_at.map(|end| words::duration(end.since(record.received_at)));
        table.row([
            words::age(now, Some(record.received_at)),
            record.device_id.to_string(),
            record.command.clone(),
            parameters(&record.parameters),
            record.status.to_string(),
            record.reason.map_or("-", floorgate_model::Reason::as_str).to_owned(),
            took.unwrap_or_else(|| "-".to_owned()),
            record.issuer.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.to_string()
}

fn parameters(parameters: &Map<String, Value>) -> String {
    const SHOWN_MAX: usize = 48;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let all = parameters.iter().map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(" ");
    let all = if all.is_empty() { "-".to_owned() } else { all };
    if all.chars().count() <= SHOWN_MAX { all } else { all.chars().take(SHOWN_MAX - 1).chain("…".chars()).collect() }
}

/// How a command that was sent here ended, or stands.
pub(super) fn outcome(record: &ExecutionRecord, waited_seconds: u64) -> String {
    let mut table = Table::plain();
    let mut row = |name: &str, text: String| table.row([name.to_owned(), text]);
    let took = record.completed_at.map(|end| format!(" after {} ms", end.since(record.received_at).as_millis()));
    let pending = format!(", not ended within {waited_seconds} s; see `floorgate commands`");
    let end = if record.status.is_terminal() { took.unwrap_or_default() } else { pending };
    row("command", format!("{} for {}", record.command, record.device_id));
    row("id", record.command_id.to_string());
    row("outcome", format!("{}{}{end}", record.status, reason(record)));
    if let Some(message) = &record.message {
        row("message", message.clone());
    }
    let details: BTreeMap<_, _> = record.details.iter().flatten().collect();
    for (key, value) in details {
        row("", format!("{key} = {value}"));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use serde_json::json;

    #[test]
    fn without_tables_samples_are_kept_and_with_them_they_wait() {
        let now = Timestamp::from_millis(0);
        let stats =
            json!({"bytes_on_disk": 1_500, "samples_open": 2, "samples_waiting": 5, "refused_not_announced": 3});
        assert!(store(&stats, now, false).starts_with("1.5 kB on disk, 7 samples kept"));
        let sends = store(&stats, now, true);
        assert!(sends.starts_with("1.5 kB on disk, 7 samples waiting to be sent"), "{sends}");
        assert!(sends.ends_with(", 3 refused commands forgotten before they were announced"), "{sends}");
    }

    #[test]
    fn the_commands_that_were_refused_are_shown_by_their_reasons() {
        let link = json!({"address": "a", "state": "up"});
        let report = json!({
            "gateway_id": "G", "version": "1", "started_at": 0, "uptime_seconds": 1, "store": {}, "floor": link,
            "clock": Clock::set_to(Timestamp::EPOCH).state(), "refused": {}, "pending_devices": [], "devices": {},
            "commands_open": 1, "commands_refused": {"EXPIRED": 2, "QUEUE_FULL": 5},
        });
        let mut report: StatusReport = serde_json::from_value(report).unwrap();
        let shown = |report: &StatusReport| status(report, Timestamp::EPOCH);
        assert!(
            shown(&report).contains("1 open, 7 refused since start: EXPIRED 2, QUEUE_FULL 5\n"),
            "{}",
            shown(&report)
        );
        report.commands_refused.clear();
        assert!(shown(&report).contains(" 1 open\n"));
    }

    fn record(status: &str) -> ExecutionRecord {
        serde_json::from_value(json!({
            "command_id": "c-1", "device_id": "A", "command": "update_config", "gateway_id": "G", "status": status,
            "parameters": {"alert_threshold_psi": 145}, "reason": "UNVERIFIED", "issuer": "local:0",
            "issued_at": 1_000, "expires_at": 2_000, "received_at": 1_000, "completed_at": 1_000.25,
        }))
        .unwrap()
    }

    #[test]
    fn an_outcome_says_how_it_ended_or_that_it_has_not() {
        let ended = outcome(&record("succeeded"), 5);
        let expected = "command  update_config for A\nid       c-1\noutcome  succeeded UNVERIFIED after 250 ms\n";
        assert_eq!(ended, expected);
        assert!(outcome(&record("in_progress"), 5).contains("not ended within 5 s; see `floorgate commands`"));
    }

    #[test]
    fn commands_are_a_table_with_their_ages() {
        let shown = commands(&[record("succeeded")], Timestamp::from_millis(1_012_000));
        let row = shown.lines().nth(1).unwrap();
        let cells: Vec<_> = row.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect();
        let expected =
            ["12 s", "A", "update_config", "alert_threshold_psi=145", "succeeded", "UNVERIFIED", "0 s", "local:0"];
        assert_eq!(cells, expected);
        assert_eq!(commands(&[], Timestamp::EPOCH), "no commands\n");
    }
}
