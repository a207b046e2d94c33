//! One attached device in memory: what others see of it, its status rules, and its version.
//!
//! # Versions
//!
//! The version grows with every change worth sending, and one that may have been sent never comes again with other
//! content, though most changes are not written to disk at once: opening the store jumps every version by
//! [`VERSION_JUMP`] and writes that down; a device with [`UNSAVED_MAX`] unwritten changes is written; and one whose
//! changes could not be written is no longer shown to the sync from [`UNSAVED_SENDABLE`] on.

use std::collections::BTreeMap;
use std::time::Instant;

use floorgate_model::{
    AdminState, CommandName, DeviceId, DeviceLedger, DeviceStatus, ExecutionRecord, GatewayId, Readings, Timestamp,
};

use super::report::StateReport;
use super::status::{Limits, Observer};
use super::terms::{Attachment, Effect};
use super::view::{DeviceView, StateSnapshot};

/// Added to every version at open.
pub(super) const VERSION_JUMP: u64 = 10_000;
/// Unwritten changes of one device that make a flush due at once.
pub(super) const UNSAVED_MAX: u64 = 5_000;
/// Unwritten changes from which on a state is not sent: after a crash its version might come again.
const UNSAVED_SENDABLE: u64 = 9_000;
/// Versions end here, far from where SQLite's integers do; a table that holds a higher one was not written by us.
const VERSION_MAX: u64 = i64::MAX.unsigned_abs() / 4;

/// The key that the gateway adds to the configuration after a calibration.
const CALIBRATION_DATE: &str = "calibration_date";

/// One attached device.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) view: DeviceView,
    pub(super) observer: Observer,
    /// The table has this version.
    pub(super) synced_version: u64,
    /// The file has this version.
    pub(super) saved_version: u64,
    /// Differs from the file.
    pub(super) dirty: bool,
    /// The newest version that must go at once.
    urgent_version: u64,
    /// Since when something waits to be sent.
    waiting_since: Option<Timestamp>,
    /// The configuration is the device's word, not only how it was commissioned.
    configuration_reported: bool,
    /// Where the last execution stands in the journal.
    pub(super) last_execution_seq: i64,
    /// What is wrong with it that its own word does not say (the gateway and its disk).
    pub(super) trouble: Option<String>,
}

/// What the file knows of a device.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) view: DeviceView,
    pub(super) offline_reason: Option<String>,
    pub(super) synced_version: u64,
}

impl Device {
    /// A device that the file does not know yet.
    pub(super) fn new(attachment: &Attachment, limits: Limits, now: Instant, wall: Timestamp) -> Self {
        let view = DeviceView {
            device_id: attachment.device_id.clone(),
            device_type: attachment.device_type.clone(),
            location: attachment.location.clone(),
            registered_at: wall,
            status: DeviceStatus::Offline,
            observed: DeviceStatus::Offline,
            status_reason: None,
            status_since: wall,
            admin_state: AdminState::InService,
            firmware_version: None,
            configuration: None,
            last_configuration_at: None,
            boot_count: None,
            last_state_at: None,
            declared_commands: None,
            last_readings: Readings::new(),
            last_reading_at: None,
            last_seen_at: None,
            version: 0,
            commands_open: 0,
            last_execution: None,
            taken_over_by: None,
            ledger: DeviceLedger::default(),
        };
        let observer = Observer::unheard(limits, now);
        Self::started(Remembered { view, offline_reason: None, synced_version: 0 }, observer, attachment, wall)
    }

    /// A device as the file knows it, with what the configuration says now. Refresh it when all is known of it.
    pub(super) fn resumed(
        remembered: Remembered,
        attachment: &Attachment,
        limits: Limits,
        now: Instant,
        wall: Timestamp,
    ) -> Self {
        let observer = Observer::remembered(limits, now, remembered.offline_reason.clone());
        let was_warning = remembered.view.observed == DeviceStatus::Warning;
        let mut device = Self::started(remembered, observer, attachment, wall);
        if was_warning {
            device.observer.resume_warning(&device.view.last_readings);
        }
        device
    }

    fn started(remembered: Remembered, observer: Observer, attachment: &Attachment, wall: Timestamp) -> Self {
        let Remembered { mut view, synced_version, .. } = remembered;
        view.device_type.clone_from(&attachment.device_type);
        view.location.clone_from(&attachment.location);
        // The file does not say whose word a configuration is; one of a device never heard live may be our own.
        let as_commissioned = view.last_state_at.is_none() && view.configuration == attachment.configuration;
        let configuration_reported = view.configuration.is_some() && !as_commissioned;
        if view.configuration.is_none() {
            view.configuration.clone_from(&attachment.configuration);
        }
        view.version = view.version.saturating_add(VERSION_JUMP).min(VERSION_MAX);
        let version = view.version;
        let mut device = Self {
            view,
            observer,
            synced_version,
            saved_version: version,
            dirty: true,
            // Everything goes at once after a start: nobody knows what was written to the table meanwhile.
            urgent_version: version,
            waiting_since: Some(wall),
            configuration_reported,
            last_execution_seq: 0,
            trouble: None,
        };
        device.apply_thresholds();
        device
    }

