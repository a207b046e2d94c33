//! Turns of floor reports that change `state.db`: state, answers, retained readings. Live readings take the way over
//! [`super::samples`].

use std::time::Duration;

use floorgate_model::DeviceId;

use super::journal;
use super::report::{Answer, AnswerStatus, StateReport, TelemetryReport};
use super::terms::{StoreError, Taken};
use super::turn::Turn;

/// A retained reading from further ahead of our clock than this is not believed (R-TIM-3).
const AHEAD_MAX: Duration = Duration::from_secs(300);

impl Turn<'_> {
    pub(super) fn state_report(&mut self, report: &StateReport) -> Taken {
        let (now, wall) = (self.now, self.wall);
        let Some(device) = self.change(&report.device_id) else { return Taken::Unknown };
        match (report.online, report.retained) {
            // Delivered on subscribing: it says what it is, not that it is there.
            (true, true) => {}
            (true, false) => device.observer.said_online(now),
            (false, retained) => device.observer.said_offline(retained),
        }
        let new = device.told(report);
        if !report.retained {
            device.seen(report.received_at);
        }
        if new {
            device.changed_urgently(wall);
            self.memory.signals.states = true;
        } else if !report.retained {
            device.changed(wall);
        }
        self.refresh(&report.device_id);
        self.memory.signals.floor_changes += 1;
        Taken::Stored
    }

    pub(super) fn device_returned(&mut self, id: &DeviceId) {
        let (now, wall) = (self.now, self.wall);
        let Some(device) = self.change(id) else { return };
        device.observer.said_online(now);
        device.seen(wall);
        device.changed(wall);
        self.refresh(id);
    }

    pub(super) fn answer(&mut self, answer: &Answer) -> Result<Taken, StoreError> {
        let taken = match journal::find_on(self.connection, &answer.device_id, &answer.command_id)? {
            None => Taken::Unknown,
            Some(found) if found.record().status.is_terminal() => {
                journal::late_answer(self.connection, found.seq, answer)?;
                Taken::Stored
            }
            Some(found) => match &found.open.answer {
                Some(known) if same_word(known, answer) => Taken::Duplicate,
                // Overtaken on the way: the device has said how it ended.
                Some(known) if is_final(known) && !is_final(answer) => Taken::Stored,
                _ => {
                    journal::answer(self.connection, found.seq, answer)?;
                    Taken::Stored
                }
            },
        };
        let (now, wall) = (self.now, self.wall);
        if let Some(device) = self.change(&answer.device_id) {
            device.observer.reported(now);
            device.seen(answer.received_at);
            let at = Some(answer.received_at);
            let new = answer.configuration.as_ref().is_some_and(|values| device.reported_configuration(values, at));
            if new {
                device.changed_urgently(wall);
                self.memory.signals.states = true;
            } else {
                device.changed(wall);
            }
            self.refresh(&answer.device_id);
        }
        self.memory.signals.floor_changes += 1;
        Ok(taken)
    }

    /// An old reading that the broker kept: it may be all there is, but says nothing about now.
    pub(super) fn retained_sample(&mut self, report: &TelemetryReport) -> Taken {
        let wall = self.wall;
        let Some(device) = self.memory.devices.get(&report.device_id) else { return Taken::Unknown };
        let known = device.view.last_reading_at;
        let believable = |time: &_| *time <= report.received_at.saturating_add(AHEAD_MAX);
        let newer = report.device_time.filter(believable).filter(|time| known.is_none_or(|known| known < *time));
        let Some(at) = newer else { return Taken::Duplicate };
        if let Some(device) = self.change(&report.device_id) {
            device.measured(&report.readings, at);
            device.changed(wall);
        }
        // It was judged by a guess: good enough to be shown, not to go on from.
        if report.guess_base_ms.is_none() {
            self.samples.known_newest(&report.device_id, at);
        }
        Taken::Stored
    }
}

fn is_final(answer: &Answer) -> bool {
    answer.status != AnswerStatus::InProgress
}

/// The same word again, delivered at another time.
fn same_word(known: &Answer, again: &Answer) -> bool {
    *known == Answer { received_at: known.received_at, ..again.clone() }
}
