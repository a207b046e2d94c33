//! What is injected: the rows of the harness, and the suites that inject faults from inside.

use std::path::Path;
use std::process::Command;

use crate::tools::{self, cargo};

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
pub(super) struct Suite {
    pub(super) name: &'static str,
    /// After `cargo test`.
    arguments: &'static [&'static str],
    /// After `--`.
    filters: &'static [&'static str],
    /// Variables; [`SEED`] stands for the seed of the run, [`MOUNT`] for the folder of a small file system.
    environment: &'static [(&'static str, &'static str)],
    /// A plain `cargo test` runs the very same.
    pub(super) tested: bool,
    pub(super) fault: &'static str,
    pub(super) invariant: &'static str,
}

const SEED: &str = "{seed}";
const MOUNT: &str = "{mount}";

const BARE: Suite =
    Suite { name: "", arguments: &[], filters: &[], environment: &[], tested: false, fault: "", invariant: "" };

/// To add one: an entry here. A target (`--test NAME`) that does not exist is shown as not run; a filter that finds no test is a
/// failure.
pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "simulation",
        arguments: &["--test", "simulation"],
        tested: true,
        fault: "simulated outages of seconds to 8 days, throttling, lost answers, crashes of the store",
        invariant: "G1–G5, order",
        ..BARE
    },
    Suite {
        name: "commands",
        arguments: &["--lib", "command::dispatcher::tests::"],
        tested: true,
        fault: "a crash between any two steps of a command, outages of 1 s to 8 days, clock steps; in virtual time",
        invariant: "G3, G4, G9",
        ..BARE
    },
    Suite {
        name: "telemetry",
        arguments: &["--lib", "shadow::telemetry::tests::"],
        tested: true,
        fault: "random readings, outages, quotas, crashes and reopenings against a plain model",
        invariant: "G1, G2, G9",
        ..BARE
    },
    Suite {
        name: "store",
        arguments: &["--lib", "shadow::store::tests::"],
        filters: &["--skip", "tests::mutations", "--skip", "tests::clocks"],
        tested: true,
        fault: "failing writes and commits, a full quota, damaged and missing files; random requests against a plain model",
        invariant: "G1–G3, G7, G8",
        ..BARE
    },
    Suite {
        name: "mutations",
        arguments: &["--lib", "shadow::store::tests::mutations"],
        environment: &[("FLOORGATE_TEST_MUTATIONS", "500"), ("FLOORGATE_TEST_SEED", SEED)],
        fault: "either file damaged anywhere: bits, pages, holes, cut off, old, swapped, gone",
        invariant: "G3, G7; no more is lost than was damaged",
        ..BARE
    },
    Suite {
        name: "disk",
        arguments: &["--test", "disk"],
        tested: true,
        fault: "a full, read-only or failing disk under the running daemon, and power cuts after failed flushes",
        invariant: "G1, G8; back ≤ 10 s",
        ..BARE
    },
    Suite {
        name: "small-disk",
        // The features of the harness, so that nothing is built for it alone.
        arguments: &["--features", "suites,fail_points", "--test", "disk", "a_real_file_system"],
        environment: &[("FLOORGATE_TEST_MOUNT", MOUNT)],
        fault: "a real file system of 64 MiB that is filled, emptied and made read-only",
        invariant: "G1, G8; back ≤ 10 s",
        ..BARE
    },
    Suite {
        name: "reconnect",
        arguments: &["--test", "reconnect"],
        environment: &[("FLOORGATE_DISCONNECTS", "1000"), ("FLOORGATE_SEED", SEED)],
        fault: "forced disconnects of ten kinds; in virtual time",
        invariant: "G13",
        ..BARE
    },
    Suite {
        name: "clock",
        arguments: &["--lib"],
        filters: &["clock::", "clocks::", "clock_floor::", "restamp::", "fresh"],
        tested: true,
        fault: "a clock that is stepped, wrong, or not yet known, at the gateway or at a device",
        invariant: "G4, G9",
        ..BARE
    },
    Suite {
        name: "isolation",
        arguments: &["--test", "isolation"],
        tested: true,
        fault: "one device hangs and one floods beside fifty others",
        invariant: "G10",
        ..BARE
    },
];

impl Suite {
    /// Whether its target is there; a filter's always is.
    pub(super) fn exists(&self) -> bool {
        let target = self.arguments.iter().skip_while(|argument| **argument != "--test").nth(1);
        let tests = tools::root().join("tests");
        target.is_none_or(|target| tests.join(target).is_dir() || tests.join(target).with_extension("rs").is_file())
    }

    /// Whether it wants a small file system.
    pub(super) fn wants_mount(&self) -> bool {
        self.environment.iter().any(|(_, value)| *value == MOUNT)
    }

    /// Its command.
    pub(super) fn command(&self, seed: u64, mount: Option<&Path>) -> Command {
        let mut command = cargo();
        command.arg("test").args(self.arguments).args(["--", "--nocapture"]).args(self.filters);
        for (name, value) in self.environment {
            match (*value, mount) {
                (SEED, _) => command.env(name, seed.to_string()),
                (MOUNT, Some(mount)) => command.env(name, mount),
                (value, _) => command.env(name, value),
            };
        }
        command
    }
}

/// The fault of a closing line of the harness, and the promises.
pub(super) fn in_words(name: &str) -> (String, &'static str) {
    let row = ROWS.iter().find(|(prefix, _, _)| name == *prefix || prefix.ends_with('/') && name.starts_with(prefix));
    row.map_or_else(
        || (name.to_owned(), "–"),
        |(prefix, fault, invariant)| (fault.replace("{}", &name.replacen(prefix, "", 1)), invariant),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_harness_has_words() {
        assert_eq!(in_words("fail-points/after-claim").0, "`kill -9` at fail point `after-claim`");
        assert_eq!(in_words("kills").1, "G1–G5, G7");
        assert_eq!(in_words("something-new"), ("something-new".to_owned(), "–"));
    }

    #[test]
    fn every_suite_is_there_and_has_a_name_and_words_of_its_own() {
        let unique =
            |what: fn(&Suite) -> &'static str| SUITES.iter().map(what).collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!((unique(|suite| suite.name), unique(|suite| suite.fault)), (SUITES.len(), SUITES.len()));
        for suite in SUITES {
            assert!(suite.exists(), "{}", suite.name);
        }
        assert!(!Suite { arguments: &["--test", "no-such-suite"], ..BARE }.exists());
    }

    #[test]
    fn a_suite_is_given_the_seed_of_the_run() {
        let reconnect = SUITES.iter().find(|suite| suite.name == "reconnect").unwrap().command(4_711, None);
        let given: Vec<_> = reconnect.get_envs().filter_map(|(_, value)| value).collect();
        assert!(given.contains(&std::ffi::OsStr::new("4711")), "{given:?}");
    }
}
