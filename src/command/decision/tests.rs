use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::command::memory;

/// A minute of the year 2027.
const NOW: i64 = 1_800_000_000_000;
const CLOUD: Source = Source::Cloud { retained: false };
const RETAINED: Source = Source::Cloud { retained: true };

fn now() -> Timestamp {
    Timestamp::from_millis(NOW)
}

fn shifted(seconds: i64) -> Timestamp {
    Timestamp::from_millis(NOW + seconds * 1_000)
}

fn inhibited() -> Inhibition {
    Inhibition { left: Duration::from_secs(3_000), why: "state.db was damaged".into() }
}

/// A case that is accepted, for tests to spoil.
#[derive(Debug)]
struct Case {
    request: Request,
    device: Option<DeviceView>,
    profile: Option<Profile>,
    driver_carries: bool,
    now: Timestamp,
    clock_trusted: bool,
    inhibition: Option<Inhibition>,
    received_at: Timestamp,
    same_boot: bool,
    source: Source,
    phase: Phase,
}

impl Case {
    fn of(command: &str, parameters: Value) -> Self {
        Self {
            request: memory::request(command, parameters, now()),
            device: Some(memory::device("A")),
            profile: Profile::built_in("pressure_sensor"),
            driver_carries: true,
            now: now(),
            clock_trusted: true,
            inhibition: None,
            received_at: now(),
            same_boot: true,
            source: CLOUD,
            phase: Phase::Receipt,
        }
    }

    fn reboot() -> Self {
        Self::of("reboot", json!({}))
    }

    fn decide(&self) -> Decision {
        let facts = Facts {
            device: self.device.as_ref(),
            profile: self.profile.as_ref(),
            driver_carries: self.driver_carries,
            now: self.now,
            clock_trusted: self.clock_trusted,
            inhibition: self.inhibition.as_ref(),
            received_at: self.received_at,
            same_boot: self.same_boot,
            source: self.source,
            phase: self.phase,
        };
        decide(&self.request, &facts)
    }

    fn reason(&self) -> Option<Reason> {
        match self.decide() {
            Decision::Accept { .. } => None,
            Decision::Refuse(refusal) => Some(refusal.reason),
        }
    }

    fn device(&mut self) -> &mut DeviceView {
        self.device.as_mut().unwrap()
    }
}

/// Makes one thing wrong.
type Spoiler = fn(&mut Case);

/// Every reason this room can give at this point, in the order of the checks, each with what brings it about. A later
/// one never hides an earlier one, so they can be laid over each other.
fn spoilers() -> Vec<(Reason, Spoiler)> {
    vec![
        (Reason::UnknownDevice, |case| case.device = None),
        (Reason::Retained, |case| case.source = RETAINED),
        (Reason::UnknownCommand, |case| case.request.command = "explode".to_owned()),
        (Reason::Unsupported, |case| case.driver_carries = false),
        (Reason::InvalidParameters, |case| drop(case.request.parameters.insert("force".to_owned(), json!(true)))),
        (Reason::Inhibited, |case| case.inhibition = Some(inhibited())),
        (Reason::Unsupported, |case| {
            if let Some(device) = &mut case.device {
                device.taken_over_by = Some(floorgate_model::GatewayId::new("GATEWAY-2").unwrap());
            }
        }),
        (Reason::ClockUntrusted, |case| case.clock_trusted = false),
        (Reason::ClockSkew, |case| {
            (case.phase, case.received_at) = (Phase::Dispatch, case.now.saturating_add(Duration::from_secs(61)));
        }),
        (Reason::Expired, |case| case.request.expires_at = case.now),
        (Reason::Maintenance, |case| {
            if let Some(device) = &mut case.device {
                device.admin_state = AdminState::Maintenance;
            }
        }),
        (Reason::DeviceOffline, |case| {
            if let Some(device) = &mut case.device {
                device.observed = DeviceStatus::Offline;
            }
        }),
        (Reason::DryRunOk, |case| case.request.dry_run = true),
    ]
}