    /// The configuration says something else of it now.
    pub(super) fn attached_as(&mut self, attachment: &Attachment, limits: Limits, wall: Timestamp) {
        self.view.device_type.clone_from(&attachment.device_type);
        self.view.location.clone_from(&attachment.location);
        if let Some(commissioned) = attachment.configuration.as_ref().filter(|_| !self.configuration_reported) {
            self.configured(commissioned);
        }
        self.observer.limit(limits);
        self.refresh(wall);
        self.changed_urgently(wall);
    }

    /// A change that is worth sending.
    pub(super) fn changed(&mut self, wall: Timestamp) {
        self.dirty = true;
        self.view.version = self.view.version.saturating_add(1).min(VERSION_MAX);
        self.waiting_since.get_or_insert(wall);
    }

    /// A change that must go at once.
    pub(super) fn changed_urgently(&mut self, wall: Timestamp) {
        self.changed(wall);
        self.urgent_version = self.view.version;
    }

    /// Lets the view show what the rules and the overlay say now. Answers whether it changed.
    pub(super) fn refresh(&mut self, wall: Timestamp) -> bool {
        let (observed, reason) = self.observer.status();
        let (status, reason) = match self.view.admin_state {
            AdminState::InService => match &self.trouble {
                Some(trouble) => (DeviceStatus::Warning, Some(trouble.clone())),
                None => (observed, reason),
            },
            AdminState::Maintenance => (DeviceStatus::Maintenance, Some("taken out of service".to_owned())),
        };
        self.view.observed = observed;
        if self.view.status == status && self.view.status_reason == reason {
            return false;
        }
        if self.view.status != status {
            self.view.status_since = wall;
        }
        self.view.status = status;
        self.view.status_reason = reason;
        self.changed_urgently(wall);
        true
    }

    /// Something live came from it.
    pub(super) fn seen(&mut self, at: Timestamp) {
        // Not the latest of both: the clock may have been put back.
        self.view.last_seen_at = Some(at);
    }

    /// The gateway's clock was a guess and is another now: what was noted since `since` moves by `shift` milliseconds,
    /// and nothing lies ahead of `now`. Times that commands are proved by stay: they are only compared with each other.
    pub(super) fn time_corrected(&mut self, since: Timestamp, shift: i64, now: Timestamp) {
        let corrected = |time: Timestamp| {
            let moved = Timestamp::from_millis(time.as_millis().saturating_add(shift));
            if time >= since { moved.min(now) } else { time.min(now) }
        };
        self.view.registered_at = corrected(self.view.registered_at);
        self.view.status_since = corrected(self.view.status_since);
        self.view.last_seen_at = self.view.last_seen_at.map(corrected);
        self.view.last_reading_at = self.view.last_reading_at.map(corrected);
        self.waiting_since = self.waiting_since.map(corrected);
        self.changed(now);
    }

    /// Newer readings than any before.
    pub(super) fn measured(&mut self, readings: &Readings, at: Timestamp) {
        self.view.last_readings.clone_from(readings);
        self.view.last_reading_at = Some(at);
    }

    /// Its word on itself; presence is the caller's. Answers whether it told something new that must go at once.
    pub(super) fn told(&mut self, report: &StateReport) -> bool {
        let live = report.online && !report.retained;
        let known_boot = self.view.boot_count;
        // What is retained may be older than what came live or in an answer, so it only fills what is unknown; but a
        // higher boot count shows that the device has started while nobody listened.
        let restarted = report.retained && known_boot.is_some_and(|known| report.boot_count > Some(known));
        let is_news = live || restarted;
        let mut new = false;
        if let Some(firmware) = &report.firmware_version
            && (is_news || self.view.firmware_version.is_none())
        {
            new |= self.view.firmware_version.as_ref() != Some(firmware);
            self.view.firmware_version = Some(firmware.clone());
        }
        if let Some(configuration) = &report.configuration
            && (is_news || !self.configuration_reported)
        {
            new |= self.reported_configuration(configuration, live.then_some(report.received_at));
        }
        self.view.boot_count = if live { report.boot_count.or(known_boot) } else { report.boot_count.max(known_boot) };
        if report.commands.is_some() && (is_news || self.view.declared_commands.is_none()) {
            self.view.declared_commands.clone_from(&report.commands);
        }
        // A last will is the broker's word: it shows that the device went, not that it came back from a reboot.
        if live {
            self.view.last_state_at = Some(report.received_at);
        }
        self.dirty = true;
        new
    }

