//! What a client does not read.
//!
//! A connection whose client stops reading would hold its place for ever: the answer's tool is at its end, and nothing else
//! waits for the client. From the first byte that cannot be written, [`WRITE_WITHIN`] is left for everything that waits to leave,
//! however slowly it trickles; then writing fails, and the connection ends.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long an answer that the client does not take at once may take to leave: the largest, about 3 MB, at 50 kB/s.
pub(super) const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// A stream on which writing takes only so long.
pub(super) struct Outgoing<S> {
    stream: S,
    /// Runs while something waits to leave.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Outgoing<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, late: None }
    }

    /// One attempt to write; while it cannot, time runs.
    fn attempt<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Result<T>>,
    ) -> Poll<Result<T>> {
        let written = write(Pin::new(&mut self.stream), context);
        if written.is_ready() && self.late.is_none() {
            return written;
        }
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_WITHIN)));
        if late.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client does not read")));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outgoing<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outgoing<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.get_mut().attempt(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.get_mut().attempt(context, |stream, context| stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.attempt(context, AsyncWrite::poll_flush))?;
        // hyper flushes when it has nothing more to write.
        this.late = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().attempt(context, AsyncWrite::poll_shutdown)
    }
}
