//! The judge: joins what senders, devices, the result topic and the table say, and names every broken promise.
//!
//! Pure; its own tests show that it does find each kind. Promises are numbered as in `docs/testing.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::evidence::{Book, Evidence, Gap, Outcome, Reading};

/// An order that left in time may be on its way this long on a busy machine.
pub const TRANSIT_MS: i64 = 1_000;
/// The daemon answers after this.
pub const START_MAX: Duration = Duration::from_secs(2);
/// It is back on a link this long after the link can carry.
pub const RETURN_MAX: Duration = Duration::from_secs(60);
/// CONNECTs are at least this far apart (a second, less what two clocks and a busy machine differ).
pub const CONNECT_APART: Duration = Duration::from_millis(950);

/// A broken promise.
#[derive(Debug, Clone, PartialEq)]
pub enum Broken {
    LostReading(String, u64),
    StoredTwice(String, u64),
    Invented(String, u64),
    DeclaredTooMuch { device: String, declared: u64, missing: u64 },
    Unbalanced(String, Book),
    Unaccounted { device: String, what: &'static str, book: u64, really: u64 },
    NotShown { device: String, shown: Option<u64>, last: u64 },
    Unreal { device: String, shown: Option<String>, real: String },
    WentBack { device: String, from: u64, to: u64 },
    NoRecord(String),
    NoResult(String),
    TwoOutcomes { id: String, outcomes: Vec<String> },
    ExecutedTwice { id: String, times: usize },
    ExecutedStale { id: String, late_ms: i64 },
    ExecutedThoughDenied { id: String, status: String },
    SucceededUndone(String),
    SlowStart(Duration),
    SlowReturn(Duration),
    ConnectsTooClose(Duration),
}

impl Broken {
    /// What is missing may still come; what happened cannot be undone.
    pub fn may_come_right(&self) -> bool {
        matches!(
            self,
            Self::LostReading(..) | Self::NotShown { .. } | Self::Unreal { .. } | Self::NoRecord(_) | Self::NoResult(_)
        )
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LostReading(device, n) => {
                write!(
                    f,
                    "G1: reading {n} of {device} was acknowledged, and is neither in the history nor declared lost"
                )
            }
            Self::StoredTwice(device, n) => write!(f, "G2: reading {n} of {device} is in the history twice"),
            Self::Invented(device, n) => write!(f, "G2: reading {n} of {device} is in the history; nobody sent it"),
            Self::DeclaredTooMuch { device, declared, missing } => {
                write!(f, "G2: {declared} readings of {device} are declared lost, {missing} are not in the history")
            }
            Self::Unbalanced(device, book) => {
                write!(
                    f,
                    "G2: {device} has accepted readings that are not delivered, stored or declared lost: {book:?}"
                )
            }
            Self::Unaccounted { device, what, book, really } => {
                write!(f, "G2: the books of {device} say {book} {what}, and it is {really}")
            }
            Self::NotShown { device, shown, last } => {
                write!(f, "G5: the item of {device} shows reading {shown:?}, the last acknowledged is {last}")
            }
            Self::Unreal { device, shown, real } => {
                write!(f, "G5: the item of {device} says that it is set to {shown:?}, and it is set to {real}")
            }
            Self::WentBack { device, from, to } => write!(f, "G5: shadow_version of {device} went from {from} to {to}"),
            Self::NoRecord(id) => {
                write!(f, "G1: command {id} was acknowledged and has no terminal status in the table")
            }
            Self::NoResult(id) => write!(f, "G1: command {id} was acknowledged and got no terminal result"),
            Self::TwoOutcomes { id, outcomes } => write!(f, "G1: command {id} ended more than once: {outcomes:?}"),
            Self::ExecutedTwice { id, times } => write!(f, "G3: command {id} was executed {times} times"),
            Self::ExecutedStale { id, late_ms } => {
                write!(f, "G4: command {id} was executed {late_ms} ms after its expiry")
            }
            Self::ExecutedThoughDenied { id, status } => {
                write!(f, "G3: command {id} ended as {status}, and the device had been told all the same")
            }
            Self::SucceededUndone(id) => write!(f, "G1: command {id} ended as succeeded, and no device did it"),
            Self::SlowStart(took) => write!(f, "G7: a start took {} ms", took.as_millis()),
            Self::SlowReturn(took) => write!(f, "G13: back on the link only after {} ms", took.as_millis()),
            Self::ConnectsTooClose(apart) => write!(f, "G13: two CONNECTs within {} ms", apart.as_millis()),
        }
    }
}

