//! The hourly verified backup of `state.db`.
//!
//! A thread of its own takes it, over a connection of its own: one snapshot, copied in steps of [`PAGES_PER_STEP`]
//! pages, checked in full (`integrity_check`, indexes included), flushed, and only then put in the place of the last
//! one, which is kept as the one before. The writer never waits for it: readers do not hold up a writer in WAL mode.
//!
//! The check is also the one that sees the whole of a file that is too large to be checked at every start.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use floorgate_model::Timestamp;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, InterruptHandle, OpenFlags};

use super::super::words::is_damage;
use super::aside;

/// Between two backups.
pub(in crate::shadow) const BACKUP_INTERVAL: Duration = Duration::from_secs(3_600);
/// From the start, or from a rescue, to the first.
const FIRST_AFTER: Duration = Duration::from_secs(10);
/// After one that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
/// Pages copied between two looks whether to stop.
const PAGES_PER_STEP: i32 = 256;
/// The newest, and the one before.
pub(in crate::shadow) const BACKUPS_KEPT: [&str; 2] = [".backup", ".backup-before"];

/// What a finished backup says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::shadow) enum Outcome {
    /// It is in place.
    Done,
    /// The copy is damaged, and so is what it was taken from.
    SourceDamaged(String),
    /// It could not be taken.
    Failed(String),
}

/// Takes backups when they are due.
#[derive(Debug)]
pub(in crate::shadow) struct Backups {
    path: PathBuf,
    due: Instant,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<Outcome>,
    stop: Arc<Stop>,
    /// The file it copies is no longer in its place: what it finds there says nothing.
    outlived: bool,
}

#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    /// Ends a check that has begun.
    interrupt: Mutex<Option<InterruptHandle>>,
}

impl Stop {
    fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
        if let Some(handle) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            handle.interrupt();
        }
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Backups {
    pub(in crate::shadow) fn of(path: &Path, now: Instant) -> Self {
        let due = now.checked_add(FIRST_AFTER).unwrap_or(now);
        Self { path: path.to_owned(), due, running: None }
    }

    /// Begins one if it is due, and answers how the last one ended, once.
    pub(in crate::shadow) fn step(&mut self, now: Instant) -> Option<Outcome> {
        if let Some(running) = self.running.take_if(|running| running.thread.is_finished()) {
            let outcome = running.thread.join().unwrap_or_else(|_| Outcome::Failed("its thread ended".to_owned()));
            if running.outlived {
                return None;
            }
            let wait = if outcome == Outcome::Done { BACKUP_INTERVAL } else { AGAIN_AFTER };
            self.due = now.checked_add(wait).unwrap_or(now);
            return Some(outcome);
        }
        if self.running.is_none() && now >= self.due {
            let (path, stop) = (self.path.clone(), Arc::new(Stop::default()));
            let watch = Arc::clone(&stop);
            let run = move || take(&path, &watch);
            match std::thread::Builder::new().name("backup".to_owned()).spawn(run) {
                Ok(thread) => self.running = Some(Running { thread, stop, outlived: false }),
                Err(cause) => {
                    self.due = now.checked_add(AGAIN_AFTER).unwrap_or(now);
                    return Some(Outcome::Failed(cause.to_string()));
                }
            }
        }
        None
    }

    /// One is due soon: the file is another than the last one was taken of. One that still runs is told to end, and
    /// whatever it says of the file from before is not heard.
    pub(in crate::shadow) fn soon(&mut self, now: Instant) {
        self.due = now.checked_add(FIRST_AFTER).unwrap_or(now);
        if let Some(running) = &mut self.running {
            running.outlived = true;
            running.stop.ask();
        }
    }

    /// Ends one that runs; nothing touches the folder afterwards.
    pub(in crate::shadow) fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.stop.ask();
        // A panic has told of itself.
        let _ = running.thread.join();
    }
}

impl Drop for Backups {
    fn drop(&mut self) {
        self.stop();
    }
}

/// When the newest backup was put in place, by the wall clock of then.
pub(in crate::shadow) fn newest_at(path: &Path) -> Option<Timestamp> {
    let modified = std::fs::metadata(aside::beside(path, BACKUPS_KEPT[0])).ok()?.modified().ok()?;
    Some(Timestamp::from_millis(jiff::Timestamp::try_from(modified).ok()?.as_millisecond()))
}

