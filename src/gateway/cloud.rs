//! The links that bring commands and take results.

use std::sync::{Arc, Mutex, PoisonError};

use floorgate_model::{DeviceId, GatewayId};
use tokio::sync::watch;

use super::crew::Crew;
use super::upstream::admission;
use super::{House, ids, settings};
use crate::config::Config;
use crate::mqtt::intake::{Attached, CloudIntake};
use crate::mqtt::link::{
    CloudDevices, Link, LinkConfig, LinkState, Outbox, ResultLane, cloud_links, further_link, gateway_presence, spread,
};

/// The cloud links; their number grows with the devices, and shrinks at the next start alone.
#[derive(Debug)]
pub(super) struct CloudSide {
    pub(super) address: String,
    gateway: GatewayId,
    base: LinkConfig,
    /// One filter for all devices, so none for each.
    wildcard: bool,
    attached: Attached,
    links: Mutex<Vec<Link>>,
}

impl CloudSide {
    /// Starts the links, if the configuration has any.
    pub(super) fn start(config: &Config, house: &House, crew: &mut Crew) -> Option<Self> {
        let cloud = config.cloud.as_ref()?;
        let mut base = settings::link("cloud", &cloud.broker);
        base.presence = Some(gateway_presence(&config.gateway.id, env!("CARGO_PKG_VERSION"), house.clock.clone()));
        let devices = with_gateway(ids(config), &config.gateway.id);
        let which = match &cloud.command_filter {
            Some(filter) => CloudDevices::Filter(filter),
            None => CloudDevices::Each(&devices),
        };
        let links = cloud_links(&base, which);
        let side = Self {
            address: cloud.broker.url.to_string(),
            gateway: config.gateway.id.clone(),
            base,
            wildcard: cloud.command_filter.is_some(),
            attached: Attached::new(devices),
            links: Mutex::default(),
        };
        let started = links.into_iter().enumerate().map(|(n, link)| side.link(n, link, house, crew)).collect();
        *side.links() = started;
        Some(side)
    }

    /// How each link stands.
    pub(super) fn states(&self) -> Vec<watch::Receiver<LinkState>> {
        self.links().iter().map(Link::state).collect()
    }

    /// These devices from now on, and the gateway itself.
    pub(super) fn listen_to(&self, devices: Vec<DeviceId>, house: &House, crew: &mut Crew) {
        let devices = with_gateway(devices, &self.gateway);
        self.attached.replace(devices.iter().cloned());
        if self.wildcard {
            return;
        }
        let mut links = self.links();
        let now: Vec<_> = links.iter().map(Link::filters).collect();
        for (n, filters) in spread(&now, &devices).into_iter().enumerate() {
            match links.get(n) {
                Some(_) if now.get(n) == Some(&filters) => {}
                Some(link) => link.listen_to(filters),
                None => links.push(self.link(n, further_link(&self.base, n, filters), house, crew)),
            }
        }
    }

    fn link(&self, n: usize, config: LinkConfig, house: &House, crew: &mut Crew) -> Link {
        let sink = admission(house, &self.gateway);
        let intake = Arc::new(CloudIntake::new(self.attached.clone(), sink, Arc::clone(&house.refusals)));
        // One outbox, one link that empties it.
        let outbox = (n == 0).then(|| Arc::new(ResultLane(house.store.clone())) as Arc<dyn Outbox>);
        let name = config.name.clone();
        let (link, runner) = Link::new(config, intake, outbox, house.clock.clone());
        crew.add_link(format!("link {name}"), self.base.keep_alive, runner.run(crew.stopping()));
        link
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_gateway(mut devices: Vec<DeviceId>, gateway: &GatewayId) -> Vec<DeviceId> {
    devices.push(gateway.as_device());
    devices
}
