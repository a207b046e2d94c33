//! What the demo shows: a live table in a terminal, plain lines elsewhere.
//!
//! The table shows what the agent sees, `iot-devices` read from the cloud's side, and below it what the daemon's own
//! `status` says. While the upstream link is cut, the ages grow and the daemon's buffer does too.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use floorgate_model::Timestamp;
use serde_json::Value;

use crate::devices::now;

/// Sentences that stay on the screen under the live table.
const SAID_MAX: usize = 14;

/// What is known now.
#[derive(Debug, Default)]
struct Scene {
    devices: Vec<Value>,
    status: Option<Value>,
    said: VecDeque<String>,
    /// Lines that stay.
    pinned: Vec<String>,
}

/// The screen, or the lines.
#[derive(Debug)]
pub struct View {
    live: bool,
    started: Instant,
    scene: Mutex<Scene>,
}

impl View {
    /// A view; `live` redraws a table in the terminal.
    #[must_use]
    pub fn new(live: bool) -> Self {
        Self { live, started: Instant::now(), scene: Mutex::new(Scene::default()) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Scene) -> T) -> T {
        change(&mut self.scene.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says a sentence.
    pub fn say(&self, sentence: &str) {
        let line = format!("[{:6.1} s] {sentence}", self.started.elapsed().as_secs_f64());
        if !self.live {
            return print(&format!("{line}\n"));
        }
        self.with(|scene| {
            scene.said.push_back(line);
            if scene.said.len() > SAID_MAX {
                scene.said.pop_front();
            }
        });
        self.draw();
    }

    /// Says lines that are to be read at any time, as they are: in a live view they stay on the screen.
    pub fn pin(&self, lines: Vec<String>) {
        if !self.live {
            return print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        }
        self.with(|scene| scene.pinned = lines);
        self.draw();
    }

    /// Takes what was read: items of `iot-devices`, and the daemon's status.
    pub fn update(&self, mut devices: Vec<Value>, status: Option<Value>) {
        devices.sort_by(|a, b| a["device_id"].as_str().cmp(&b["device_id"].as_str()));
        self.with(|scene| {
            scene.devices = devices;
            if status.is_some() {
                scene.status = status;
            }
        });
        if self.live {
            self.draw();
        }
    }

    /// Prints the table as lines; a live one is there anyway.
    pub fn show_table(&self) {
        if !self.live {
            print(&self.with(|scene| table(scene, now())));
        }
    }

    fn draw(&self) {
        let mut text =
            String::from("\x1b[H\x1b[2J\x1b[1mfloorgate demo\x1b[0m: what the agent sees in iot-devices\n\n");
        self.with(|scene| {
            text.push_str(&table(scene, now()));
            text.push('\n');
            for line in scene.pinned.iter().chain([&String::new()]).chain(&scene.said) {
                text.push_str(line);
                text.push('\n');
            }
        });
        print(&text);
    }
}

fn print(text: &str) {
    // A closed pipe is no reason to stop the acts; their end is in the exit code.
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn table(scene: &Scene, now: Timestamp) -> String {
    let mut out = format!("  {:<25} {:<11} {:>6}  {:<46} last command\n", "device", "status", "age", "readings");
    for device in &scene.devices {
        let seen = device["last_seen_at"].as_str().and_then(|at| Timestamp::parse(at).ok());
        let age = seen.map_or_else(|| "-".to_owned(), |at| format!("{} s", now.since(at).as_secs()));
        let readings = device["last_telemetry"].as_object().into_iter().flatten();
        let readings = readings.filter(|(name, _)| *name != "timestamp");
        let readings: Vec<_> = readings.map(|(name, value)| format!("{name} {}", text(value))).collect();
        let mut readings = readings.join(", ");
        if readings.chars().count() > 46 {
            readings = readings.chars().take(45).chain("…".chars()).collect();
        }
        let last = &device["last_command"];
        let mut command = last["command"].as_str().unwrap_or_default().to_owned();
        for part in [&last["status"], &last["reason"]].into_iter().filter_map(Value::as_str) {
            let _ = write!(command, " {part}");
        }
        let (id, status) = (text(&device["device_id"]), text(&device["status"]));
        let _ = writeln!(out, "  {id:<25} {status:<11} {age:>6}  {readings:<46} {command}");
    }
    if let Some(status) = &scene.status {
        let store = &status["store"];
        let link = |name: &str| text(&status[name]["state"]).to_owned();
        let number = |name: &str| store[name].as_u64().unwrap_or(0);
        let _ = writeln!(
            out,
            "  links: floor {}, cloud {}, table {} · waiting: {} samples in open blocks, {} in {} closed blocks, {} results, {} states; oldest {} s",
            link("floor"),
            link("cloud"),
            link("sync"),
            number("samples_open"),
            number("samples_waiting"),
            number("blocks_waiting"),
            number("outbox_waiting"),
            number("states_waiting"),
            number("oldest_waiting_seconds"),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_shows_status_age_readings_and_outcome() {
        let at = now();
        let scene = Scene {
            devices: vec![json!({
                "device_id": "PRESS-1",
                "status": "warning",
                "last_seen_at": at.saturating_sub(std::time::Duration::from_secs(7)).to_string(),
                "last_telemetry": {"pressure_psi": "152.3", "timestamp": "x"},
                "last_command": {"command": "recalibrate", "status": "failed", "reason": "DEVICE_ERROR"},
            })],
            status: Some(json!({"store": {"outbox_waiting": 3}, "cloud": {"state": "down"}})),
            ..Scene::default()
        };
        let table = table(&scene, at);
        for part in [
            "PRESS-1",
            "warning",
            "7 s",
            "pressure_psi 152.3",
            "recalibrate failed DEVICE_ERROR",
            "cloud down",
            "3 results",
        ] {
            assert!(table.contains(part), "{part} is missing in\n{table}");
        }
    }
}
