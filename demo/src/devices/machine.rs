//! What a device is and does, without its connection: readings, configuration, commands, memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use floorgate_model::Timestamp;
use serde_json::{Map, Value, json};

use super::signal::Signal;
use super::{Pace, Spec};

/// Command ids a device remembers, as in its flash: also over a reboot.
const REMEMBERED: usize = 64;

/// A part of an execution, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Say that it has begun.
    Begin { command_id: String },
    /// Take so long.
    Work(Duration),
    /// Change the configuration.
    Set { key: String, value: String },
    /// Go down and come back.
    Reboot,
    /// Say that it is done.
    Succeed { command_id: String },
    /// Say that it is not.
    Fail { command_id: String, reason: String },
}

/// What an order makes a device do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Not an order.
    Ignore,
    /// It did this one before: only the answer is given again.
    Repeat { command_id: String },
    /// It goes to work.
    Execute { command_id: String, command: String, steps: VecDeque<Step> },
}

/// A device without its connection.
#[derive(Debug)]
pub(crate) struct Machine {
    spec: Spec,
    pace: Pace,
    configuration: BTreeMap<String, String>,
    boot_count: u64,
    seq: u64,
    signals: Vec<Signal>,
    remembered: VecDeque<(String, Option<Value>)>,
}

impl Machine {
    pub(crate) fn new(spec: Spec, pace: Pace) -> Self {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let configuration = spec.configuration.iter().map(own).collect();
        let signals = spec.metrics.iter().copied().map(Signal::new).collect();
        Self { spec, pace, configuration, boot_count: 1, seq: 0, signals, remembered: VecDeque::new() }
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn configuration(&self) -> &BTreeMap<String, String> {
        &self.configuration
    }

    pub(crate) fn boot_count(&self) -> u64 {
        self.boot_count
    }

    /// Between two readings.
    pub(crate) fn sample_rate(&self) -> Duration {
        let configured = self.configuration.get("sample_rate_seconds").and_then(|seconds| seconds.parse().ok());
        let configured = configured.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        self.pace.sample.or(configured).unwrap_or(self.spec.sample_rate)
    }

    /// What it publishes as telemetry.
    pub(crate) fn measure(&mut self, at: Timestamp, surging: bool) -> Value {
        self.seq += 1;
        let mut report: Map<String, Value> =
            self.signals.iter_mut().map(|signal| (signal.name().to_owned(), json!(signal.sample(surging)))).collect();
        report.insert("timestamp".to_owned(), json!(at));
        report.insert("seq".to_owned(), json!(self.seq));
        Value::Object(report)
    }

    /// What it publishes as its state.
    pub(crate) fn state(&self) -> Value {
        json!({
            "online": true,
            "firmware_version": self.spec.firmware_version,
            "configuration": self.configuration,
            "boot_count": self.boot_count,
            "commands": self.spec.commands,
        })
    }

    /// Judges an order and says what follows. The id is remembered from here on, whatever happens.
    pub(crate) fn react(&mut self, payload: &[u8], today: Timestamp) -> Reaction {
        let Ok(order) = serde_json::from_slice::<Value>(payload) else { return Reaction::Ignore };
        let (Some(command_id), Some(command)) = (order["command_id"].as_str(), order["command"].as_str()) else {
            return Reaction::Ignore;
        };
        let command_id = command_id.to_owned();
        if self.remembered.iter().any(|(known, _)| *known == command_id) {
            return Reaction::Repeat { command_id };
        }
        self.remembered.push_back((command_id.clone(), None));
        if self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
        let steps = self.plan(&command_id, command, &order["parameters"], today);
        Reaction::Execute { command_id, command: command.to_owned(), steps: steps.into() }
    }

    fn plan(&self, command_id: &str, command: &str, parameters: &Value, today: Timestamp) -> Vec<Step> {
        let command_id = command_id.to_owned();
        let begin = Step::Begin { command_id: command_id.clone() };
        let fail = |reason: &str| Step::Fail { command_id: command_id.clone(), reason: reason.to_owned() };
        let succeed = Step::Succeed { command_id: command_id.clone() };
        if !self.spec.commands.contains(&command) {
            return vec![fail("not supported by this device")];
        }
        match command {
            "recalibrate" => {
                let work = Step::Work(self.pace.recalibration);
                let mut steps = vec![begin, work];
                if let Some(reason) = self.spec.refuses_recalibration {
                    steps.push(fail(reason));
                } else {
                    let value = today.to_string().chars().take("2026-01-01".len()).collect();
                    steps.extend([Step::Set { key: "calibration_date".to_owned(), value }, succeed]);
                }
                steps
            }
            // The word that it begins gets out before the device goes down.
            "reboot" => vec![begin, Step::Work(self.pace.recalibration / 10), Step::Reboot, succeed],
            // `update_config`: whole or not at all.
            _ => {
                let settings: Vec<_> = parameters.as_object().into_iter().flatten().collect();
                let known = |key: &str| key == "sample_rate_seconds" || self.configuration.contains_key(key);
                if let Some((key, _)) = settings.iter().find(|(key, _)| !known(key)) {
                    return vec![fail(&format!("no setting `{key}`"))];
                }
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let set = settings.into_iter().map(|(key, value)| Step::Set { key: key.clone(), value: text(value) });
                set.chain([succeed]).collect()
            }
        }
    }

    /// Does one step; answers what to publish as its result, if anything.
    pub(crate) fn perform(&mut self, step: &Step) -> Option<Value> {
        let (command_id, answer) = match step {
            Step::Begin { command_id } => (command_id, json!({"status": "in_progress"})),
            Step::Succeed { command_id } => {
                (command_id, json!({"status": "succeeded", "configuration": self.configuration}))
            }
            Step::Fail { command_id, reason } => {
                let configuration = &self.configuration;
                (command_id, json!({"status": "failed", "reason": reason, "configuration": configuration}))
            }
            Step::Set { key, value } => {
                self.configuration.insert(key.clone(), value.clone());
                return None;
            }
            Step::Reboot => {
                self.boot_count += 1;
                return None;
            }
            Step::Work(_) => return None,
        };
        let mut answer = answer;
        answer["command_id"] = json!(command_id);
        if let Some((_, last)) = self.remembered.iter_mut().find(|(known, _)| known == command_id) {
            *last = Some(answer.clone());
        }
        Some(answer)
    }

    /// The last answer given for an id, if it gave one.
    pub(crate) fn last_answer(&self, command_id: &str) -> Option<Value> {
        self.remembered.iter().find(|(known, _)| known == command_id)?.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{now, seed};

    fn machine(device_type: &str) -> Machine {
        let spec = seed().into_iter().find(|spec| spec.device_type == device_type).unwrap();
        Machine::new(spec, Pace::default())
    }

    fn order(id: &str, command: &str, parameters: &Value) -> Vec<u8> {
        json!({"command_id": id, "command": command, "parameters": parameters}).to_string().into_bytes()
    }

    fn answers(machine: &mut Machine, order: &[u8]) -> Vec<Value> {
        let Reaction::Execute { steps, .. } = machine.react(order, now()) else { panic!("not executed") };
        steps.iter().filter_map(|step| machine.perform(step)).collect()
    }

    #[test]
    fn a_recalibration_begins_ends_and_moves_the_calibration_date() {
        let mut machine = machine("pressure_sensor");
        let answers = answers(&mut machine, &order("a", "recalibrate", &json!({})));
        let statuses: Vec<_> = answers.iter().map(|answer| answer["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["in_progress", "succeeded"]);
        assert_eq!(answers[1]["configuration"]["calibration_date"], now().to_string()[..10]);
    }

    #[test]
    fn the_temperature_sensor_refuses_and_keeps_its_calibration_date() {
        let mut machine = machine("temperature_sensor");
        let answers = answers(&mut machine, &order("a", "recalibrate", &json!({})));
        assert_eq!(answers[1]["status"], "failed");
        assert_eq!(answers[1]["reason"], "zero offset out of tolerance");
        assert_eq!(answers[1]["configuration"]["calibration_date"], "2025-05-15");
    }

    #[test]
    fn a_configuration_is_taken_whole_or_not_at_all() {
        let mut machine = machine("pressure_sensor");
        let good = order("a", "update_config", &json!({"alert_threshold_psi": 145.5, "sample_rate_seconds": 2}));
        let answers_to_good = answers(&mut machine, &good);
        assert_eq!(answers_to_good[0]["configuration"]["alert_threshold_psi"], "145.5");
        assert_eq!(machine.sample_rate(), Duration::from_secs(2));
        let bad = order("b", "update_config", &json!({"alert_threshold_psi": 1, "no_such": 1}));
        assert_eq!(answers(&mut machine, &bad)[0]["status"], "failed");
        assert_eq!(machine.configuration()["alert_threshold_psi"], "145.5");
    }

    #[test]
    fn a_command_id_is_executed_once_and_answered_again() {
        let mut machine = machine("valve_actuator");
        let reboot = order("a", "reboot", &json!({}));
        assert_eq!(answers(&mut machine, &reboot).last().unwrap()["status"], "succeeded");
        assert_eq!(machine.react(&reboot, now()), Reaction::Repeat { command_id: "a".to_owned() });
        assert_eq!(machine.last_answer("a").unwrap()["status"], "succeeded");
        assert_eq!(machine.boot_count(), 2);
    }

    #[test]
    fn what_a_device_cannot_do_fails_and_what_is_no_order_is_ignored() {
        let mut machine = machine("valve_actuator");
        assert_eq!(answers(&mut machine, &order("a", "recalibrate", &json!({})))[0]["status"], "failed");
        for payload in [b"".as_slice(), b"{}", b"[]", b"{\"command\":\"reboot\"}", b"\xff"] {
            assert_eq!(machine.react(payload, now()), Reaction::Ignore);
        }
    }

    #[test]
    fn the_configuration_of_every_device_is_the_seeds_and_its_type_has_a_profile() {
        for spec in seed() {
            let profile = floorgate_model::Profile::built_in(spec.device_type).unwrap();
            for command in &spec.commands {
                let command = command.parse().unwrap();
                assert!(profile.commands.contains_key(&command), "{} {command}", spec.id);
            }
        }
    }
}
