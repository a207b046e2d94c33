//! Gathers the facts for a decision: profile, driver, clock and source.

use floorgate_model::{DeviceId, ExecutionRecord, Profile, Request, Timestamp};
use std::sync::Arc;

use super::decision::{self, Decision, Facts, Phase, Source};
use crate::clock::Clock;
use crate::device::{DriverRegistry, Profiles};
use crate::shadow::DeviceView;
use crate::shadow::rescue::InhibitionWatch;
use crate::shadow::store::OpenExecution;

/// Issuer of a command that an operator gave at this gateway; also the prefix of a named one (`local:anna`).
/// [`Source`] is read back from it before dispatch, so no other sender may use it (see [`issuer`]).
pub const LOCAL_ISSUER: &str = "local";

/// What decisions are made of, besides request and device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Judge {
    /// What each type allows.
    pub profiles: Profiles,
    /// What carries commands to each device.
    pub drivers: DriverRegistry,
    /// The time.
    pub clock: Clock,
    /// Whether commands are inhibited.
    pub inhibition: InhibitionWatch,
}

impl Judge {
    /// Decides on a command that has just come in.
    #[must_use]
    pub fn on_receipt(
        &self,
        request: &Request,
        device: Option<&DeviceView>,
        source: Source,
        now: Timestamp,
    ) -> Decision {
        let facts = (Phase::Receipt, source, now, true);
        self.decide(request, device, facts, now)
    }

    /// Decides on a journalled command that is about to be sent.
    #[must_use]
    pub fn before_dispatch(&self, execution: &OpenExecution, device: Option<&DeviceView>) -> Decision {
        let record = &execution.record;
        let request = Request {
            device_id: record.device_id.clone(),
            command: record.command.clone(),
            parameters: record.parameters.clone(),
            issued_at: record.issued_at,
            command_id: record.command_id.clone(),
            expires_at: record.expires_at,
            issuer: record.issuer.clone(),
            dry_run: false,
        };
        let moment = self.clock.moment();
        let same_boot = execution.received_boot.is_some_and(|at| at.boot_id == moment.boot.boot_id);
        let facts = (Phase::Dispatch, source_of(record), record.received_at, same_boot);
        self.decide(&request, device, facts, moment.wall)
    }

    /// The profile of a device's type.
    #[must_use]
    pub fn profile_of(&self, device: Option<&DeviceView>) -> Option<Arc<Profile>> {
        self.profiles.get(&device?.device_type)
    }

    fn decide(
        &self,
        request: &Request,
        device: Option<&DeviceView>,
        (phase, source, received_at, same_boot): (Phase, Source, Timestamp, bool),
        now: Timestamp,
    ) -> Decision {
        let profile = self.profile_of(device);
        let inhibition = self.inhibition.now();
        let facts = Facts {
            inhibition: inhibition.as_ref(),
            device,
            profile: profile.as_deref(),
            driver_carries: self.driver_carries(&request.device_id, &request.command),
            now,
            clock_trusted: self.clock.is_trusted(),
            received_at,
            same_boot,
            source,
            phase,
        };
        decision::decide(request, &facts)
    }

    fn driver_carries(&self, device: &DeviceId, command: &str) -> bool {
        match (self.drivers.get(device), command.parse()) {
            (Some(driver), Ok(command)) => driver.carries(command),
            _ => false,
        }
    }
}

/// The issuer as it is journalled: an operator's begins with [`LOCAL_ISSUER`], and nobody else's can.
#[must_use]
pub fn issuer(source: Source, given: Option<&str>) -> Option<String> {
    match (source, given) {
        (Source::Local, None) => Some(LOCAL_ISSUER.to_owned()),
        (Source::Local, Some(name)) if is_local(name) => Some(name.to_owned()),
        (Source::Local, Some(name)) => Some(format!("{LOCAL_ISSUER}:{name}")),
        (Source::Cloud { .. }, Some(name)) if is_local(name) => Some(format!("cloud:{name}")),
        (Source::Cloud { .. }, given) => given.map(str::to_owned),
    }
}

/// Where a journalled command came from. It was not retained, or it would be terminal.
#[must_use]
pub fn source_of(record: &ExecutionRecord) -> Source {
    if record.issuer.as_deref().is_some_and(is_local) { Source::Local } else { Source::Cloud { retained: false } }
}

fn is_local(issuer: &str) -> bool {
    issuer.strip_prefix(LOCAL_ISSUER).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_issuer_from_the_cloud_passes_for_an_operator_at_the_gateway() {
        let cloud = Source::Cloud { retained: false };
        for name in ["local", "local:anna", "localhost", "agent", ""] {
            let kept = issuer(cloud, Some(name)).unwrap();
            assert!(!is_local(&kept), "{name:?} → {kept:?}");
            assert!(is_local(&issuer(Source::Local, Some(name)).unwrap()), "{name:?}");
        }
        assert_eq!(issuer(cloud, None), None);
        assert_eq!(issuer(Source::Local, None).as_deref(), Some("local"));
        assert_eq!(issuer(Source::Local, Some("anna")).as_deref(), Some("local:anna"));
    }
}
