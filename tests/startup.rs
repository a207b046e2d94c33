//! The built daemon in broken surroundings: what cannot work ends with one sentence and its exit code, what may come
//! right by itself does not end it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod rig;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use rig::client::Client;
use rig::daemon::Daemon;
use rig::{Options, Rig, free_port, until};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A folder with a configuration that works, and a daemon that is not yet started.
struct House {
    folder: tempfile::TempDir,
    state_dir: PathBuf,
    port: u16,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        Self { folder, state_dir, port: free_port() }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("floorgate.toml")
    }

    /// Writes the configuration, with more sections after it.
    fn daemon(&self, more: &str) -> Daemon {
        let text = format!(
            "[gateway]\nid = \"G\"\nlocation = \"hall\"\n[store]\nstate_dir = \"{}\"\n[floor]\nlisten = \"127.0.0.1:{}\"\n{more}",
            self.state_dir.display(),
            self.port
        );
        std::fs::write(self.config(), text).unwrap();
        Daemon::new(&self.config(), &self.folder.path().join("daemon.log"))
    }

    /// Starts a daemon that has to end by itself; answers its exit code and what it told.
    async fn fails(&self, more: &str) -> (i32, Vec<String>) {
        ends(&self.daemon(more)).await
    }
}

async fn ends(daemon: &Daemon) -> (i32, Vec<String>) {
    let run = daemon.command(&["run"]).output();
    let output = tokio::time::timeout(Duration::from_secs(20), run).await.expect("the daemon ends").unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect();
    (output.status.code().expect("an exit code, no signal"), told)
}

/// It failed with code 1 and this one sentence.
fn failed_with(told: (i32, Vec<String>), sentence: &str) {
    assert_eq!(told, (1, vec![format!("floorgate: {sentence}")]));
}

/// The configuration is to blame: code 78, a heading, and this one problem.
fn blamed(told: (i32, Vec<String>), problem: &str) {
    let expected = vec!["floorgate: the configuration has 1 error:".to_owned(), format!("  {problem}")];
    assert_eq!(told, (78, expected));
}

