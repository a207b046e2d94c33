//! The floor: the built-in endpoint, or a link to the plant's broker; both carry orders to devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use floorgate_model::DeviceId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::crew::Crew;
use super::{House, RunError, ids, settings};
use crate::clock::{Clock, Deadline};
use crate::config::{Config, Floor};
use crate::device::{BoxFuture, Driver, ExecuteChannel, MqttDriver, NotSent, Sent};
use crate::mqtt;
use crate::mqtt::endpoint::{BindError, Endpoint, EndpointHandle, SessionStore};
use crate::mqtt::handed::{Handed, NotHanded};
use crate::mqtt::intake::FloorIntake;
use crate::mqtt::limits::Silences;
use crate::mqtt::link::{Link, LinkState};
use crate::mqtt::topics::{FloorTopic, TopicScheme};
use crate::shadow::view::DeviceView;
use crate::shadow::{Store, StoreError};

/// The floor as the rest of the gateway sees it.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one of it, and a clone for each device's driver")]
pub(super) enum FloorSide {
    /// The built-in endpoint.
    Endpoint { handle: EndpointHandle, address: String },
    /// The plant's broker.
    Broker { link: Link, topics: TopicScheme, address: String },
}

impl FloorSide {
    /// What carries orders to the devices.
    pub(super) fn driver(&self, clock: &Clock) -> Arc<dyn Driver> {
        Arc::new(MqttDriver::new(Arc::new(self.clone()), clock.clone()))
    }
}

impl ExecuteChannel for FloorSide {
    fn publish<'a>(
        &'a self,
        device: &'a DeviceId,
        payload: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Sent, NotSent>> {
        Box::pin(async move {
            let handed = match self {
                Self::Endpoint { handle, .. } => handle.publish_once(device, payload, deadline).await,
                Self::Broker { link, topics, .. } => {
                    link.publish_once(topics.topic(FloorTopic::Execute, device), payload, deadline).await
                }
            };
            match handed {
                Ok(Handed::Acknowledged) => Ok(Sent::Acknowledged),
                Ok(Handed::Unknown) => Ok(Sent::Unknown),
                Err(NotHanded::Offline(why)) => Err(NotSent::Offline(why)),
                Err(NotHanded::Expired) => Err(NotSent::Expired),
            }
        })
    }
}

/// Sessions of the endpoint's clients, kept in the store.
struct Sessions(Store);

impl SessionStore for Sessions {
    fn load(&self) -> mqtt::BoxFuture<'_, Result<BTreeMap<String, Vec<String>>, StoreError>> {
        Box::pin(self.0.sessions())
    }

    fn save(&self, key: String, entries: Option<Vec<String>>) -> mqtt::BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.0.save_session(key, entries))
    }
}

/// Starts the floor's side.
pub(super) async fn start(config: &Config, house: &House, crew: &mut Crew) -> Result<FloorSide, RunError> {
    let intake = FloorIntake::new(
        house.attached.clone(),
        house.store.clone(),
        config.topics.clone(),
        house.clock.clone(),
        Arc::clone(&house.refusals),
    );
    let rates = house.rates.clone();
    match &config.floor {
        Floor::Listen(listen) => {
            let sessions = Arc::new(Sessions(house.store.clone()));
            let devices = ids(config).into_iter().collect();
            let intake = Arc::new(intake.slowing(rates));
            let endpoint = Endpoint::bind(settings::endpoint(listen), intake, config.topics.clone(), devices, sessions);
            let endpoint = endpoint.await.map_err(not_bound)?;
            let (handle, address) = (endpoint.handle(), endpoint.local_addr().to_string());
            crew.add("floor endpoint", endpoint.run(crew.stopping()));
            Ok(FloorSide::Endpoint { handle, address })
        }
        Floor::Broker(broker) => {
            let mut link = settings::link("floor", broker);
            link.filters = FloorTopic::INBOUND.map(|topic| config.topics.filter(topic)).to_vec();
            let (intake, overflow) = intake.declaring(rates, silences(house).await?);
            crew.add("floor limits", overflow.run(crew.stopping()));
            let (link, runner) = Link::new(link, Arc::new(intake), None, house.clock.clone());
            crew.add_link("floor link", broker.keep_alive, runner.run(crew.stopping()));
            crew.add("floor presence", watch_link(link.state(), house.store.clone(), crew.stopping()));
            Ok(FloorSide::Broker { link, topics: config.topics.clone(), address: broker.url.to_string() })
        }
    }
}

/// How long the devices have been silent. Where the clock cannot say, or the store was never told, nothing is known.
async fn silences(house: &House) -> Result<Silences, RunError> {
    let now = house.clock.moment();
    if !now.quality.is_exact() {
        return Ok(Silences::new());
    }
    let devices = house.store.devices().await.map_err(RunError::failed)?;
    let silence = |device: DeviceView| Some((device.device_id, now.wall.since(device.last_seen_at?)));
    Ok(devices.into_iter().filter_map(silence).collect())
}

/// Whose fault it is that there is no endpoint: the files that were given, or the machine.
fn not_bound(error: BindError) -> RunError {
    match error {
        BindError::Open(_) | BindError::Users(_) | BindError::Tls(_) => RunError::Configuration(error.to_string()),
        BindError::Busy(_) | BindError::Listen { .. } | BindError::Sessions(_) => RunError::failed(error),
    }
}

/// While the plant's broker is away, silence says nothing about the devices.
async fn watch_link(mut state: watch::Receiver<LinkState>, store: Store, stop: CancellationToken) {
    loop {
        let up = state.borrow_and_update().up;
        if let Err(error) = store.floor_reachable(up).await {
            warn!(%error, "cannot note that the floor is {}", if up { "reachable" } else { "away" });
        }
        match stop.run_until_cancelled(state.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) => stop.cancelled().await,
            None => return,
        }
    }
}
