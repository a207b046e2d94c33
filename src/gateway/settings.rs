//! From the configuration to each room's own settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use floorgate_model::Profile;

use super::RunError;
use crate::config::{BrokerConfig, Config, CredentialsConfig, DynamoConfig, Identity, LinkTls, ListenConfig};
use crate::mqtt::endpoint::{EndpointConfig, EndpointTls};
use crate::mqtt::limits::Rates;
use crate::mqtt::link::{Address, LinkConfig, Login, TlsFiles};
use crate::shadow::store::Attachment;
use crate::{shadow, sync};

/// How often the gateway reports its own readings (contract §4).
pub(super) const OWN_INTERVAL: Duration = Duration::from_secs(30);
/// A connection may catch up this much of its rate at once after a pause.
const BURST_SECONDS: u32 = 2;
/// The gateway's type as a device.
pub(super) const OWN_TYPE: &str = "edge_gateway";

/// The state folder, made if it is not there.
pub(super) fn made(folder: &Path) -> Result<PathBuf, RunError> {
    std::fs::create_dir_all(folder).map_err(|cause| {
        let folder = folder.display();
        RunError::Failed(format!("cannot make the state folder `{folder}`: {cause}; check its owner and the disk"))
    })?;
    Ok(folder.to_owned())
}

/// The store's settings; the gateway is one of the devices.
pub(super) fn store(config: &Config) -> shadow::Config {
    let attachment = |device: &crate::config::DeviceConfig| Attachment {
        device_id: device.id.clone(),
        device_type: device.device_type.clone(),
        location: device.location.clone(),
        sample_interval: device.sample_interval,
        configuration: device.configuration.clone(),
        profile: device.profile.clone(),
    };
    let mut devices: Vec<_> = config.devices.iter().map(attachment).collect();
    let profile = config.profiles.get(OWN_TYPE).cloned().or_else(|| Profile::built_in(OWN_TYPE));
    devices.extend(profile.map(|profile| Attachment {
        device_id: config.gateway.id.as_device(),
        device_type: OWN_TYPE.to_owned(),
        location: config.gateway.location.clone(),
        sample_interval: OWN_INTERVAL,
        configuration: None,
        profile,
    }));
    shadow::Config {
        state_dir: config.store.state_dir.clone(),
        gateway_id: config.gateway.id.clone(),
        devices,
        commit_interval: config.store.commit_interval,
        quota_bytes: config.store.quota_bytes,
        history_retention: config.store.history_retention,
        announce_results: config.cloud.is_some(),
        announce_tables: config.dynamodb.is_some(),
    }
}

/// The built-in endpoint's settings.
pub(super) fn endpoint(listen: &ListenConfig) -> EndpointConfig {
    let path = |pem: &crate::config::Pem| pem.path.clone();
    let tls = listen.tls.as_ref().map(|tls| EndpointTls {
        cert: path(&tls.identity.cert),
        key: path(&tls.identity.key),
        client_ca: tls.client_ca.as_ref().map(path),
    });
    EndpointConfig {
        tls,
        password_file: listen.users.as_ref().map(|users| users.path.clone()),
        watchers: listen.watchers.clone(),
        clients_max: usize::try_from(listen.max_connections).unwrap_or(usize::MAX),
        rate_per_second: listen.packets_per_second,
        rate_burst: listen.packets_per_second.saturating_mul(BURST_SECONDS),
        ..EndpointConfig::new(listen.address)
    }
}

/// What each device may send.
pub(super) fn rates(config: &Config) -> Rates {
    let own = config.devices.iter().filter_map(|device| Some((device.id.clone(), device.limit?)));
    Rates { standard: config.floor_limit, own: own.collect() }
}

/// A link's settings.
pub(crate) fn link(name: &str, broker: &BrokerConfig) -> LinkConfig {
    let address = Address { tls: broker.url.tls, host: broker.url.host.clone(), port: broker.url.port };
    let login = broker.login.as_ref().map(|login| Login {
        user: login.username.clone(),
        password: login.password.as_ref().map(|file| file.secret.expose().to_owned()).unwrap_or_default(),
    });
    LinkConfig {
        login,
        tls: broker.tls.as_ref().map(files),
        keep_alive: broker.keep_alive,
        ..LinkConfig::new(name, address, broker.client_id.clone())
    }
}

fn files(tls: &LinkTls) -> TlsFiles {
    let identity = |identity: &Identity| (identity.cert.path.clone(), identity.key.path.clone());
    TlsFiles { ca: tls.ca.path.clone(), identity: tls.identity.as_ref().map(identity) }
}

/// The tables' settings.
pub(crate) fn tables(config: &Config, tables: &DynamoConfig) -> sync::DynamoConfig {
    sync::DynamoConfig {
        region: tables.region.clone(),
        endpoint_url: tables.endpoint_url.clone(),
        devices_table: tables.devices_table.clone(),
        history_table: tables.history_table.clone(),
        commands_table: tables.commands_table.clone(),
        credentials: credentials(config, &tables.credentials),
        gateway_id: config.gateway.id.clone(),
        request_timeout: None,
    }
}

fn credentials(config: &Config, credentials: &CredentialsConfig) -> sync::CredentialsConfig {
    match credentials {
        CredentialsConfig::IotRole(role) => sync::CredentialsConfig::Iot(sync::IotConfig {
            endpoint: role.iot_endpoint.clone(),
            role_alias: role.role_alias.clone(),
            thing_name: config.gateway.id.as_str().to_owned(),
            ca: Some(role.ca.bytes.clone()),
            cert: role.identity.cert.bytes.clone(),
            key: role.identity.key.bytes.clone(),
        }),
        CredentialsConfig::Keys(keys) => sync::CredentialsConfig::Static {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: keys.secret_access_key.expose().to_owned(),
            session_token: keys.session_token.as_ref().map(|token| token.expose().to_owned()),
        },
        CredentialsConfig::SharedFile { path, profile } => {
            sync::CredentialsConfig::SharedFile { path: path.clone(), profile: profile.clone() }
        }
    }
}
