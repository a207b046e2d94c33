//! The house rules about who may import whom, checked on the source text.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

/// A room (a folder or file under `src/`), the rooms it may use, and the vendor crates that are its own.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    vendors: &'static [&'static str],
}

/// Rooms that hold no decision and no I/O of their own subject; everyone may use them.
const SHARED: [&str; 2] = ["backoff", "clock"];

const ROOMS: [Room; 5] = [
    Room { name: "shadow", may_use: &[], vendors: &["rusqlite"] },
    Room { name: "device", may_use: &[], vendors: &[] },
    Room { name: "mqtt", may_use: &["shadow"], vendors: &["rumqttc", "aws_iot_device_sdk_rust"] },
    Room { name: "command", may_use: &["shadow", "device"], vendors: &[] },
    Room { name: "sync", may_use: &["shadow"], vendors: &["aws_"] },
];

const VENDORS: [&str; 4] = ["rusqlite", "rumqttc", "aws_", "aws_iot_device_sdk_rust"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The code of a file: without comments, and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let uncommented = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    uncommented.collect::<Vec<_>>().join("\n")
}

fn room_of(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Names that follow `crate::` anywhere in the code.
fn uses(code: &str) -> Vec<String> {
    let after = code.split("crate::").skip(1);
    after.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()).collect()
}

/// Whether the code names a crate: its name at the beginning of a word, followed by `::` or `;`.
fn names_crate(code: &str, prefix: &str) -> bool {
    code.match_indices(prefix).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        let rest: String = code[at..].chars().skip_while(|c| c.is_ascii_alphanumeric() || *c == '_').take(2).collect();
        !(before.is_ascii_alphanumeric() || before == '_' || before == '"') && (rest == "::" || rest.starts_with(';'))
    })
}

#[test]
fn every_room_imports_only_what_its_door_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut violations = Vec::new();
    for path in sources(&src) {
        let name = room_of(&path, &src);
        let code = code(&path);
        let show = path.strip_prefix(&src).unwrap().display().to_string();
        if let Some(room) = ROOMS.iter().find(|room| room.name == name) {
            for used in uses(&code) {
                let known = ROOMS.iter().any(|r| r.name == used)
                    || ["gateway", "doctor", "config", "cli", "control", "vitals", "logging", "memory", "systemd"]
                        .contains(&&*used);
                let allowed = used == room.name || SHARED.contains(&&*used) || room.may_use.contains(&&*used);
                if known && !allowed {
                    violations.push(format!("{show} uses crate::{used}"));
                }
            }
        }
        let own: &[&str] = ROOMS.iter().find(|room| room.name == name).map_or(&[], |room| room.vendors);
        for vendor in VENDORS {
            let owned = own.contains(&vendor) || (vendor == "aws_" && own.contains(&"aws_iot_device_sdk_rust"));
            if !owned && names_crate(&code, vendor) {
                violations.push(format!("{show} names {vendor}"));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn model_depends_on_no_room_and_no_vendor() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/src");
    for path in sources(&model) {
        let code = code(&path);
        for vendor in VENDORS.iter().chain(&["tokio", "floorgate"]) {
            assert!(!names_crate(&code, vendor), "{} names {vendor}", path.display());
        }
    }
}

#[test]
fn the_daemon_never_contains_demo_code() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&src) {
        assert!(!names_crate(&code(&path), "floorgate_demo"), "{}", path.display());
    }
}

#[test]
fn the_cloud_half_never_links_the_daemon_and_the_sdk_stays_in_its_rooms() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fleet/Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("floorgate ") || line.starts_with("floorgate=")));
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("fleet/src");
    for path in sources(&src) {
        let (code, show) = (code(&path), path.strip_prefix(&src).unwrap().display().to_string());
        let allowed = show.starts_with("store") || show.starts_with("link") || show == "settings.rs";
        for vendor in ["aws_", "rumqttc"] {
            assert!(allowed || !names_crate(&code, vendor), "fleet/src/{show} names {vendor}");
        }
    }
}

#[test]
fn the_checker_sees_what_it_looks_for() {
    assert!(names_crate("use rusqlite::Connection;", "rusqlite"));
    assert!(names_crate("let x = aws_sdk_dynamodb::Client::new();", "aws_"));
    assert!(!names_crate("let draws_x = 1;", "aws_"));
    assert_eq!(uses("use crate::mqtt::topics; crate::sync::x()"), ["mqtt", "sync"]);
}