/// Every broken promise, in no particular order.
pub fn check(evidence: &Evidence) -> Vec<Broken> {
    let mut broken = Vec::new();
    readings(evidence, &mut broken);
    books(evidence, &mut broken);
    states(evidence, &mut broken);
    commands(evidence, &mut broken);
    broken.extend(evidence.starts.iter().filter(|took| **took > START_MAX).map(|took| Broken::SlowStart(*took)));
    broken.extend(evidence.returns.iter().filter(|took| **took > RETURN_MAX).map(|took| Broken::SlowReturn(*took)));
    let apart = evidence.connects.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    broken.extend(apart.filter(|apart| *apart < CONNECT_APART).map(Broken::ConnectsTooClose));
    broken
}

fn key(reading: &Reading) -> (&str, u64) {
    (&reading.device, reading.n)
}

fn readings(evidence: &Evidence, broken: &mut Vec<Broken>) {
    let sent: BTreeSet<_> = evidence.sent.iter().map(key).collect();
    let mut stored = BTreeSet::new();
    for reading in &evidence.history {
        let (device, n) = (reading.device.clone(), reading.n);
        if !sent.contains(&key(reading)) {
            broken.push(Broken::Invented(device, n));
        } else if !stored.insert(key(reading)) {
            broken.push(Broken::StoredTwice(device, n));
        }
    }
    // Each gap excuses as many readings of its time as it declares.
    let mut gaps: Vec<Gap> = evidence.gaps.clone();
    for reading in evidence.acknowledged.iter().filter(|reading| !stored.contains(&key(reading))) {
        let covers =
            |gap: &&mut Gap| gap.device == reading.device && gap.lost > 0 && (gap.from..=gap.to).contains(&reading.at);
        match gaps.iter_mut().find(covers) {
            Some(gap) => gap.lost -= 1,
            None => broken.push(Broken::LostReading(reading.device.clone(), reading.n)),
        }
    }
    // What was sent and not acknowledged may have been taken and lost all the same.
    let mut declared: BTreeMap<&str, u64> = BTreeMap::new();
    evidence.gaps.iter().for_each(|gap| *declared.entry(&gap.device).or_default() += gap.lost);
    for (device, declared) in declared {
        let missing = sent.iter().filter(|key| key.0 == device && !stored.contains(*key)).count() as u64;
        if declared > missing {
            broken.push(Broken::DeclaredTooMuch { device: device.to_owned(), declared, missing });
        }
    }
}

/// The gateway's own account: it balances, and is what the senders and the table know.
fn books(evidence: &Evidence, broken: &mut Vec<Broken>) {
    for (device, book) in &evidence.books {
        if book.delivered + book.stored + book.lost != book.accepted {
            broken.push(Broken::Unbalanced(device.clone(), *book));
        }
        let count = |readings: &[Reading]| {
            let numbers: BTreeSet<u64> =
                readings.iter().filter(|reading| reading.device == *device).map(|reading| reading.n).collect();
            numbers.len() as u64
        };
        let (acknowledged, sent) = (count(&evidence.acknowledged), count(&evidence.sent));
        let mut must = |holds: bool, what: &'static str, book: u64, really: u64| {
            if !holds {
                broken.push(Broken::Unaccounted { device: device.clone(), what, book, really });
            }
        };
        must(book.accepted >= acknowledged, "accepted at most", book.accepted, acknowledged);
        must(book.accepted <= sent, "accepted at least", book.accepted, sent);
        let history = count(&evidence.history);
        must(book.delivered <= history, "delivered", book.delivered, history);
    }
}

