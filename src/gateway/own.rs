//! The gateway as a device among its devices: its own readings, every 30 s, in by the same door as a sensor's.

use floorgate_model::{DeviceStatus, GatewayId, Reading, Readings};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::House;
use super::settings::OWN_INTERVAL;
use crate::shadow::{FloorReport, StateReport, StoreError, StoreStats, TelemetryReport};
use crate::vitals::Vitals;

/// Reports until `stop`.
///
/// With `tells_commands` what waits to be told of commands is among the readings: the fleet's tools take "nothing" for
/// the word that no command is left to tell of, which a gateway that writes none of them cannot give.
pub(super) async fn run(gateway: GatewayId, tells_commands: bool, house: House, stop: CancellationToken) {
    let mut vitals = Vitals::new();
    // The first look only sets the counters that the share of the processor is counted from.
    vitals.sample();
    let (mut introduced, mut said) = (false, None);
    let mut every = tokio::time::interval(OWN_INTERVAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        let noted = async {
            if !introduced {
                introduce(&gateway, &house).await?;
                introduced = true;
            }
            report(&gateway, tells_commands, &house, &mut vitals).await
        };
        match noted.await.map_err(|error| error.to_string()) {
            Ok(()) => said = None,
            Err(error) if said.as_ref() != Some(&error) => {
                warn!(error, "cannot note the gateway's own state and readings");
                said = Some(error);
            }
            Err(_) => {}
        }
    }
}

async fn introduce(gateway: &GatewayId, house: &House) -> Result<(), StoreError> {
    let state = StateReport {
        device_id: gateway.as_device(),
        online: true,
        firmware_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        // It has none that a command could set; a known empty one lets an optimistic write be undone.
        configuration: Some(std::collections::BTreeMap::new()),
        boot_count: None,
        commands: None,
        retained: false,
        received_at: house.clock.now(),
    };
    house.store.submit(FloorReport::State(state)).await?.await.map_err(|_| StoreError::Closed)?.map(drop)
}

async fn report(
    gateway: &GatewayId,
    tells_commands: bool,
    house: &House,
    vitals: &mut Vitals,
) -> Result<(), StoreError> {
    let own = gateway.as_device();
    let devices = house.store.devices().await?;
    let connected = |view: &&crate::shadow::DeviceView| {
        view.device_id != own && view.last_seen_at.is_some() && view.observed != DeviceStatus::Offline
    };
    let connected = devices.iter().filter(connected).count();
    let stats = house.store.stats().await?;
    let mut readings = vitals.sample().readings();
    add(&mut readings, "connected_devices", connected);
    add_store(&mut readings, &stats, tells_commands);
    let moment = house.clock.moment();
    let report = TelemetryReport {
        device_id: own,
        readings,
        device_time: None,
        seq: None,
        received_at: moment.wall,
        guess_base_ms: moment.guess_base(),
        redelivered: false,
        retained: false,
    };
    house.store.submit(FloorReport::Telemetry(report)).await.map(drop)
}

fn add_store(readings: &mut Readings, stats: &StoreStats, tells_commands: bool) {
    add(readings, "outbox_oldest_seconds", stats.oldest_waiting_seconds);
    if tells_commands {
        add(readings, "outbox_records", stats.outbox_waiting);
    }
    add(readings, "outbox_samples", stats.samples_open + stats.samples_waiting);
    add(readings, "readings_lost", stats.ledger.lost.total());
    add(readings, "store_mb", stats.bytes_on_disk / 1_000_000);
    add(readings, "store_failures", stats.store_failures);
    add(readings, "store_rescues", stats.rescues);
    add(readings, "commands_inhibited_seconds", stats.inhibited_seconds);
}

fn add(readings: &mut Readings, name: &str, count: impl ToString) {
    if let Some(reading) = Reading::parse(&count.to_string()) {
        // Names and number of the gateway's own readings are within the limits.
        let _ = readings.insert(name, reading);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_writes_no_commands_never_says_that_none_is_left_to_tell_of() {
        let names = |tells_commands| {
            let mut readings = Readings::new();
            add_store(&mut readings, &StoreStats::default(), tells_commands);
            readings.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        let (all, fewer) = (names(true), names(false));
        assert!(all.iter().any(|name| name == "outbox_records"));
        assert_eq!(fewer.len() + 1, all.len());
        assert!(!fewer.iter().any(|name| name == "outbox_records"));
    }
}
