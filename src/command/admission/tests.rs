use floorgate_model::{CommandId, DeviceId, Timestamp};
use serde_json::json;

use super::*;
use crate::clock::Clock;
use crate::command::memory::{Memory, Trouble, device, request};
use crate::device::{BoxFuture, Driver, DriverRegistry, NotSent, Order, Profiles, Sent};
use crate::shadow::store::{DEVICE_QUEUE_MAX, GATEWAY_QUEUE_MAX};

const CLOUD: Source = Source::Cloud { retained: false };

/// Carries everything; nobody sends anything here.
struct Idle;

impl Driver for Idle {
    fn send<'a>(&'a self, _: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>> {
        Box::pin(async { Ok(Sent::Unknown) })
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

fn admission(devices: &[&str]) -> (Admission<Memory>, Memory, Clock) {
    let clock = Clock::set_to(now());
    let log = Memory::new(clock.clone(), devices.iter().map(|id| device(id)));
    let drivers = DriverRegistry::default();
    for id in devices {
        drivers.attach(DeviceId::new(id).unwrap(), std::sync::Arc::new(Idle));
    }
    let judge = Judge { profiles: Profiles::default(), drivers, clock: clock.clone(), inhibition: Default::default() };
    (Admission::new(log.clone(), judge, GatewayId::new("GATEWAY-1").unwrap()), log, clock)
}

fn reboot(id: &str) -> Request {
    Request { command_id: CommandId::new(id).unwrap(), ..request("reboot", json!({}), now()) }
}

#[tokio::test]
async fn an_accepted_command_is_journalled_as_it_was_asked_for_with_its_checked_parameters() {
    let (admission, log, clock) = admission(&["A"]);
    let later = now().saturating_add(std::time::Duration::from_secs(2));
    clock.put(later);
    let asked = Request {
        issuer: Some("agent-7".to_owned()),
        ..request("update_config", json!({"sample_rate_seconds": "10"}), now())
    };
    let Admitted::Journalled(record) = admission.admit(asked.clone(), CLOUD).await.unwrap() else { panic!() };
    assert_eq!((record.status, record.reason, record.completed_at), (ExecutionStatus::Created, None, None));
    assert_eq!((record.issued_at, record.expires_at, record.received_at), (now(), asked.expires_at, later));
    assert_eq!((record.parameters.clone(), record.issuer.as_deref()), (asked.parameters, Some("agent-7")));
    assert_eq!(record.gateway_id.as_str(), "GATEWAY-1");
    let waiting = log.waiting().await.unwrap();
    assert_eq!(waiting[0].record, record);
    assert_eq!(serde_json::Value::from(waiting[0].checked_parameters.clone()), json!({"sample_rate_seconds": 10}));
}

#[tokio::test]
async fn an_unknown_device_leaves_no_trace() {
    let (admission, log, _) = admission(&["B"]);
    let admitted = admission.admit(reboot("c-1"), CLOUD).await.unwrap();
    assert_eq!((admitted.refusal(), admitted), (Some(Reason::UnknownDevice), Admitted::UnknownDevice));
    assert!(log.records().is_empty());
}

#[tokio::test]
async fn a_refused_command_is_journalled_as_ended() {
    let (admission, log, clock) = admission(&["A"]);
    let explode = Request { command: "explode".to_owned(), ..reboot("c-1") };
    let dry_run = Request { dry_run: true, ..reboot("c-2") };
    let cases = [
        (explode, CLOUD, ExecutionStatus::Rejected, Reason::UnknownCommand),
        (dry_run, CLOUD, ExecutionStatus::Rejected, Reason::DryRunOk),
        (reboot("c-3"), Source::Cloud { retained: true }, ExecutionStatus::Rejected, Reason::Retained),
        (Request { expires_at: clock.now(), ..reboot("c-4") }, CLOUD, ExecutionStatus::Expired, Reason::Expired),
    ];
    for (request, source, status, reason) in cases {
        let id = request.command_id.clone();
        let admitted = admission.admit(request, source).await.unwrap();
        assert_eq!(admitted.refusal(), Some(reason));
        let Admitted::Journalled(record) = admitted else { panic!("{admitted:?}") };
        assert_eq!((record.status, record.completed_at), (status, Some(now())), "{reason}");
        assert!(record.message.is_some(), "{reason}");
        assert_eq!((log.record(&id), log.endings(&id)), (record, 1), "{reason}");
    }
    assert!(log.waiting().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_redelivery_finds_the_first_record_even_when_it_has_expired_meanwhile() {
    let (admission, log, clock) = admission(&["A"]);
    let Admitted::Journalled(first) = admission.admit(reboot("c-1"), CLOUD).await.unwrap() else { panic!() };
    clock.put(first.expires_at);
    assert_eq!(admission.admit(reboot("c-1"), CLOUD).await.unwrap(), Admitted::Duplicate(first));
    assert_eq!((log.records().len(), log.endings(&CommandId::new("c-1").unwrap())), (1, 0));
}

#[tokio::test]
async fn an_id_that_belongs_to_another_command_is_a_conflict_and_changes_nothing() {
    let (admission, log, _) = admission(&["A"]);
    let Admitted::Journalled(first) = admission.admit(reboot("c-1"), CLOUD).await.unwrap() else { panic!() };
    let other = request("recalibrate", json!({}), now());
    let admitted = admission.admit(other, CLOUD).await.unwrap();
    assert_eq!((admitted.refusal(), admitted), (Some(Reason::DuplicateId), Admitted::Conflict(first.clone())));
    assert_eq!(log.records(), [first]);
}

#[tokio::test]
async fn the_ninth_command_of_a_device_and_the_201st_of_the_gateway_are_refused() {
    let names: Vec<String> = (0..=GATEWAY_QUEUE_MAX / DEVICE_QUEUE_MAX).map(|n| format!("D{n}")).collect();
    let (admission, log, _) = admission(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let ask = async |name: &str, n: usize| {
        let request = Request { device_id: DeviceId::new(name).unwrap(), ..reboot(&format!("c-{n}")) };
        admission.admit(request, CLOUD).await.unwrap().refusal()
    };
    for name in &names[..names.len() - 1] {
        for n in 0..DEVICE_QUEUE_MAX {
            assert_eq!(ask(name, n).await, None, "{name} {n}");
        }
        assert_eq!(ask(name, DEVICE_QUEUE_MAX).await, Some(Reason::QueueFull), "{name}");
    }
    assert_eq!(log.waiting().await.unwrap().len(), GATEWAY_QUEUE_MAX);
    assert_eq!(ask(names.last().unwrap(), 0).await, Some(Reason::QueueFull));
}

#[tokio::test]
async fn what_the_store_cannot_take_is_an_error_and_nothing_is_journalled() {
    let (admission, log, _) = admission(&["A"]);
    for method in ["device", "journal"] {
        log.trouble(method, Some(Trouble::Fails));
        assert!(admission.admit(reboot("c-1"), CLOUD).await.is_err(), "{method}");
        log.heal();
    }
    assert!(log.records().is_empty());
}

#[tokio::test]
async fn an_operator_at_the_gateway_is_known_by_the_issuer_and_needs_no_trusted_clock() {
    let (admission, log, clock) = admission(&["A"]);
    clock.set_trusted(false);
    let anna = Request { issuer: Some("anna".to_owned()), ..reboot("c-1") };
    assert_eq!(admission.admit(anna, Source::Local).await.unwrap().refusal(), None);
    let pretender = Request { issuer: Some("local:anna".to_owned()), ..reboot("c-2") };
    assert_eq!(admission.admit(pretender, CLOUD).await.unwrap().refusal(), Some(Reason::ClockUntrusted));
    let issuers: Vec<_> = log.records().into_iter().map(|record| record.issuer.unwrap()).collect();
    assert_eq!(issuers, ["local:anna", "cloud:local:anna"]);
}