fn states(evidence: &Evidence, broken: &mut Vec<Broken>) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for reading in &evidence.acknowledged {
        let newest = last.entry(&reading.device).or_default();
        *newest = reading.n.max(*newest);
    }
    for (device, last) in last {
        let shown = evidence.shown.get(device).copied();
        if shown.is_none_or(|shown| shown < last) {
            broken.push(Broken::NotShown { device: device.to_owned(), shown, last });
        }
    }
    for (device, real) in &evidence.configured {
        let shown = evidence.shown_configured.get(device);
        if shown != Some(real) {
            broken.push(Broken::Unreal { device: device.clone(), shown: shown.cloned(), real: real.clone() });
        }
    }
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for (device, version) in &evidence.versions {
        let before = seen.entry(device).or_default();
        if version < before {
            broken.push(Broken::WentBack { device: device.clone(), from: *before, to: *version });
        }
        *before = *version;
    }
}

fn commands(evidence: &Evidence, broken: &mut Vec<Broken>) {
    for asked in evidence.asked.iter().filter(|asked| !evidence.forgotten.contains(&asked.id)) {
        let ends = |outcomes: &[Outcome]| -> Vec<Outcome> {
            outcomes.iter().filter(|outcome| outcome.id == asked.id && outcome.is_terminal()).cloned().collect()
        };
        let (recorded, told) = (ends(&evidence.records), ends(&evidence.results));
        if recorded.is_empty() {
            broken.push(Broken::NoRecord(asked.id.clone()));
        }
        if told.is_empty() {
            broken.push(Broken::NoResult(asked.id.clone()));
        }
        let all = recorded.iter().chain(&told);
        let outcomes: BTreeSet<String> = all.clone().map(|outcome| outcome.status.clone()).collect();
        if outcomes.len() > 1 {
            broken.push(Broken::TwoOutcomes { id: asked.id.clone(), outcomes: outcomes.into_iter().collect() });
        }
        let executed: Vec<_> = evidence.executed.iter().filter(|executed| executed.id == asked.id).collect();
        if let Some(outcome) = all.clone().find(|outcome| outcome.denies() && !executed.is_empty()) {
            let status = format!("{} {}", outcome.status, outcome.reason);
            broken.push(Broken::ExecutedThoughDenied { id: asked.id.clone(), status });
        }
        if all.clone().any(|outcome| outcome.status == "succeeded") && !executed.iter().any(|executed| executed.done) {
            broken.push(Broken::SucceededUndone(asked.id.clone()));
        }
    }
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for executed in &evidence.executed {
        *times.entry(&executed.id).or_default() += 1;
        let asked = evidence.asked.iter().find(|asked| asked.id == executed.id);
        let late_ms = asked.map_or(0, |asked| executed.at - asked.expires_at);
        if late_ms > TRANSIT_MS {
            broken.push(Broken::ExecutedStale { id: executed.id.clone(), late_ms });
        }
    }
    let repeatable = |id: &str| evidence.asked.iter().any(|asked| asked.id == id && asked.repeatable);
    let twice = times.into_iter().filter(|(id, times)| *times > 1 && !repeatable(id));
    broken.extend(twice.map(|(id, times)| Broken::ExecutedTwice { id: id.to_owned(), times }));
}

#[cfg(test)]
mod tests {
    use super::super::evidence::{Asked, Executed};
    use super::*;

    fn reading(n: u64) -> Reading {
        Reading { device: "S".into(), n, at: 1_000 + i64::try_from(n).unwrap() }
    }

    fn outcome(status: &str) -> Outcome {
        Outcome { id: "c".into(), status: status.into(), reason: String::new() }
    }

