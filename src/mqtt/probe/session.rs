//! How a broker keeps messages for a client that acknowledges late, or is away.
//!
//! floorgate acknowledges after its commit, so a broker that sends little before it is acknowledged slows the intake
//! down, and one that keeps little for an absent client loses what it has acknowledged to devices. Neither can be
//! asked for: it is tried. [`WINDOW_SENT`] messages are published to the probe's own subscription and not acknowledged;
//! how many come is the window. Then the subscriber leaves without a word, [`QUEUE_SENT`] more are published (fewer, if
//! the broker is slow, because it writes each to its disk), and it comes back for all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish, Subscribe, SubscribeFilter, SubscribeReasonCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::line::{Line, message};
use super::{BrokerFound, ProbeError, Stage, accepted, open, probe_id};
use crate::mqtt::link::LinkConfig;

/// Messages published and not acknowledged: more than the usual small windows (20), so that those show.
pub const WINDOW_SENT: u16 = 128;
/// Messages published for the absent client: more than the usual small queue (1,000), so that it shows.
pub const QUEUE_SENT: u16 = 1_100;
/// How long messages for the absent client are published: a broker that writes each to its disk takes fewer.
pub const SENDING: Duration = Duration::from_millis(2_500);
/// Everything, so that there is time left to remove the session.
pub const KEEPING_WITHIN: Duration = Duration::from_millis(6_500);
/// A broker that says nothing more for so long has sent what it sends.
const QUIET: Duration = Duration::from_millis(400);
/// Beginning of the topic of the probe's own.
const TOPIC: &str = "floorgate-doctor";
const VERSION: &str = "$SYS/broker/version";
const DROPPED: &str = "$SYS/broker/publish/messages/dropped";

/// How a broker keeps messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionFound {
    /// What it calls itself (`$SYS`), where it tells.
    pub version: Option<String>,
    /// Messages it has dropped since its start (`$SYS`), where it tells.
    pub dropped: Option<u64>,
    /// What became of the messages.
    pub keeping: Option<Keeping>,
}

/// What became of the probe's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// It lets this user subscribe or publish nothing on the probe's topic.
    NotAllowed,
    /// It had forgotten the client on its return.
    Forgotten,
    /// It kept them, or some.
    Kept {
        /// Sent before anything was acknowledged; [`WINDOW_SENT`]: at least so many.
        window: usize,
        /// So many were acknowledged, [`WINDOW_SENT`] + [`QUEUE_SENT`] at most; fewer, if it was slow.
        sent: usize,
        /// Of these, so many never came.
        lost: usize,
    },
}

pub(super) async fn try_keeping(link: &LinkConfig, found: &mut BrokerFound) -> Result<(), ProbeError> {
    let topic = topic(link);
    let mut seen = SessionFound::default();
    let tried = timeout(KEEPING_WITHIN, attempt(link, &topic, found, &mut seen)).await;
    let tried = tried.unwrap_or(Err(ProbeError::Silent(KEEPING_WITHIN)));
    found.session = Some(seen);
    found.stage = Stage::Session;
    // Whatever came of it, nothing stays behind.
    let swept = connected(link, &probe_id(link), true, found).await;
    found.stage = Stage::Session;
    tried?;
    swept?.0.disconnect().await;
    Ok(())
}

async fn attempt(
    link: &LinkConfig,
    topic: &str,
    found: &mut BrokerFound,
    seen: &mut SessionFound,
) -> Result<(), ProbeError> {
    let (mut line, _) = connected(link, &probe_id(link), false, found).await?;
    if !subscribe(&mut line, topic, seen).await? {
        seen.keeping = Some(Keeping::NotAllowed);
        return Ok(());
    }
    let window = window(&mut line, topic, seen).await?;
    if window == 0 {
        // A broker may take what its rules forbid, and drop it.
        seen.keeping = Some(Keeping::NotAllowed);
        return Ok(());
    }
    // Without a word: the session stays, with all that was not acknowledged.
    drop(line);
    let sender = format!("{}-sender", probe_id(link));
    let (mut line, _) = connected(link, &sender, true, found).await?;
    let sent = usize::from(WINDOW_SENT) + send(&mut line, topic).await?;
    line.disconnect().await;
    let (mut line, present) = connected(link, &probe_id(link), false, found).await?;
    if !present {
        seen.keeping = Some(Keeping::Forgotten);
        return Ok(());
    }
    let came = collect(&mut line, topic, sent).await?;
    seen.keeping = Some(Keeping::Kept { window, sent, lost: sent - came });
    line.disconnect().await;
    Ok(())
}

