//! What a device's word and its reported state prove about an execution. Pure.
//!
//! | command | proof |
//! |---|---|
//! | `reboot` | `boot_count` above the one before, or, where there is none, a new live state report |
//! | `update_config` | the configuration the device reports after the start holds every requested value |
//! | `recalibrate` | the device's own `succeeded` |
//!
//! A `failed` answer ends every command. A `succeeded` answer without proof is worth waiting a little for
//! ([`grace`]); after that it is a success with the reason `UNVERIFIED`. The values such an answer stands for are then
//! taken for the device's configuration, unless the device has reported one itself since the start: that stands.

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
pub fn weigh(command: CommandName, execution: &OpenExecution, device: Option<&DeviceView>, now: Timestamp) -> Verdict {
    let answer = execution.answer.as_ref();
    if let Some(answer) = answer.filter(|answer| answer.status == AnswerStatus::Failed) {
        return Verdict::Ended(failed(answer, "the device failed"));
    }
    let said_done = answer.filter(|answer| answer.status == AnswerStatus::Succeeded);
    match command {
        CommandName::Reboot if has_rebooted(execution, device) => Verdict::Ended(succeeded(answer)),
        CommandName::UpdateConfig => weigh_configuration(execution, device, said_done),
        CommandName::Recalibrate => said_done.map_or(Verdict::Open, |answer| {
            Verdict::Ended(Ending { effect: calibration_date(answer, now), ..succeeded(Some(answer)) })
        }),
        _ => said_done.map_or(Verdict::Open, |answer| Verdict::SaidOnly(unverified(answer))),
    }
}

fn has_rebooted(execution: &OpenExecution, device: Option<&DeviceView>) -> bool {
    let Some(device) = device else { return false };
    match (device.boot_count, execution.boot_count_before) {
        (Some(now), Some(before)) => now > before,
        // Without a count, a state report after the start is what a restarted device sends.
        _ => reported_since_start(execution, device),
    }
}

fn reported_since_start(execution: &OpenExecution, device: &DeviceView) -> bool {
    execution.record.started_at.is_some_and(|start| device.last_state_at.is_some_and(|report| report > start))
}

fn weigh_configuration(execution: &OpenExecution, device: Option<&DeviceView>, said: Option<&Answer>) -> Verdict {
    let wanted = &execution.checked_parameters;
    let answered = execution.answer.as_ref().and_then(|answer| answer.configuration.as_ref());
    let since_start = device.filter(|device| reported_since_start(execution, device));
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
fn calibration_date(answer: &Answer, now: Timestamp) -> Option<Effect> {
    let key = "calibration_date";
    let kept = answer.configuration.as_ref().is_some_and(|configuration| configuration.contains_key(key));
    let today = now.to_string().chars().take(10).collect();
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

    fn weighed(command: CommandName, execution: &OpenExecution, device: &DeviceView) -> Verdict {
        weigh(command, execution, Some(device), at(10))
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
        view.last_state_at = Some(at(-1));
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
        view.last_state_at = Some(at(-5));
        assert_eq!(
            weighed(CommandName::UpdateConfig, &execution, &view),
            Verdict::Open,
            "an old report proves nothing"
        );
        view.last_state_at = Some(at(1));
        assert!(matches!(weighed(CommandName::UpdateConfig, &execution, &view), Verdict::Ended(_)));
        let other = BTreeMap::from([("sample_rate_seconds".into(), "5".into())]);
        execution.answer = Some(Answer { configuration: Some(other), ..answer(AnswerStatus::Succeeded) });
        let verdict = weighed(CommandName::UpdateConfig, &execution, &view);
        assert!(matches!(&verdict, Verdict::Ended(e) if e.reason == Some(Reason::DeviceError)), "{verdict:?}");
        execution.answer = Some(answer(AnswerStatus::Succeeded));
        view.last_state_at = None;
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
    }
}