#[test]
fn every_command_is_accepted_where_nothing_speaks_against_it() {
    for (command, given, checked) in [
        ("reboot", json!({}), json!({})),
        ("recalibrate", json!({"reference_value": "1.5"}), json!({"reference_value": 1.5})),
        ("update_config", json!({"sample_rate_seconds": "10"}), json!({"sample_rate_seconds": 10})),
        ("set_status", json!({"status": "maintenance"}), json!({"status": "maintenance"})),
    ] {
        for phase in [Phase::Receipt, Phase::Dispatch] {
            let case = Case { phase, ..Case::of(command, given.clone()) };
            let checked_parameters = checked.as_object().unwrap().clone();
            assert_eq!(case.decide(), Decision::Accept { checked_parameters }, "{command}");
        }
    }
}

#[test]
fn every_reason_has_its_place_and_the_first_one_is_given() {
    let spoilers = spoilers();
    for (first, (reason, _)) in spoilers.iter().enumerate() {
        let mut alone = Case::reboot();
        spoilers[first].1(&mut alone);
        assert_eq!(alone.reason(), Some(*reason), "alone");
        let mut with_all_later = Case::reboot();
        for (_, spoil) in &spoilers[first..] {
            spoil(&mut with_all_later);
        }
        assert_eq!(with_all_later.reason(), Some(*reason), "before all later ones");
    }
}

#[test]
fn only_what_is_too_old_is_expired_and_all_else_is_rejected_with_a_sentence() {
    for (reason, spoil) in spoilers() {
        let mut case = Case::reboot();
        spoil(&mut case);
        let Decision::Refuse(refusal) = case.decide() else { panic!("{reason}") };
        let status = if reason == Reason::Expired { ExecutionStatus::Expired } else { ExecutionStatus::Rejected };
        assert_eq!(refusal.status, status, "{reason}");
        assert!(refusal.message.len() > 20, "{reason}: {}", refusal.message);
    }
}

#[test]
fn what_type_device_and_driver_do_not_support_is_told_apart() {
    let message = |case: &Case| match case.decide() {
        Decision::Refuse(refusal) if refusal.reason == Reason::Unsupported => refusal.message,
        other => panic!("{other:?}"),
    };
    let mut case = Case::reboot();
    case.profile = None;
    assert!(message(&case).contains("no profile describes the type pressure_sensor"));
    case.profile = Profile::built_in("valve_actuator");
    case.request.command = "recalibrate".to_owned();
    case.device().device_type = "valve_actuator".to_owned();
    assert_eq!(
        message(&case),
        "recalibrate is not allowed on a valve_actuator; allowed are reboot, update_config, set_status"
    );
    let mut case = Case::reboot();
    case.device().declared_commands = Some(vec![CommandName::UpdateConfig]);
    assert_eq!(message(&case), "A says it cannot reboot; it can update_config");
    let mut case = Case::reboot();
    case.driver_carries = false;
    assert!(message(&case).contains("nothing carries reboot to A"));
}

#[test]
fn the_overlay_needs_neither_driver_nor_device() {
    let mut case = Case::of("set_status", json!({"status": "online"}));
    case.driver_carries = false;
    case.device().declared_commands = Some(Vec::new());
    case.device().observed = DeviceStatus::Offline;
    case.device().admin_state = AdminState::Maintenance;
    assert_eq!(case.reason(), None);
}

#[test]
fn observed_statuses_cannot_be_set() {
    for word in ["offline", "warning", "rebooting", "ONLINE", ""] {
        assert_eq!(Case::of("set_status", json!({"status": word})).reason(), Some(Reason::InvalidParameters), "{word}");
    }
}

#[test]
fn an_operator_at_the_gateway_needs_no_trusted_clock_but_is_never_stale_either() {
    let mut case = Case::reboot();
    (case.source, case.clock_trusted) = (Source::Local, false);
    assert_eq!(case.reason(), None);
    case.now = case.request.expires_at;
    assert_eq!(case.reason(), Some(Reason::Expired));
}

