//! One answer for a write that has several parts. Pure.
//!
//! All parts are always tried. What decides, in this order: an error that concerns everything, one that passes by
//! itself, one that somebody has to repair; then a missing item; then an error for good. So a part that is lost for
//! good neither hides the others nor lets them be taken for done, and is given up only when nothing else is left.

use crate::sync::health::concerns_everything;
use crate::sync::table::{ExecutionWritten, Settled, TableError};

/// Of an execution record: its part of the device's item, and the others.
pub(super) fn of_execution(
    written: Result<ExecutionWritten, TableError>,
    others: [Result<(), TableError>; 3],
) -> Result<ExecutionWritten, TableError> {
    let no_item = written == Ok(ExecutionWritten::NoDeviceItem);
    match decisive(written.map(drop), others) {
        Err(TableError::Permanent { .. }) | Ok(()) if no_item => Ok(ExecutionWritten::NoDeviceItem),
        Err(error) => Err(error),
        Ok(()) => Ok(ExecutionWritten::Done),
    }
}

/// Of a second look: what was taken back, and the others.
pub(super) fn of_settling(
    undone: Result<Settled, TableError>,
    others: [Result<(), TableError>; 2],
) -> Result<Settled, TableError> {
    let again = undone == Ok(Settled::Again);
    match decisive(undone.map(drop), others) {
        Err(TableError::Permanent { .. }) | Ok(()) if again => Ok(Settled::Again),
        Err(error) => Err(error),
        Ok(()) => Ok(Settled::Done),
    }
}

fn decisive<const N: usize>(
    first: Result<(), TableError>,
    others: [Result<(), TableError>; N],
) -> Result<(), TableError> {
    let errors = std::iter::once(first).chain(others).filter_map(Result::err);
    errors.min_by_key(rank).map_or(Ok(()), Err)
}

fn rank(error: &TableError) -> u8 {
    match error {
        error if concerns_everything(error) => 0,
        TableError::Retry { .. } => 1,
        TableError::Misconfigured { .. } => 2,
        TableError::Permanent { .. } => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::table::{Cause, Scope};

    fn network() -> TableError {
        TableError::Retry { cause: Cause::Network, text: "network".into() }
    }
    fn throttled() -> TableError {
        TableError::Retry { cause: Cause::Throttled, text: "throttled".into() }
    }
    fn missing() -> TableError {
        TableError::Misconfigured { scope: Scope::Table, text: "missing".into() }
    }
    fn for_good() -> TableError {
        TableError::Permanent { text: "for good".into() }
    }

    #[test]
    fn of_all_combinations_the_error_to_be_repeated_comes_first_then_the_missing_item_then_the_loss() {
        let outcomes = [Ok(()), Err(network()), Err(throttled()), Err(missing()), Err(for_good())];
        let firsts = [Ok(ExecutionWritten::Done), Ok(ExecutionWritten::NoDeviceItem)];
        let failed = outcomes[1..].iter().map(|error| error.clone().map(|()| ExecutionWritten::Done));
        let firsts: Vec<_> = firsts.into_iter().chain(failed).collect();
        let mut seen = 0;
        for first in &firsts {
            for a in &outcomes {
                for b in &outcomes {
                    for c in &outcomes {
                        let others = [a.clone(), b.clone(), c.clone()];
                        let has = |error: TableError| *first == Err(error.clone()) || others.contains(&Err(error));
                        let expected = match () {
                            () if has(network()) => Err(network()),
                            () if has(throttled()) => Err(throttled()),
                            () if has(missing()) => Err(missing()),
                            () if *first == Ok(ExecutionWritten::NoDeviceItem) => Ok(ExecutionWritten::NoDeviceItem),
                            () if has(for_good()) => Err(for_good()),
                            () => Ok(ExecutionWritten::Done),
                        };
                        assert_eq!(of_execution(first.clone(), others.clone()), expected, "{first:?} {others:?}");
                        seen += 1;
                    }
                }
            }
        }
        assert_eq!(seen, 6 * 125);
    }

    #[test]
    fn a_second_look_is_repeated_rather_than_given_up() {
        assert_eq!(of_settling(Ok(Settled::Again), [Err(for_good()), Ok(())]), Ok(Settled::Again));
        assert_eq!(of_settling(Ok(Settled::Again), [Ok(()), Err(missing())]), Err(missing()));
        assert_eq!(of_settling(Ok(Settled::Done), [Ok(()), Err(for_good())]), Err(for_good()));
        assert_eq!(of_settling(Err(for_good()), [Err(throttled()), Ok(())]), Err(throttled()));
        assert_eq!(of_settling(Ok(Settled::Done), [Ok(()), Ok(())]), Ok(Settled::Done));
    }
}
