//! What the probes of the brokers found, in sentences with what to do.

use floorgate_model::Timestamp;

use super::certificates::RENEW_WITHIN;
use super::report::{Check, Finding};
use crate::mqtt::link::{HASTEN_AFTER, LinkConfig};
use crate::mqtt::probe::{BrokerFound, Depth, Keeping, ProbeError, QUEUE_SENT, Stage, WINDOW_SENT};

/// A smaller window than this slows a busy floor down.
const WINDOW_WANTED: usize = 100;
/// Where the settings for mosquitto stand.
const SETTINGS: &str = "deploy/mosquitto/floorgate.conf has the settings for mosquitto, with their reasons";

/// What came of a probe.
pub(super) fn judge(
    check: Check,
    link: &LinkConfig,
    depth: Depth,
    found: &BrokerFound,
    now: Timestamp,
) -> Vec<Finding> {
    let subject = link.address.to_string();
    let finding = match &found.problem {
        Some(problem) => unreachable(check, link, found, problem),
        None => Finding::ok(check, answered(depth, found, now)),
    };
    let mut findings = vec![finding.of(&subject)];
    if let Some(ends) = found.certificate_ends.filter(|ends| ends.since(now) < RENEW_WITHIN) {
        let days = ends.since(now).as_secs() / 86_400;
        let advice = "its operator has to renew it; until then the link works, after that no more";
        findings
            .push(Finding::warn(check, format!("its certificate is good for {days} more days"), advice).of(&subject));
    }
    if let Some(session) = &found.session {
        findings.extend(session.keeping.map(|keeping| kept(check, keeping).of(&subject)));
        if let Some(dropped) = session.dropped.filter(|dropped| *dropped > 0) {
            let told = format!("it has dropped {dropped} messages since its start, for whichever client");
            findings.push(Finding::warn(check, told, format!("give it longer queues: {SETTINGS}")).of(&subject));
        }
    }
    findings
}

fn answered(depth: Depth, found: &BrokerFound, now: Timestamp) -> String {
    let peer = found.peer.map(|peer| format!(" ({peer})")).unwrap_or_default();
    let mut text = match depth {
        Depth::Tls => format!(
            "name, TCP and TLS with our certificate work{peer}; CONNECT was not tried, because AWS IoT \
            policies usually allow the gateway's own client id alone, and that would take over its session"
        ),
        Depth::Connect | Depth::Session => format!("takes connections{peer}"),
    };
    if let Some(ends) = found.certificate_ends {
        text.push_str(&format!("; its certificate is good for {} days", ends.since(now).as_secs() / 86_400));
    }
    if let Some(version) = found.session.as_ref().and_then(|session| session.version.as_ref()) {
        text.push_str(&format!("; {version}"));
    }
    text
}

fn unreachable(check: Check, link: &LinkConfig, found: &BrokerFound, problem: &ProbeError) -> Finding {
    let text = format!("{}: {problem}", found.stage.as_str());
    let host = &link.address.host;
    // AWS IoT under a name of one's own ends the connection of an id its policy does not know, without a word.
    let hung_up = matches!(problem, ProbeError::Broken(text) if text.contains("closed the connection"));
    if found.stage == Stage::Connect && hung_up {
        let advice = format!(
            "it may allow the gateway's own id `{}` alone: then look at the line `link`; else check that it speaks MQTT 3.1.1",
            link.client_id
        );
        return Finding::warn(check, text, advice);
    }
    if let ProbeError::Refused { login: false, .. } = problem {
        let advice = format!(
            "it may allow the gateway's own id `{}` alone: then look at the line `link`; else check its access rules",
            link.client_id
        );
        return Finding::warn(check, text, advice);
    }
    let advice = match found.stage {
        Stage::Name => format!("check the name in `url` and the name service (`getent hosts {host}`)"),
        Stage::Tcp => format!(
            "check that it runs and that nothing between blocks TCP port {} (`nc -vz {host} {0}`)",
            link.address.port
        ),
        Stage::Tls => "check `ca`, `cert` and `key` against what it expects, and this machine's clock".to_owned(),
        Stage::Connect if matches!(problem, ProbeError::Refused { .. }) => {
            "check `username` and `password_file` against its password file".to_owned()
        }
        Stage::Connect => "check that it is an MQTT 3.1.1 broker, and its log".to_owned(),
        Stage::Session => {
            "try again when it has less to do, and look into its log: a broker this slow bounds the intake".to_owned()
        }
    };
    Finding::fail(check, text, advice)
}

