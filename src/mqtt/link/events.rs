//! rumqttc's event loop as a stream.

use std::collections::VecDeque;
use std::pin::Pin;

use futures_util::{Stream, stream};
use rumqttc::{ConnectionError, Event, EventLoop, PubAck, Request};
use tokio::time::{Instant, timeout_at};

use super::CONNECT_WAIT;
use super::session::Acks;

/// One poll of the event loop; after a failure, the events that were still to be told.
pub(super) type Polled = Result<Event, (ConnectionError, VecDeque<Event>)>;
pub(super) type Events = Pin<Box<dyn Stream<Item = Polled> + Send>>;

/// The event loop as a stream: a poll that was begun survives being waited for by `select!`, which a bare `poll()` would
/// not, losing a request that was taken from the queue and not yet written.
pub(super) fn events(event_loop: EventLoop, acks: Acks) -> Events {
    Box::pin(stream::unfold(Some((event_loop, acks)), |running| async move {
        let (mut event_loop, acks) = running?;
        let polled = match write_acks(&mut event_loop, &acks).await {
            Ok(()) => event_loop.poll().await,
            Err(error) => Err(error),
        };
        match polled {
            Ok(event) => Some((Ok(event), Some((event_loop, acks)))),
            Err(error) => Some((Err((error, std::mem::take(&mut event_loop.state.events))), None)),
        }
    }))
}

/// Writes the acknowledgements that wait, all together.
async fn write_acks(event_loop: &mut EventLoop, acks: &Acks) -> Result<(), ConnectionError> {
    let Some(network) = &mut event_loop.network else { return Ok(()) };
    let waiting = acks.take();
    if waiting.is_empty() {
        return Ok(());
    }
    fail_point!(LinkBeforePuback);
    let write = async {
        for pkid in waiting {
            if let Some(packet) = event_loop.state.handle_outgoing_packet(Request::PubAck(PubAck::new(pkid)))? {
                network.write(packet).await?;
            }
        }
        network.flush().await
    };
    match timeout_at(Instant::now() + CONNECT_WAIT, write).await {
        Ok(written) => {
            fail_point!(LinkAfterPuback);
            Ok(written?)
        }
        Err(_) => Err(ConnectionError::FlushTimeout),
    }
}
