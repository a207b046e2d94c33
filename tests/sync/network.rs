//! What the network does to single requests.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What the proxy does with a connection's request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Answer(&'static str),
    /// Never answers.
    HalfOpen,
    /// Passes the request on and keeps the answer.
    LoseAnswer,
    /// Closes at once.
    Close,
}

/// A proxy in front of the endpoint with one fault for everything.
async fn faulty(fault: Fault) -> String {
    let upstream = endpoint().trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 65_536];
                let mut length = 0;
                if matches!(fault, Fault::Close) {
                    return;
                }
                // Whole requests of these tests arrive within a moment.
                while let Ok(Ok(more)) =
                    tokio::time::timeout(Duration::from_millis(100), client.read(&mut request[length..])).await
                {
                    length += more;
                    if more == 0 {
                        break;
                    }
                }
                match fault {
                    Fault::Answer(answer) => drop(client.write_all(answer.as_bytes()).await),
                    Fault::LoseAnswer => {
                        let mut server = TcpStream::connect(upstream).await.unwrap();
                        server.write_all(&request[..length]).await.unwrap();
                        let _ = server.read(&mut [0; 1024]).await;
                        std::future::pending::<()>().await;
                    }
                    Fault::HalfOpen | Fault::Close => std::future::pending::<()>().await,
                }
            });
        }
    });
    format!("http://{address}")
}

const FAILS: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const THROTTLES: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: 79\r\n\
    connection: close\r\n\r\n{\"__type\":\"com.amazonaws.dynamodb.v20120810#ThrottlingException\",\"message\":\"x\"}";
const PORTAL: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 14\r\nconnection: close\r\n\r\n<p>Log in!</p>";

#[tokio::test]
async fn every_failure_of_the_network_is_one_attempt_and_passes_by_itself() {
    let bench = Bench::new("faults").await;
    for (fault, cause) in [
        (Fault::Answer(FAILS), Cause::Server),
        (Fault::Answer(THROTTLES), Cause::Throttled),
        (Fault::Answer(PORTAL), Cause::Server),
        (Fault::Close, Cause::Network),
        (Fault::HalfOpen, Cause::Timeout),
        (Fault::LoseAnswer, Cause::Timeout),
    ] {
        let config = DynamoConfig {
            endpoint_url: Some(faulty(fault).await),
            request_timeout: Some(Duration::from_millis(700)),
            ..bench.config.clone()
        };
        let table = DynamoTable::new(config, Clock::system(floorgate::clock::Trust::Auto)).unwrap();
        match table.write_state(&state(1)).await {
            Err(TableError::Retry { cause: found, .. }) => assert_eq!(found, cause, "{fault:?}"),
            other => panic!("{fault:?}: {other:?}"),
        }
    }
    let version = bench.device().await["shadow_version"].as_n().unwrap().clone();
    assert_eq!(version, "1", "the write whose answer was lost was carried out");
    assert_eq!(bench.table.write_state(&state(1)).await, Ok(StateWritten::Current), "and its repetition confirms it");
    let nobody = DynamoConfig { endpoint_url: Some("http://127.0.0.1:1".into()), ..bench.config.clone() };
    let table = DynamoTable::new(nobody, Clock::set_to(at(0))).unwrap();
    let refused = table.write_state(&state(2)).await;
    assert!(matches!(refused, Err(TableError::Retry { cause: Cause::Network, .. })), "{refused:?}");
}
