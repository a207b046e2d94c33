//! Reads one table key by key. The keys that are asked for are the keys that exist: [`Section::finish`] reports all
//! others, with the nearest known one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use super::problem::Problem;
use super::tree::{Node, Spot, Table};
use super::{quantity, shown};

/// Where problems are gathered while reading goes on.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// One table of the configuration.
pub(super) struct Section<'t> {
    name: String,
    table: Option<&'t Table>,
    file: &'t Path,
    line: Option<usize>,
    asked: RefCell<BTreeSet<&'static str>>,
    problems: &'t Problems,
}

impl<'t> Section<'t> {
    /// The whole configuration.
    pub(super) fn root(table: &'t Table, file: &'t Path, problems: &'t Problems) -> Self {
        Self { name: String::new(), table: Some(table), file, line: None, asked: RefCell::default(), problems }
    }

    /// One element of a list of tables; reported under `name`.
    pub(super) fn element(name: &str, spot: &'t Spot, problems: &'t Problems) -> Self {
        let table = if let Node::Table(table) = &spot.node { Some(table) } else { None };
        let section = Self {
            name: name.to_owned(),
            table,
            file: &spot.file,
            line: Some(spot.line),
            asked: RefCell::default(),
            problems,
        };
        if table.is_none() {
            section.blame(format_args!("`{name}` = {}: must be a table", shown::unknown(name, &spot.node)));
        }
        section
    }

    /// A table inside this one; an empty one if it is not there.
    pub(super) fn section(&self, key: &'static str) -> Self {
        self.optional_section(key).unwrap_or_else(|| Self {
            name: self.key_name(key),
            table: None,
            file: self.file,
            line: self.line,
            asked: RefCell::default(),
            problems: self.problems,
        })
    }

    /// A table inside this one, if it is there.
    pub(super) fn optional_section(&self, key: &'static str) -> Option<Self> {
        self.spot(key).map(|spot| Self::element(&self.key_name(key), spot, self.problems))
    }

