//! The devices against a real broker: what they say, what they do, what they keep.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::broker::{Broker, Message, Subscription};

const PATIENCE: Duration = Duration::from_secs(20);

fn pace() -> Pace {
    Pace {
        recalibration: Duration::from_millis(20),
        reboot: Duration::from_millis(50),
        sample: Some(Duration::from_millis(10)),
    }
}

fn order(broker: &Broker, device: &str, id: &str, command: &str, parameters: &Value) {
    let order = json!({"command_id": id, "command": command, "parameters": parameters});
    broker.publish(&format!("devices/{device}/execute"), order.to_string(), false);
}

async fn next(subscription: &mut Subscription) -> (Message, Value) {
    let message = timeout(PATIENCE, subscription.next()).await.unwrap().unwrap();
    let payload = serde_json::from_slice(&message.payload).unwrap();
    (message, payload)
}

/// The first message whose payload has this in this field.
async fn wait_for(subscription: &mut Subscription, field: &str, wanted: impl Into<Value>) -> Value {
    let wanted = wanted.into();
    loop {
        let (_, payload) = next(subscription).await;
        if payload[field] == wanted {
            return payload;
        }
    }
}

fn start(broker: &Broker, id: &str) -> Device {
    let spec = seed().into_iter().find(|spec| spec.id == id).unwrap();
    Device::start(spec, broker.address(), pace())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come true");
}

#[tokio::test]
async fn every_device_reports_its_state_and_its_readings() {
    let broker = Broker::start().await.unwrap();
    let (mut states, mut telemetry) = (broker.subscribe("devices/+/state"), broker.subscribe("devices/+/telemetry"));
    let fleet = Fleet::start(broker.address(), pace());
    let mut seen = BTreeSet::new();
    while seen.len() < 5 {
        let (message, state) = next(&mut states).await;
        assert_eq!((&state["online"], &state["boot_count"]), (&json!(true), &json!(1)));
        assert!(state["configuration"].as_object().is_some_and(|configuration| configuration.len() == 3));
        seen.insert(message.topic);
    }
    seen.clear();
    while seen.len() < 5 {
        let (message, report) = next(&mut telemetry).await;
        let device = fleet.device(message.topic.split('/').nth(1).unwrap()).unwrap();
        for metric in &device.spec().metrics {
            assert!(report[metric.name].is_number(), "{report}");
        }
        assert!(Timestamp::parse(report["timestamp"].as_str().unwrap()).is_ok());
        seen.insert(message.topic);
    }
}

#[tokio::test]
async fn a_recalibration_is_begun_done_and_reported_and_a_repeated_order_only_answered() {
    let broker = Broker::start().await.unwrap();
    let (mut results, mut states) = (broker.subscribe("devices/+/result"), broker.subscribe("devices/+/state"));
    let device = start(&broker, PRESSURE);
    wait_for(&mut states, "online", true).await;
    order(&broker, PRESSURE, "c1", "recalibrate", &json!({}));
    wait_for(&mut results, "status", "in_progress").await;
    let today = &now().to_string()[..10];
    assert_eq!(wait_for(&mut results, "status", "succeeded").await["configuration"]["calibration_date"], today);
    let (_, state) = next(&mut states).await;
    assert_eq!(state["configuration"]["calibration_date"], today);

    order(&broker, PRESSURE, "c1", "recalibrate", &json!({}));
    wait_for(&mut results, "status", "succeeded").await;
    let log = device.log();
    assert_eq!((log.executions("c1"), log.executed.len(), log.repeats), (1, 1, 1));
}

#[tokio::test]
async fn the_temperature_sensor_refuses_a_recalibration() {
    let broker = Broker::start().await.unwrap();
    let (mut results, mut states) = (broker.subscribe("devices/+/result"), broker.subscribe("devices/+/state"));
    let device = start(&broker, TEMPERATURE);
    wait_for(&mut states, "online", true).await;
    order(&broker, TEMPERATURE, "c1", "recalibrate", &json!({}));
    let failed = wait_for(&mut results, "status", "failed").await;
    assert_eq!(failed["reason"], "zero offset out of tolerance");
    assert_eq!(device.log().configuration["calibration_date"], "2025-05-15");
}

#[tokio::test]
async fn a_reboot_goes_down_with_the_will_and_comes_back_with_the_next_boot_count() {
    let broker = Broker::start().await.unwrap();
    let (mut results, mut states) = (broker.subscribe("devices/+/result"), broker.subscribe("devices/+/state"));
    let device = start(&broker, VALVE);
    wait_for(&mut states, "online", true).await;
    order(&broker, VALVE, "c1", "reboot", &json!({}));
    wait_for(&mut results, "status", "in_progress").await;
    wait_for(&mut states, "online", false).await;
    assert_eq!(wait_for(&mut states, "online", true).await["boot_count"], 2);
    wait_for(&mut results, "status", "succeeded").await;
    assert_eq!(device.log().boot_count, 2);
}

#[tokio::test]
async fn readings_taken_while_the_floor_is_away_arrive_later_every_one() {
    let broker = Broker::start().await.unwrap();
    let mut telemetry = broker.subscribe("devices/+/telemetry");
    let device = start(&broker, PRESSURE);
    until("readings are acknowledged", || device.log().acknowledged.len() > 3).await;
    broker.cut().await;
    let before = device.log().taken;
    until("readings are taken during the cut", || device.log().taken > before + 20).await;
    broker.restore().await.unwrap();
    let wanted = device.log().taken;
    until("everything is acknowledged", || device.log().acknowledged.len() as u64 >= wanted).await;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < wanted {
        seen.insert(next(&mut telemetry).await.1["seq"].as_u64().unwrap());
    }
    assert_eq!(device.log().lost, 0);
}

#[tokio::test]
async fn a_silent_device_measures_nothing_and_a_surging_one_exceeds_its_threshold() {
    let broker = Broker::start().await.unwrap();
    let mut telemetry = broker.subscribe("devices/+/telemetry");
    let device = start(&broker, PRESSURE);
    device.surge(true);
    while next(&mut telemetry).await.1["pressure_psi"].as_f64().unwrap() <= 150.0 {}
    device.silence(true);
    // One more may have been under way; after it, the counter stands still over many sample times.
    tokio::time::sleep(pace().sample.unwrap() * 2).await;
    let taken = device.log().taken;
    tokio::time::sleep(pace().sample.unwrap() * 10).await;
    assert_eq!(device.log().taken, taken);
    device.silence(false);
    until("it measures again", || device.log().taken > taken).await;
}
