//! What `status` and the log are told of failures.

use super::*;
use crate::sync::table::Scope;

const LANES: [LaneName; 3] = [LaneName::Executions, LaneName::States, LaneName::History];

fn health() -> Health {
    Health::new(Clock::set_to(Timestamp::from_millis(1_000)))
}

fn retry(cause: Cause, text: &str) -> TableError {
    TableError::Retry { cause, text: text.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_every_lane_sees_differently_is_one_line_and_over_with_the_first_success() {
    let health = health();
    let mut lines = 0;
    for round in 0..1_000 {
        for lane in LANES {
            let error = retry(Cause::Network, &format!("table of {lane:?}, try {round}: connection refused"));
            lines += usize::from(health.failed(lane, &error));
        }
        tokio::time::advance(Duration::from_secs(6)).await;
    }
    assert_eq!(lines, 1, "in 100 minutes");
    let state = health.watch();
    assert!(!state.borrow().up && state.borrow().last_error.is_some());
    health.succeeded(LaneName::States, 1);
    assert!(state.borrow().up, "what the other lanes last saw is over as well");
}

#[tokio::test(start_paused = true)]
async fn the_tables_are_up_when_what_failed_last_was_given_up() {
    let (health, slow) = (health(), retry(Cause::Server, "500"));
    let state = health.watch();
    health.widen(LaneName::Executions, false);
    assert!(!state.borrow().up, "nothing was written yet");
    health.succeeded(LaneName::States, 1);
    health.failed(LaneName::Executions, &slow);
    health.succeeded(LaneName::States, 1);
    assert!(!state.borrow().up && state.borrow().lanes[0].failing, "one table fails, the others do not");
    health.widen(LaneName::Executions, false);
    assert!(state.borrow().up && !state.borrow().lanes[0].failing);
    // A dead link is none of what a lane can give up.
    health.failed(LaneName::Executions, &retry(Cause::Timeout, "no answer"));
    health.widen(LaneName::Executions, false);
    assert!(!state.borrow().up);
}

#[tokio::test(start_paused = true)]
async fn the_most_important_failure_is_shown_and_the_others_do_not_hide_it() {
    let health = health();
    let state = health.watch();
    let shown = || state.borrow().last_error.clone().unwrap_or_default();
    let denied = TableError::Misconfigured { scope: Scope::Everything, text: "the credentials have expired".into() };
    health.failed(LaneName::History, &denied);
    health.failed(LaneName::Executions, &retry(Cause::Throttled, "too much"));
    assert_eq!(shown(), "the credentials have expired");
    health.succeeded(LaneName::States, 1);
    assert_eq!(shown(), "too much; trying again");
    health.failed(LaneName::History, &retry(Cause::Server, &"x".repeat(100_000)));
    health.succeeded(LaneName::Executions, 1);
    assert_eq!(shown().len(), 512);
}
