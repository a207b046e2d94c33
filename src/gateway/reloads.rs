//! Who asks for a reload, and who is told what became of it.
//!
//! SIGHUP asks and is told nothing; `floorgate reload` asks over the control socket and waits for the report. Everybody who
//! asked before a reload began is answered by that one, because it reads the files after they asked; who asks while it runs
//! is answered by the next. Who goes away meanwhile takes nothing with it: the reload is done all the same.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::control::{CONNECTIONS_MAX, ReloadReport};

type Answer = oneshot::Sender<ReloadReport>;

/// Asks for a reload. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Asking(mpsc::Sender<Answer>);

/// Hears everybody who asks.
#[derive(Debug)]
pub(super) struct Reloads {
    hang_up: Signal,
    asked: mpsc::Receiver<Answer>,
}

/// Those whom one reload answers.
#[derive(Debug)]
pub(super) struct Asked(Vec<Answer>);

/// Both ends. From now on SIGHUP does not end the process.
pub(super) fn line() -> std::io::Result<(Asking, Reloads)> {
    // Each client of the control socket waits for one at a time.
    let (asking, asked) = mpsc::channel(CONNECTIONS_MAX);
    Ok((Asking(asking), Reloads { hang_up: signal(SignalKind::hangup())?, asked }))
}

impl Asking {
    /// Asks and waits for what became of it; `None` if the gateway stops before. Cancel safe.
    pub(super) async fn ask(&self) -> Option<ReloadReport> {
        let (answer, report) = oneshot::channel();
        self.0.send(answer).await.ok()?;
        report.await.ok()
    }
}

impl Reloads {
    /// Waits until somebody asks. Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        let first = tokio::select! {
            _ = self.hang_up.recv() => None,
            asked = self.asked.recv() => asked,
        };
        let mut all: Vec<_> = first.into_iter().collect();
        while let Ok(more) = self.asked.try_recv() {
            all.push(more);
        }
        Asked(all)
    }
}

impl Asked {
    /// Tells them.
    pub(super) fn answer(self, report: Option<ReloadReport>) {
        let Some(report) = report else { return };
        for asked in self.0 {
            // Who went away has no ear for it.
            let _ = asked.send(report.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floorgate_model::Timestamp;

    fn report(at: i64) -> ReloadReport {
        let at = Timestamp::from_millis(at);
        ReloadReport {
            at,
            applied: true,
            changes: String::new(),
            problems: Vec::new(),
            refused_for: None,
            needs_restart: Vec::new(),
        }
    }

    #[tokio::test]
    async fn one_reload_answers_all_who_asked_before_it_and_the_next_who_asked_while_it_ran() {
        let (asking, mut reloads) = line().unwrap();
        let (one, another) = (asking.clone(), asking.clone());
        let before = tokio::spawn(async move { tokio::join!(one.ask(), another.ask()) });
        // Both are in the line before the reload begins: the runtime has one thread, and that task runs to its waiting.
        tokio::task::yield_now().await;
        let asked = reloads.next().await;
        let while_it_ran = tokio::spawn(async move { asking.ask().await });
        tokio::task::yield_now().await;
        asked.answer(Some(report(1)));
        assert_eq!(before.await.unwrap(), (Some(report(1)), Some(report(1))));
        reloads.next().await.answer(Some(report(2)));
        assert_eq!(while_it_ran.await.unwrap(), Some(report(2)));
    }

    #[tokio::test]
    async fn a_gateway_that_stops_keeps_nobody_waiting() {
        let (asking, reloads) = line().unwrap();
        let waits = tokio::spawn({
            let asking = asking.clone();
            async move { asking.ask().await }
        });
        tokio::task::yield_now().await;
        drop(reloads);
        assert_eq!(waits.await.unwrap(), None);
        assert_eq!(asking.ask().await, None);
    }
}
