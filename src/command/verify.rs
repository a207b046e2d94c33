//! What a device's word and its reported state prove about an execution. Pure.
//!
//! | command | proof |
//! |---|---|
//! | `reboot` | `boot_count` above the one before, or, where there is none, a live state report after the order left |
//! | `update_config` | the configuration the device reports after the start holds every requested value |
//! | `recalibrate` | the device's own `succeeded` |
//!
//! A `failed` answer ends every command. A `succeeded` answer without proof is worth waiting a little for
//! ([`grace`]); after that it is a success with the reason `UNVERIFIED`. The values such an answer stands for are then
//! taken for the device's configuration, unless the device has reported one itself since the start: that stands.
//!
//! Whether a report is new is told by comparing it with the one known before ([`Known`]), not by comparing times: the
//! wall clock may be put back meanwhile. Once the gateway itself has restarted, a reboot is proved by the count alone:
//! our own restart cut the device's connection, so it announces itself whether it rebooted or not.

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::{CommandName, ExecutionStatus, Reading, Reason, Timestamp};
use serde_json::{Map, Value};

use crate::shadow::store::{Effect, Ending, OpenExecution};
use crate::shadow::{Answer, AnswerStatus, DeviceView};

/// How long a reboot's proof may follow the device's answer; it takes that long to come up again.
pub const REBOOT_GRACE: Duration = Duration::from_secs(30);
/// How long a configuration report may follow the device's answer.
pub const CONFIG_GRACE: Duration = Duration::from_secs(5);

/// What is proved.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It has ended so.
    Ended(Ending),
    /// The device says done and nothing shows it yet; after [`grace`] it has ended so.
    SaidOnly(Ending),
    /// Nothing yet.
    Open,
}

/// What is known besides the journal and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The time of day; `None` while the clock is not trusted: then nothing is dated by it.
    pub today: Option<Timestamp>,
    /// The device's `last_state_at` before the order can have had any effect, or after a restart of the gateway, when
    /// the wait began; `None` if that could not be read.
    pub state_before: Option<Option<Timestamp>>,
    /// The gateway restarted since the order left, or may have left.
    pub interrupted: bool,
}

/// How long a proof may follow a mere answer.
#[must_use]
pub fn grace(command: CommandName) -> Duration {
    match command {
        CommandName::Reboot => REBOOT_GRACE,
        CommandName::UpdateConfig => CONFIG_GRACE,
        CommandName::Recalibrate | CommandName::SetStatus => Duration::ZERO,
    }
}

/// Weighs what is known of an execution in progress.
#[must_use]
pub fn weigh(command: CommandName, execution: &OpenExecution, device: Option<&DeviceView>, known: &Known) -> Verdict {
    let answer = execution.answer.as_ref();
    if let Some(answer) = answer.filter(|answer| answer.status == AnswerStatus::Failed) {
        return Verdict::Ended(failed(answer, "the device failed"));
    }
    let said_done = answer.filter(|answer| answer.status == AnswerStatus::Succeeded);
    match command {
        CommandName::Reboot if has_rebooted(execution, device, known) => Verdict::Ended(succeeded(answer)),
        CommandName::UpdateConfig => weigh_configuration(execution, device, said_done, known),
        CommandName::Recalibrate => said_done.map_or(Verdict::Open, |answer| {
            let effect = known.today.and_then(|today| calibration_date(answer, today));
            Verdict::Ended(Ending { effect, ..succeeded(Some(answer)) })
        }),
        _ => said_done.map_or(Verdict::Open, |answer| Verdict::SaidOnly(unverified(answer))),
    }
}

fn has_rebooted(execution: &OpenExecution, device: Option<&DeviceView>, known: &Known) -> bool {
    let Some(device) = device else { return false };
    match (device.boot_count, execution.boot_count_before) {
        (Some(now), Some(before)) => now > before,
        // Without a count, a new state report is what a restarted device sends.
        _ => !known.interrupted && has_reported_since(execution, device, known),
    }
}

fn has_reported_since(execution: &OpenExecution, device: &DeviceView, known: &Known) -> bool {
    let Some(report) = device.last_state_at else { return false };
    let is_new = known.state_before.is_some_and(|before| before != Some(report));
    // What came before this wait began is known by its time only.
    let by_time = known.interrupted || known.state_before.is_none();
    is_new || by_time && execution.record.started_at.is_some_and(|start| report > start)
}

