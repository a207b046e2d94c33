//! Files → one tree whose every value remembers its file and line.
//!
//! Later files win key by key; only the list of devices grows instead, because a device in a drop-in is one more.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::problem::Problem;

/// Largest configuration file, bytes: 10,000 devices with all their keys need less than half of it.
pub(super) const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The list that grows over the files.
pub(super) const DEVICE_LIST: &str = "device";

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) file: Arc<Path>,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// A date or time, or a number beyond 64 bits: nothing here wants one.
    Other(String),
    List(Vec<Spot>),
    Table(Table),
}

/// A table, keys in order.
pub(super) type Table = BTreeMap<String, Spot>;

/// As it would stand in a file, shortened.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 60;
        match self {
            Self::Text(text) if text.chars().count() > SHOWN_MAX => {
                write!(f, "{:?}…", text.chars().take(SHOWN_MAX).collect::<String>())
            }
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(n) => write!(f, "{n}"),
            Self::Float(n) => write!(f, "{n}"),
            Self::Boolean(yes) => write!(f, "{yes}"),
            Self::Other(text) => f.write_str(text),
            Self::List(list) => write!(f, "[{} elements]", list.len()),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}

/// Reads one file's text; syntax errors go to `problems`.
pub(super) fn parse(file: &Path, text: &str, problems: &mut Vec<Problem>) -> Table {
    let (root, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::new(text);
    problems.extend(errors.iter().map(|error| {
        let line = error.span().map(|span| lines.at(span.start));
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        Problem::new(file, line, format!("is not TOML here: {message}"))
    }));
    let file: Arc<Path> = file.into();
    table(root.get_ref(), &file, &lines)
}

fn table(from: &DeTable<'_>, file: &Arc<Path>, lines: &Lines) -> Table {
    let entry = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let line = lines.at(key.span().start);
        (key.get_ref().to_string(), Spot { line, ..spot(value, file, lines) })
    };
    from.iter().map(entry).collect()
}

fn spot(value: &Spanned<DeValue<'_>>, file: &Arc<Path>, lines: &Lines) -> Spot {
    let node = match value.get_ref() {
        DeValue::String(text) => Node::Text(text.to_string()),
        DeValue::Boolean(yes) => Node::Boolean(*yes),
        DeValue::Integer(n) => {
            let whole = i64::from_str_radix(n.as_str(), n.radix());
            whole.map_or_else(|_| Node::Other(n.to_string()), Node::Integer)
        }
        DeValue::Float(n) => n.as_str().parse().map_or_else(|_| Node::Other(n.to_string()), Node::Float),
        DeValue::Datetime(time) => Node::Other(time.to_string()),
        DeValue::Array(list) => Node::List(list.iter().map(|value| spot(value, file, lines)).collect()),
        DeValue::Table(inner) => Node::Table(table(inner, file, lines)),
    };
    Spot { file: Arc::clone(file), line: lines.at(value.span().start), node }
}

/// Lays `over` upon `base`: tables are merged, anything else is replaced, the devices are appended.
pub(super) fn merge(base: &mut Table, over: Table) {
    merge_at(base, over, true);
}

fn merge_at(base: &mut Table, over: Table, top: bool) {
    for (key, new) in over {
        match (base.get_mut(&key), new) {
            (Some(Spot { node: Node::Table(old), .. }), Spot { node: Node::Table(new), .. }) => {
                merge_at(old, new, false);
            }
            (Some(Spot { node: Node::List(old), .. }), Spot { node: Node::List(new), .. })
                if top && key == DEVICE_LIST =>
            {
                old.extend(new);
            }
            (_, new) => {
                base.insert(key, new);
            }
        }
    }
}

/// From a place in a text to its line.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(texts: &[&str]) -> Table {
        let mut problems = Vec::new();
        let mut root = Table::new();
        for (n, text) in texts.iter().enumerate() {
            merge(&mut root, parse(Path::new(&format!("{n}.toml")), text, &mut problems));
        }
        assert_eq!(problems, []);
        root
    }

    fn at<'t>(root: &'t Table, key: &str) -> &'t Spot {
        let (section, key) = key.split_once('.').unwrap();
        let Node::Table(section) = &root[section].node else { panic!("no table") };
        &section[key]
    }

    #[test]
    fn a_later_file_wins_key_by_key_and_every_value_knows_its_place() {
        let root = tree(&["[store]\nquota = \"1MiB\"\ncommit_interval = \"1s\"\n", "\n\n[store]\nquota = 5"]);
        let quota = at(&root, "store.quota");
        assert_eq!((quota.node.to_string().as_str(), quota.line, &*quota.file), ("5", 4, Path::new("1.toml")));
        let interval = at(&root, "store.commit_interval");
        assert_eq!((interval.line, &*interval.file), (3, Path::new("0.toml")));
    }

    #[test]
    fn devices_of_all_files_are_devices() {
        let root = tree(&["[[device]]\nid = \"a\"\n\n[[device]]\nid = \"b\"", "[[device]]\nid = \"c\""]);
        let Node::List(devices) = &root[DEVICE_LIST].node else { panic!("no list") };
        assert_eq!(devices.iter().map(|device| device.line).collect::<Vec<_>>(), [1, 4, 1]);
    }

    #[test]
    fn every_syntax_error_of_a_file_is_reported_with_its_line() {
        let mut problems = Vec::new();
        parse(Path::new("x.toml"), "a = 1\nb = \nc = 2\na = 3\n", &mut problems);
        let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [Some(2), Some(4)], "{problems:?}");
    }
}
