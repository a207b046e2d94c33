//! `floorgate doctor` from outside: what it says of a system that is well, and of each trouble it is there to find.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, dead_code, missing_docs, reason = "support code is shared by several tests")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/broker.rs"]
mod broker;
mod rig;

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use authority::Authority;
use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use broker::Broker;
use rig::device::Behaviour;
use rig::{Options, Rig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What was found, and the exit code.
struct Told {
    checks: Vec<Value>,
    exit: Option<i32>,
    took: Duration,
}

impl Told {
    fn of(output: &Output, took: Duration) -> Self {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let checks = report["checks"].as_array().unwrap().clone();
        for check in &checks {
            let wrong = matches!(check["state"].as_str(), Some("warn" | "fail"));
            assert_eq!(wrong, check["advice"].is_string(), "what is not green says what to do: {check}");
        }
        Self { checks, exit: output.status.code(), took }
    }

    fn all(&self, check: &str) -> Vec<&Value> {
        self.checks.iter().filter(|found| found["check"] == check).collect()
    }

    /// The one finding of a check that has a state and says this.
    fn has(&self, check: &str, state: &str, says: &str) {
        let fits = |found: &&&Value| found["state"] == state && found["found"].as_str().unwrap().contains(says);
        assert!(self.all(check).iter().any(|found| fits(&found)), "no {state} {check} {says:?}: {:#?}", self.checks);
    }
}

async fn examined(rig: &Rig) -> Told {
    let started = Instant::now();
    let output = rig.daemon.cli(&["doctor", "--json"]).await;
    Told::of(&output, started.elapsed())
}

/// Runs the doctor on a configuration of its own.
async fn doctor(folder: &Path, toml: &str, environment: &[(&str, &str)]) -> Told {
    let file = folder.join("floorgate.toml");
    let head =
        "[gateway]\nid = \"GW-1\"\nlocation = \"hall\"\n[store]\nstate_dir = \"state\"\n[clock]\ntrust = \"always\"\n";
    std::fs::write(&file, format!("{head}{toml}")).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_floorgate"));
    command.args(["doctor", "--json", "--config"]).arg(&file).env_clear().envs(environment.iter().copied());
    let started = Instant::now();
    let output = command.kill_on_drop(true).output().await.unwrap();
    Told::of(&output, started.elapsed())
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_well_has_no_red_line_and_the_doctor_writes_nothing() {
    let rig = Rig::start(Options::default()).await;
    let press = rig.device("PRESS-001", Behaviour::Obey).await;
    let valve = rig.device("VALVE-001", Behaviour::Obey).await;
    for device in [&press, &valve] {
        device.report(json!({"pressure_psi": 120})).await;
        rig.item("the device", device.id(), 10, |item| item["status"] == "online").await;
    }
    let told = examined(&rig).await;
    assert_eq!(told.exit, Some(0), "{:#?}", told.checks);
    told.has("daemon", "ok", &rig.gateway);
    told.has("devices", "ok", "all 3 are heard");
    told.has("cloud_broker", "ok", "takes connections");
    told.has("floor_broker", "skipped", "built-in endpoint");
    told.has("store", "ok", "takes writes");
    told.has("commands", "ok", "are taken");
    assert_eq!(told.all("table").len(), 3);
    assert!(told.all("table").iter().all(|found| found["state"] == "ok"), "{:#?}", told.checks);
    assert_eq!(told.all("link").len(), 3);
    told.has("permission", "ok", "allowed: dynamodb:GetItem, dynamodb:UpdateItem");
    told.has("permission", "skipped", "dynamodb:BatchWriteItem was not tried");
    told.has("outbox", "ok", "wait");
    // Its conditional writes left nothing: no item of theirs, and no attribute in the gateway's own.
    let own = rig.items.device(&rig.gateway).await.unwrap_or_default();
    assert!(own["status"] == "online" && !own.to_string().contains("floorgate_doctor"), "{own}");
    assert!(rig.items.commands(&rig.gateway).await.is_empty());
    assert!(rig.status().await["cloud"]["state"] == "up", "the daemon's own session was left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brokers_window_and_its_memory_for_absent_clients_are_tried_and_nothing_stays_behind() {
    let (broker, folder) = (Broker::start().await, tempfile::tempdir().unwrap());
    let toml = format!("[floor]\nurl = \"mqtt://{}\"\n", broker.address);
    let told = doctor(folder.path(), &toml, &[]).await;
    told.has("floor_broker", "ok", "kept all of 1228 messages");
    told.has("floor_broker", "ok", "at least 128");
    assert!(broker.filters("GW-1-floor-doctor").is_empty(), "its session is gone");
    assert_eq!(told.exit, Some(0), "a daemon that does not run is a warning: {:#?}", told.checks);
    told.has("daemon", "warn", "does not run");

    broker.lock().faults.window = Some(20);
    doctor(folder.path(), &toml, &[]).await.has("floor_broker", "warn", "sends 20 messages before one is acknowledged");
    broker.lock().faults.window = None;
    broker.lock().faults.lose_sessions = true;
    let told = doctor(folder.path(), &toml, &[]).await;
    told.has("floor_broker", "fail", "forgot a client");
    assert_eq!(told.exit, Some(1));
    broker.lock().faults.lose_sessions = false;
    broker.lock().faults.refuse.insert("floorgate-doctor/GW-1-floor".to_owned());
    doctor(folder.path(), &toml, &[]).await.has("floor_broker", "skipped", "access rules");
    broker.lock().faults.refuse_connect = Some(rumqttc::ConnectReturnCode::BadUserNamePassword);
    doctor(folder.path(), &toml, &[]).await.has("floor_broker", "fail", "bad user name or password");
    let published = broker.lock().log.published.clone();
    let own = |topic: &String| topic == "floorgate-doctor/GW-1-floor";
    assert!(published.iter().all(|(topic, _, retain)| own(topic) && !retain), "on its own topic, nothing retained");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_take_connections_and_say_nothing_are_red_lines_within_ten_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hanging = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let toml = format!(
        "[floor]\nurl = \"mqtt://{address}\"\n[cloud]\nurl = \"mqtt://{address}\"\n\
         [dynamodb]\nregion = \"us-east-1\"\nendpoint_url = \"http://{address}\"\n"
    );
    let told = doctor(folder.path(), &toml, &KEYS).await;
    hanging.abort();
    assert!(told.took < Duration::from_secs(10), "{:?}", told.took);
    assert_eq!(told.exit, Some(1));
    told.has("floor_broker", "fail", "CONNECT: no answer within 8 s");
    told.has("cloud_broker", "fail", "CONNECT: no answer within 8 s");
    assert!(told.all("table").iter().all(|found| found["state"] == "fail"), "{:#?}", told.checks);
    told.has("table", "fail", "did not answer in time");
    assert!(told.all("permission").is_empty(), "nothing is said about what was not answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_are_missing_or_have_other_keys_are_named_with_what_to_do() {
    let rig = Rig::prepare(Options::default()).await;
    let told = examined(&rig).await;
    assert_eq!(told.exit, Some(1));
    told.has("table", "fail", "does not exist");
    assert!(told.all("table")[0]["advice"].as_str().unwrap().contains("floorgate provision"));

    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let text = ScalarAttributeType::S;
    let attribute = AttributeDefinition::builder().attribute_name("id").attribute_type(text).build().unwrap();
    let create = rig.items.client().create_table().table_name(rig.items.name("devices")).key_schema(key);
    create.attribute_definitions(attribute).billing_mode(BillingMode::PayPerRequest).send().await.unwrap();
    let told = examined(&rig).await;
    told.has("table", "fail", "partition key `id` and no sort key, but floorgate needs partition key `device_id`");
}

/// A table that allows reading alone.
async fn reading_alone() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut request, mut part) = (String::new(), [0; 8_192]);
                // Bodies are short and end with the object's brace.
                while !(request.contains("\r\n\r\n{") && request.ends_with('}')) {
                    let read = stream.read(&mut part).await.unwrap_or(0);
                    if read == 0 {
                        return;
                    }
                    request.push_str(&String::from_utf8_lossy(&part[..read]));
                }
                let get = request.to_lowercase().contains("x-amz-target: dynamodb_20120810.getitem");
                let denied =
                    r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"not authorized"}"#;
                let (status, body) = if get { ("200 OK", "{}") } else { ("400 Bad Request", denied) };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {length}\r\n\
                     connection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_may_not_do_is_found_without_writing() {
    let (address, folder) = (reading_alone().await, tempfile::tempdir().unwrap());
    let toml = format!("[dynamodb]\nregion = \"us-east-1\"\nendpoint_url = \"http://{address}\"\n");
    let told = doctor(folder.path(), &toml, &KEYS).await;
    told.has("permission", "fail", "not allowed: dynamodb:UpdateItem; allowed: dynamodb:GetItem");
    told.has("table", "warn", "keys were not compared");
    assert_eq!(told.exit, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credentials_the_configuration_is_red_and_the_rest_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let told = doctor(folder.path(), "[dynamodb]\nregion = \"us-east-1\"\n", &[]).await;
    assert_eq!(told.exit, Some(78));
    told.has("configuration", "fail", "needs credentials and has none");
    told.has("credentials", "skipped", "configuration");
    assert!(told.all("disk_space").len() == 1 && told.all("clock").len() == 1, "{:#?}", told.checks);
}

impl Authority {
    /// A certificate that is good until the year's end, and its key.
    fn issue(&self, name: &str, year: i32) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Speaks TLS as `localhost`, and lets in who has a certificate of its own authority.
    fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        use rustls_pki_types::pem::PemObject;
        use rustls_pki_types::{CertificateDer, PrivateKeyDer};
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let (cert, key) = self.issue("localhost", 4000);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()], key)
            .unwrap();
        std::sync::Arc::new(config).into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_foreign_and_mixed_up_certificates_are_each_told() {
    let (plant, other) = (Authority::new(), Authority::new());
    let broker = Broker::start_with(Some(plant.acceptor())).await;
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    let toml = format!(
        "[cloud]\nurl = \"mqtts://localhost:{}\"\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n",
        broker.address.port()
    );
    let given = |authority: &str, (cert, key): &(String, String)| {
        put("ca.pem", authority);
        put("cert.pem", cert);
        put("key.pem", key);
    };
    let good = plant.issue("GW-1", 4000);
    given(&plant.pem, &good);
    let told = doctor(folder.path(), &toml, &[]).await;
    told.has("cloud_broker", "ok", "its certificate is good for");
    assert!(told.all("certificate").iter().all(|found| found["state"] == "ok"), "{:#?}", told.checks);

    given(&plant.pem, &plant.issue("GW-1", 2024));
    let told = doctor(folder.path(), &toml, &[]).await;
    told.has("certificate", "fail", "expired");
    told.has("cloud_broker", "fail", "TLS: `localhost");
    told.has("cloud_broker", "fail", "does not accept our certificate (CertificateExpired)");
    assert_eq!(told.exit, Some(1));

    given(&other.pem, &good);
    doctor(folder.path(), &toml, &[]).await.has("cloud_broker", "fail", "comes from no authority in `");

    given(&plant.pem, &(good.0.clone(), other.issue("GW-1", 4000).1));
    doctor(folder.path(), &toml, &[]).await.has("certificate", "fail", "does not belong to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_never_ends_to_be_read_is_named_within_ten_seconds_and_the_rest_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("ca.pem");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let toml = "[cloud]\nurl = \"mqtts://localhost:1\"\nca = \"ca.pem\"\n";
    let told = doctor(folder.path(), toml, &[]).await;
    assert!(told.took < Duration::from_secs(10), "{:?}", told.took);
    assert_eq!(told.exit, Some(78));
    told.has("configuration", "fail", "ca.pem: cannot be read within 4 s");
    told.has("cloud_broker", "skipped", "configuration");
    assert!(told.all("clock").len() == 1 && told.all("disk_space").len() == 1, "{:#?}", told.checks);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_has_failed_makes_the_doctor_fail() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("floorgate.toml");
    let systemd = |state: &str| {
        let path = folder.path().join("systemctl");
        let lines =
            format!("LoadState=loaded\nExecStart={{ argv[]=floorgate run --config {} ; }}\n{state}", file.display());
        std::fs::write(&path, format!("#!/bin/sh\nprintf '%s\\n' '{lines}'\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let path = folder.path().display().to_string();
    let environment = [("PATH", path.as_str())];
    systemd("ActiveState=failed\nUnitFileState=enabled\nResult=exit-code\nExecMainStatus=78");
    let told = doctor(folder.path(), "", &environment).await;
    told.has("daemon", "fail", "its configuration cannot be used as the service sees it (exit 78)");
    assert_eq!(told.exit, Some(1));
    systemd("ActiveState=inactive\nUnitFileState=disabled");
    let told = doctor(folder.path(), "", &environment).await;
    told.has("daemon", "warn", "does not run");
    assert_eq!(told.exit, Some(0));
}
