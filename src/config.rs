//! Files → valid types: the only reader of configuration files and environment.
//!
//! # What is read
//!
//! `floorgate.toml`, then `conf.d/*.toml` and `devices.d/*.toml` beside it, each folder in the order of names: a later
//! file wins key by key, and every file may add `[[device]]` tables (those of `devices.d` nothing else). The files of
//! `profiles.d/*.toml` are handed to a [`ProfileReader`]. Certificates, keys and password files are read here too, so
//! that a wrong one is found at the start. Of the shared AWS credentials only file and profile are handed on: they are
//! rotated while the gateway runs. Relative paths start at the folder of `floorgate.toml`.
//!
//! # Guarantees
//!
//! * A [`Config`] is valid as it is: ranges, ids, topics, certificates, the profile of every device.
//! * All problems are reported together, each with file, line, key, value and what is allowed; a file that is not TOML
//!   ends the search after the syntax of all files.
//! * A key nobody knows is a problem, with the nearest known key.
//! * Secrets are shown by nothing: not by `Debug`, not by [`Config::effective`], not by a problem that quotes a value.
//!
//! # Limits
//!
//! A file of more than 8 MiB, a folder with more than [`DROP_INS_MAX`] files and more than [`DEVICES_MAX`] devices are
//! refused.
//!
//! # What it does not do
//!
//! It opens no socket, makes no folder, and does not watch its files. When they are read again, [`Config::changes`] tells what
//! of it counts at once.

mod device;
mod dynamo;
mod effective;
mod environment;
mod files;
mod link;
mod named;
mod problem;
mod quantity;
mod reload;
mod section;
mod shown;
mod tree;
mod types;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use floorgate_model::GatewayId;

pub use device::{DEVICES_MAX, SAMPLE_RATE_SECONDS};
pub use environment::{Environment, VARIABLES};
pub use files::being_read;
pub use link::{CONNECTIONS, KEEP_ALIVE, LISTEN, PACKETS_PER_SECOND};
pub use problem::{ConfigErrors, Problem};
pub use reload::Changes;
pub use types::*;

use crate::clock::Trust;
use files::Folder;
use section::{Problems, Section};
use tree::{Node, Table};

/// The main file unless told.
pub const DEFAULT_FILE: &str = "/etc/floorgate/floorgate.toml";
/// Most files in one of the drop-in folders.
pub const DROP_INS_MAX: usize = 10_000;
/// Most bytes on disk unless told.
pub const QUOTA_BYTES: u64 = 512 << 20;
/// How long telemetry may wait for its commit unless told.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the table keeps history unless told.
pub const HISTORY_RETENTION: Duration = Duration::from_secs(90 * 86_400);
/// How often a device's state is written unless told.
pub const STATE_INTERVAL: Duration = Duration::from_secs(10);
/// Where the state is without a word from anyone, relative to the working folder.
const STATE_DIR: &str = "floorgate-data";
/// Where a packaged service keeps it; clients look there too.
pub const SERVICE_STATE_DIR: &str = "/var/lib/floorgate";
/// Folders beside the main file that are read with it.
const BESIDE: [&str; 3] = ["conf.d", "devices.d", "profiles.d"];

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// [`ConfigErrors`] with every problem found.
    pub fn load(file: &Path, environment: &Environment, profiles: ProfileReader<'_>) -> Result<Self, ConfigErrors> {
        load(file, environment, profiles, Folder::of(file))
    }

    /// The same for somebody who is not the service, and may not see the credentials that systemd hands to that alone: what
    /// is out of sight is a warning, and empty in what is answered. For judging a configuration, never for running it.
    ///
    /// # Errors
    /// [`ConfigErrors`] with every problem found.
    pub fn load_from_outside(
        file: &Path,
        environment: &Environment,
        profiles: ProfileReader<'_>,
    ) -> Result<Self, ConfigErrors> {
        load(file, environment, profiles, Folder::from_outside(file))
    }
}

fn load(
    file: &Path,
    environment: &Environment,
    profiles: ProfileReader<'_>,
    folder: Folder,
) -> Result<Config, ConfigErrors> {
    let root = read_tree(file).map_err(ConfigErrors::new)?;
    let problems = Problems::default();
    let (texts, unreadable) = profile_texts(file);
    let (profiles, bad_profiles) = profiles(&texts);
    let complete = unreadable.is_empty() && bad_profiles.is_empty();
    for problem in unreadable.into_iter().chain(bad_profiles) {
        problems.add(problem);
    }
    let config = build(file, &root, (environment, &folder), profiles, complete, &problems);
    match (config, problems.into_inner()) {
        (Some(mut config), problems) if problems.is_empty() => {
            config.warnings.extend(folder.unseen());
            Ok(config)
        }
        (_, problems) => Err(ConfigErrors::new(problems)),
    }
}

