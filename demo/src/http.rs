//! One question over HTTP/1.1 and its answer, a connection for each: what the clients of the table and of the tools need.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Largest answer, bytes; DynamoDB's own pages end at 1 MB.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// What came back, whatever it says.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// Its kind of content, empty if it names none.
    pub(crate) content_type: String,
    /// The body.
    pub(crate) body: Bytes,
}

/// Posts `body`; the answer is the whole of what came back, of at most 16 MiB.
///
/// # Errors
/// Nobody answers at the address, or not within `limit`, for people.
pub(crate) async fn post(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
    limit: Duration,
) -> Result<Answer, String> {
    let mut request = Request::post(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
    match timeout(limit, exchange(address, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok(Answer { status, content_type, body: body.map_err(|error| error.to_string())?.to_bytes() })
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // The peer closed after its answer, which may still be on its way through the channel.
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
