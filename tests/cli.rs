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

/// A folder with a `systemctl` that describes the service of this configuration as it is told.
fn systemd_says(file: &str, user: &str, more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let lines = format!(
        "LoadState=loaded\nUser={user}\nExecStart={{ path=/usr/bin/floorgate ; argv[]=/usr/bin/floorgate run --config {file} ; }}\n{more}"
    );
    let path = folder.path().join("systemctl");
    std::fs::write(&path, format!("#!/bin/sh\nprintf '%s\\n' '{lines}'\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn check_is_red_when_whoever_asks_may_read_a_key_and_the_service_may_not() {
    let (folder, file) = config("");
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = folder.path().join("key.pem");
    std::fs::write(folder.path().join("cert.pem"), pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    std::fs::write(&file, format!("{GOOD}[floor.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n")).unwrap();
    mode(folder.path(), 0o755);
    let systemd = systemd_says(&file, "nobody", "");
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_floorgate"));
        command.args(["check", "--config", &file]).env_clear().env("PATH", systemd.path()).output().unwrap()
    };
    mode(&key, 0o600);
    let output = check();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{told}");
    assert!(told.contains("the service's user `nobody` cannot read") && told.contains("key.pem: owner "), "{told}");
    assert!(told.contains("chmod g+r") && !told.contains("cert.pem"), "{told}");
    mode(&key, 0o644);
    assert_eq!(check().status.code(), Some(0));
    mode(folder.path(), 0o700);
    let told = String::from_utf8_lossy(&check().stderr).into_owned();
    assert!(told.contains("its folder `"), "{told}");
}

#[test]
fn a_password_in_an_address_is_printed_by_nothing() {
    let (_folder, file) =
        config(&format!("{GOOD}[cloud]\nurl = \"mqtt://user:topsecret@host\"\npassword = \"topsecret\"\n"));
    for arguments in [&["check"] as &[&str], &["check", "--json"], &["doctor"], &["doctor", "--json"], &["run"]] {
        let output = floorgate(&[arguments, &["--config", &file]].concat());
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(told.contains("mqtt://…@host") && !told.contains("topsecret"), "{arguments:?}: {told}");
    }
}

#[test]
fn a_state_folder_that_a_sandbox_keeps_read_only_ends_with_78_and_what_to_do() {
    let allowed = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !allowed {
        eprintln!("not shown: needs the right to `unshare --mount`");
        return;
    }
    let (folder, file) = config(GOOD);
    let place = folder.path().display();
    for there in [false, true] {
        if there {
            std::fs::create_dir(folder.path().join("state")).unwrap();
        }
        let script = format!("mount --bind {place} {place} && mount -o remount,bind,ro {place} && exec \"$@\"");
        let mut sandbox = Command::new("timeout");
        sandbox.args(["20", "unshare", "--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_floorgate")]);
        let output = sandbox.args(["run", "--config", &file]).stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{told}");
        assert!(told.contains("is mounted read-only here") && told.contains("ReadWritePaths="), "{told}");
        assert_eq!(told.contains("is not there and cannot be made"), !there, "{told}");
    }
}
