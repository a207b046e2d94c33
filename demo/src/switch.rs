//! A loopback listener that can be switched off and on again: how the demo and the tests cut a link.
//!
//! While it is off, nothing listens on the address (connections are refused) and every connection it served has been
//! closed. The address stays the same. At most [`CONNECTIONS_MAX`] connections are served; a further one is closed at once.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// Connections served at a time; the next one is closed at once.
pub const CONNECTIONS_MAX: usize = 1_024;

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;
type Serve = Arc<dyn Fn(TcpStream) -> Served + Send + Sync>;

/// The listener with its switch. Dropping it closes everything.
pub struct Switch {
    address: SocketAddr,
    serve: Serve,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Switch {
    /// Listens on 127.0.0.1:`port` (0: any free one) and gives every connection to `serve`, whose future is dropped
    /// when the link is cut.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start<F, S>(port: u16, serve: S) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
    {
        let serve: Serve = Arc::new(move |stream| Box::pin(serve(stream)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let running = Mutex::new(Some(Running::start(listener, Arc::clone(&serve))));
        Ok(Self { address, serve, running })
    }

    /// Where it listens, also while it is cut.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection and refuses new ones. Returns when that is so; does nothing if it is cut already.
    pub async fn cut(&self) {
        if let Some(running) = self.running.lock().await.take() {
            let _ = running.stop.send(());
            let _ = running.task.await;
        }
    }

    /// Listens again. Does nothing if it is not cut.
    ///
    /// # Errors
    /// Somebody else took the port meanwhile.
    pub async fn restore(&self) -> io::Result<()> {
        let mut running = self.running.lock().await;
        if running.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            *running = Some(Running::start(listener, Arc::clone(&self.serve)));
        }
        Ok(())
    }
}

impl Running {
    fn start(listener: TcpListener, serve: Serve) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    // Also when the switch was dropped: the sender is gone then.
                    _ = &mut stopped => break,
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                            // Small packets go at once; failing to set this only costs time.
                            let _ = stream.set_nodelay(true);
                            connections.spawn(serve(stream));
                        }
                        Ok(_) => {}
                        // Out of file descriptors, most likely: wait until some are closed.
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                    },
                }
            }
            drop(listener);
            connections.shutdown().await;
        });
        Self { stop, task }
    }
}
