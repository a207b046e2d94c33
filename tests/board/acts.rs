//! The demo's acts, all of them, against the daemon that the package installed: readings and warnings, a recalibration as the
//! agent asks for it, failing commands undone, a stale one refused, one that comes three times done once, a silent sensor, the
//! uplink cut, an agent refused. Devices, agents, tools, broker and table are the demo's, on this host; what they see is judged by the demo's own checks.

use std::net::SocketAddr;
use std::path::Path;

use floorgate_demo::acts;
use floorgate_demo::broker::Broker;
use floorgate_demo::builds::{self, Progress};
use floorgate_demo::daemon::{Daemon, Surroundings};
use floorgate_demo::devices::{Fleet, Pace, VALVE};
use floorgate_demo::dynamo::Client as TableClient;
use floorgate_demo::proxy::Proxy;
use floorgate_demo::seed_tool::SeedTool;
use floorgate_demo::stage::Stage;
use floorgate_demo::table::Table;
use floorgate_demo::tools::Tools;
use floorgate_demo::view::View;

use crate::given::Given;
use crate::machine::Machine;
use crate::rig::client::Client;
use crate::rig::free_port;
use crate::service;

/// Fields of the journal by which operators search.
const FIELDS: &[&str] = &["DEVICE_ID", "COMMAND_ID", "REASON"];
const ALL: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8];

pub async fn story(given: &Given) {
    let folder = tempfile::tempdir().unwrap();
    let floor = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut machine = Machine::new(given, std::slice::from_ref(&given.package), floor);
    println!("board: acts: boot {:.1} s", machine.boot(None).await.as_secs_f64());
    machine.insert_packages().await;
    service::install(&machine, "[0-9]*", "").await;
    play(&machine, floor, folder.path(), ALL).await;
    println!("board: acts: all {} as they should be", ALL.len());
    journal(&machine, floor).await;
    machine.power_off().await;
}

/// Configures it against the demo's broker and table on this host, and plays these acts.
pub async fn play(machine: &Machine, floor: SocketAddr, folder: &Path, wanted: &[u8]) {
    let broker = Broker::start().await.unwrap();
    let mut table = Table::start(&folder.join("table")).await.unwrap();
    let cloud_wire = Proxy::start(broker.address()).await.unwrap();
    let table_wire = Proxy::start(table.address()).await.unwrap();
    let surroundings =
        Surroundings { floor, floor_is_broker: false, cloud: cloud_wire.address(), table: table_wire.address() };
    let daemon = Daemon::prepare(machine.command_line(), folder, &surroundings).unwrap();
    let config: String = crate::rig::read(daemon.config())
        .lines()
        .filter(|line| !line.starts_with("state_dir"))
        .map(|line| format!("{line}\n"))
        .collect();
    service::configure(machine, &config).await;
    machine.sh(&format!("floorgate provision --config {}", service::CONFIG)).await;
    machine.sh("systemctl enable floorgate; systemctl start floorgate").await;
    service::active(machine).await;
    println!("board: start to READY {} ms", service::start_to_ready(machine).await.as_millis());
    let client = TableClient::to(table.address());
    let tools = builds::tools(&Progress::default()).await.unwrap();
    let stage = Stage {
        tools: Tools::start(&tools, folder, broker.address(), table.address()).await.unwrap(),
        seed_tool: SeedTool::start(broker.address(), client.clone()),
        table: client,
        fleet: Fleet::start(floor, Pace::default()),
        daemon,
        cloud_wire,
        table_wire,
        view: View::new(false),
    };
    let failed = acts::play_some(&stage, wanted).await;
    stage.tools.stop().await;
    table.stop().await;
    assert_eq!(failed, 0, "acts of the demo did not end as they should");
}

/// Operators find what happened to a device or a command by the journal's fields.
async fn journal(machine: &Machine, floor: SocketAddr) {
    // Something to say of a device, besides what the acts gave: a reading that is none.
    let client = Client::connect(floor, VALVE).await;
    client.publish(&format!("devices/{VALVE}/telemetry"), "no reading", false).await;
    machine.sh("sleep 1; journalctl --sync").await;
    let entries = machine.sh("journalctl -u floorgate -o json --no-pager").await;
    let entries: Vec<serde_json::Value> = entries.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(!entries.is_empty(), "the journal has nothing of floorgate");
    for field in FIELDS {
        let with: Vec<_> = entries.iter().filter(|entry| entry[field].is_string()).collect();
        println!("board: journal: {} entries with {field}=", with.len());
        assert!(
            !with.is_empty(),
            "no entry has {field}=: {:#?}",
            entries.iter().map(|entry| &entry["MESSAGE"]).collect::<Vec<_>>()
        );
    }
}
