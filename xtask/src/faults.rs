//! The fault suite: the outside harness of `tests/faults`, the suites that inject faults from inside, and the matrix of
//! what came of them.

mod matrix;
mod rows;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::disk;
use crate::tools::{self, cargo};
use rows::{SUITES, Suite};

/// Kills that the harness makes at least in [`KILLS_WITHIN`] minutes; with fewer, nothing was shown.
const KILLS_MIN: u64 = 50;
/// A shorter run is for looking at something, and shows less.
const KILLS_WITHIN: u64 = 10;

/// What `cargo xtask faults` was asked.
#[derive(Debug)]
pub(crate) struct Asked {
    minutes: u64,
    seed: u64,
    only: Option<String>,
    /// Leave out what a plain `cargo test` has just run.
    after_tests: bool,
    matrix: PathBuf,
}

impl Asked {
    /// From the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut asked = Self {
            minutes: 10,
            seed: RandomState::new().hash_one("faults") >> 32,
            only: None,
            after_tests: false,
            matrix: tools::root().join("docs/fault-matrix.md"),
        };
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            if option == "--after-tests" {
                asked.after_tests = true;
                continue;
            }
            let value = rest.next().with_context(|| format!("{option} wants a value"))?;
            let number = || value.parse().with_context(|| format!("{option} wants a number, not {value:?}"));
            match option.as_str() {
                "--minutes" => asked.minutes = number()?,
                "--seed" => asked.seed = number()?,
                "--only" => asked.only = Some(value.clone()),
                "--matrix" => asked.matrix = PathBuf::from(value),
                _ => bail!("faults knows --minutes, --seed, --only, --matrix and --after-tests, not {option}"),
            }
        }
        Ok(asked)
    }
}

/// Runs and good runs, and a note.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Outcome {
    runs: u64,
    ok: u64,
    note: String,
}

/// Name → outcome, from the closing lines of some output.
type Outcomes = BTreeMap<String, Outcome>;

/// `faults: NAME runs=N ok=N NOTE`.
fn closing_line(line: &str) -> Option<(String, Outcome)> {
    let mut words = line.strip_prefix("faults: ")?.splitn(4, ' ');
    let name = words.next()?.to_owned();
    let runs = words.next()?.strip_prefix("runs=")?.parse().ok()?;
    let ok = words.next()?.strip_prefix("ok=")?.trim().parse().ok()?;
    Some((name, Outcome { runs, ok, note: words.next().unwrap_or_default().trim().to_owned() }))
}

/// `test result: ok. 12 passed; 0 failed; …` → passed, failed.
fn test_result(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts.split("; ").map(|part| part.split(' ').next().and_then(|number| number.parse().ok()));
    Some((numbers.next()??, numbers.next()??))
}

/// Runs a test command, its output to ours; answers whether it passed, its closing lines, and its tests.
fn listen(command: &mut Command) -> Result<(bool, Outcomes, (u64, u64))> {
    let shown = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {shown}"))?;
    let (mut outcomes, mut tests) = (Outcomes::new(), (0, 0));
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        outcomes.extend(closing_line(&line));
        if let Some((passed, failed)) = test_result(&line) {
            tests = (tests.0 + passed, tests.1 + failed);
        }
    }
    Ok((child.wait()?.success(), outcomes, tests))
}

