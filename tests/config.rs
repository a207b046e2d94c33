//! Every fixture under `fixtures/config`: valid ones against their effective configuration, invalid ones against the
//! exact text of their errors. `FLOORGATE_BLESS=1` writes what is found instead; read the difference before keeping it.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its files has failed")]

use std::path::{Path, PathBuf};

use floorgate::config::{Config, ConfigErrors, Environment};
use floorgate::gateway::read_profiles;

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(kind);
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 4, "fixtures are missing");
    all
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A fixture in a folder of its own, with fresh certificates and secrets beside it; `DIR` in its environment is that
/// folder.
fn prepare(fixture: &Path) -> (tempfile::TempDir, Environment) {
    let folder = tempfile::tempdir().unwrap();
    copy(fixture, folder.path());
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = pair.cert.pem();
    for (name, text) in [
        ("ca.pem", certificate.as_str()),
        ("cert.pem", &certificate),
        ("key.pem", &pair.signing_key.serialize_pem()),
        ("password", "never-shown\n"),
        ("users", "# of hall 1\nA:never-shown\n"),
        ("credentials", "[plant]\naws_access_key_id = AKIAPLANT\naws_secret_access_key = never-shown\n[role]\n"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let environment = std::fs::read_to_string(fixture.join("environment")).unwrap_or_default();
    let environment = environment.replace("DIR", &folder.path().display().to_string());
    let pairs: Vec<_> = environment.lines().map(|line| line.split_once('=').unwrap()).collect();
    (folder, Environment::from_pairs(pairs))
}

fn load(file: &Path, environment: &Environment) -> Result<Config, ConfigErrors> {
    Config::load(file, environment, &read_profiles)
}

fn compare(fixture: &Path, expected: &str, found: &str) {
    let file = fixture.join(expected);
    if std::env::var_os("FLOORGATE_BLESS").is_some() {
        std::fs::write(&file, found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&file).unwrap(), "{}", file.display());
}

#[test]
fn every_invalid_configuration_is_refused_with_all_its_errors() {
    for fixture in fixtures("invalid") {
        let (folder, environment) = prepare(&fixture);
        let errors = load(&folder.path().join("floorgate.toml"), &environment).map(|_| ()).unwrap_err().to_string();
        let place = format!("{}/", folder.path().display());
        compare(&fixture, "expected.txt", &format!("{}\n", errors.replace(&place, "")));
    }
}

#[test]
fn every_valid_configuration_reads_back_from_what_check_prints_and_shows_no_secret() {
    for fixture in fixtures("valid") {
        let (folder, environment) = prepare(&fixture);
        let config = load(&folder.path().join("floorgate.toml"), &environment).unwrap();
        let text = config.effective_toml().unwrap();
        let again = folder.path().join("effective/floorgate.toml");
        std::fs::create_dir(again.parent().unwrap()).unwrap();
        std::fs::write(&again, &text).unwrap();
        assert_eq!(load(&again, &environment).unwrap().effective_toml().unwrap(), text);
        for shown in [text.clone(), format!("{config:?}"), config.effective().to_string()] {
            assert!(!shown.contains("never-shown") && !shown.contains("PRIVATE KEY"), "{shown}");
        }
        compare(&fixture, "expected.toml", &text.replace(&folder.path().display().to_string(), "DIR"));
    }
}

#[test]
fn a_password_file_beside_a_client_ca_is_warned_of_because_nobody_is_asked_for_a_password() {
    let fixture = fixtures("valid").into_iter().find(|path| path.ends_with("built-in-tls")).unwrap();
    let (folder, environment) = prepare(&fixture);
    let file = folder.path().join("floorgate.toml");
    let warnings =
        || -> Vec<String> { load(&file, &environment).unwrap().warnings.iter().map(ToString::to_string).collect() };
    let expected = format!(
        "{}:6: `floor.users`: nobody is asked for a password, because `floor.tls.client_ca` demands a certificate of \
         every client; remove one of the two",
        file.display()
    );
    assert_eq!(warnings(), [expected]);
    let text = std::fs::read_to_string(&file).unwrap();
    for other in ["users = \"users\"\n", "client_ca = \"ca.pem\"\n"] {
        assert!(text.contains(other));
        std::fs::write(&file, text.replace(other, "")).unwrap();
        assert_eq!(warnings(), [""; 0], "one of the two alone");
    }
}

#[test]
fn a_missing_file_is_one_error() {
    let errors = load(Path::new("/nonexistent/floorgate.toml"), &Environment::default()).map(|_| ()).unwrap_err();
    let expected =
        "the configuration has 1 error:\n  /nonexistent/floorgate.toml: cannot be read: no such file or directory";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn what_is_too_large_or_too_much_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("floorgate.toml");
    let good = "[gateway]\nid = \"G\"\nlocation = \"x\"\n";
    let told = |environment: &Environment| {
        let told = load(&file, environment).map(|_| ()).unwrap_err().to_string();
        told.replace(&format!("{}/", folder.path().display()), "")
    };
    let nothing = Environment::default();
    let padded = |text: &str, bytes: usize| format!("{text}#{}", "x".repeat(bytes - text.len() - 1));

    std::fs::write(&file, padded(good, (8 << 20) + 1)).unwrap();
    assert!(
        told(&nothing).ends_with("floorgate.toml: cannot be read: is larger than 8388608 bytes"),
        "{}",
        told(&nothing)
    );

    let devices = |count: usize| {
        let device = |n| format!("[[device]]\nid = \"D{n}\"\ntype = \"pressure_sensor\"\n");
        (0..count).map(device).collect::<String>()
    };
    std::fs::write(&file, format!("{good}{}", devices(10_000))).unwrap();
    assert_eq!(load(&file, &nothing).unwrap().devices.len(), 10_000);
    std::fs::write(&file, format!("{good}{}", devices(10_001))).unwrap();
    assert!(told(&nothing).contains("10000"), "{}", told(&nothing));

    let tables = "[dynamodb]\nregion = \"us-east-1\"\n";
    std::fs::write(&file, format!("{good}{tables}")).unwrap();
    let keys = folder.path().join("credentials");
    let of_file = Environment::from_pairs([("AWS_SHARED_CREDENTIALS_FILE", keys.to_str().unwrap())]);
    let profile = "[default]\naws_access_key_id = A\naws_secret_access_key = s\n";
    std::fs::write(&keys, padded(profile, 256 << 10)).unwrap();
    assert!(load(&file, &of_file).is_ok(), "exactly at the limit");
    std::fs::write(&keys, padded(profile, (256 << 10) + 1)).unwrap();
    assert!(told(&of_file).ends_with("has 262145 bytes, at most 262144 are read"), "{}", told(&of_file));

    let tls = "[floor.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    std::fs::write(&file, format!("{good}{tls}")).unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.path().join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("cert.pem"), padded(&pair.cert.pem(), 1 << 20)).unwrap();
    assert!(load(&file, &nothing).is_ok(), "exactly at the limit");
    std::fs::write(folder.path().join("cert.pem"), padded(&pair.cert.pem(), (1 << 20) + 1)).unwrap();
    assert!(told(&nothing).contains("cannot read `cert.pem`: is larger than 1048576 bytes"), "{}", told(&nothing));

    std::fs::write(&file, good).unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    for n in 0..10_000 {
        std::fs::write(folder.path().join(format!("conf.d/{n}.toml")), "").unwrap();
    }
    assert!(load(&file, &nothing).is_ok(), "exactly at the limit");
    std::fs::write(folder.path().join("conf.d/one-more.toml"), "").unwrap();
    assert!(told(&nothing).ends_with("conf.d: holds more than 10000 files"), "{}", told(&nothing));
}

#[test]
fn the_example_is_valid_and_names_every_key_in_the_documentation() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = root.join("deploy/floorgate.example.toml");
    load(&example, &Environment::default()).unwrap();
    let example = std::fs::read_to_string(example).unwrap();
    let documentation = std::fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let is_key = |key: &str| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let keys = example.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = "));
    let keys: Vec<_> = keys.map(|(key, _)| key).filter(|key| is_key(key)).collect();
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        assert!(documentation.contains(key), "{key}");
    }
}
