//! The fault suite: the outside harness of `tests/faults`, the suites that inject faults from inside, and the matrix of
//! what came of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::tools::{self, cargo};

/// What `cargo xtask faults` was asked.
#[derive(Debug)]
pub(crate) struct Asked {
    minutes: u64,
    seed: Option<u64>,
    only: Option<String>,
    matrix: PathBuf,
}

impl Asked {
    /// From the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut asked =
            Self { minutes: 10, seed: None, only: None, matrix: tools::root().join("docs/fault-matrix.md") };
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            let value = rest.next().with_context(|| format!("{option} wants a value"))?;
            let number = || value.parse().with_context(|| format!("{option} wants a number, not {value:?}"));
            match option.as_str() {
                "--minutes" => asked.minutes = number()?,
                "--seed" => asked.seed = Some(number()?),
                "--only" => asked.only = Some(value.clone()),
                "--matrix" => asked.matrix = PathBuf::from(value),
                _ => bail!("faults knows --minutes N, --seed S, --only NAME and --matrix FILE, not {option}"),
            }
        }
        Ok(asked)
    }
}

/// Rows of the harness: the beginning of the name in its closing lines, the fault in words (`{}` is the rest of the name),
/// and which promises are checked (numbers of `docs/testing.md`).
const ROWS: &[(&str, &str, &str)] = &[
    ("kills", "`kill -9` at random, under load, also with links down and twice in a moment", "G1–G5, G7"),
    ("fail-points/", "`kill -9` at fail point `{}`", "G1–G5, G7"),
    ("first-start", "the first start of all is killed at each step of its migrations", "G1, G7"),
    ("stops", "SIGTERM under load, and death during the last commits and checkpoints", "G1–G5, G7"),
    ("table/", "DynamoDB: {}", "G1, G2, G5, back ≤ 60 s"),
    ("links/", "cloud broker: {}", "G1, G3, G4, G5, G13"),
    ("floor/", "plant's broker: {}", "G1–G5, G13"),
    ("everything", "DynamoDB, the wire to the broker and the daemon fail at once, again and again", "G1–G5, G7"),
    ("devices", "devices that never answer, answer late, twice, for another id, fail, or only say so", "G1, G3, G4"),
    ("floods/", "flood: {}", "G8, G10; nothing lost beside it"),
];

/// A suite of its own that `cargo test` runs. It may print closing lines like the harness; if it prints none, its passed tests
/// are its runs.
struct Suite {
    name: &'static str,
    /// After `cargo test`.
    arguments: &'static [&'static str],
    fault: &'static str,
    invariant: &'static str,
}

/// To add one: a line here. A target (`--test NAME`) that does not exist is shown as not run; a filter that finds no test is a
/// failure.
const SUITES: &[Suite] = &[
    Suite {
        name: "simulation",
        arguments: &["--test", "simulation"],
        fault: "simulated outages of seconds to 8 days, throttling, lost answers, crashes of the store",
        invariant: "G1–G5, order",
    },
    Suite {
        name: "commands",
        arguments: &["--lib", "command::dispatcher::tests::"],
        fault: "a crash between any two steps of a command, outages of 1 s to 8 days, clock steps; in virtual time",
        invariant: "G3, G4, G9",
    },
    Suite {
        name: "telemetry",
        arguments: &["--lib", "shadow::telemetry::tests::"],
        fault: "random readings, outages, quotas, crashes and reopenings against a plain model",
        invariant: "G1, G2, G9",
    },
    Suite {
        name: "store",
        arguments: &["--lib", "shadow::store::tests::"],
        fault: "damaged files, failing writes and commits, a full quota",
        invariant: "G7, G8",
    },
    Suite {
        name: "disk",
        arguments: &["--test", "disk"],
        fault: "a full, read-only or failing disk under the running daemon",
        invariant: "G8",
    },
    Suite {
        name: "reconnect",
        arguments: &["--test", "reconnect"],
        fault: "forced disconnects of every kind",
        invariant: "G13",
    },
    Suite { name: "clock", arguments: &["--lib", "clock::"], fault: "steps of an injected clock", invariant: "G9" },
];

