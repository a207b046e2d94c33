//! What travels from the handle to the writer.

use std::time::Instant;

use floorgate_model::Loss;
use tokio::sync::oneshot;

use super::report::TelemetryReport;
use super::samples::SampleReply;
use super::terms::StoreError;
use super::turn::Turn;

/// One request, with its sender's monotonic time (paused in tests, as the sender's is).
pub(super) struct Request {
    pub(super) now: Instant,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// A live reading: waits for company.
    Sample(Box<TelemetryReport>, SampleReply),
    /// Readings that were never stored: declared at once.
    Lost(Vec<Loss>, oneshot::Sender<Result<(), StoreError>>),
    /// Anything else that has a turn.
    Work(Box<dyn Work>, Pace),
    /// One step of the timers.
    Tick(oneshot::Sender<Result<(), StoreError>>),
    /// The last one.
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// When a request's changes must be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Before the answer.
    AtOnce,
    /// Within a second: it only reads, or may be repeated after a crash.
    Lazy,
}

/// A piece of work and whoever waits for it.
pub(super) trait Work: Send {
    /// Does it, inside the transaction; the answer is kept back.
    fn run(&mut self, turn: &mut Turn<'_>) -> Result<(), StoreError>;
    /// Gives the answer, or the error that undid it.
    fn reply(self: Box<Self>, outcome: Result<(), StoreError>);
}

/// A closure with its answer.
pub(super) struct Ask<T, F> {
    work: Option<F>,
    answer: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Ask<T, F>
where
    F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError>,
{
    pub(super) fn new(work: F) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { work: Some(work), answer: None, reply }, answer)
    }
}

impl<T, F> Work for Ask<T, F>
where
    T: Send,
    F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        if let Some(work) = self.work.take() {
            self.answer = Some(work(turn)?);
        }
        Ok(())
    }

    fn reply(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { answer, reply, .. } = *self;
        // Whoever no longer waits wants no answer.
        let _ = reply.send(outcome.and_then(|()| answer.ok_or(StoreError::Closed)));
    }
}
