//! Builds, starts, plays, and ends everything it started.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use floorgate_demo::acts;
use floorgate_demo::broker::Broker;
use floorgate_demo::builds::{self, Progress};
use floorgate_demo::daemon::{Daemon, Surroundings};
use floorgate_demo::devices::{Fleet, Pace, now};
use floorgate_demo::dynamo::Client;
use floorgate_demo::proxy::Proxy;
use floorgate_demo::seed_tool::SeedTool;
use floorgate_demo::stage::Stage;
use floorgate_demo::table::Table;
use floorgate_demo::tools::Tools;
use floorgate_demo::view::View;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::Options;

/// A line of progress while cargo builds.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How long the daemon may take until it answers `status`.
const READY_WITHIN: Duration = Duration::from_secs(30);
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// The programs that were built.
struct Programs {
    daemon: PathBuf,
    tools: PathBuf,
}

pub(crate) async fn run(options: Options) -> ExitCode {
    match Box::pin(perform(&options)).await {
        Ok(End::Played { failed: 0 }) => ExitCode::SUCCESS,
        Ok(End::Played { .. }) => ExitCode::FAILURE,
        Ok(End::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("the demo cannot go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

enum End {
    Played { failed: usize },
    Interrupted,
}

/// Resolves at Ctrl-C, at SIGTERM, and when the terminal is closed (SIGHUP): the children would outlive that.
async fn interrupted() {
    let signal = |kind| signal(kind).ok();
    let (Some(mut interrupt), Some(mut terminate), Some(mut hang_up)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

async fn perform(options: &Options) -> Result<End> {
    let temporary = tempfile::Builder::new().prefix("floorgate-demo-").tempdir().context("no temporary directory")?;
    let dir = options.dir.as_deref().unwrap_or_else(|| temporary.path());
    // What is printed is typed elsewhere.
    let dir = std::path::absolute(dir).with_context(|| format!("cannot tell where `{}` is", dir.display()))?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    let (programs, mut table) = tokio::select! {
        built = Box::pin(build(options, &dir)) => built?,
        // Dropping the build ends cargo.
        () = interrupted() => return Ok(End::Interrupted),
    };

    let broker = match options.cloud_broker {
        Some(_) => None,
        None => Some(Broker::start().await.context("cannot start the stand-in for the cloud's broker")?),
    };
    let cloud = options.cloud_broker.or_else(|| broker.as_ref().map(Broker::address)).context("no cloud broker")?;
    let store = options.table.or_else(|| table.as_ref().map(Table::address)).context("no table")?;
    let stage = tokio::select! {
        stage = Box::pin(set(options, &dir, programs, cloud, store)) => stage?,
        () = interrupted() => return Ok(End::Interrupted),
    };
    let end = tokio::select! {
        biased;
        end = Box::pin(show(options, &stage, || tell_how_to_watch(&stage, &dir, cloud, store))) => end,
        () = keep_fresh(&stage) => End::Interrupted,
        () = interrupted() => End::Interrupted,
    };
    stage.view.say("Ending.");
    let (daemon, tools) = tokio::join!(stage.daemon.stop(), stage.tools.stop());
    for (name, in_order) in [("daemon", daemon), ("tools' server", tools)] {
        if !in_order {
            println!("The {name} did not end in order.");
        }
    }
    if let Some(table) = &mut table {
        table.stop().await;
    }
    Ok(end)
}

async fn keep_fresh(stage: &Stage) {
    loop {
        stage.refresh().await;
        if let Err(error) = stage.tools.renew(now()) {
            stage.view.say(&format!("The tokens are not renewed: {error:#}"));
        }
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

/// Plays the acts; with `--keep`, stays until it is interrupted, with the acts' result, or until a program ends.
async fn show(options: &Options, stage: &Stage, tell: impl Fn()) -> End {
    let mut failed = acts::play(stage).await;
    if options.keep {
        stage.fleet.have_moods();
        tell();
        tokio::select! {
            () = interrupted() => {}
            reason = ended(stage) => {
                stage.view.say(&reason);
                failed += 1;
            }
        }
    }
    End::Played { failed }
}

/// Resolves when a program that should run has ended; answers why.
async fn ended(stage: &Stage) -> String {
    loop {
        if let Some(reason) = stage.ended() {
            return reason;
        }
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

async fn build(options: &Options, dir: &Path) -> Result<(Programs, Option<Table>)> {
    let began = Instant::now();
    let (workspace, table) = (Progress::default(), Progress::default());
    let needs_table = options.table.is_none();
    let said = || {
        let table = if needs_table { table.in_words() } else { "not needed".to_owned() };
        let seconds = began.elapsed().as_secs_f64();
        println!("[{seconds:6.1} s] building: daemon and tools: {} · table: {table}", workspace.in_words());
    };
    let progress = async {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            said();
        }
    };
    println!("Building the daemon, the tools and the table; from a cold checkout this takes some minutes.");
    let start_table =
        async { if needs_table { Table::start_with(&dir.join("table"), &table).await.map(Some) } else { Ok(None) } };
    let ((daemon, tools), table) = tokio::select! {
        built = async { tokio::try_join!(builds::daemon_and_tools(&workspace), start_table) } => built?,
        () = progress => bail!("the progress ended before the build"),
    };
    said();
    Ok((Programs { daemon, tools }, table))
}

/// Starts proxies, daemon, tools and devices.
async fn set(options: &Options, dir: &Path, programs: Programs, cloud: SocketAddr, store: SocketAddr) -> Result<Stage> {
    let cloud_wire = Proxy::start(cloud).await.context("cannot start the wire to the broker")?;
    let table_wire = Proxy::start(store).await.context("cannot start the wire to the table")?;
    let floor = match options.floor_broker {
        Some(floor) => floor,
        None => free_address().await?,
    };
    let surroundings = Surroundings {
        floor,
        floor_is_broker: options.floor_broker.is_some(),
        cloud: cloud_wire.address(),
        table: table_wire.address(),
    };
    let daemon = Daemon::prepare(programs.daemon, dir, &surroundings)?;
    daemon.ask("provision").await.context("cannot make the tables")?;
    daemon.start()?;
    let table = Client::to(store);
    let stage = Stage {
        tools: Tools::start(&programs.tools, dir, cloud, store).await.context("cannot start the tools")?,
        seed_tool: SeedTool::start(cloud, table.clone()),
        table,
        fleet: Fleet::start(floor, Pace::default()),
        daemon,
        cloud_wire,
        table_wire,
        view: View::new(!options.headless && std::io::stdout().is_terminal()),
    };
    let ready = async || stage.status().await.map(Some);
    stage.until("the daemon answers `floorgate status`", READY_WITHIN, ready).await?;
    stage.view.say(&format!("The daemon is up; its log is in {}.", stage.daemon.log().display()));
    stage.view.pin(stage.tools.how_to_connect());
    Ok(stage)
}

/// A loopback port that was free a moment ago, for the daemon to listen on.
async fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free")?;
    listener.local_addr().context("the free port has no address")
}

fn tell_how_to_watch(stage: &Stage, dir: &Path, cloud: SocketAddr, store: SocketAddr) {
    let floor = std::fs::read_to_string(stage.daemon.config()).unwrap_or_default();
    let floor = floor.lines().skip_while(|line| *line != "[floor]").nth(1).and_then(|line| line.split('"').nth(1));
    let floor = floor.unwrap_or_default().trim_start_matches("mqtt://").to_owned();
    let (floor_host, floor_port) = floor.split_once(':').unwrap_or((floor.as_str(), "1883"));
    let (program, config) = (stage.daemon.program().display(), stage.daemon.config().display());
    let sayings = [
        format!("Everything keeps running in {}. Watch it from another terminal:", dir.display()),
        format!("  {program} status --config {config}"),
        format!("  {program} devices --config {config}"),
        format!("  {program} send SENSOR-LINE7-PRESS-001 recalibrate --config {config}"),
        format!("  mosquitto_sub -h {floor_host} -p {floor_port} -i technician -t 'devices/#' -v"),
        format!("  mosquitto_sub -h {} -p {} -t 'devices/+/commands/result' -v", cloud.ip(), cloud.port()),
        format!(
            "  AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo aws dynamodb scan --table-name iot-devices --region us-east-1 --endpoint-url http://{store}"
        ),
        "Ctrl-C ends everything.".to_owned(),
    ];
    stage.view.pin(stage.tools.how_to_connect());
    sayings.iter().for_each(|saying| stage.view.say(saying));
}