/// The folders in which the daemon of this configuration may keep its state, likeliest first.
///
/// For clients of a running daemon: nothing but the folder is read, so that they need neither its certificates nor its
/// environment. `devices.d` holds no such key, and is not looked at.
///
/// # Errors
/// [`ConfigErrors`] if a file cannot be read or is not TOML.
pub fn state_dirs(file: &Path, environment: &Environment) -> Result<Vec<PathBuf>, ConfigErrors> {
    let root = read_settings(file).map_err(ConfigErrors::new)?;
    let problems = Problems::default();
    let folder = Folder::of(file);
    if let Some(dir) = configured_state_dir(&Section::root(&root, file, &problems), &folder) {
        return Ok(vec![dir]);
    }
    let standard = [STATE_DIR, SERVICE_STATE_DIR].map(PathBuf::from);
    Ok(environment.state_directory().into_iter().chain(standard).collect())
}

fn build(
    file: &Path,
    root: &Table,
    (environment, folder): (&Environment, &Folder),
    profiles: BTreeMap<String, floorgate_model::Profile>,
    complete: bool,
    problems: &Problems,
) -> Option<Config> {
    let root = Section::root(root, file, problems);
    let (id, gateway) = gateway(&root);
    let floor = link::floor(&root, folder, id.as_ref());
    let (cloud, mut warnings) = link::cloud(&root, folder, id.as_ref());
    refuse_shared_session(&root, floor.floor.as_ref(), cloud.as_ref());
    let dynamodb = dynamo::dynamodb(&root, folder, cloud.as_ref(), environment);
    let clock_trust = clock(&root);
    let store = store(&root, folder, environment);
    let sync = sync(&root);
    let devices = device::devices(&root, gateway.as_ref(), &profiles, complete);
    root.finish();
    warnings.extend(floor.warnings);
    let (topics, topic_templates) = floor.topics?;
    Some(Config {
        file: file.to_owned(),
        gateway: gateway?,
        floor: floor.floor?,
        topics,
        topic_templates,
        floor_limit: floor.limit,
        cloud,
        dynamodb,
        clock_trust,
        store,
        sync,
        devices,
        profiles,
        warnings,
    })
}

fn gateway(root: &Section<'_>) -> (Option<GatewayId>, Option<GatewayConfig>) {
    let section = root.section("gateway");
    if !section.has("id") {
        section.missing("id", "the gateway's name, such as \"GATEWAY-FLOOR1-001\"");
    }
    if !section.has("location") {
        section.missing("location", "where the gateway stands, such as \"factory-floor-1\"");
    }
    let id = section.parsed("id", GatewayId::new);
    let location = section.text("location").map(str::to_owned);
    section.has("state_dir");
    section.finish();
    let config = id.clone().zip(location).map(|(id, location)| GatewayConfig { id, location });
    (id, config)
}

/// Two links with one client id would take the session from each other for ever.
fn refuse_shared_session(root: &Section<'_>, floor: Option<&Floor>, cloud: Option<&CloudConfig>) {
    if let (Some(Floor::Broker(floor)), Some(cloud)) = (floor, cloud) {
        let broker = &cloud.broker;
        if floor.url == broker.url && floor.client_id == broker.client_id {
            root.section("floor").refuse(
                "client_id",
                format_args!("both links log in to {} as {:?}; give each its own", broker.url, broker.client_id),
            );
        }
    }
}

fn clock(root: &Section<'_>) -> Trust {
    let section = root.section("clock");
    let trust = section.read("trust", "\"auto\", \"kernel\" or \"always\"", |node| match node {
        Node::Text(word) => Trust::ALL.into_iter().find(|trust| trust.as_str() == word),
        _ => None,
    });
    section.finish();
    trust.unwrap_or_default()
}

