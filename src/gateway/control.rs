//! What the control socket answers.

use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{DeviceId, ExecutionRecord, Request};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::House;
use super::cloud::CloudSide;
use super::floor::FloorSide;
use super::headline::Facts;
use super::refused;
use crate::command::{Admitted, Source};
use crate::config::Config;
use crate::control::{
    BoxFuture, ControlError, ControlService, DeviceReport, ErrorCode, InhibitionReport, LinkReport, LinkState, Query,
    Reply, StatusReport, SyncReport,
};
use crate::mqtt;
use crate::shadow::StoreError;
use crate::sync::SyncState;
use floorgate_model::Timestamp;

/// How often a waiting `send` looks whether its command has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Executions looked through for it; a device has at most a few newer ones meanwhile.
const LOOK_THROUGH: usize = 50;

/// Answers from the store and from the states of the links.
pub(super) struct Service {
    house: House,
    gateway: floorgate_model::GatewayId,
    started: Instant,
    floor: FloorSide,
    cloud: Option<Arc<CloudSide>>,
    tables: Option<(String, watch::Receiver<SyncState>)>,
}

fn unavailable(error: &StoreError) -> ControlError {
    ControlError::new(ErrorCode::Unavailable, error.to_string())
}

impl Service {
    pub(super) fn new(
        config: &Config,
        house: House,
        floor: FloorSide,
        cloud: Option<Arc<CloudSide>>,
        tables: Option<watch::Receiver<SyncState>>,
    ) -> Self {
        let address = config.dynamodb.as_ref().map(|db| db.endpoint_url.clone().unwrap_or_else(|| db.region.clone()));
        Self {
            gateway: config.gateway.id.clone(),
            started: Instant::now(),
            floor,
            cloud,
            tables: address.zip(tables),
            house,
        }
    }

    /// When it started, by what the clock says now: at the start it may not have known the time.
    fn started_at(&self) -> Timestamp {
        self.house.clock.now().saturating_sub(self.started.elapsed())
    }

    async fn status(&self) -> Result<StatusReport, StoreError> {
        let store = &self.house.store;
        let (stats, views) = (store.stats().await?, store.devices().await?);
        let refused = self.house.refusals.snapshot();
        let mut by_reason: std::collections::BTreeMap<String, u64> =
            refused.by_reason.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        if let FloorSide::Endpoint { handle, .. } = &self.floor {
            for (reason, count) in handle.stats().refused {
                *by_reason.entry(reason.to_owned()).or_default() += count;
            }
        }
        let mut devices = std::collections::BTreeMap::new();
        for view in &views {
            *devices.entry(view.status).or_default() += 1;
        }
        let open: usize = views.iter().map(|view| view.commands_open).sum();
        Ok(StatusReport {
            gateway_id: self.gateway.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at(),
            uptime_seconds: self.started.elapsed().as_secs(),
            clock: self.house.clock.state(),
            store: serde_json::to_value(stats).unwrap_or_default(),
            floor: self.floor_report(),
            cloud: self.cloud.as_ref().map(|cloud| cloud_report(&cloud.address, &cloud.states())),
            sync: self.tables.as_ref().map(|(address, state)| sync_report(address, &state.borrow())),
            refused: by_reason,
            commands_refused: refused.commands.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            pending_devices: refused.pending.iter().map(|pending| pending.device_id.to_string()).collect(),
            devices,
            commands_open: u64::try_from(open).unwrap_or(u64::MAX),
            inhibited: store.inhibition().now().map(|inhibition| InhibitionReport {
                seconds_left: inhibition.left.as_secs().max(1),
                why: inhibition.why.to_string(),
            }),
            // While `state.db` is out of use nobody can look them up; they are told again afterwards.
            rescues: store.rescues().await.unwrap_or_default(),
            reload: self.house.reloaded.last(),
        })
    }

    /// What the line for `systemctl status` is made of; the store gets so long to answer.
    pub(super) async fn facts(&self, within: Duration) -> Facts {
        let figures = tokio::time::timeout(within, self.house.store.stats()).await;
        let floor = self.floor_report();
        let mut links = vec![("floor", floor.state, floor.problem)];
        if let Some(cloud) = &self.cloud {
            let report = cloud_report(&cloud.address, &cloud.states());
            links.push(("cloud", report.state, report.problem));
        }
        if let Some((address, state)) = &self.tables {
            let report = sync_report(address, &state.borrow());
            links.push(("tables", report.state, report.problem));
        }
        Facts {
            health: *self.house.store.health().borrow(),
            figures: figures.ok().and_then(Result::ok),
            links,
            reload: self.house.reloaded.last(),
        }
    }

    fn floor_report(&self) -> LinkReport {
        match &self.floor {
            FloorSide::Endpoint { handle, address } => LinkReport {
                address: address.clone(),
                state: LinkState::Up,
                since: Some(self.started_at()),
                connections: u64::try_from(handle.stats().clients).ok(),
                problem: None,
            },
            FloorSide::Broker { link, address, .. } => link_report(address, &link.state().borrow()),
        }
    }

