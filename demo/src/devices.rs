//! The seed's five devices, simulated: MQTT clients with believable readings, that do what they are ordered to do.
//!
//! Each device
//! * connects under its id, with a last will, to the floor endpoint or broker, and comes back when it goes;
//! * publishes readings with their time and a counter, keeps what was not acknowledged, and sends it again;
//! * reports its state (retained) after every start and change;
//! * executes each command id at most once and answers a repeated one from memory;
//! * writes down what it physically executed and which of its readings were acknowledged: [`Log`], by which the demo and
//!   the tests judge from outside.
//!
//! A device that cannot send keeps [`BACKLOG_MAX`] messages; then its oldest reading is lost and counted.

mod machine;
mod runner;
mod seed;
mod signal;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use floorgate_model::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use seed::{GATEWAY, Metric, PRESSURE, Spec, TEMPERATURE, VALVE, VIBRATION, seed};

use machine::Machine;
use runner::Runner;

/// Messages a device keeps while it cannot send.
pub const BACKLOG_MAX: usize = 2_000;
/// Entries of each list in a device's log; beyond that the oldest goes.
pub const LOG_MAX: usize = 50_000;

/// How long things take. The default is quicker than real machines, and slow enough to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A recalibration.
    pub recalibration: Duration,
    /// From going down to coming back.
    pub reboot: Duration,
    /// Between readings, instead of what the device's configuration says.
    pub sample: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { recalibration: Duration::from_secs(3), reboot: Duration::from_secs(4), sample: None }
    }
}

/// One thing a device physically did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Under which id.
    pub command_id: String,
    /// What.
    pub command: String,
    /// When it began.
    pub at: Timestamp,
}

/// What a device wrote down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// What it physically executed, oldest first.
    pub executed: VecDeque<Executed>,
    /// Orders it had executed before and only answered again.
    pub repeats: u64,
    /// Times of the readings that were acknowledged.
    pub acknowledged: BTreeSet<Timestamp>,
    /// Readings taken, acknowledged or not.
    pub taken: u64,
    /// Readings it had to drop because it could not send for too long.
    pub lost: u64,
    /// How often it has started.
    pub boot_count: u64,
    /// Its configuration as it really is.
    pub configuration: std::collections::BTreeMap<String, String>,
}

impl Log {
    /// How often this command id was physically executed.
    #[must_use]
    pub fn executions(&self, command_id: &str) -> usize {
        self.executed.iter().filter(|entry| entry.command_id == command_id).count()
    }
}

/// What is wanted of a device from outside, beside its commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    /// Drift above the alert threshold.
    surge: bool,
    /// Take no readings.
    silent: bool,
    /// Surge or fall silent now and then by itself.
    moods: bool,
}

/// A device that runs. Dropping it ends it without a good-bye.
#[derive(Debug)]
pub struct Device {
    spec: Spec,
    log: Arc<Mutex<Log>>,
    wishes: watch::Sender<Wishes>,
    running: JoinHandle<()>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Device {
    /// Switches a device on.
    #[must_use]
    pub fn start(spec: Spec, floor: SocketAddr, pace: Pace) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let (wishes, wished) = watch::channel(Wishes::default());
        let runner = Runner::new(Machine::new(spec.clone(), pace), floor, pace, Arc::clone(&log), wished);
        Self { spec, log, wishes, running: tokio::spawn(runner.run()) }
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// A copy of its log.
    #[must_use]
    pub fn log(&self) -> Log {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets its readings drift above their threshold, or back.
    pub fn surge(&self, on: bool) {
        self.wishes.send_modify(|wishes| wishes.surge = on);
    }

    /// Lets it fall silent (it stays connected, but measures nothing), or return.
    pub fn silence(&self, on: bool) {
        self.wishes.send_modify(|wishes| wishes.silent = on);
    }
}

/// The seed's devices, running.
#[derive(Debug)]
pub struct Fleet {
    devices: Vec<Device>,
}

impl Fleet {
    /// Switches all five on; they connect to the floor endpoint or broker at `floor`.
    #[must_use]
    pub fn start(floor: SocketAddr, pace: Pace) -> Self {
        Self { devices: seed().into_iter().map(|spec| Device::start(spec, floor, pace)).collect() }
    }

    /// All of them.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// One of them.
    #[must_use]
    pub fn device(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.spec.id == id)
    }

    /// From now on the pressure sensor surges and the vibration sensor falls silent now and then by themselves.
    pub fn have_moods(&self) {
        for device in &self.devices {
            device.wishes.send_modify(|wishes| wishes.moods = true);
        }
    }
}

/// The time of day, milliseconds.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests;
