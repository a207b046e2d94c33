//! The wire between the daemon and the cloud's broker: it carries, is cut, or takes everything and delivers nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use floorgate_demo::switch::Switch;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

pub struct Wire {
    pub switch: Switch,
    dead: watch::Sender<bool>,
    connects: Arc<Mutex<Vec<Duration>>>,
}

impl Wire {
    pub async fn start(upstream: SocketAddr) -> Self {
        let dead = watch::channel(false).0;
        let connects = Arc::new(Mutex::new(Vec::new()));
        let (watching, log, began) = (dead.clone(), Arc::clone(&connects), Instant::now());
        let serve = move |client| {
            log.lock().unwrap().push(began.elapsed());
            carry(client, upstream, watching.subscribe())
        };
        Self { switch: Switch::start(0, serve).await.unwrap(), dead, connects }
    }

    /// Half-open: connections stand, and nothing arrives on either side; new ones fare the same.
    pub fn die(&self, yes: bool) {
        self.dead.send_replace(yes);
    }

    /// When the daemon connected, since the beginning.
    pub fn connects(&self) -> Vec<Duration> {
        self.connects.lock().unwrap().clone()
    }
}

async fn carry(mut near: TcpStream, upstream: SocketAddr, mut dead: watch::Receiver<bool>) {
    if !*dead.borrow_and_update() {
        let Ok(mut far) = TcpStream::connect(upstream).await else { return };
        let _ = far.set_nodelay(true);
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            _ = dead.wait_for(|dead| *dead) => {}
        }
        // The broker notices in its own time; here it does not matter when.
        drop(far);
    }
    // A connection that has once lost bytes can carry no more: it stays dead until its owner gives it up.
    let mut sink = [0; 4_096];
    while matches!(near.read(&mut sink).await, Ok(n) if n > 0) {}
}