/// A topic of the probe's own, whatever stands in the client id.
fn topic(link: &LinkConfig) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    format!("{TOPIC}/{}", link.client_id.chars().map(plain).collect::<String>())
}

async fn connected(
    link: &LinkConfig,
    id: &str,
    clean: bool,
    found: &mut BrokerFound,
) -> Result<(Line, bool), ProbeError> {
    let mut line = Line::new(open(link, found).await?);
    found.stage = Stage::Connect;
    let answer = line.connect(link, id, clean).await?;
    accepted(link, answer.code)?;
    found.stage = Stage::Session;
    Ok((line, answer.session_present))
}

/// Whether the subscription to the probe's topic is granted with QoS 1.
async fn subscribe(line: &mut Line, topic: &str, seen: &mut SessionFound) -> Result<bool, ProbeError> {
    let filters = [(topic, QoS::AtLeastOnce), (VERSION, QoS::AtMostOnce), (DROPPED, QoS::AtMostOnce)];
    let mut subscribe = Subscribe::new_many(filters.map(|(path, qos)| SubscribeFilter::new(path.to_owned(), qos)));
    subscribe.pkid = 1;
    line.send(&Packet::Subscribe(subscribe)).await?;
    loop {
        match line.receive().await? {
            Packet::SubAck(answer) => {
                let first = answer.return_codes.first();
                return Ok(first == Some(&SubscribeReasonCode::Success(QoS::AtLeastOnce)));
            }
            Packet::Publish(publish) => note(&publish, seen),
            _ => {}
        }
    }
}

/// How many messages come before one is acknowledged.
async fn window(line: &mut Line, topic: &str, seen: &mut SessionFound) -> Result<usize, ProbeError> {
    let messages: Vec<_> = (1..=WINDOW_SENT).map(|n| message(topic, n, n.to_string())).collect();
    line.send_all(&messages).await?;
    let (mut came, mut taken) = (BTreeSet::new(), 0);
    let mut quiet_at = Instant::now() + QUIET;
    while came.len() < usize::from(WINDOW_SENT) || taken < WINDOW_SENT {
        match timeout_at(quiet_at, line.receive()).await {
            // All that was published is acknowledged, and nothing more comes.
            Err(_) if taken >= WINDOW_SENT => break,
            // It is still taking them: the caller's time is the limit.
            Err(_) => {}
            Ok(packet) => match packet? {
                Packet::PubAck(_) => taken += 1,
                Packet::Publish(publish) if publish.topic == topic => {
                    came.insert(publish.pkid);
                }
                Packet::Publish(publish) => note(&publish, seen),
                _ => continue,
            },
        }
        quiet_at = Instant::now() + QUIET;
    }
    Ok(came.len())
}

/// Publishes [`QUEUE_SENT`] messages, or as many as are acknowledged in the time of [`SENDING`]; how many it was.
async fn send(line: &mut Line, topic: &str) -> Result<usize, ProbeError> {
    let until = Instant::now() + SENDING;
    let messages: Vec<_> = (1..=QUEUE_SENT).map(|n| message(topic, n, (WINDOW_SENT + n).to_string())).collect();
    let mut sent = 0;
    for some in messages.chunks(20) {
        line.send_all(some).await?;
        let mut taken = 0;
        while taken < some.len() {
            if let Packet::PubAck(_) = line.receive().await? {
                taken += 1;
            }
        }
        sent += taken;
        if Instant::now() >= until {
            break;
        }
    }
    Ok(sent)
}

/// Takes and acknowledges what was kept; how many different messages of `sent` it was.
async fn collect(line: &mut Line, topic: &str, sent: usize) -> Result<usize, ProbeError> {
    let mut came = BTreeSet::new();
    while came.len() < sent {
        match timeout_at(Instant::now() + QUIET, line.receive()).await {
            Err(_) => break,
            Ok(packet) => {
                if let Packet::Publish(publish) = packet? {
                    if publish.qos == QoS::AtLeastOnce {
                        line.acknowledge(publish.pkid).await?;
                    }
                    if publish.topic == topic {
                        came.insert(publish.payload);
                    }
                }
            }
        }
    }
    Ok(came.len())
}

/// What the broker tells of itself.
fn note(publish: &Publish, seen: &mut SessionFound) {
    let Ok(text) = std::str::from_utf8(&publish.payload) else { return };
    match publish.topic.as_str() {
        VERSION => seen.version = Some(text.chars().filter(|c| !c.is_control()).take(80).collect()),
        DROPPED => seen.dropped = text.trim().parse().ok(),
        _ => {}
    }
}