impl Suite {
    /// Whether its target is there; a filter's always is.
    fn exists(&self) -> bool {
        let [option, target, ..] = self.arguments else { return true };
        let tests = tools::root().join("tests");
        *option != "--test" || tests.join(target).is_dir() || tests.join(target).with_extension("rs").is_file()
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

/// The harness for `minutes`, then every other suite; writes the matrix; fails if anything did.
///
/// # Errors
/// If a suite cannot be run, a promise is broken, or the matrix cannot be written.
pub(crate) fn faults(asked: &Asked) -> Result<()> {
    let mut rows: Vec<(String, &str, Outcome)> = Vec::new();
    let mut failed = Vec::new();
    let chosen = |suite: &&Suite| asked.only.as_ref().is_none_or(|only| only == suite.name);
    if !SUITES.iter().any(|suite| asked.only.as_deref() == Some(suite.name)) {
        let mut harness = cargo();
        harness.args(["test", "--features", "suites,fail_points", "--test", "faults", "--", "--nocapture"]);
        harness.env("FLOORGATE_FAULT_MINUTES", asked.minutes.to_string());
        harness.envs(asked.seed.map(|seed| ("FLOORGATE_FAULT_SEED", seed.to_string())));
        harness.envs(asked.only.as_ref().map(|only| ("FLOORGATE_FAULT_ONLY", only)));
        let (passed, outcomes, _) = listen(&mut harness)?;
        if !passed {
            failed.push("the harness");
        }
        for (name, outcome) in outcomes {
            let (fault, invariant) = in_words(&name);
            rows.push((fault, invariant, outcome));
        }
    }
    for suite in SUITES.iter().filter(chosen) {
        if !suite.exists() {
            let outcome = Outcome { note: "there is no such target".to_owned(), ..Outcome::default() };
            rows.push((suite.fault.to_owned(), suite.invariant, outcome));
            continue;
        }
        let (passed, outcomes, (good, bad)) =
            listen(cargo().arg("test").args(suite.arguments).args(["--", "--nocapture"]))?;
        if !passed || good == 0 {
            failed.push(suite.name);
        }
        let sum = outcomes.into_values().reduce(|all, one| Outcome {
            runs: all.runs + one.runs,
            ok: all.ok + one.ok,
            note: [all.note, one.note].join(" ").trim().to_owned(),
        });
        let note = if good == 0 && bad == 0 { "no such test" } else { "" };
        let outcome = sum.unwrap_or_else(|| Outcome { runs: good + bad, ok: good, note: note.to_owned() });
        rows.push((suite.fault.to_owned(), suite.invariant, outcome));
    }
    write_matrix(&asked.matrix, &rows)?;
    println!("{} rows in {}", rows.len(), asked.matrix.display());
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn in_words(name: &str) -> (String, &'static str) {
    let row = ROWS.iter().find(|(prefix, _, _)| name == *prefix || prefix.ends_with('/') && name.starts_with(prefix));
    row.map_or_else(
        || (name.to_owned(), "–"),
        |(prefix, fault, invariant)| (fault.replace("{}", &name.replacen(prefix, "", 1)), invariant),
    )
}

const HEAD: &str = "# Fault matrix

Written by `cargo xtask faults [--minutes N] [--seed S] [--only NAME]`; not by hand. Each row keeps its last run. What the
promises (G1 …) say, and how the suite works, is in [testing.md](testing.md). A run is one injection of the fault, judged
with everything else that happened in its round.

| fault | runs | invariant | result | date | commit |
|---|---|---|---|---|---|
";

/// Rows of this run replace those of the same fault; others stay as they are.
fn write_matrix(path: &Path, rows: &[(String, &str, Outcome)]) -> Result<()> {
    let (date, commit) = (said("date", &["-u", "+%F"])?, commit()?);
    let mut lines: Vec<String> = std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.retain(|line| line.starts_with("| ") && !line.starts_with("| fault |"));
    for (fault, invariant, outcome) in rows {
        let Outcome { runs, ok, note } = outcome;
        let result = if runs == ok { "holds".to_owned() } else { format!("**broken in {} of {runs}**", runs - ok) };
        let result = if note.is_empty() { result } else { format!("{result}: {note}") };
        let result = if *runs == 0 { format!("not run: {note}") } else { result };
        let begin = format!("| {fault} |");
        let line = format!("{begin} {runs} | {invariant} | {result} | {date} | {commit} |");
        match lines.iter_mut().find(|line| line.starts_with(&begin)) {
            Some(old) => *old = line,
            None => lines.push(line),
        }
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, format!("{HEAD}{}\n", lines.join("\n")))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The commit that was tested, with a `+` if there were changes beside it.
fn commit() -> Result<String> {
    let changed = said("git", &["status", "--porcelain", "--", ":!docs/fault-matrix.md"])?;
    let plus = if changed.is_empty() { "" } else { "+" };
    Ok(format!("{}{plus}", said("git", &["rev-parse", "--short", "HEAD"])?))
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(tools::root()).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_row_that_ran_again_replaces_its_old_line_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("matrix.md");
        let row = |fault: &str, runs, ok| (fault.to_owned(), "G1", Outcome { runs, ok, note: String::new() });
        write_matrix(&path, &[row("a", 1, 1), row("b", 2, 2)]).unwrap();
        write_matrix(&path, &[row("a", 5, 3), row("c", 0, 0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(rows.len(), 4, "{text}");
        assert!(rows[1].starts_with("| a | 5 | G1 | **broken in 2 of 5** |"), "{text}");
        assert!(rows[2].starts_with("| b | 2 | G1 | holds |"), "{text}");
    }

    #[test]
    fn every_name_of_the_harness_has_words() {
        assert_eq!(in_words("fail-points/after-claim").0, "`kill -9` at fail point `after-claim`");
        assert_eq!(in_words("kills").1, "G1–G5, G7");
        assert_eq!(in_words("something-new"), ("something-new".to_owned(), "–"));
    }
}