#[tokio::test]
async fn a_configuration_that_is_not_there_or_no_file_is_named() {
    let house = House::new();
    let daemon = Daemon::new(&house.config(), &house.folder.path().join("daemon.log"));
    let file = house.config().display().to_string();
    blamed(ends(&daemon).await, &format!("{file}: cannot be read: no such file or directory"));
    std::fs::create_dir(house.config()).unwrap();
    blamed(ends(&daemon).await, &format!("{file}: cannot be read: is a directory"));
    assert!(!house.state_dir.exists(), "nothing was begun");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named_with_its_key() {
    let house = House::new();
    let file = house.config().display().to_string();
    let place = house.folder.path().join("cert.pem").display().to_string();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(house.folder.path().join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
    let tls = "[floor.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    let at = format!("{file}:9: `floor.tls.cert` = \"cert.pem\"");
    blamed(house.fails(tls).await, &format!("{at}: cannot read `{place}`: no such file or directory"));
    std::fs::write(&place, "not a certificate").unwrap();
    let wanted = "must hold a PEM certificate (-----BEGIN CERTIFICATE-----)";
    blamed(house.fails(tls).await, &format!("{at}: `{place}` {wanted}"));
    // Readable, but no pair: only TLS itself finds that.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&place, other.cert.pem()).unwrap();
    let key = house.folder.path().join("key.pem").display().to_string();
    let sentence = format!(
        "floorgate: cannot use `{key}` for TLS: it is not the key of `{place}`; give the pair that belongs together"
    );
    assert_eq!(house.fails(tls).await, (78, vec![sentence]));
}

#[tokio::test]
async fn a_password_that_was_not_hashed_is_named_and_not_shown() {
    let house = House::new();
    let users = house.folder.path().join("users");
    std::fs::write(&users, "PRESS-1:secret\n").unwrap();
    let (code, told) = house.fails("users = \"users\"\n").await;
    assert!(code == 78 && told.len() == 1, "{code} {told:?}");
    assert!(told[0].starts_with(&format!("floorgate: `{}` line 1: ", users.display())), "{told:?}");
    assert!(told[0].ends_with("write it with `mosquitto_passwd`") && !told[0].contains("secret"), "{told:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let mut house = House::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    house.port = taken.local_addr().unwrap().port();
    let sentence = format!(
        "cannot listen on 127.0.0.1:{}: the port is in use; is another MQTT broker or floorgate running?",
        house.port
    );
    failed_with(house.fails("").await, &sentence);
    drop(taken);
    let mut daemon = house.daemon("");
    daemon.run().await;
    assert_eq!(daemon.terminate().await.0, Some(0), "the failed start left nothing behind");
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_used_is_named() {
    let mut house = House::new();
    house.state_dir = house.folder.path().join("file");
    std::fs::write(&house.state_dir, "in the way").unwrap();
    let advice = "check its owner and the disk";
    let place = house.state_dir.display().to_string();
    failed_with(
        house.fails("").await,
        &format!("cannot make the state folder `{place}`: File exists (os error 17); {advice}"),
    );
    house.state_dir = house.state_dir.join("below");
    let place = house.state_dir.display().to_string();
    failed_with(
        house.fails("").await,
        &format!("cannot make the state folder `{place}`: Not a directory (os error 20); {advice}"),
    );
    // A folder in which not even root may make a file.
    house.state_dir = PathBuf::from("/proc");
    let (code, told) = house.fails("").await;
    assert!(code == 1 && told.len() == 1, "{code} {told:?}");
    assert!(told[0].starts_with("floorgate: cannot make the control socket `/proc/control.sock`: "), "{told:?}");
    assert!(told[0].contains("the state folder must be writable"), "{told:?}");
}

#[tokio::test]
async fn the_state_of_another_running_floorgate_is_left_to_it() {
    let house = House::new();
    let mut first = house.daemon("");
    first.run().await;
    let second = House { folder: tempfile::tempdir().unwrap(), state_dir: house.state_dir.clone(), port: free_port() };
    let socket = house.state_dir.join("control.sock").display().to_string();
    let advice = "stop it, or use another `state_dir`";
    failed_with(
        second.fails("").await,
        &format!("another floorgate is running with this state folder: `{socket}` answers; {advice}"),
    );
    assert!(first.cli(&["status"]).await.status.success(), "the first is as well as before");
    assert_eq!(first.terminate().await.0, Some(0));

    // One that holds the store and does not answer, as while it starts or hangs.
    let lock = std::fs::File::open(house.state_dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let database = house.state_dir.join("state.db").display().to_string();
    failed_with(
        second.fails("").await,
        &format!("cannot open `{database}`: database is locked; is another floorgate running?"),
    );
}

#[tokio::test]
async fn files_of_a_newer_floorgate_are_left_alone() {
    for name in ["state.db", "telemetry.db"] {
        let house = House::new();
        let mut daemon = house.daemon("");
        daemon.run().await;
        daemon.terminate().await;
        let file = house.state_dir.join(name);
        rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 999).unwrap();
        let before = std::fs::read(&file).unwrap();
        let (code, told) = house.fails("").await;
        // Another start would change nothing, so nobody is to try one.
        assert!(code == 78 && told.len() == 1, "{code} {told:?}");
        let start = format!("floorgate: `{}` has schema 999, this floorgate knows up to ", file.display());
        assert!(told[0].starts_with(&start), "{told:?}");
        assert!(told[0].ends_with("; install the newer floorgate again"), "{told:?}");
        // Whoever is about to install this version over the newer one is told beforehand.
        let check = daemon.cli(&["check", "--quiet"]).await;
        assert_eq!((check.status.code(), lines(&check.stderr)), (Some(78), told), "{name}");
        assert!(std::fs::read(&file).unwrap() == before, "{name} is unchanged");
    }
}

fn lines(told: &[u8]) -> Vec<String> {
    String::from_utf8(told.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_stop_while_the_store_is_opened_is_heard_at_once_and_no_failure() {
    let house = House::new();
    let mut daemon = house.daemon("");
    daemon.run().await;
    daemon.terminate().await;
    // Opening waits 5 s for whoever has the file for itself.
    let holder = rusqlite::Connection::open(house.state_dir.join("state.db")).unwrap();
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT").unwrap();
    let socket = house.state_dir.join("control.sock");
    daemon.spawn();
    // It is there right before the opening begins.
    until("the control socket", 10, || async { socket.exists().then_some(()) }).await;
    let (code, took) = daemon.terminate().await;
    assert_eq!(code, Some(0), "{}", daemon.log());
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(!socket.exists());
    drop(holder);
    daemon.run().await;
    assert_eq!(daemon.terminate().await.0, Some(0), "the stop left nothing behind");
}

/// The commonest form of a dead uplink. The system's library waits 5 s for each name server, in a thread that nothing ends.
#[tokio::test]
async fn a_stop_takes_no_time_while_no_name_server_answers() {
    let unshared = std::process::Command::new("unshare").args(["--mount", "true"]).status();
    let silent = tokio::net::UdpSocket::bind("127.0.0.153:53").await.ok();
    let Some(silent) = silent.filter(|_| unshared.is_ok_and(|status| status.success())) else {
        eprintln!("not shown: needs the right to take port 53 and to `unshare --mount`");
        return;
    };
    let house = House::new();
    let servers = house.folder.path().join("resolv.conf");
    std::fs::write(&servers, "nameserver 127.0.0.153\n").unwrap();
    let mut daemon = house.daemon("[cloud]\nurl = \"mqtt://broker.example\"\n");
    let script = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", servers.display());
    daemon.through = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    daemon.run().await;
    let asked = tokio::time::timeout(Duration::from_secs(20), silent.recv(&mut [0; 512])).await;
    asked.expect("it asks for the broker's address").unwrap();
    let (code, took) = daemon.terminate().await;
    assert_eq!(code, Some(0), "{}", daemon.log());
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn a_failure_that_repeats_waits_before_its_end_and_a_stop_cuts_that_short() {
    let mut house = House::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    house.port = taken.local_addr().unwrap().port();
    let mut daemon = house.daemon("");
    let folder = house.folder.path().join("run");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("failures"), "5").unwrap();
    daemon.environment.push(("RUNTIME_DIRECTORY", folder.clone()));
    daemon.spawn();
    let waits = "it ends in 32 s";
    until(waits, 20, || async { daemon.log().contains(waits).then_some(()) }).await;
    assert!(daemon.log().contains("the port is in use"), "{}", daemon.log());
    let (code, took) = daemon.terminate().await;
    assert_eq!(code, Some(1));
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(std::fs::read_to_string(folder.join("failures")).unwrap(), "6");
}

/// Keys that systemd shows to the service alone (`LoadCredential=`) keep nobody from checking the rest.
#[tokio::test]
async fn check_tells_which_credentials_it_cannot_see_and_the_service_itself_has_to_see_them() {
    let house = House::new();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(house.folder.path().join("cert.pem"), pair.cert.pem()).unwrap();
    let key = "/run/credentials/none.service/gateway.key";
    let tls = format!("[floor.tls]\ncert = \"cert.pem\"\nkey = \"{key}\"\n");
    let daemon = house.daemon(&tls);
    let at = format!("{}:10: `floor.tls.key` = \"{key}\"", house.config().display());
    let check = daemon.cli(&["check", "--quiet"]).await;
    let warning = format!("floorgate: warning: {at}: not looked at: only the service can read it (LoadCredential=)");
    assert_eq!((check.status.code(), lines(&check.stderr)), (Some(0), vec![warning]));
    assert!(check.stdout.is_empty(), "quiet");
    let shown = daemon.cli(&["check"]).await;
    assert!(String::from_utf8(shown.stdout).unwrap().contains(key));
    blamed(house.fails(&tls).await, &format!("{at}: cannot read `{key}`: no such file or directory"));
    // What is wrong besides is told all the same, and a file elsewhere has to be there.
    let daemon = house.daemon(&tls.replace("cert.pem", "none.pem"));
    let check = daemon.cli(&["check", "--quiet"]).await;
    assert_eq!(check.status.code(), Some(78));
    assert!(lines(&check.stderr)[1].contains("none.pem"), "{check:?}");
}

#[tokio::test]
async fn check_takes_aws_variables_for_granted_only_if_it_is_told_to() {
    let house = House::new();
    let daemon = house.daemon("[dynamodb]\n");
    for (arguments, code) in [(vec!["check"], 78), (vec!["check", "--assume-aws-environment", "--quiet"], 0)] {
        let mut command = daemon.command(&arguments);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env_remove("AWS_REGION");
        command.env_remove("AWS_SHARED_CREDENTIALS_FILE").env("HOME", house.folder.path());
        let output = command.output().await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}

#[tokio::test]
async fn a_cloud_and_tables_that_refuse_connections_are_no_failure_and_status_tells_them() {
    let house = House::new();
    let (cloud, table) = (free_port(), free_port());
    let more = format!(
        "[cloud]\nurl = \"mqtt://127.0.0.1:{cloud}\"\n[dynamodb]\nregion = \"us-east-1\"\nendpoint_url = \"http://127.0.0.1:{table}\"\n"
    );
    let mut daemon = house.daemon(&more);
    daemon.run().await;
    let status = told_by(&daemon, "both problems", |status| {
        status["cloud"]["problem"].is_string() && status["sync"]["problem"].is_string()
    })
    .await;
    assert_eq!((&status["cloud"]["state"], &status["sync"]["state"]), (&"down".into(), &"down".into()));
    let cloud_problem = status["cloud"]["problem"].as_str().unwrap();
    assert!(cloud_problem.to_lowercase().contains("refused"), "{cloud_problem}");
    let problem = status["sync"]["problem"].as_str().unwrap();
    assert!(problem.contains("cannot be reached") && problem.contains("refused"), "{problem}");
    assert_eq!(status["sync"]["address"], format!("http://127.0.0.1:{table}"));
    for side in [cloud_problem, problem] {
        assert!(!side.contains('\n') && side.len() < 400, "one sentence: {side}");
    }
    let shown = String::from_utf8(daemon.cli(&["status"]).await.stdout).unwrap();
    assert!(shown.contains(problem) && shown.contains(cloud_problem), "{shown}");
    assert_eq!(daemon.terminate().await.0, Some(0));
}

#[tokio::test]
async fn credentials_that_aws_does_not_know_are_told_by_status() {
    let refusing = Refusing::start().await;
    let house = House::new();
    let more = format!("[dynamodb]\nregion = \"us-east-1\"\nendpoint_url = \"http://127.0.0.1:{}\"\n", refusing.port);
    let mut daemon = house.daemon(&more);
    daemon.run().await;
    let status = told_by(&daemon, "the problem", |status| status["sync"]["problem"].is_string()).await;
    let problem = status["sync"]["problem"].as_str().unwrap();
    assert!(problem.contains("credentials") && problem.contains("security token"), "{problem}");
    let output = daemon.cli(&["provision"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.lines().count() == 1 && told.contains("credentials"), "{told}");
    assert_eq!(daemon.terminate().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_with_another_key_is_named_by_provision_and_told_by_status() {
    let mut rig = Rig::prepare(Options::default()).await;
    rig.daemon.provision().await;
    let client = rig.items.client();
    let table = rig.items.name("devices");
    client.delete_table().table_name(&table).send().await.unwrap();
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let id =
        AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::S).build().unwrap();
    let create = client.create_table().table_name(&table).billing_mode(BillingMode::PayPerRequest);
    create.key_schema(key).attribute_definitions(id).send().await.unwrap();

    let output = rig.daemon.cli(&["provision"]).await;
    let told = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "floorgate: table `{table}` has partition key `id` and no sort key, but floorgate needs partition key `device_id` \
         and no sort key; give another table under [dynamodb], or delete it and run `floorgate provision`\n"
    );
    assert_eq!((output.status.code(), told), (Some(1), expected));

    rig.daemon.run().await;
    let status = told_by(&rig.daemon, "the problem", |status| status["sync"]["problem"].is_string()).await;
    let problem = status["sync"]["problem"].as_str().unwrap();
    assert!(problem.contains(&table) && !problem.contains('\n'), "{problem}");
    assert_eq!(rig.daemon.terminate().await.0, Some(0));
}

#[tokio::test]
async fn a_damaged_state_file_costs_no_start_and_while_commands_are_inhibited_telemetry_flows() {
    let house = House::new();
    let device = "[[device]]\nid = \"PRESS-1\"\ntype = \"pressure_sensor\"\nlocation = \"hall\"\n";
    let mut daemon = house.daemon(device);
    daemon.run().await;
    let address = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, house.port));
    let client = Client::connect(address, "PRESS-1").await;
    client.publish("devices/PRESS-1/state", r#"{"online": true, "boot_count": 3}"#, true).await;
    let sent = daemon.json(&["send", "PRESS-1", "set_status", "status=maintenance"]).await;
    assert_eq!(sent["status"], "succeeded", "{sent}");
    drop(client);
    assert_eq!(daemon.terminate().await.0, Some(0));
    let file = house.state_dir.join("state.db");
    std::fs::write(&file, b"no database at all".repeat(5_000)).unwrap();

    daemon.run().await;
    assert!(daemon.ready_after < Duration::from_secs(2), "{:?}", daemon.ready_after);
    let status = daemon.json(&["status"]).await;
    let left = status["inhibited"]["seconds_left"].as_u64().unwrap();
    assert!((3_600..=3_660).contains(&left), "{status}");
    let rescue = &status["rescues"][0];
    assert_eq!(rescue["file"], "state.db", "{status}");
    assert!(std::fs::read(rescue["aside"].as_str().unwrap()).unwrap().starts_with(b"no database"), "{rescue}");
    let shown = String::from_utf8(daemon.cli(&["status"]).await.stdout).unwrap();
    assert!(shown.contains("INHIBITED for ") && shown.contains("state.db.damaged-"), "{shown}");

    let client = Client::connect(address, "PRESS-1").await;
    client.publish("devices/PRESS-1/state", r#"{"online": true, "boot_count": 3}"#, true).await;
    client.publish("devices/PRESS-1/telemetry", r#"{"pressure_psi": 141.5}"#, false).await;
    let seen = daemon.json(&["device", "PRESS-1"]).await;
    assert_eq!((&seen["last_readings"]["pressure_psi"], &seen["boot_count"]), (&141.5.into(), &3.into()), "{seen}");
    let refused = daemon.json(&["send", "PRESS-1", "recalibrate"]).await;
    assert_eq!((&refused["status"], &refused["reason"]), (&"rejected".into(), &"INHIBITED".into()), "{refused}");
    let overlay = daemon.json(&["send", "PRESS-1", "set_status", "status=maintenance"]).await;
    assert_eq!(overlay["status"], "succeeded", "a technician can take it out of service: {overlay}");
    drop(client);
    assert_eq!(daemon.terminate().await.0, Some(0));
}

/// The first status that fits.
async fn told_by(daemon: &Daemon, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    until(what, 20, || async {
        let status = daemon.json(&["status"]).await;
        fits(&status).then_some(status)
    })
    .await
}

/// A table that does not know who is asking.
struct Refusing {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Refusing {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = vec![0; 64 * 1024];
                    // One read is the whole of a request this small; the connection ends with the answer.
                    let _ = stream.read(&mut request).await;
                    let body = r#"{"__type":"com.amazon.coral.service#UnrecognizedClientException","message":"The security token included in the request is invalid."}"#;
                    let head = format!(
                        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                });
            }
        });
        Self { port, task }
    }
}