/// Bytes of the backups.
pub(in crate::shadow) fn bytes(path: &Path) -> u64 {
    let bytes = |suffix: &str| std::fs::metadata(aside::beside(path, suffix)).map_or(0, |metadata| metadata.len());
    BACKUPS_KEPT.iter().map(|suffix| bytes(suffix)).sum()
}

/// The newest backup that passes its check.
pub(in crate::shadow) fn verified(path: &Path) -> Option<PathBuf> {
    let candidates = BACKUPS_KEPT.iter().map(|suffix| aside::beside(path, suffix)).filter(|backup| backup.is_file());
    let mut sound = candidates.filter(|backup| match open(backup).and_then(|copy| check(&copy, None)) {
        Ok(None) => true,
        Ok(Some(cause)) => {
            tracing::warn!(backup = %backup.display(), cause, "a backup is damaged; an older one is looked for");
            false
        }
        Err(cause) => {
            tracing::warn!(backup = %backup.display(), %cause, "a backup cannot be read; an older one is looked for");
            false
        }
    });
    sound.next()
}

/// The first thing wrong in a database, in full depth; in one table alone if it is named.
pub(in crate::shadow) fn check(connection: &Connection, table: Option<&str>) -> rusqlite::Result<Option<String>> {
    let argument = table.map_or_else(|| "1".to_owned(), |table| format!("'{table}'"));
    let found = connection.query_row(&format!("PRAGMA integrity_check({argument})"), [], |row| row.get::<_, String>(0));
    match found {
        Ok(text) if text == "ok" => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(cause) if is_damage(&cause) => Ok(Some(cause.to_string())),
        Err(cause) => Err(cause),
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

fn take(path: &Path, stop: &Stop) -> Outcome {
    let new = aside::beside(path, ".backup.new");
    let taken = copy(path, &new, stop).and_then(|found| match found {
        Some(cause) => Ok(Outcome::SourceDamaged(cause)),
        None => put(path, &new).map(|()| Outcome::Done).map_err(|cause| cause.to_string()),
    });
    let outcome = taken.unwrap_or_else(Outcome::Failed);
    if outcome != Outcome::Done {
        let _ = std::fs::remove_file(&new);
    }
    outcome
}

/// Answers what is wrong in the copy.
fn copy(path: &Path, new: &Path, stop: &Stop) -> Result<Option<String>, String> {
    let text = |cause: rusqlite::Error| cause.to_string();
    let _ = std::fs::remove_file(new);
    let source = open(path).map_err(text)?;
    source.busy_timeout(Duration::from_secs(2)).map_err(text)?;
    // One snapshot through all steps.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema").map_err(text)?;
    let mut target = Connection::open(new).map_err(text)?;
    target.pragma_update(None, "synchronous", "OFF").map_err(text)?;
    {
        let backup = Backup::new(&source, &mut target).map_err(text)?;
        loop {
            match backup.step(PAGES_PER_STEP) {
                Ok(StepResult::Done) => break,
                Ok(StepResult::More) if !stop.asked.load(Ordering::Relaxed) => {}
                Ok(_) => return Err("it was stopped, or the file is busy".to_owned()),
                Err(cause) if is_damage(&cause) => return Ok(Some(cause.to_string())),
                Err(cause) => return Err(cause.to_string()),
            }
        }
    }
    drop(source);
    // It shall be one file, without a log.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(text)?;
    *stop.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(target.get_interrupt_handle());
    if stop.asked.load(Ordering::Relaxed) {
        return Err("it was stopped".to_owned());
    }
    check(&target, None).map_err(text)
}

/// Flushes it and puts it in the place of the last one.
fn put(path: &Path, new: &Path) -> std::io::Result<()> {
    File::open(new)?.sync_all()?;
    let [newest, before] = BACKUPS_KEPT.map(|suffix| aside::beside(path, suffix));
    match std::fs::rename(&newest, &before) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    std::fs::rename(new, &newest)?;
    aside::sync_folder(path)
}