fn store(root: &Section<'_>, folder: &Folder, environment: &Environment) -> StoreConfig {
    let section = root.section("store");
    let quota = section.size("quota", 16 << 20, 1 << 40);
    let interval = section.duration("commit_interval", Duration::from_millis(10), Duration::from_secs(60));
    let days = |n: u64| Duration::from_secs(n * 86_400);
    let retention = section.duration("history_retention", days(1), days(3_650));
    section.has("state_dir");
    section.finish();
    let state_dir = configured_state_dir(root, folder)
        .or_else(|| environment.state_directory())
        .unwrap_or_else(|| PathBuf::from(STATE_DIR));
    StoreConfig {
        state_dir,
        quota_bytes: quota.unwrap_or(QUOTA_BYTES),
        commit_interval: interval.unwrap_or(COMMIT_INTERVAL),
        history_retention: retention.unwrap_or(HISTORY_RETENTION),
    }
}

/// `[store] state_dir`, or the same key under `[gateway]` or at the top; more than one of them is a contradiction.
fn configured_state_dir(root: &Section<'_>, folder: &Folder) -> Option<PathBuf> {
    const KEY: &str = "state_dir";
    let (store, gateway) = (root.section("store"), root.section("gateway"));
    let given: Vec<_> = [&store, &gateway, root].into_iter().filter(|section| section.has(KEY)).collect();
    for section in given.iter().skip(1) {
        section.refuse(KEY, "is given more than once; keep `store.state_dir`");
    }
    given.first()?.text(KEY).map(|path| folder.resolve(path))
}

fn sync(root: &Section<'_>) -> SyncConfig {
    let section = root.section("sync");
    let interval = section.duration("state_interval", Duration::from_secs(1), Duration::from_secs(3_600));
    section.finish();
    SyncConfig { state_interval: interval.unwrap_or(STATE_INTERVAL) }
}

// ---- files ------------------------------------------------------------------------------------------------------

/// The main file and `conf.d` as one tree.
fn read_settings(file: &Path) -> Result<Table, Vec<Problem>> {
    let mut problems = Vec::new();
    let root = settings(file, &mut problems)?;
    if problems.is_empty() { Ok(root) } else { Err(problems) }
}

/// The same, with what is wrong apart; an error if there is no main file.
fn settings(file: &Path, problems: &mut Vec<Problem>) -> Result<Table, Vec<Problem>> {
    let mut root = Table::new();
    let main = read_text(file, problems);
    let text = main.ok_or_else(|| std::mem::take(problems))?;
    tree::merge(&mut root, tree::parse(file, &text, problems));
    for path in drop_ins(file, "conf.d", problems) {
        if let Some(text) = read_text(&path, problems) {
            tree::merge(&mut root, tree::parse(&path, &text, problems));
        }
    }
    Ok(root)
}

/// The main file and its drop-ins as one tree.
fn read_tree(file: &Path) -> Result<Table, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut root = settings(file, &mut problems)?;
    for path in drop_ins(file, "devices.d", &mut problems) {
        if let Some(text) = read_text(&path, &mut problems) {
            let mut table = tree::parse(&path, &text, &mut problems);
            let devices = table.remove_entry(tree::DEVICE_LIST);
            for (key, spot) in table {
                let text = format!("`{key}` does not belong into devices.d; only [[device]] tables do");
                problems.push(Problem::new(&path, Some(spot.line), text));
            }
            tree::merge(&mut root, devices.into_iter().collect());
        }
    }
    if problems.is_empty() { Ok(root) } else { Err(problems) }
}

fn profile_texts(file: &Path) -> (Vec<ProfileText>, Vec<Problem>) {
    let mut problems = Vec::new();
    let paths = drop_ins(file, "profiles.d", &mut problems);
    let texts = paths.into_iter().filter_map(|path| {
        let text = read_text(&path, &mut problems)?;
        Some(ProfileText { path, text })
    });
    let texts = texts.collect();
    (texts, problems)
}

/// The `*.toml` files of a folder beside the main file, in the order of their names; none if it is not there.
fn drop_ins(file: &Path, folder: &str, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or_else(|| Path::new("")).join(folder);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(Problem::unread(&folder, "listed", &files::Unread::System(error)));
            return Vec::new();
        }
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    let mut paths: Vec<_> = paths.filter(toml).take(DROP_INS_MAX + 1).collect();
    if paths.len() > DROP_INS_MAX {
        problems.push(Problem::new(&folder, None, format!("holds more than {DROP_INS_MAX} files")));
        return Vec::new();
    }
    paths.sort();
    paths
}

fn read_text(path: &Path, problems: &mut Vec<Problem>) -> Option<String> {
    let text = files::read_bounded(path, tree::FILE_BYTES_MAX)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| files::Unread::NotText));
    match text {
        Ok(text) => Some(text),
        Err(why) => {
            problems.push(Problem::unread(path, "read", &why));
            None
        }
    }
}