#[test]
fn a_minute_ahead_is_allowed_and_not_a_millisecond_more() {
    for (ahead_ms, reason) in [(60_000, None), (60_001, Some(Reason::ClockSkew))] {
        let ahead = Timestamp::from_millis(NOW + ahead_ms);
        let issued = Case { request: memory::request("reboot", json!({}), ahead), ..Case::reboot() };
        assert_eq!(issued.reason(), reason, "issued {ahead_ms} ms ahead");
        let received = Case { phase: Phase::Dispatch, received_at: ahead, ..Case::reboot() };
        assert_eq!(received.reason(), reason, "received {ahead_ms} ms ahead");
    }
}

#[test]
fn the_expiry_itself_is_too_late() {
    for (command, lifetime) in [("reboot", 120), ("recalibrate", 120), ("update_config", 900), ("set_status", 900)] {
        let given = match command {
            "update_config" => json!({"sample_rate_seconds": 5}),
            "set_status" => json!({"status": "online"}),
            _ => json!({}),
        };
        let mut case = Case::of(command, given);
        case.now = Timestamp::from_millis(NOW + lifetime * 1_000 - 1);
        assert_eq!(case.reason(), None, "{command}");
        case.now = shifted(lifetime);
        assert_eq!(case.reason(), Some(Reason::Expired), "{command}");
    }
}

#[test]
fn nothing_lives_longer_than_an_hour_whatever_it_says_of_itself() {
    let mut case = Case::reboot();
    case.request.expires_at = shifted(10 * 86_400);
    case.now = shifted(3_599);
    assert_eq!(case.reason(), None);
    case.now = shifted(3_600);
    assert_eq!(case.reason(), Some(Reason::Expired));
}

fn command_word() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(CommandName::ALL.map(|name| name.as_str().to_owned()).to_vec()),
        1 => "[a-z_]{0,12}",
    ]
}