    /// Three readings and a command, all as it should be.
    fn in_order() -> Evidence {
        let readings: Vec<_> = (0..3).map(reading).collect();
        Evidence {
            sent: readings.clone(),
            acknowledged: readings.clone(),
            history: readings,
            books: BTreeMap::from([("S".into(), Book { accepted: 3, delivered: 1, stored: 2, lost: 0 })]),
            asked: vec![Asked { id: "c".into(), expires_at: 50_000, repeatable: false }],
            executed: vec![Executed { id: "c".into(), at: 40_000, done: true }],
            results: vec![outcome("in_progress"), outcome("succeeded"), outcome("succeeded")],
            records: vec![outcome("succeeded")],
            versions: vec![("S".into(), 1), ("S".into(), 1), ("S".into(), 4)],
            shown: BTreeMap::from([("S".into(), 2)]),
            starts: vec![Duration::from_millis(100)],
            connects: vec![Duration::ZERO, Duration::from_secs(1)],
            returns: vec![Duration::from_secs(2)],
            ..Evidence::default()
        }
    }

    fn found(change: impl FnOnce(&mut Evidence)) -> Vec<Broken> {
        let mut evidence = in_order();
        change(&mut evidence);
        check(&evidence)
    }

    #[test]
    fn a_run_in_order_breaks_no_promise() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn a_lost_reading_is_found_and_a_declared_one_is_excused_once() {
        let lose = |evidence: &mut Evidence, n: u64| evidence.history.retain(|reading| reading.n != n);
        assert_eq!(found(|e| lose(e, 1)), [Broken::LostReading("S".into(), 1)]);
        let gap = |from, to, lost| Gap { device: "S".into(), from, to, lost, reason: "thinned".into() };
        let declared = |gap: Gap| {
            found(|e| {
                lose(e, 0);
                lose(e, 1);
                e.gaps.push(gap);
            })
        };
        assert_eq!(declared(gap(1_000, 1_001, 2)), []);
        assert_eq!(declared(gap(1_000, 1_001, 1)), [Broken::LostReading("S".into(), 1)], "fewer declared than lost");
        assert_eq!(declared(gap(1_000, 1_000, 2)), [Broken::LostReading("S".into(), 1)], "another time declared");
        let too_much = Broken::DeclaredTooMuch { device: "S".into(), declared: 3, missing: 2 };
        assert_eq!(declared(gap(1_000, 1_001, 3)), [too_much]);
    }

    #[test]
    fn a_reading_that_is_stored_twice_or_that_nobody_sent_is_found() {
        assert_eq!(found(|e| e.history.push(reading(1))), [Broken::StoredTwice("S".into(), 1)]);
        assert_eq!(found(|e| e.history.push(reading(9))), [Broken::Invented("S".into(), 9)]);
    }

    #[test]
    fn books_that_do_not_balance_or_say_what_is_not_so_are_found() {
        let found = |accepted, delivered, stored, lost| {
            let book = Book { accepted, delivered, stored, lost };
            let keep = |e: &mut Evidence| {
                e.books.insert("S".into(), book);
            };
            (book, found(keep))
        };
        assert_eq!(found(3, 3, 0, 0).1, []);
        let (book, broken) = found(3, 1, 1, 0);
        assert_eq!(broken, [Broken::Unbalanced("S".into(), book)]);
        let untrue = |what, book, really| Broken::Unaccounted { device: "S".into(), what, book, really };
        assert_eq!(found(2, 2, 0, 0).1, [untrue("accepted at most", 2, 3)]);
        assert_eq!(found(4, 3, 0, 1).1, [untrue("accepted at least", 4, 3)]);
        assert_eq!(found(3, 2, 0, 1).1, []);
        let not_there = |e: &mut Evidence| {
            e.history.pop();
            e.acknowledged.pop();
            e.shown.insert("S".into(), 1);
            e.books.insert("S".into(), Book { accepted: 3, delivered: 3, stored: 0, lost: 0 });
        };
        assert_eq!(self::found(not_there), [untrue("delivered", 3, 2)]);
    }

