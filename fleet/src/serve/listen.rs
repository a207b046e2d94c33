//! Connections: TLS, how many, how slow, and how they end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::Signal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::outgoing::Outgoing;
use super::tls::{self, Pair};
use super::{ServeConfig, ServeError};

/// Connections at once; the next waits in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 512;
/// Connections at once of one address; a further one is closed. Loopback is left out: it may be a proxy for all.
pub(super) const PEER_CONNECTIONS_MAX: usize = 64;
/// How long a TLS handshake may take.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long the head of a request may take, and how long a connection may be idle.
pub(super) const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Largest head of a request: a token, and what surrounds it.
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// How long what runs may go on after a stop.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// Pause after `accept` failed, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What answers handshakes, and the certificate it does that with.
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    pub(super) pair: Arc<Pair>,
}

pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Tls>,
    pub(super) router: Router,
    pub(super) stop: CancellationToken,
    /// SIGHUP, which counts from before it is said that calls are served.
    pub(super) hangup: Option<Signal>,
}

/// Listens, with TLS if there is a certificate.
pub(super) async fn open(config: &ServeConfig) -> Result<(TcpListener, Option<Tls>), ServeError> {
    let tls = match &config.tls {
        Some((certificate, key)) => {
            let pair = Arc::new(Pair::open(certificate, key).map_err(ServeError::Config)?);
            let acceptor = pair.acceptor().map_err(|error| ServeError::Config(format!("no TLS: {error}")))?;
            Some(Tls { acceptor, pair })
        }
        None if config.listen.ip().is_loopback() => None,
        None => {
            let text = "is not loopback: give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a TLS proxy";
            return Err(ServeError::Config(format!("{} {text}", config.listen)));
        }
    };
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.map_err(|source| ServeError::Listen { address: config.listen, source })?;
    Ok((listener, tls))
}

/// How many connections each address has.
#[derive(Default)]
struct Peers(Mutex<HashMap<IpAddr, usize>>);

/// One connection of an address, counted until it is dropped; `None`: not counted.
struct Entered(Option<(Arc<Peers>, IpAddr)>);

impl Peers {
    /// `None`: it has as many as it may.
    fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Entered> {
        let peer = whose(peer);
        if peer.is_loopback() {
            return Some(Entered(None));
        }
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= PEER_CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        Some(Entered(Some((Arc::clone(self), peer))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some((peers, peer)) = self.0.take() else { return };
        let mut peers = peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&peer);
            }
        }
    }
}

/// An address as one party has it: IPv4 also where it comes as IPv6, and of IPv6 the network, of which one host has all.
fn whose(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(peer) if !peer.is_loopback() => {
            let [a, b, c, d, ..] = peer.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        peer => peer,
    }
}

impl Door {
    pub(super) async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let peers = Arc::new(Peers::default());
        let acceptor = self.tls.as_ref().map(|tls| tls.acceptor.clone());
        let _watched = AbortOnDropHandle::new(match self.tls {
            Some(tls) => tokio::spawn(tls::watch(tls.pair, self.hangup)),
            None => tokio::spawn(tls::nothing_to_renew(self.hangup)),
        });
        let mut stop = std::pin::pin!(stop);
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = &mut stop => break,
                next = next => next,
            };
            let (Ok(place), Ok((stream, peer))) = (place, accepted) else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Some(peer) = peers.enter(peer.ip()) else {
                tracing::debug!(%peer, "too many connections of one address");
                continue;
            };
            let watcher = graceful.watcher();
            let (tls, router) = (acceptor.clone(), self.router.clone());
            tokio::spawn(async move { connection(stream, tls, router, watcher, (place, peer)).await });
        }
        drop(self.listener);
        if tokio::time::timeout(STOP_GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests that still ran are dropped");
        }
        self.stop.cancel();
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
    place: (OwnedSemaphorePermit, Entered),
) {
    // An answer is one write; waiting for more would only delay it.
    let _ = stream.set_nodelay(true);
    match tls {
        None => answer(stream, router, watcher).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
            Ok(Ok(stream)) => answer(stream, router, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
    drop(place);
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(Outgoing::new(stream)), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::outgoing::WRITE_WITHIN;
    use super::*;

    const ANSWER_BYTES: usize = 1024 * 1024;

    /// A connection that is asked for a large answer; and when it ends.
    async fn asked() -> (tokio::io::DuplexStream, tokio::task::JoinHandle<Duration>) {
        let (mut client, server) = tokio::io::duplex(4_096);
        let router = Router::new().route("/", axum::routing::get(|| std::future::ready("x".repeat(ANSWER_BYTES))));
        let began = tokio::time::Instant::now();
        let ended = tokio::spawn(async move {
            let graceful = GracefulShutdown::new();
            let answered = answer(server, router, graceful.watcher());
            tokio::time::timeout(10 * WRITE_WITHIN, answered).await.expect("the connection is held for ever");
            began.elapsed()
        });
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        (client, ended)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_loses_its_connection() {
        let (_client, ended) = asked().await;
        assert_eq!(ended.await.unwrap(), WRITE_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_reads_by_drops_loses_it_as_well_and_one_that_reads_late_does_not() {
        let (mut client, ended) = asked().await;
        let drops = tokio::spawn(async move {
            while client.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert_eq!(ended.await.unwrap(), WRITE_WITHIN);
        drops.abort();
        let (mut client, ended) = asked().await;
        tokio::time::sleep(WRITE_WITHIN - Duration::from_secs(1)).await;
        let mut whole = Vec::new();
        client.read_to_end(&mut whole).await.unwrap();
        assert!(whole.len() > ANSWER_BYTES && ended.await.unwrap() < WRITE_WITHIN);
    }

    #[test]
    fn one_address_has_sixty_four_connections_and_leaves_the_rest_to_others() {
        let peers = Arc::new(Peers::default());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held: Vec<_> = (0..PEER_CONNECTIONS_MAX).map(|_| peers.enter(at("192.0.2.7")).unwrap()).collect();
        assert!(peers.enter(at("192.0.2.7")).is_none() && peers.enter(at("::ffff:192.0.2.7")).is_none());
        held.push(peers.enter(at("192.0.2.8")).unwrap());
        let network = (0..PEER_CONNECTIONS_MAX).map(|n| peers.enter(at(&format!("2001:db8:0:1::{n:x}"))).unwrap());
        held.extend(network.collect::<Vec<_>>());
        assert!(peers.enter(at("2001:db8:0:1:ffff::1")).is_none() && peers.enter(at("2001:db8:0:2::1")).is_some());
        let proxied: Vec<_> = (0..CONNECTIONS_MAX).filter_map(|_| peers.enter(at("127.0.0.1"))).collect();
        assert_eq!(proxied.len(), CONNECTIONS_MAX);
        held.clear();
        assert!(peers.enter(at("192.0.2.7")).is_some());
    }
}
