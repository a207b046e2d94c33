//! rumqttc's event loop as a stream.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_util::{Stream, stream};
use rumqttc::{ConnectionError, Event, EventLoop, PubAck, Request};
use tokio::time::{Instant, timeout_at};

use super::CONNECT_WAIT;
use super::session::{Acks, Unsent};

/// One poll of the event loop; after a failure, the events that were still to be told.
pub(super) type Polled = Result<Event, (ConnectionError, VecDeque<Event>)>;
pub(super) type Events = Pin<Box<dyn Stream<Item = Polled> + Send>>;

/// The event loop as a stream: a poll that was begun survives being waited for by `select!`, which a bare `poll()` would
/// not, losing a request that was taken from the queue and not yet written.
///
/// It ends when something expires before it has left: no step is taken that could still write it.
pub(super) fn events(event_loop: EventLoop, acks: Acks, unsent: Unsent) -> Events {
    Box::pin(stream::unfold(Some((event_loop, acks, unsent)), |running| async move {
        let (mut event_loop, acks, unsent) = running?;
        let step = async {
            match write_acks(&mut event_loop, &acks).await {
                Ok(()) => event_loop.poll().await,
                Err(error) => Err(error),
            }
        };
        match unless_expired(&unsent, step).await? {
            Ok(event) => Some((Ok(event), Some((event_loop, acks, unsent)))),
            Err(error) => Some((Err((error, std::mem::take(&mut event_loop.state.events))), None)),
        }
    }))
}

/// `None` once something has expired, instead of going on.
async fn unless_expired<T>(unsent: &Unsent, step: impl Future<Output = T>) -> Option<T> {
    let mut step = pin!(step);
    poll_fn(|context| if unsent.has_expired() { Poll::Ready(None) } else { step.as_mut().poll(context).map(Some) })
        .await
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use floorgate_model::Timestamp;

    use super::*;
    use crate::clock::{Clock, Deadline};

    #[tokio::test(start_paused = true)]
    async fn once_something_has_expired_unsent_no_further_step_writes_it() {
        let (clock, unsent) = (Clock::set_to(Timestamp::EPOCH), Unsent::default());
        unsent.push(Deadline::after(Duration::from_secs(60), &clock));
        assert_eq!(unless_expired(&unsent, std::future::ready(1)).await, Some(1));
        let mut wrote = false;
        let mut woken = false;
        let step = poll_fn(|_| {
            wrote |= std::mem::replace(&mut woken, true);
            Poll::<()>::Pending
        });
        let mut stepping = Box::pin(unless_expired(&unsent, step));
        assert!(futures_util::poll!(stepping.as_mut()).is_pending());
        clock.pass_boot(Duration::from_secs(3_600));
        assert_eq!(stepping.await, None);
        assert!(!wrote);
    }
}