    /// The value of a key, if it is there.
    pub(super) fn spot(&self, key: &'static str) -> Option<&'t Spot> {
        self.asked.borrow_mut().insert(key);
        self.table?.get(key)
    }

    /// Reads a value; `None` if it is not there or, reported with what is `allowed`, not readable.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        allowed: impl Display,
        read: impl FnOnce(&'t Node) -> Option<T>,
    ) -> Option<T> {
        let spot = self.spot(key)?;
        let value = read(&spot.node);
        if value.is_none() {
            self.refuse(key, format_args!("must be {allowed}"));
        }
        value
    }

    /// A text that is not empty and holds no control characters.
    pub(super) fn text(&self, key: &'static str) -> Option<&'t str> {
        self.read(key, format_args!("a text of 1 to {TEXT_MAX} characters"), |node| match node {
            Node::Text(text) => is_plain(text).then_some(text.as_str()),
            _ => None,
        })
    }

    /// A text that a type can read; its own error tells what is allowed.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(self.text(key)?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(key, format_args!("{error}"));
                None
            }
        }
    }

    /// A whole number within a range, ends included.
    pub(super) fn integer(&self, key: &'static str, min: u32, max: u32) -> Option<u32> {
        self.read(key, format_args!("a whole number from {min} to {max}"), |node| match node {
            Node::Integer(n) => u32::try_from(*n).ok().filter(|n| (min..=max).contains(n)),
            _ => None,
        })
    }

    /// A duration within a range, ends included.
    pub(super) fn duration(&self, key: &'static str, min: Duration, max: Duration) -> Option<Duration> {
        let (least, most) = (quantity::duration_text(min), quantity::duration_text(max));
        let allowed = format!("a duration from \"{least}\" to \"{most}\" (units: ms s m h d)");
        self.read(key, allowed, |node| match node {
            Node::Text(text) => quantity::duration(text).filter(|d| (min..=max).contains(d)),
            _ => None,
        })
    }

    /// A size within a range, ends included.
    pub(super) fn size(&self, key: &'static str, min: u64, max: u64) -> Option<u64> {
        let (least, most) = (quantity::size_text(min), quantity::size_text(max));
        let allowed = format!("a size from \"{least}\" to \"{most}\" (units: B KB KiB MB MiB GB GiB TB TiB)");
        self.read(key, allowed, |node| match node {
            Node::Text(text) => quantity::size(text).filter(|n| (min..=max).contains(n)),
            _ => None,
        })
    }

    /// A list of plain texts; empty if it is not there.
    pub(super) fn texts(&self, key: &'static str) -> Vec<String> {
        let one = |spot: &Spot| match &spot.node {
            Node::Text(text) if is_plain(text) => Some(text.clone()),
            _ => None,
        };
        let all = self.read(key, "a list of texts", |node| match node {
            Node::List(list) => list.iter().map(one).collect(),
            _ => None,
        });
        all.unwrap_or_default()
    }

    /// Whether the key is there.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.spot(key).is_some()
    }

    /// Reports that a key that has to be there is not.
    pub(super) fn missing(&self, key: &'static str, what: impl Display) {
        self.blame(format_args!("`{}` is missing: {what}", self.key_name(key)));
    }

    /// Reports a key whose value does not do.
    pub(super) fn refuse(&self, key: &'static str, why: impl Display) {
        match self.spot(key) {
            Some(spot) => {
                let text = format!("`{}` = {}: {why}", self.key_name(key), shown::value(key, &spot.node));
                self.problems.add(Problem::new(&spot.file, Some(spot.line), text));
            }
            None => self.blame(format_args!("`{}`: {why}", self.key_name(key))),
        }
    }

    /// Reports something about the section as a whole.
    pub(super) fn blame(&self, text: impl Display) {
        self.problems.add(Problem::new(self.file, self.line, text.to_string()));
    }

    /// Whether the table itself is there.
    pub(super) fn exists(&self) -> bool {
        self.table.is_some()
    }

    /// Where problems go.
    pub(super) fn problems(&self) -> &'t Problems {
        self.problems
    }

    /// Every key and value, for tables whose keys are data.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'t str, &'t Spot)> + use<'t> {
        self.table.into_iter().flatten().map(|(key, spot)| (key.as_str(), spot))
    }

    /// The full name of a key of this section.
    pub(super) fn key_name(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, spot) in self.entries().filter(|(key, _)| !asked.contains(key)) {
            let name = self.key_name(key);
            let known = || asked.iter().copied().collect::<Vec<_>>().join(", ");
            let hint = nearest(key, &asked).map_or_else(
                || format!("known here are {}", known()),
                |nearest| format!("did you mean `{}`?", self.key_name(nearest)),
            );
            let value = shown::unknown(key, &spot.node);
            let text = format!("`{name}` = {value} is not a key floorgate knows; {hint}");
            self.problems.add(Problem::new(&spot.file, Some(spot.line), text));
        }
    }
}

/// Longest text, characters; paths and URLs fit.
const TEXT_MAX: usize = 1_024;

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control)
}

/// The known key that was meant: at most a third of its characters differ, or it begins like this.
fn nearest(key: &str, known: &BTreeSet<&'static str>) -> Option<&'static str> {
    let distances = known.iter().map(|candidate| (distance(key, candidate), *candidate));
    let close = distances.min().filter(|(distance, nearest)| distance * 3 <= nearest.len().max(3));
    let begun = || known.iter().copied().find(|candidate| key.len() >= 3 && candidate.starts_with(key));
    close.map(|(_, nearest)| nearest).or_else(begun)
}

/// Insertions, deletions, replacements and swaps of neighbours that make one text of another.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_key_and_another_word_does_not() {
        let known = BTreeSet::from(["listen", "url", "users", "watchers", "max_connections"]);
        for (slip, meant) in
            [("lsiten", "listen"), ("user", "users"), ("max_conections", "max_connections"), ("max", "max_connections")]
        {
            assert_eq!(nearest(slip, &known), Some(meant));
        }
        for other in ["tls", "retention", "x"] {
            assert_eq!(nearest(other, &known), None, "{other}");
        }
    }
}