fn weigh_configuration(
    execution: &OpenExecution,
    device: Option<&DeviceView>,
    said: Option<&Answer>,
    known: &Known,
) -> Verdict {
    let wanted = &execution.checked_parameters;
    let answered = execution.answer.as_ref().and_then(|answer| answer.configuration.as_ref());
    // A state report without a configuration says nothing of it: the map is then the one from before.
    let with_it = |device: &&DeviceView| device.last_configuration_at >= device.last_state_at;
    let since_start = device.filter(|device| has_reported_since(execution, device, known)).filter(with_it);
    let reported = answered.or_else(|| since_start.and_then(|device| device.configuration.as_ref()));
    let differing = |reported| wanted.iter().find(|(key, value)| !holds(reported, key, value));
    match (reported.map(differing), said) {
        (Some(None), answer) => Verdict::Ended(succeeded(answer)),
        (Some(Some((key, value))), Some(answer)) if answer.configuration.is_some() => {
            let reports = reported.and_then(|map| map.get(key)).map_or("nothing", String::as_str);
            Verdict::Ended(failed(answer, &format!("{key} was to be {value}, the device reports {reports}")))
        }
        // What the device reports itself stands; nothing is laid over it.
        (Some(Some(_)), Some(answer)) => Verdict::SaidOnly(unverified(answer)),
        (None, Some(answer)) => {
            let values = wanted.iter().map(|(key, value)| (key.clone(), text(value))).collect();
            Verdict::SaidOnly(Ending { effect: Some(Effect::Configuration(values)), ..unverified(answer) })
        }
        (_, None) => Verdict::Open,
    }
}

/// Whether a reported configuration holds a value: as text, or as the same number (`145` and `145.0`).
fn holds(reported: &BTreeMap<String, String>, key: &str, value: &Value) -> bool {
    let (Some(found), wanted) = (reported.get(key), text(value)) else { return false };
    *found == wanted || Reading::parse(found).is_some_and(|number| Some(number) == Reading::parse(&wanted))
}

/// A value as the device's configuration holds it.
#[must_use]
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The day of the calibration, unless the device keeps it itself.
fn calibration_date(answer: &Answer, today: Timestamp) -> Option<Effect> {
    let key = "calibration_date";
    let kept = answer.configuration.as_ref().is_some_and(|configuration| configuration.contains_key(key));
    let today = today.to_string().chars().take(10).collect();
    (!kept).then(|| Effect::Configuration(BTreeMap::from([(key.to_owned(), today)])))
}

fn details(answer: Option<&Answer>) -> Option<Map<String, Value>> {
    answer.and_then(|answer| answer.details.clone())
}

fn succeeded(answer: Option<&Answer>) -> Ending {
    let details = details(answer);
    Ending { status: ExecutionStatus::Succeeded, reason: None, message: None, details, effect: None }
}

fn unverified(answer: &Answer) -> Ending {
    let message = "the device says done; nothing it reports shows it".to_owned();
    Ending { reason: Some(Reason::Unverified), message: Some(message), ..succeeded(Some(answer)) }
}

