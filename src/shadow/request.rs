//! What travels from the handle to the writer.

use std::time::Instant;

use floorgate_model::Loss;
use tokio::sync::oneshot;

use super::glance::Glance;
use super::report::TelemetryReport;
use super::samples::SampleReply;
use super::terms::{Attachment, StoreError};
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
    /// What waits for company waits no longer.
    Hasten,
    /// Anything else that has a turn.
    Work(Box<dyn Work>, Pace),
    /// Other devices are attached from now on.
    Attach(Vec<Attachment>, oneshot::Sender<Result<(), StoreError>>),
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
    /// Does what can be done while the file is out of use; `None` if nothing can. `tried`: what
    /// it did in its turn may or may not be on the disk.
    fn glance(&mut self, glance: &mut Glance<'_>, tried: bool) -> Option<Result<(), StoreError>>;
    /// Gives the answer, or the error that undid it.
    fn reply(self: Box<Self>, outcome: Result<(), StoreError>);
}

/// Something done in memory alone.
type Look<T> = Box<dyn FnMut(&mut Glance<'_>) -> Result<T, StoreError> + Send>;

/// What a request does while the file is out of use.
pub(super) struct Instead<T> {
    /// It may also be done after a turn that failed: it only looks.
    pub(super) only_looks: bool,
    pub(super) work: Look<T>,
}

/// A closure with its answer.
pub(super) struct Ask<T, F> {
    work: Option<F>,
    instead: Option<Instead<T>>,
    answer: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Ask<T, F>
where
    F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError>,
{
    pub(super) fn new(work: F, instead: Option<Instead<T>>) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { work: Some(work), instead, answer: None, reply }, answer)
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

    fn glance(&mut self, glance: &mut Glance<'_>, tried: bool) -> Option<Result<(), StoreError>> {
        let instead = self.instead.as_mut().filter(|instead| !tried || instead.only_looks)?;
        Some((instead.work)(glance).map(|answer| self.answer = Some(answer)))
    }

    fn reply(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { answer, reply, .. } = *self;
        // Whoever no longer waits wants no answer.
        let _ = reply.send(outcome.and_then(|()| answer.ok_or(StoreError::Closed)));
    }
}