fn parameters() -> impl Strategy<Value = Map<String, Value>> {
    let names = ["sample_rate_seconds", "alert_threshold_psi", "status", "reference_value", "emergency_shutoff", "x"];
    let values = [json!(10), json!("10"), json!(-1), json!("online"), json!(true), json!(null), json!([1]), json!({})];
    let entry = (prop::sample::select(names.to_vec()), prop::sample::select(values.to_vec()));
    prop::collection::vec(entry, 0..3)
        .prop_map(|entries| entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

prop_compose! {
    /// Any command in any situation; most of them with one or two things wrong.
    fn any_case()(
        command in command_word(),
        parameters in parameters(),
        (issued, lifetime, received) in (-100_000i64..100_000, 0i64..1_000_000, -100_000i64..100_000),
        (fits, fresh, dispatch, trusted, carries, local, retained, dry_run) in (
            prop::bool::weighted(0.6), prop::bool::weighted(0.6), any::<bool>(), prop::bool::weighted(0.9),
            prop::bool::weighted(0.9), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1),
        ),
        (maintenance, offline, no_device, no_profile) in (
            prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1),
        ),
    ) -> Case {
        let mut case = Case::of(&command, Value::Object(parameters));
        if fits {
            case.request.parameters = match command.as_str() {
                "update_config" => json!({"sample_rate_seconds": 10}),
                "set_status" => json!({"status": "online"}),
                _ => json!({}),
            }.as_object().unwrap().clone();
        }
        if !fresh {
            case.request.issued_at = shifted(issued);
            case.request.expires_at = shifted(issued + lifetime);
            case.received_at = shifted(received);
        }
        case.phase = if dispatch { Phase::Dispatch } else { Phase::Receipt };
        case.source = if local { Source::Local } else { Source::Cloud { retained } };
        (case.clock_trusted, case.driver_carries, case.request.dry_run) = (trusted, carries, dry_run);
        if maintenance { case.device().admin_state = AdminState::Maintenance; }
        if offline { case.device().observed = DeviceStatus::Offline; }
        if no_device { case.device = None; }
        if no_profile { case.profile = None; }
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_is_accepted_that_the_contract_forbids(case in any_case()) {
        prop_assert_eq!(case.decide(), case.decide(), "the same question has the same answer");
        if let Decision::Accept { checked_parameters } = case.decide() {
            let (request, device) = (&case.request, case.device.as_ref().unwrap());
            prop_assert!(case.now < request.expires_at);
            prop_assert!(case.now < request.issued_at.saturating_add(LIFETIME_MAX));
            prop_assert!(request.issued_at <= case.now.saturating_add(CLOCK_AHEAD_MAX));
            prop_assert!(case.source == Source::Local || case.clock_trusted);
            prop_assert!(case.source != RETAINED && !request.dry_run);
            let command: CommandName = request.command.parse().unwrap();
            let spec = &case.profile.as_ref().unwrap().commands[&command];
            for name in request.parameters.keys() {
                prop_assert!(spec.parameters.contains_key(name), "{} was accepted", name);
            }
            prop_assert_eq!(checked_parameters.len(), request.parameters.len());
            let local = command == CommandName::SetStatus;
            prop_assert!(local || device.admin_state == AdminState::InService);
            prop_assert!(local || device.observed != DeviceStatus::Offline);
            prop_assert!(local || case.driver_carries);
        }
    }

    #[test]
    fn one_more_thing_wrong_never_moves_a_refusal_back_in_the_order(case in any_case(), which in 0usize..11) {
        let order = |reason: Option<Reason>| {
            spoilers().iter().position(|(known, _)| Some(*known) == reason).unwrap_or(usize::MAX)
        };
        let before = order(case.reason());
        let mut case = case;
        spoilers()[which].1(&mut case);
        let after = order(case.reason());
        prop_assert!(after <= before, "{} → {}", before, after);
    }

    #[test]
    fn no_clock_and_no_lifetime_make_an_old_command_acceptable(
        issued in 0i64..4_000_000_000_000, lifetime in 0i64..100_000_000_000, now in 0i64..4_000_000_000_000,
        near in -5_000i64..5_000, close in any::<bool>(), trusted in any::<bool>(),
    ) {
        let issued_at = Timestamp::from_millis(issued);
        let expires_at = Timestamp::from_millis(issued + lifetime);
        let now = if close { expires_at.as_millis().min(issued + 3_600_000) + near } else { now };
        for source in [CLOUD, Source::Local] {
            for phase in [Phase::Receipt, Phase::Dispatch] {
                let mut case = Case::reboot();
                (case.request.issued_at, case.request.expires_at) = (issued_at, expires_at);
                (case.now, case.received_at) = (Timestamp::from_millis(now), issued_at);
                (case.source, case.phase, case.clock_trusted) = (source, phase, trusted);
                if now >= issued + lifetime.min(3_600_000) {
                    prop_assert!(case.reason().is_some());
                }
            }
        }
    }
}

#[test]
fn while_the_journal_is_in_doubt_nothing_runs_but_an_operators_overlay() {
    for (command, source, passes) in [
        ("reboot", CLOUD, false),
        ("set_status", CLOUD, false),
        ("reboot", Source::Local, false),
        ("set_status", Source::Local, true),
    ] {
        let parameters = if command == "set_status" { json!({"status": "maintenance"}) } else { json!({}) };
        let mut case = Case::of(command, parameters);
        case.inhibition = Some(inhibited());
        case.source = source;
        assert_eq!(case.reason(), (!passes).then_some(Reason::Inhibited), "{command} {source:?}");
        if let Decision::Refuse(refusal) = case.decide() {
            assert!(
                refusal.message.contains("for 3000 s more") && refusal.message.contains("was damaged"),
                "{refusal:?}"
            );
        }
    }
}