/// How it keeps messages, against what manual acknowledgement needs.
fn kept(check: Check, keeping: Keeping) -> Finding {
    match keeping {
        Keeping::NotAllowed => Finding::skipped(
            check,
            "its access rules keep this user from `floorgate-doctor/#`, so how it keeps messages was not tried",
        ),
        Keeping::Forgotten => Finding::fail(
            check,
            "it forgot a client with a persistent session at once: whatever comes while floorgate is away is lost",
            format!("switch persistent sessions on: {SETTINGS}"),
        ),
        Keeping::Kept { sent, lost, .. } if lost > 0 => Finding::fail(
            check,
            format!("of {sent} acknowledged messages for an absent client it lost {lost}"),
            format!("raise max_queued_messages (mosquitto's own limit is 1,000): {SETTINGS}"),
        ),
        Keeping::Kept { window, .. } if window < WINDOW_WANTED => {
            let hurry = if window < HASTEN_AFTER { ", fewer than floorgate counts on" } else { "" };
            Finding::warn(
                check,
                format!("it sends {window} messages before one is acknowledged{hurry}, which bounds the intake"),
                format!("raise max_inflight_messages to 1,000: {SETTINGS}"),
            )
        }
        Keeping::Kept { window, sent, .. } => {
            let all = usize::from(WINDOW_SENT + QUEUE_SENT);
            let slow =
                if sent < all { " (it was too slow for more, so a limit of 1,000 would not have shown)" } else { "" };
            let least = if window >= usize::from(WINDOW_SENT) { "at least " } else { "" };
            Finding::ok(
                check,
                format!(
                    "kept all of {sent} messages for an absent client{slow} and sends {least}{window} before one is acknowledged; \
                     whether its queue outlives its own restart cannot be seen from outside"
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;
    use crate::mqtt::probe::SessionFound;
    use std::time::Duration;

    fn link() -> LinkConfig {
        LinkConfig::new("floor", "mqtt://broker:1883".parse().unwrap(), "GW-1-floor")
    }

    fn found(stage: Stage, problem: Option<ProbeError>) -> BrokerFound {
        BrokerFound { stage, problem, peer: None, certificate_ends: None, session: None }
    }

    fn told(found: &BrokerFound) -> Vec<Finding> {
        judge(Check::FloorBroker, &link(), Depth::Session, found, Timestamp::EPOCH)
    }

    #[test]
    fn each_stage_that_fails_says_what_to_check() {
        for (stage, says) in [
            (Stage::Name, "getent hosts broker"),
            (Stage::Tcp, "nc -vz broker 1883"),
            (Stage::Tls, "`ca`"),
            (Stage::Connect, "MQTT 3.1.1"),
        ] {
            let silent = ProbeError::Silent(Duration::from_secs(8));
            let all = told(&found(stage, Some(silent)));
            assert!(all[0].state == State::Fail && all[0].found.contains("no answer within 8 s"), "{all:?}");
            assert!(all[0].advice.as_ref().unwrap().contains(says), "{all:?}");
        }
    }

    #[test]
    fn a_broker_that_hangs_up_on_the_probes_id_may_still_know_the_gateways() {
        let closed = ProbeError::Broken("it closed the connection".into());
        assert_eq!(told(&found(Stage::Connect, Some(closed.clone())))[0].state, State::Warn);
        assert_eq!(told(&found(Stage::Tls, Some(closed)))[0].state, State::Fail);
    }

    #[test]
    fn a_refused_id_is_a_warning_and_a_wrong_password_is_red() {
        let refused = |login| Some(ProbeError::Refused { id: "GW-1-doctor".into(), why: "no", login });
        assert_eq!(told(&found(Stage::Connect, refused(false)))[0].state, State::Warn);
        let wrong = told(&found(Stage::Connect, refused(true)));
        assert!(wrong[0].state == State::Fail && wrong[0].advice.as_ref().unwrap().contains("password_file"));
    }

    #[test]
    fn small_windows_and_short_queues_are_told_with_the_setting_that_changes_them() {
        let kept = |window, lost| {
            let mut found = found(Stage::Session, None);
            let keeping = Some(Keeping::Kept { window, sent: 1_228, lost });
            found.session = Some(SessionFound { version: Some("broker 2".into()), dropped: Some(0), keeping });
            told(&found).remove(1)
        };
        assert_eq!(kept(128, 0).state, State::Ok);
        assert!(kept(20, 0).state == State::Warn && kept(20, 0).advice.unwrap().contains("max_inflight_messages"));
        assert!(kept(10, 0).found.contains("fewer than floorgate counts on"));
        assert!(kept(128, 228).state == State::Fail && kept(128, 228).advice.unwrap().contains("max_queued_messages"));
    }

    #[test]
    fn messages_a_broker_has_dropped_are_told_and_so_is_a_certificate_of_its_that_ends() {
        let mut found = found(Stage::Session, None);
        found.certificate_ends = Some(Timestamp::from_millis(9 * 86_400_000));
        found.session = Some(SessionFound { version: None, dropped: Some(7), keeping: Some(Keeping::Forgotten) });
        let states: Vec<_> = told(&found).iter().map(|finding| finding.state).collect();
        assert_eq!(states, [State::Ok, State::Warn, State::Fail, State::Warn]);
    }
}
