//! Processes of this host, by their numbers.

use std::path::Path;
use std::process::{Command, Stdio};

pub fn kill(pid: u32) {
    let _ = Command::new("kill").arg("-KILL").arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// Whether a process is there and has not ended.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The process of this name whose parent this is.
pub fn child_of(parent: u32, name: &str) -> Option<u32> {
    let wanted = format!("({name}) ");
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        let (_, rest) = stat.split_once(&wanted)?;
        let mut words = rest.split(' ');
        (words.nth(1)?.parse() == Ok(parent)).then_some(pid)
    })
}
