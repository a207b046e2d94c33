//! CONNECT: who it is, what it may, and the CONNACK it gets (MQTT 3.1.1 §3.1, §3.2).

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use floorgate_model::DeviceId;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode};
use tokio::time::{Instant, sleep, timeout};

use super::doorman::Doorman;
use super::hub::{Entry, Hub, Seat};
use super::rights::Role;
use super::stats::Refusal;
use super::users::SharedUsers;

/// Longest client id, bytes; a longer one gets CONNACK 0x02.
pub(super) const CLIENT_ID_MAX: usize = 256;
/// How long a client waits for its predecessor of the same client id to be gone, its last will included; beyond,
/// CONNACK 0x03.
pub(super) const TAKEOVER_WAIT: Duration = Duration::from_secs(15);

/// How clients prove who they are.
#[derive(Debug)]
pub(super) struct Proof {
    /// Client certificates are demanded.
    pub(super) certificates: bool,
    /// Passwords are demanded, unless certificates are.
    pub(super) users: Option<RwLock<SharedUsers>>,
    /// Identities that may watch.
    pub(super) watchers: HashSet<String>,
}

/// A refused CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) code: ConnectReturnCode,
    pub(super) refusal: Refusal,
    pub(super) text: String,
}

/// An admitted client.
pub(super) struct Admitted {
    pub(super) role: Role,
    pub(super) seat: Seat,
    /// Another connection of the same client had to go for it.
    pub(super) took_over: bool,
}

fn reject(code: ConnectReturnCode, refusal: Refusal, text: impl Into<String>) -> Rejection {
    Rejection { code, refusal, text: text.into() }
}

fn not_authorized(text: impl Into<String>) -> Rejection {
    reject(ConnectReturnCode::NotAuthorized, Refusal::NotAuthorized, text)
}

/// Decides on a CONNECT and takes a seat for the client.
pub(super) async fn admit(
    hub: &Arc<Hub>,
    proof: &Proof,
    doorman: &Doorman,
    connect: &Connect,
    address: IpAddr,
    certificate: Option<&str>,
) -> Result<Admitted, Rejection> {
    let id = connect.client_id.as_str();
    if id.is_empty() && !connect.clean_session {
        let text = "an empty client id cannot have a persistent session";
        return Err(reject(ConnectReturnCode::BadClientId, Refusal::ClientId, text));
    }
    if id.len() > CLIENT_ID_MAX || id.chars().any(char::is_control) {
        let text = format!("a client id with control characters or over {CLIENT_ID_MAX} bytes");
        return Err(reject(ConnectReturnCode::BadClientId, Refusal::ClientId, text));
    }
    let identity = identify(proof, doorman, connect, address, certificate).await?;
    let role = match &identity {
        Some(name) => known_role(hub, proof, name)?,
        None => local_role(hub, id),
    };
    if let Some(will) = connect.last_will.as_ref().filter(|will| !role.may_publish(&hub.scheme, &will.topic)) {
        return Err(not_authorized(format!("no right to a last will for `{}`", will.topic)));
    }
    let (seat, took_over) = seat(hub, &key(identity.as_deref(), id), &role).await?;
    Ok(Admitted { role, seat, took_over })
}

/// Client ids are unique within an identity, so that nobody can take over another's connection or session.
fn key(identity: Option<&str>, id: &str) -> String {
    match (identity, id) {
        // Control characters are not taken in client ids, so this meets no one else's.
        (_, "") => format!("\u{1}{:016x}", fastrand::u64(..)),
        (None, id) => id.to_owned(),
        (Some(name), id) => format!("{name}\t{id}"),
    }
}

/// The proven name; `None` for a client on this machine where no proof is asked for.
async fn identify(
    proof: &Proof,
    doorman: &Doorman,
    connect: &Connect,
    address: IpAddr,
    certificate: Option<&str>,
) -> Result<Option<String>, Rejection> {
    if proof.certificates {
        let name = certificate.ok_or_else(|| not_authorized("its certificate has not exactly one common name"))?;
        return Ok(Some(name.to_owned()));
    }
    let Some(users) = &proof.users else {
        let here = address.to_canonical().is_loopback();
        return here.then_some(None).ok_or_else(|| not_authorized("without authentication only this machine may"));
    };
    let Some(login) = &connect.login else {
        return Err(not_authorized("it gave no user name"));
    };
    let users = Arc::clone(&users.read().unwrap_or_else(PoisonError::into_inner));
    if users.verify(&login.username, login.password.clone()).await {
        doorman.succeeded(address);
        return Ok(Some(login.username.clone()));
    }
    sleep(doorman.failed(address, Instant::now())).await;
    let text = "wrong user name or password";
    Err(reject(ConnectReturnCode::BadUserNamePassword, Refusal::Credentials, text))
}

fn known_role(hub: &Hub, proof: &Proof, name: &str) -> Result<Role, Rejection> {
    if let Some(device) = DeviceId::new(name).ok().filter(|device| hub.is_attached(device)) {
        return Ok(Role::Device(device));
    }
    let watcher = proof.watchers.contains(name).then_some(Role::Watcher);
    watcher.ok_or_else(|| not_authorized(format!("`{name}` is neither an attached device nor a watcher")))
}

fn local_role(hub: &Hub, id: &str) -> Role {
    let device = DeviceId::new(id).ok().filter(|device| hub.is_attached(device));
    device.map_or(Role::Local, Role::Device)
}

/// A seat, and whether an older connection had to leave it.
async fn seat(hub: &Arc<Hub>, key: &str, role: &Role) -> Result<(Seat, bool), Rejection> {
    let seated = async {
        let mut took_over = false;
        loop {
            match hub.enter(key, role) {
                Entry::Seated(seat) => return Ok((seat, took_over)),
                Entry::Full => return Err("all connections are taken"),
                Entry::Taken(gone) => gone.cancelled().await,
            }
            took_over = true;
        }
    };
    let seated = timeout(TAKEOVER_WAIT, seated).await.unwrap_or(Err("its predecessor's last will is not stored yet"));
    seated.map_err(|text| reject(ConnectReturnCode::ServiceUnavailable, Refusal::TooManyConnections, text))
}