fn failed(answer: &Answer, otherwise: &str) -> Ending {
    Ending {
        status: ExecutionStatus::Failed,
        reason: Some(Reason::DeviceError),
        message: Some(answer.reason.clone().unwrap_or_else(|| otherwise.to_owned())),
        details: details(Some(answer)),
        effect: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::command::memory::{answer, device, open};

    const START: i64 = 1_800_000_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(START + seconds * 1_000)
    }

    /// Nothing was interrupted, and the device's last report before the order was 5 s before the start.
    fn known() -> Known {
        Known { today: Some(at(10)), state_before: Some(Some(at(-5))), interrupted: false }
    }

    fn weighed(command: CommandName, execution: &OpenExecution, device: &DeviceView) -> Verdict {
        weigh(command, execution, Some(device), &known())
    }

    #[test]
    fn a_reboot_is_proved_by_its_count_and_by_no_mere_report_if_there_is_a_count() {
        let mut execution = open("reboot", json!({}), at(0));
        let mut view = device("A");
        (execution.boot_count_before, view.boot_count, view.last_state_at) = (Some(4), Some(4), Some(at(5)));
        assert_eq!(weighed(CommandName::Reboot, &execution, &view), Verdict::Open);
        view.boot_count = Some(5);
        assert!(matches!(weighed(CommandName::Reboot, &execution, &view), Verdict::Ended(e) if e.reason.is_none()));
        (view.boot_count, execution.boot_count_before) = (None, None);
        assert!(matches!(weighed(CommandName::Reboot, &execution, &view), Verdict::Ended(_)));
        view.last_state_at = Some(at(-5));
        assert_eq!(weighed(CommandName::Reboot, &execution, &view), Verdict::Open);
    }

    #[test]
    fn an_answer_alone_is_unverified_and_a_failure_ends_it() {
        let mut execution = open("reboot", json!({}), at(0));
        execution.answer = Some(answer(AnswerStatus::Succeeded));
        let verdict = weighed(CommandName::Reboot, &execution, &device("A"));
        assert!(matches!(verdict, Verdict::SaidOnly(e) if e.reason == Some(Reason::Unverified)));
        execution.answer = Some(Answer { reason: Some("stuck".into()), ..answer(AnswerStatus::Failed) });
        let verdict = weighed(CommandName::Reboot, &execution, &device("A"));
        assert!(matches!(verdict, Verdict::Ended(e) if e.message.as_deref() == Some("stuck")));
        execution.answer = Some(answer(AnswerStatus::InProgress));
        assert_eq!(weighed(CommandName::Reboot, &execution, &device("A")), Verdict::Open);
    }

    #[test]
    fn a_configuration_counts_only_as_reported_after_the_start() {
        let mut execution = open("update_config", json!({"sample_rate_seconds": 10}), at(0));
        let mut view = device("A");
        view.configuration = Some(BTreeMap::from([("sample_rate_seconds".into(), "10.0".into())]));
        (view.last_state_at, view.last_configuration_at) = (Some(at(-5)), Some(at(-5)));
        assert_eq!(
            weighed(CommandName::UpdateConfig, &execution, &view),
            Verdict::Open,
            "an old report proves nothing"
        );
        view.last_state_at = Some(at(1));
        assert_eq!(
            weighed(CommandName::UpdateConfig, &execution, &view),
            Verdict::Open,
            "nor does a new one without a configuration"
        );
        (view.last_state_at, view.last_configuration_at) = (Some(at(1)), Some(at(1)));
        assert!(matches!(weighed(CommandName::UpdateConfig, &execution, &view), Verdict::Ended(_)));
        let other = BTreeMap::from([("sample_rate_seconds".into(), "5".into())]);
        execution.answer = Some(Answer { configuration: Some(other), ..answer(AnswerStatus::Succeeded) });
        let verdict = weighed(CommandName::UpdateConfig, &execution, &view);
        assert!(matches!(&verdict, Verdict::Ended(e) if e.reason == Some(Reason::DeviceError)), "{verdict:?}");
        execution.answer = Some(answer(AnswerStatus::Succeeded));
        (view.last_state_at, view.last_configuration_at) = (None, None);
        let verdict = weighed(CommandName::UpdateConfig, &execution, &view);
        let values = BTreeMap::from([("sample_rate_seconds".to_owned(), "10".to_owned())]);
        assert!(matches!(verdict, Verdict::SaidOnly(e) if e.effect == Some(Effect::Configuration(values))));
    }

    #[test]
    fn a_calibration_is_dated_on_the_day_it_succeeded_and_not_before() {
        let mut execution = open("recalibrate", json!({}), at(0));
        assert_eq!(weighed(CommandName::Recalibrate, &execution, &device("A")), Verdict::Open);
        execution.answer = Some(answer(AnswerStatus::Succeeded));
        let Verdict::Ended(ending) = weighed(CommandName::Recalibrate, &execution, &device("A")) else { panic!() };
        let date = BTreeMap::from([("calibration_date".to_owned(), "2027-01-15".to_owned())]);
        assert_eq!((ending.reason, ending.effect), (None, Some(Effect::Configuration(date))));
        let untrusted = Known { today: None, ..known() };
        let verdict = weigh(CommandName::Recalibrate, &execution, Some(&device("A")), &untrusted);
        assert!(matches!(verdict, Verdict::Ended(ending) if (ending.reason, &ending.effect) == (None, &None)));
    }

    #[test]
    fn a_new_report_is_told_from_the_one_before_and_not_by_its_time() {
        let execution = open("reboot", json!({}), at(0));
        let mut view = device("A");
        (view.last_state_at, view.last_configuration_at) = (Some(at(-3_600)), Some(at(-3_600)));
        assert!(matches!(weighed(CommandName::Reboot, &execution, &view), Verdict::Ended(_)), "the clock was put back");
        let before = Known { state_before: Some(view.last_state_at), ..known() };
        assert_eq!(weigh(CommandName::Reboot, &execution, Some(&view), &before), Verdict::Open);
    }

    #[test]
    fn after_the_gateways_restart_a_reboot_is_proved_by_its_count_alone() {
        let mut execution = open("reboot", json!({}), at(0));
        let mut view = device("A");
        let restarted = |state_before| Known { state_before, interrupted: true, ..known() };
        (view.last_state_at, view.last_configuration_at) = (Some(at(5)), Some(at(5)));
        for state_before in [None, Some(None), Some(Some(at(-5)))] {
            let verdict = weigh(CommandName::Reboot, &execution, Some(&view), &restarted(state_before));
            assert_eq!(verdict, Verdict::Open, "{state_before:?}");
        }
        (execution.boot_count_before, view.boot_count) = (Some(4), Some(5));
        let verdict = weigh(CommandName::Reboot, &execution, Some(&view), &restarted(None));
        assert!(matches!(verdict, Verdict::Ended(ending) if ending.reason.is_none()));
    }

    #[test]
    fn after_the_gateways_restart_a_configuration_counts_if_it_came_since_the_start_or_since_the_return() {
        let execution = open("update_config", json!({"sample_rate_seconds": 10}), at(0));
        let mut view = device("A");
        view.configuration = Some(BTreeMap::from([("sample_rate_seconds".into(), "10".into())]));
        let proved = |report, state_before| {
            let times = (Some(report), Some(report));
            let view = DeviceView { last_state_at: times.0, last_configuration_at: times.1, ..view.clone() };
            let known = Known { state_before, interrupted: true, ..known() };
            weigh(CommandName::UpdateConfig, &execution, Some(&view), &known) != Verdict::Open
        };
        assert!(proved(at(5), Some(Some(at(5)))), "it came before we were back");
        assert!(proved(at(5), None));
        assert!(proved(at(-60), Some(Some(at(-5)))), "it came since, by a clock put back");
        assert!(!proved(at(-5), Some(Some(at(-5)))));
        assert!(!proved(at(-5), None));
    }
}
