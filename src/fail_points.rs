//! Named places where a test lets the daemon die.
//!
//! A promise about crashes is only as good as the instants at which somebody crashed it. Each instant between a decision
//! and its proof has a name here; `FLOORGATE_FAIL_POINT=NAME:N` makes the process kill itself with SIGKILL at the N-th
//! pass (`cargo xtask faults` does so for all of them, see `docs/testing.md`).
//!
//! Only with the feature `fail_points`, and never in an optimised build: without the feature `fail_point!` expands to a
//! call of an empty function, and the variable is not read.

#[cfg(all(feature = "fail_points", not(debug_assertions)))]
compile_error!("`fail_points` lets anyone who sets a variable kill the daemon; it does not belong into a release");

macro_rules! points {
    ($($(#[doc = $place:literal])* $point:ident = $name:literal,)*) => {
        /// Where the daemon can be made to die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum FailPoint {
            $($(#[doc = $place])* $point,)*
        }

        impl FailPoint {
            /// All of them, in the order in which a command and a reading come by.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// Its name in `FLOORGATE_FAIL_POINT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// `state.db` is open, its schema not yet changed.
    StateBeforeMigration = "state-before-migration",
    /// A migration of `state.db` is carried out and not committed.
    StateInMigration = "state-in-migration",
    /// `state.db` has its newest schema.
    StateAfterMigration = "state-after-migration",
    /// `telemetry.db` is open, its schema not yet changed.
    TelemetryBeforeMigration = "telemetry-before-migration",
    /// `telemetry.db` has its newest schema.
    TelemetryAfterMigration = "telemetry-after-migration",
    /// A file is about to be opened again after it failed.
    BeforeReopen = "before-reopen",
    /// Requests had their turns; COMMIT of `state.db` is next.
    StateBeforeCommit = "state-before-commit",
    /// `state.db` is committed; nobody has been told.
    StateAfterCommit = "state-after-commit",
    /// Samples are in the transaction; COMMIT of `telemetry.db` is next.
    TelemetryBeforeCommit = "telemetry-before-commit",
    /// `telemetry.db` is committed; nobody has been told.
    TelemetryAfterCommit = "telemetry-after-commit",
    /// A block is a row of the open transaction, its samples still in the journal.
    InBlockClose = "in-block-close",
    /// The log of one of the files is about to be copied into it.
    BeforeCheckpoint = "before-checkpoint",
    /// The log has been copied.
    AfterCheckpoint = "after-checkpoint",
    /// A link is about to write PUBACKs for what is settled.
    LinkBeforePuback = "link-before-puback",
    /// The PUBACKs of a link are written.
    LinkAfterPuback = "link-after-puback",
    /// The endpoint is about to write a PUBACK for what is settled.
    EndpointBeforePuback = "endpoint-before-puback",
    /// The endpoint has written what was due to a client, PUBACKs among it.
    EndpointAfterWrite = "endpoint-after-write",
    /// A command may be dispatched; the intent is not committed.
    BeforeClaim = "before-claim",
    /// The intent is committed; nothing has been sent.
    AfterClaim = "after-claim",
    /// The driver is about to be handed the order.
    BeforeSend = "before-send",
    /// The driver says that the order left.
    AfterSend = "after-send",
    /// The outcome is known and not written.
    BeforeFinish = "before-finish",
    /// The outcome is committed.
    AfterFinish = "after-finish",
    /// The broker has the result; the outbox still holds it.
    BeforeResultConfirm = "before-result-confirm",
    /// The outbox has let the result go.
    AfterResultConfirm = "after-result-confirm",
    /// The table has a batch of blocks; the store does not know.
    BeforeBlocksConfirm = "before-blocks-confirm",
    /// The store knows.
    AfterBlocksConfirm = "after-blocks-confirm",
    /// The table has an execution record; the store does not know.
    BeforeExecutionConfirm = "before-execution-confirm",
    /// The store knows.
    AfterExecutionConfirm = "after-execution-confirm",
    /// The table has answered for a state; the store does not know.
    BeforeStateConfirm = "before-state-confirm",
}

/// One pass of a point.
#[cfg(not(feature = "fail_points"))]
#[inline(always)]
pub const fn pass(_: FailPoint) {}

/// One pass of a point.
#[cfg(feature = "fail_points")]
pub fn pass(point: FailPoint) {
    let _ = fail::eval(point.name(), |_| ());
}

/// Arms the point of `NAME:N`: at its N-th pass (from 1) the process kills itself, as if with `kill -9`.
///
/// # Errors
/// What is wrong with `text`.
#[cfg(feature = "fail_points")]
pub fn arm(text: &str) -> Result<(), String> {
    use std::sync::atomic::{AtomicU64, Ordering};

    let wrong = || format!("`{text}` is no NAME:N with a name of fail_points.rs and a number from 1");
    let (name, nth) = text.split_once(':').ok_or_else(wrong)?;
    let point = FailPoint::ALL.iter().find(|point| point.name() == name).ok_or_else(wrong)?;
    let nth: u64 = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(wrong)?;
    let passes = AtomicU64::new(0);
    let die = move || {
        if passes.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            // The kernel ends every thread before this call returns.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    };
    fail::cfg_callback(point.name(), die)
}

/// A pass of a named point; nothing unless a test armed it.
macro_rules! fail_point {
    ($point:ident) => {
        $crate::fail_points::pass($crate::fail_points::FailPoint::$point)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_and_is_passed_somewhere() {
        fn sources(folder: &std::path::Path, all: &mut String) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    sources(&path, all);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    all.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let mut code = String::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
        let mut names: Vec<_> = FailPoint::ALL.iter().map(|point| point.name()).collect();
        for point in FailPoint::ALL {
            assert!(code.contains(&format!("fail_point!({point:?})")), "{point:?} sits nowhere");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FailPoint::ALL.len());
    }

    #[cfg(feature = "fail_points")]
    #[test]
    fn a_wrong_name_and_a_wrong_number_are_refused() {
        for text in ["", "after-claim", "after-claim:", "after-claim:0", "after-claim:-1", "nowhere:1"] {
            assert!(arm(text).is_err(), "{text}");
        }
        assert_eq!(arm("after-claim:4000000000"), Ok(()));
    }
}
