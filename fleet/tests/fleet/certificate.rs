//! The program itself, told by SIGHUP that its certificate was renewed.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

type Made = rcgen::CertifiedKey<rcgen::KeyPair>;

fn renewed(folder: &Path) -> Made {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("chain.pem"), made.cert.pem()).unwrap();
    made
}

async fn trusts(port: u16, certificate: &Made) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = tokio_rustls::TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.connect("localhost".try_into().unwrap(), stream).await.is_ok()
}

/// The program, with these arguments more.
fn serve(folder: &Path, more: &[&str]) -> Child {
    let keys = folder.join("keys.json");
    std::fs::write(&keys, "{\"keys\":[]}").unwrap();
    Command::new(env!("CARGO_BIN_EXE_floorgate-fleet"))
        .args(["serve", "--listen", "127.0.0.1:0", "--issuer", "https://issuer.example", "--client-id", "c"])
        .arg("--jwks-file")
        .arg(keys)
        .args(more)
        .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")])
        .envs([("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1"), ("FLOORGATE_LOG", "info")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Reads its log to a line with these words.
async fn until(log: &mut Lines<BufReader<ChildStderr>>, words: &str) -> String {
    let said = async {
        loop {
            let line = log.next_line().await.unwrap().expect("the program ended");
            if line.contains(words) {
                return line;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), said).await.unwrap()
}

/// The port behind this in a line of the log.
fn port(line: &str, scheme: &str) -> u16 {
    let port = line.split(&format!("{scheme}://127.0.0.1:")).nth(1).unwrap();
    port.split('/').next().unwrap().parse().unwrap()
}

/// What it is sent the moment it says that it serves, before any connection.
#[tokio::test]
async fn its_signals_count_from_before_it_says_that_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = serve(folder.path(), &[]);
    let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
    until(&mut log, "http://127.0.0.1:").await;
    let process = rustix::process::Pid::from_raw(program.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(program.wait().await.unwrap().to_string(), "exit status: 0");
}

#[tokio::test]
async fn a_hangup_ends_no_program_without_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = serve(folder.path(), &[]);
    let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
    let port = port(&until(&mut log, "http://127.0.0.1:").await, "http");
    let answered = async || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.starts_with("HTTP/1.1 ")
    };
    assert!(answered().await);
    let process = rustix::process::Pid::from_raw(program.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    until(&mut log, "nothing to read again").await;
    assert!(answered().await);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(program.wait().await.unwrap().to_string(), "exit status: 0");
}

#[tokio::test]
async fn a_hangup_has_the_program_read_its_certificate_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let first = renewed(folder.path());
    let tls = ["--tls-cert", &file("chain.pem"), "--tls-key", &file("key.pem")];
    let mut program = serve(folder.path(), &tls);
    let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
    let port = port(&until(&mut log, "https://127.0.0.1:").await, "https");
    assert!(trusts(port, &first).await);
    let process = rustix::process::Pid::from_raw(program.id().unwrap().try_into().unwrap()).unwrap();
    let second = renewed(folder.path());
    rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    until(&mut log, "a new certificate is served").await;
    assert!(trusts(port, &second).await && !trusts(port, &first).await);
    std::fs::write(file("key.pem"), "").unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    let said = until(&mut log, "is not used").await;
    assert!(said.contains("key.pem"), "{said}");
    assert!(trusts(port, &second).await);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(program.wait().await.unwrap().to_string(), "exit status: 0");
}
