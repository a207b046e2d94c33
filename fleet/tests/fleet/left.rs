//! Whether a command left: what is known of it, what it costs if it did not, and who says so.

use serde_json::json;

use super::bench::{self, Bench, PRESSURE};

#[tokio::test]
async fn who_tries_without_end_what_does_not_leave_is_refused_and_the_tries_are_forgotten_after_a_day() {
    let bench = Bench::start().await;
    let away = bench.fleet_without_link();
    let ask = json!({"device_id": PRESSURE, "command": "reboot", "wait_seconds": 0});
    // Twenty cost nothing, then three are the budget of the command itself.
    for n in 0..23 {
        assert_eq!(bench::call(&away, "send_command", ask.clone()).await.unwrap_err().code, "NOT_SENT", "{n}");
    }
    assert_eq!(bench::call(&away, "send_command", ask).await.unwrap_err().code, "RATE_LIMITED");
    let tries = bench.commands().await;
    assert_eq!(tries.len(), 23);
    let forgotten = bench.clock.now().as_seconds() + 24 * 3_600;
    assert!(tries.iter().all(|item| item["forget_at"].as_i64() == Some(forgotten)), "{tries:?}");
}