    /// Its whole configuration, by its own word; `live_at` is when it said so, if it was live. Answers whether it is new.
    ///
    /// The date of a calibration is the gateway's knowledge: a device that does not report one does not undo it.
    pub(super) fn reported_configuration(
        &mut self,
        reported: &BTreeMap<String, String>,
        live_at: Option<Timestamp>,
    ) -> bool {
        self.configuration_reported = true;
        self.view.last_configuration_at = live_at.or(self.view.last_configuration_at);
        let mut configuration = reported.clone();
        if let Some(date) = self.view.configuration.as_ref().and_then(|known| known.get(CALIBRATION_DATE)) {
            configuration.entry(CALIBRATION_DATE.to_owned()).or_insert_with(|| date.clone());
        }
        self.configured(&configuration)
    }

    /// What its whole configuration is now. Answers whether that is new.
    fn configured(&mut self, configuration: &BTreeMap<String, String>) -> bool {
        if self.view.configuration.as_ref() == Some(configuration) {
            return false;
        }
        self.view.configuration = Some(configuration.clone());
        self.dirty = true;
        self.apply_thresholds();
        true
    }

    /// What the end of an execution changes; `now` restarts the silence timer after a reboot.
    pub(super) fn affected(&mut self, effect: Effect) {
        match effect {
            Effect::Admin(state) => self.view.admin_state = state,
            Effect::Offline(reason) => self.observer.declare_offline(reason),
            Effect::Configuration(values) => {
                self.configuration_reported |= values.keys().any(|key| key != CALIBRATION_DATE);
                let mut merged = self.view.configuration.clone().unwrap_or_default();
                merged.extend(values);
                self.configured(&merged);
            }
        }
    }

    /// The newest execution of this device, and how many are open.
    pub(super) fn executing(&mut self, seq: i64, record: &ExecutionRecord, open: usize) {
        // An older one that ends does not hide a newer one; which is which, no clock says.
        if seq >= self.last_execution_seq {
            self.last_execution_seq = seq;
            self.view.last_execution = Some(record.clone());
        }
        self.view.commands_open = open;
    }

    /// The table has `version`.
    pub(super) fn synced(&mut self, version: u64) {
        if version > self.synced_version && version <= self.view.version {
            self.synced_version = version;
            self.dirty = true;
        }
        if self.synced_version == self.view.version {
            self.waiting_since = None;
        }
    }

    /// The table had a higher version under our name.
    pub(super) fn adopt(&mut self, table_version: u64, wall: Timestamp) {
        self.view.version = self.view.version.max(table_version.min(VERSION_MAX - 1));
        self.changed_urgently(wall);
    }

    /// Another gateway writes it, or no longer.
    pub(super) fn taken_over(&mut self, by: Option<GatewayId>, wall: Timestamp) {
        if self.view.taken_over_by != by {
            self.view.taken_over_by = by;
            self.changed_urgently(wall);
        }
    }

    /// Newer than the table, and ours to send.
    pub(super) fn is_waiting(&self) -> bool {
        self.view.version > self.synced_version && self.view.taken_over_by.is_none()
    }

    /// Since when.
    pub(super) fn waiting_since(&self) -> Option<Timestamp> {
        self.waiting_since.filter(|_| self.is_waiting())
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.is_waiting() && self.urgent_version > self.synced_version
    }

    /// What to send, if there is anything that may be sent.
    pub(super) fn snapshot(&self) -> Option<StateSnapshot> {
        let sendable = self.is_waiting() && self.unsaved() < UNSAVED_SENDABLE;
        sendable.then(|| StateSnapshot { view: self.view.clone(), urgent: self.is_urgent() })
    }

    /// Versions that a crash would forget.
    pub(super) fn unsaved(&self) -> u64 {
        self.view.version.saturating_sub(self.saved_version)
    }

    /// It is in the file now, as it is.
    pub(super) fn saved(&mut self) {
        self.saved_version = self.view.version;
        self.dirty = false;
    }

    pub(super) fn id(&self) -> &DeviceId {
        &self.view.device_id
    }

    /// Whether a reboot is the command.
    pub(super) fn is_reboot(record: &ExecutionRecord) -> bool {
        record.command == CommandName::Reboot.as_str()
    }

    fn apply_thresholds(&mut self) {
        if let Some(configuration) = &self.view.configuration {
            self.observer.configure(configuration);
        }
    }
}
