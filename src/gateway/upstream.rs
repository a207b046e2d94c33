//! The cloud's side: what becomes of its commands, and the lanes that keep the tables current.

use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{ExecutionRecord, ExecutionStatus, GatewayId, Reason, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::crew::Crew;
use super::{House, RunError, refused, settings};
use crate::command::Source;
use crate::config::Config;
use crate::mqtt::codec::MalformedCommand;
use crate::mqtt::intake::{CloudCommand, CommandSink};
use crate::mqtt::refusals::Refusals;
use crate::shadow::store::{Journalled, NewExecution};
use crate::shadow::{Store, StoreError};
use crate::sync;

/// How often unfit or unreachable tables are looked at again.
const CHECK_AGAIN: Duration = Duration::from_secs(60);

/// What judges and journals the commands that come.
pub(super) fn admission(house: &House, gateway_id: &GatewayId) -> CommandSink {
    let (admission, refusals) = (house.admission.clone(), Arc::clone(&house.refusals));
    let (store, clock, gateway_id) = (house.store.clone(), house.clock.clone(), gateway_id.clone());
    Arc::new(move |message: CloudCommand| {
        let (admission, refusals) = (admission.clone(), Arc::clone(&refusals));
        let (store, now, gateway_id) = (store.clone(), clock.now(), gateway_id.clone());
        Box::pin(async move {
            let message = match message {
                CloudCommand::Request(message) => message,
                CloudCommand::Malformed(malformed) => {
                    return reject(&store, &refusals, malformed, now, gateway_id).await;
                }
            };
            let (source, device) = (Source::Cloud { retained: message.retained }, message.request.device_id.clone());
            refused::note(&refusals, &device, &admission.admit(message.request, source).await?);
            Ok(())
        })
    })
}

/// Journals what is no command as rejected, so that whoever sent it gets an answer.
async fn reject(
    store: &Store,
    refusals: &Refusals,
    malformed: MalformedCommand,
    now: Timestamp,
    gateway_id: GatewayId,
) -> Result<(), StoreError> {
    let record = ExecutionRecord {
        command_id: malformed.command_id,
        device_id: malformed.device_id,
        command: malformed.command,
        parameters: malformed.parameters,
        issuer: None,
        issued_at: now,
        expires_at: now,
        received_at: now,
        status: ExecutionStatus::Rejected,
        reason: Some(Reason::Malformed),
        message: Some(malformed.problem),
        details: None,
        started_at: None,
        completed_at: Some(now),
        gateway_id,
    };
    let device = record.device_id.clone();
    let checked_parameters = serde_json::Map::new();
    match store.journal(NewExecution { record, checked_parameters, received_boot: None }).await? {
        Journalled::New(record) => refused::journalled(refusals, &record),
        // The same bytes once more.
        Journalled::Duplicate(known) if known.reason == Some(Reason::Malformed) => {}
        Journalled::Duplicate(known) | Journalled::Conflict(known) => {
            refused::conflict(refusals, &device, &known.command_id);
        }
    }
    Ok(())
}

/// Starts the lanes to the tables; answers how they fare.
pub(super) fn tables(
    config: &Config,
    house: &House,
    crew: &mut Crew,
) -> Result<Option<watch::Receiver<sync::SyncState>>, RunError> {
    let Some(tables) = &config.dynamodb else { return Ok(None) };
    let table = sync::DynamoTable::new(settings::tables(config, tables), house.clock.clone());
    let table = table.map_err(|error| RunError::Configuration(error.to_string()))?;
    let settings = sync::Settings { gateway_id: config.gateway.id.clone(), state_interval: config.sync.state_interval };
    crew.add("table check", check(table.clone(), crew.stopping()));
    let uploader = sync::Uploader::new(house.store.clone(), table, settings, house.clock.clone());
    let state = uploader.watch();
    crew.add("sync", uploader.run(crew.stopping()));
    Ok(Some(state))
}

/// Says once, in plain words, if the tables are not what floorgate needs. The lanes keep trying all the same, because
/// `floorgate provision` may come later.
async fn check(table: sync::DynamoTable, stop: CancellationToken) {
    let mut every = tokio::time::interval(CHECK_AGAIN);
    let mut said = None;
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        match stop.run_until_cancelled(table.check_schema()).await {
            Some(Ok(())) => return stop.cancelled().await,
            Some(Err(sync::SyncError::Schema(what))) if said.as_ref() != Some(&what) => {
                tracing::error!("{what}");
                said = Some(what);
            }
            _ => {}
        }
    }
}
