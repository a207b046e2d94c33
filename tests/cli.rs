//! The built binary: exit codes, and where it writes what.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its files has failed")]

use std::process::{Command, Output, Stdio};

fn floorgate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floorgate"));
    command.args(arguments).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn config(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("floorgate.toml");
    std::fs::write(&file, text).unwrap();
    (folder, file.display().to_string())
}

const GOOD: &str = "[gateway]\nid = \"G\"\nlocation = \"hall\"\n[store]\nstate_dir = \"state\"\n";

#[test]
fn asking_for_help_succeeds_and_a_slip_is_a_usage_error() {
    assert_eq!(floorgate(&["--help"]).status.code(), Some(0));
    assert_eq!(floorgate(&["--version"]).status.code(), Some(0));
    for bad in [
        &[] as &[&str],
        &["bogus"],
        &["devices", "--status", "fine"],
        &["device", "a b"],
        &["send", "A"],
        &["send", "A", "reboot", "novalue"],
        &["commands", "--limit", "0"],
    ] {
        let output = floorgate(bad);
        assert_eq!(output.status.code(), Some(64), "{bad:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{bad:?}");
    }
}

#[test]
fn check_prints_the_effective_configuration() {
    let (_folder, file) = config(GOOD);
    let output = floorgate(&["check", "--json", "--config", &file]);
    assert_eq!(output.status.code(), Some(0));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["floor"]["listen"], "127.0.0.1:1883");
    assert_eq!(value["store"]["quota"], "512MiB");
}

#[test]
fn a_bad_configuration_ends_with_78_whatever_reads_it() {
    let (_folder, file) = config("[gateway]\nid = \"a b\"\nlocation = \"x\"\n");
    for task in ["check", "run", "provision"] {
        let output = floorgate(&[task, "--config", &file]);
        assert_eq!(output.status.code(), Some(78), "{task}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(":2: `gateway.id` = \"a b\""), "{task}");
    }
    assert_eq!(floorgate(&["status", "--config", "/nonexistent.toml"]).status.code(), Some(78));
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_what_to_do() {
    let (folder, file) = config(GOOD);
    for task in [&["status"] as &[&str], &["devices"], &["device", "A"], &["commands"], &["send", "A", "reboot"]] {
        let output = floorgate(&[task, &["--config", &file]].concat());
        assert_eq!(output.status.code(), Some(1), "{task:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        let socket = folder.path().join("state/control.sock");
        let expected = format!("floorgate: cannot reach floorgate at `{}`: ", socket.display());
        assert!(error.starts_with(&expected), "{error}");
        assert!(error.ends_with("is it running? start it with `floorgate run` or systemctl\n"), "{error}");
    }
}

#[test]
fn with_json_every_error_is_one_object_and_the_exit_codes_are_the_same() {
    let (_folder, good) = config(GOOD);
    let (_other, bad) = config("[gateway]\nid = \"a b\"\nlocation = \"x\"\n");
    for (arguments, exit, code, says) in [
        (&["status", "--config", &good] as &[&str], 1, "failed", "is it running?"),
        (&["check", "--config", &bad], 78, "configuration", ":2: `gateway.id` = \"a b\""),
        (&["send", "A", "reboot", "k=1", "k=2", "--config", &good], 64, "usage", "\"k\" is given twice"),
        (&["devices", "--status", "fine"], 64, "usage", "fine"),
        (&["bogus"], 64, "usage", "bogus"),
    ] {
        let output = floorgate(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["error"]["code"], code, "{arguments:?}");
        assert!(value["error"]["message"].as_str().unwrap().contains(says), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    assert_eq!(floorgate(&["--help", "--json"]).status.code(), Some(0));
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let (_folder, file) = config(GOOD);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_floorgate"));
    let child = command.args(["check", "--config", &file]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
