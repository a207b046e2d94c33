//! The tools with the real daemon and devices that write down what they did.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use floorgate_demo::builds::{self, Progress};
use floorgate_demo::daemon::{Daemon, Surroundings};
use floorgate_demo::devices::{self, Pace};
use floorgate_fleet::clock::Clock;
use floorgate_fleet::store::Tables;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::bench::{self, Bench, PRESSURE, VALVE};

#[tokio::test]
async fn a_command_goes_through_the_real_daemon_and_its_outcome_comes_back() {
    let bench = Bench::empty().await;
    let program = builds::daemon(&Progress::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let floor: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let table = bench::address_of(&bench.endpoint);
    let surroundings = Surroundings { floor, floor_is_broker: false, cloud: bench.broker.address(), table };
    let daemon = Daemon::prepare(program, folder.path(), &surroundings).unwrap();
    daemon.start().unwrap();
    let pace = Pace {
        recalibration: Duration::from_millis(200),
        reboot: Duration::from_millis(300),
        sample: Some(Duration::from_millis(500)),
    };
    let floor = devices::Fleet::start(floor, pace);
    let fleet = bench::fleet(&bench.endpoint, Tables::default(), bench::link(&bench.broker), &Clock::default());

    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let status = bench::call(&fleet, "get_device_status", json!({"device_id": PRESSURE})).await;
        if status.as_ref().is_ok_and(|status| status["status"] == "online" && status["stale"] == false) {
            break;
        }
        assert!(Instant::now() < deadline, "{status:?} {:?}", daemon.ended());
        sleep(Duration::from_millis(200)).await;
    }

    // Not every start is quick: the gateway subscribes once its link is up.
    let ask = json!({"device_id": PRESSURE, "command": "recalibrate", "wait_seconds": 30, "idempotency_key": "k"});
    let answer = bench::call(&fleet, "send_command", ask.clone()).await.unwrap();
    assert_eq!((&answer["status"], &answer["delivered"]), (&json!("succeeded"), &json!(true)), "{answer:#}");
    let id = answer["command_id"].as_str().unwrap();
    assert_eq!(floor.device(PRESSURE).unwrap().log().executions(id), 1);
    assert_eq!((&answer["issuer"], &answer["gateway_id"]), (&json!("kim (sub-kim)"), &json!("GATEWAY-FLOOR1-001")));

    let again = bench::call(&fleet, "send_command", ask).await.unwrap();
    assert_eq!((&again["command_id"], &again["repeated"]), (&answer["command_id"], &json!(true)));
    assert_eq!(floor.device(PRESSURE).unwrap().log().executions(id), 1);

    let dry = json!({"device_id": VALVE, "command": "reboot", "dry_run": true, "wait_seconds": 30});
    let answer = bench::call(&fleet, "send_command", dry).await.unwrap();
    assert_eq!((&answer["reason"], &answer["delivered"]), (&json!("DRY_RUN_OK"), &json!(false)), "{answer:#}");
    assert!(floor.device(VALVE).unwrap().log().executed.is_empty());

    let maintain = json!({"device_id": VALVE, "command": "set_status", "parameters": {"status": "maintenance"}, "wait_seconds": 30});
    assert_eq!(bench::call(&fleet, "send_command", maintain).await.unwrap()["status"], "succeeded");
    let last = bench.item(PRESSURE).await["last_command"].clone();
    assert_eq!((&last["status"], &last["command_id"]), (&json!("succeeded"), &json!(id)));
    assert!(daemon.stop().await);
}