    async fn send(&self, request: Request, wait: Duration) -> Result<ExecutionRecord, ControlError> {
        let (device, id) = (request.device_id.clone(), request.command_id.clone());
        let admitted = self.house.admission.admit(request, Source::Local).await.map_err(|e| unavailable(&e))?;
        refused::note(&self.house.refusals, &device, &admitted);
        let mut record = match admitted {
            Admitted::Journalled(record) | Admitted::Duplicate(record) | Admitted::Conflict(record) => record,
            Admitted::UnknownDevice => return Err(not_attached(&device)),
        };
        let deadline = Instant::now() + wait;
        while !record.status.is_terminal() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
            let newest = self.house.store.executions(Some(&device), LOOK_THROUGH).await.map_err(|e| unavailable(&e))?;
            record = newest.into_iter().find(|execution| execution.command_id == id).unwrap_or(record);
        }
        Ok(record)
    }

    fn request(
        &self,
        device: DeviceId,
        command: String,
        parameters: Map<String, Value>,
        issuer: Option<String>,
        dry_run: bool,
    ) -> Request {
        let now = self.house.clock.now();
        let command_id = Request::derived_id(&device, &command, &parameters, &now.to_string());
        let expires_at = Request::expiry(&command, now, None);
        Request { device_id: device, command, parameters, issued_at: now, command_id, expires_at, issuer, dry_run }
    }
}

fn not_attached(device: &DeviceId) -> ControlError {
    ControlError::new(ErrorCode::NotFound, format!("no device {device} is attached to this gateway"))
}

impl ControlService for Service {
    fn answer(&self, query: Query) -> BoxFuture<'_, Result<Reply, ControlError>> {
        Box::pin(async move {
            let wait = query.wait();
            let store = &self.house.store;
            match query {
                Query::Status => {
                    let status = self.status().await.map_err(|e| unavailable(&e))?;
                    Ok(Reply::Status(Box::new(status)))
                }
                Query::Devices { status } => {
                    let views = store.devices().await.map_err(|e| unavailable(&e))?;
                    let fits = views.into_iter().filter(|view| status.is_none_or(|wanted| view.status == wanted));
                    Ok(Reply::Devices(fits.map(DeviceReport::from).collect()))
                }
                Query::Device { id } => {
                    let view = store.device(&id).await.map_err(|e| unavailable(&e))?;
                    let view = view.ok_or_else(|| not_attached(&id))?;
                    Ok(Reply::Device(Box::new(view.into())))
                }
                Query::Commands { device, limit } => {
                    let records = store.executions(device.as_ref(), limit).await.map_err(|e| unavailable(&e))?;
                    Ok(Reply::Commands(records))
                }
                Query::Reload => {
                    let report = self.house.reloads.ask().await;
                    let stops = || ControlError::new(ErrorCode::Unavailable, "the gateway is stopping");
                    report.map(|report| Reply::Reload(Box::new(report))).ok_or_else(stops)
                }
                Query::Send { device, command, parameters, issuer, dry_run, .. } => {
                    let request = self.request(device, command, parameters, issuer, dry_run);
                    self.send(request, wait).await.map(|record| Reply::Execution(Box::new(record)))
                }
            }
        })
    }
}

fn link_report(address: &str, state: &mqtt::link::LinkState) -> LinkReport {
    let refused = || Some(format!("the broker refuses {}", state.refused_filters.join(", ")));
    let refused = if state.refused_filters.is_empty() { None } else { refused() };
    LinkReport {
        address: address.to_owned(),
        state: if state.up { LinkState::Up } else { LinkState::Down },
        since: Some(state.since),
        connections: None,
        problem: if state.up { state.rival.clone().or(refused) } else { state.last_error.clone() },
    }
}

/// Several connections are one link to the reader: up when all are, with the first one's problem that there is.
fn cloud_report(address: &str, links: &[watch::Receiver<mqtt::link::LinkState>]) -> LinkReport {
    let mut reports = links.iter().map(|link| link_report(address, &link.borrow()));
    let first = reports.next().unwrap_or_else(|| LinkReport {
        address: address.to_owned(),
        state: LinkState::Down,
        since: None,
        connections: None,
        problem: None,
    });
    reports.fold(first, |all, one| {
        let worse = all.state == LinkState::Up && one.state == LinkState::Down;
        let problem = all.problem.clone().or_else(|| one.problem.clone());
        LinkReport { problem, ..if worse { one } else { all } }
    })
}

fn sync_report(address: &str, state: &SyncState) -> SyncReport {
    SyncReport {
        address: address.to_owned(),
        state: if state.up { LinkState::Up } else { LinkState::Down },
        last_success_at: state.last_success_at,
        problem: if state.up { None } else { state.last_error.clone() },
    }
}
