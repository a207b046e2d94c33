//! `docs/fault-matrix.md`: a row for each fault, from its last run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Outcome;
use crate::tools;

const HEAD: &str = "# Fault matrix

Written by `cargo xtask faults [--minutes N] [--seed S] [--only NAME]`; the table not by hand. Each row keeps its last run. What the
promises (G1 …) say, and how the suite works, is in [testing.md](testing.md). A run is one injection of the fault, judged
with everything else that happened in its round.

| fault | runs | invariant | result | date | commit |
|---|---|---|---|---|---|
";

/// What stands from here on is written by hand, and stays.
const BY_HAND: &str = "\n## ";

/// Rows of this run replace those of the same fault; others stay as they are.
pub(super) fn write_matrix(path: &Path, rows: &[(String, &str, Outcome)]) -> Result<()> {
    let (date, commit) = (said("date", &["-u", "+%F"])?, commit()?);
    let known = std::fs::read_to_string(path).unwrap_or_default();
    let (table, by_hand) = known.find(BY_HAND).map_or((&*known, ""), |place| known.split_at(place));
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
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
    std::fs::write(path, format!("{HEAD}{}\n{by_hand}", lines.join("\n")))
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
}