    #[test]
    fn a_table_that_goes_backwards_or_shows_something_old_is_found() {
        let back = [Broken::WentBack { device: "S".into(), from: 4, to: 3 }];
        assert_eq!(found(|e| e.versions.push(("S".into(), 3))), back);
        let old = [Broken::NotShown { device: "S".into(), shown: Some(1), last: 2 }];
        assert_eq!(found(|e| e.shown = BTreeMap::from([("S".into(), 1)])), old);
        assert_eq!(found(|e| e.shown.clear()).len(), 1);
        let unreal = Broken::Unreal { device: "V".into(), shown: None, real: "5".into() };
        assert_eq!(found(|e| drop(e.configured.insert("V".into(), "5".into()))), [unreal]);
    }

    #[test]
    fn a_command_that_runs_twice_or_too_late_is_found() {
        let again = |at| Executed { id: "c".into(), at, done: true };
        assert_eq!(found(|e| e.executed.push(again(41_000))), [Broken::ExecutedTwice { id: "c".into(), times: 2 }]);
        let repeatable = |e: &mut Evidence| {
            e.asked[0].repeatable = true;
            e.executed.push(again(41_000));
        };
        assert_eq!(found(repeatable), []);
        let late = [Broken::ExecutedStale { id: "c".into(), late_ms: TRANSIT_MS + 1 }];
        assert_eq!(found(|e| e.executed[0].at = 50_001 + TRANSIT_MS), late);
        assert_eq!(found(|e| e.executed[0].at = 50_000 + TRANSIT_MS), []);
    }

    #[test]
    fn an_outcome_that_is_missing_double_or_untrue_is_found() {
        assert_eq!(found(|e| e.records = vec![outcome("in_progress")]), [Broken::NoRecord("c".into())]);
        assert_eq!(found(|e| e.results.truncate(1)), [Broken::NoResult("c".into())]);
        let forgotten = |e: &mut Evidence| {
            e.records.clear();
            e.forgotten.insert("c".into());
            e.executed.push(Executed { id: "c".into(), at: 41_000, done: true });
        };
        assert_eq!(found(forgotten), [Broken::ExecutedTwice { id: "c".into(), times: 2 }], "that is never excused");
        let both = Broken::TwoOutcomes { id: "c".into(), outcomes: vec!["failed".into(), "succeeded".into()] };
        assert_eq!(found(|e| e.results.push(outcome("failed"))), [both]);
        let denied = |e: &mut Evidence| {
            e.records = vec![outcome("expired")];
            e.results = vec![outcome("expired")];
        };
        assert!(matches!(found(denied)[..], [Broken::ExecutedThoughDenied { .. }]));
        assert_eq!(found(|e| e.executed[0].done = false), [Broken::SucceededUndone("c".into())]);
        assert_eq!(found(|e| e.executed.clear()), [Broken::SucceededUndone("c".into())]);
    }

    #[test]
    fn slow_starts_slow_returns_and_hasty_connects_are_found() {
        let slow = START_MAX + Duration::from_millis(1);
        assert_eq!(found(|e| e.starts.push(slow)), [Broken::SlowStart(slow)]);
        let slow = RETURN_MAX + Duration::from_millis(1);
        assert_eq!(found(|e| e.returns.push(slow)), [Broken::SlowReturn(slow)]);
        let hasty = found(|e| e.connects.push(Duration::from_millis(1_200)));
        assert_eq!(hasty, [Broken::ConnectsTooClose(Duration::from_millis(200))]);
    }

    #[test]
    fn only_what_is_missing_may_come_right() {
        assert!(Broken::NoRecord("c".into()).may_come_right());
        assert!(!Broken::ExecutedTwice { id: "c".into(), times: 2 }.may_come_right());
        assert!(!Broken::WentBack { device: "S".into(), from: 2, to: 1 }.may_come_right());
    }
}