/// A row of the matrix: the fault, the promises, what came of it.
type Row = (String, &'static str, Outcome);

/// The harness for `minutes`, then every other suite; writes the matrix; fails if anything did.
///
/// # Errors
/// If a suite cannot be run, a promise is broken, or the matrix cannot be written.
pub(crate) fn faults(asked: &Asked) -> Result<()> {
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    println!("seed {}", asked.seed);
    if !SUITES.iter().any(|suite| asked.only.as_deref() == Some(suite.name)) && !scenarios(asked, &mut rows)? {
        failed.push("the harness");
    }
    let chosen = |suite: &&Suite| match &asked.only {
        Some(only) => only == suite.name,
        None => !(asked.after_tests && suite.tested),
    };
    for suite in SUITES.iter().filter(chosen) {
        let (passed, outcome) = one(suite, asked.seed)?;
        if !passed {
            failed.push(suite.name);
        }
        println!("suite {}: runs={} ok={} {}", suite.name, outcome.runs, outcome.ok, outcome.note);
        rows.push((suite.fault.to_owned(), suite.invariant, outcome));
    }
    matrix::write_matrix(&asked.matrix, &rows)?;
    println!("{} rows in {}", rows.len(), asked.matrix.display());
    if failed.is_empty() { Ok(()) } else { bail!("failed: {} (--seed {})", failed.join(", "), asked.seed) }
}

/// Runs the harness; answers whether every promise held.
fn scenarios(asked: &Asked, rows: &mut Vec<Row>) -> Result<bool> {
    let mut harness = cargo();
    harness.args(["test", "--features", "suites,fail_points", "--test", "faults", "--", "--nocapture"]);
    harness.env("FLOORGATE_FAULT_MINUTES", asked.minutes.to_string());
    harness.env("FLOORGATE_FAULT_SEED", asked.seed.to_string());
    harness.envs(asked.only.as_ref().map(|only| ("FLOORGATE_FAULT_ONLY", only)));
    let (passed, outcomes, _) = listen(&mut harness)?;
    let enough = enough_kills(asked, &outcomes);
    for (name, outcome) in outcomes {
        let (fault, invariant) = rows::in_words(&name);
        rows.push((fault, invariant, outcome));
    }
    enough?;
    Ok(passed)
}

/// How often the daemon was killed without a word.
fn kills(outcomes: &Outcomes) -> u64 {
    let is_kill = |name: &str| matches!(name, "kills" | "first-start") || name.starts_with("fail-points/");
    outcomes.iter().filter(|(name, _)| is_kill(name)).map(|(_, outcome)| outcome.runs).sum()
}

/// # Errors
/// A whole run of [`KILLS_WITHIN`] minutes or more has made fewer than [`KILLS_MIN`] kills.
fn enough_kills(asked: &Asked, outcomes: &Outcomes) -> Result<()> {
    let made = kills(outcomes);
    println!("{made} kills");
    if asked.only.is_some() || asked.minutes < KILLS_WITHIN || made >= KILLS_MIN {
        return Ok(());
    }
    bail!("only {made} kills in {} minutes, and {KILLS_MIN} are wanted (--seed {})", asked.minutes, asked.seed)
}

/// Runs one suite; answers whether it passed, or could not be run here at all, and what is said of it.
fn one(suite: &Suite, seed: u64) -> Result<(bool, Outcome)> {
    let not_run = |note: String| Ok((true, Outcome { note, ..Outcome::default() }));
    if !suite.exists() {
        return not_run("there is no such target".to_owned());
    }
    let folder = tempfile::tempdir()?;
    let mounted = match suite.wants_mount().then(|| disk::mounted(folder.path())).transpose() {
        Ok(mounted) => mounted,
        Err(why) => return not_run(format!("it wants root and loop devices: {why}")),
    };
    let mount = mounted.as_ref().map(disk::Mounted::path);
    let (passed, outcomes, (good, bad)) = listen(&mut suite.command(seed, mount))?;
    let sum = outcomes.into_values().reduce(|all, one| Outcome {
        runs: all.runs + one.runs,
        ok: all.ok + one.ok,
        note: [all.note, one.note].join(" ").trim().to_owned(),
    });
    let mut outcome = sum.unwrap_or_else(|| Outcome { runs: good + bad, ok: good, note: String::new() });
    if good + bad == 0 {
        outcome.note = if passed { "no such test" } else { "it does not build, or was ended" }.to_owned();
    } else if !passed && outcome.ok == outcome.runs {
        // What printed its closing line may still be wrong elsewhere.
        outcome = Outcome { runs: outcome.runs + bad, note: format!("{bad} tests failed"), ..outcome };
    }
    Ok((passed && good > 0, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_ten_minutes_with_fewer_than_fifty_kills_fails() {
        let outcomes = |kills: u64| -> Outcomes {
            let outcome = |runs| Outcome { runs, ok: runs, note: String::new() };
            let rows = [("kills", kills), ("fail-points/after-claim", 10), ("first-start", 5), ("table/500", 90)];
            rows.into_iter().map(|(name, runs)| (name.to_owned(), outcome(runs))).collect()
        };
        let asked =
            |words: &[&str]| Asked::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).unwrap();
        assert_eq!(kills(&outcomes(34)), 49);
        assert!(enough_kills(&asked(&[]), &outcomes(34)).is_err());
        assert!(enough_kills(&asked(&[]), &outcomes(35)).is_ok());
        assert!(enough_kills(&asked(&["--minutes", "2"]), &outcomes(0)).is_ok());
        assert!(enough_kills(&asked(&["--only", "table"]), &outcomes(0)).is_ok());
    }

    #[test]
    fn closing_lines_are_read_and_others_are_not() {
        let line = "faults: table/slow runs=12 ok=11 slowest 3 s";
        let outcome = Outcome { runs: 12, ok: 11, note: "slowest 3 s".into() };
        assert_eq!(closing_line(line), Some(("table/slow".into(), outcome)));
        assert_eq!(closing_line("faults: x runs=1 ok=1").map(|(name, one)| (name, one.ok)), Some(("x".into(), 1)));
        for line in ["", "faults: x", "faults: x runs=a ok=1", "the faults: x runs=1 ok=1"] {
            assert_eq!(closing_line(line), None, "{line}");
        }
        assert_eq!(test_result("test result: ok. 12 passed; 3 failed; 0 ignored"), Some((12, 3)));
    }
}
