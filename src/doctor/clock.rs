//! Whether commands can be judged by the clock.

use super::report::{Check, Finding};
use crate::clock::{ClockState, Trust};

/// `here`: what this process sees, after the tables were asked; `daemon`: what the daemon sees, if it was heard. Its word
/// is the one that counts, because it lives in a sandbox.
pub(super) fn judge(rule: Trust, here: &ClockState, daemon: Option<&ClockState>) -> Finding {
    let check = Check::Clock;
    let state = daemon.unwrap_or(here);
    let start = "start a time service (`systemctl enable --now systemd-timesyncd`; of chrony, ntpd or PTP the service hears by \
        other-time-service.conf alone); `timedatectl` shows how it is";
    if here.synchronised_by_kernel
        && let Some(daemon) = daemon.filter(|daemon| !daemon.synchronised_by_kernel)
    {
        return hidden(daemon);
    }
    match (state.synchronised_by_kernel, state.table_agreed_seconds_ago, state.trusted) {
        (true, _, true) => Finding::ok(check, format!("{}, synchronised", state.now)),
        (false, Some(_), true) => {
            Finding::warn(check, format!("{}, confirmed by the table and kept right by nobody", state.now), start)
        }
        (false, None, true) => {
            let found = format!("{}, trusted by configuration alone (trust = \"{}\")", state.now, rule.as_str());
            Finding::warn(check, found, start)
        }
        (true, _, false) => {
            let found = format!("{}, synchronised, and earlier than this version of floorgate was built", state.now);
            Finding::fail(check, found, "look where the time service has its time from")
        }
        (false, _, false) => {
            let found = format!("{}, kept right by nobody: commands are refused with CLOCK_UNTRUSTED", state.now);
            Finding::fail(check, found, start)
        }
    }
}

/// The kernel calls the clock synchronised, and the daemon may not ask it.
fn hidden(daemon: &ClockState) -> Finding {
    let check = Check::Clock;
    let advice = "if chrony, ntpd or PTP keeps the time, the service's sandbox keeps it from hearing so: install \
        other-time-service.conf (deploy/systemd, in the package /usr/share/doc/floorgate/examples), whether there are tables \
        or not; if systemd-timesyncd does, its servers have not answered for an hour (`timedatectl timesync-status`)";
    let seen = "the kernel calls it synchronised, and the daemon does not see that";
    match (daemon.trusted, daemon.table_agreed_seconds_ago) {
        (false, _) => Finding::fail(check, format!("{seen}: commands are refused with CLOCK_UNTRUSTED"), advice),
        (true, Some(_)) => {
            let found = format!("{seen}: it goes by the table's word, and refuses commands an hour after the last one");
            Finding::warn(check, found, advice)
        }
        (true, None) => Finding::warn(check, format!("{seen}: it goes by the configuration alone"), advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::doctor::report::State;
    use floorgate_model::Timestamp;

    fn state(kernel: bool, table: Option<u64>, trusted: bool) -> ClockState {
        let clock = Clock::set_to(Timestamp::parse("2026-11-23T12:00:00Z").unwrap());
        ClockState { synchronised_by_kernel: kernel, table_agreed_seconds_ago: table, trusted, ..clock.state() }
    }

    #[test]
    fn a_clock_that_nobody_keeps_right_is_red_unless_something_vouches_for_it() {
        let told = |here, daemon: Option<&ClockState>| judge(Trust::Auto, &here, daemon);
        assert_eq!(told(state(true, None, true), None).state, State::Ok);
        assert_eq!(told(state(false, Some(3), true), None).state, State::Warn);
        assert_eq!(told(state(false, None, true), None).state, State::Warn);
        let red = told(state(false, None, false), None);
        assert!(red.state == State::Fail && red.found.contains("CLOCK_UNTRUSTED"));
        assert_eq!(told(state(true, None, false), None).state, State::Fail);
    }

    #[test]
    fn the_daemons_word_counts_and_a_sandbox_that_hides_the_kernels_is_told() {
        let (well, ill) = (state(true, None, true), state(false, None, false));
        let hidden = judge(Trust::Auto, &well, Some(&ill));
        assert!(hidden.state == State::Fail && hidden.advice.unwrap().contains("sandbox"));
        // Before the outage, while the tables still answer, is when it can be mended.
        let by_table = judge(Trust::Auto, &well, Some(&state(false, Some(3), true)));
        assert!(by_table.state == State::Warn && by_table.found.contains("an hour after"), "{by_table:?}");
        assert!(by_table.advice.unwrap().contains("other-time-service.conf"));
        let by_word = judge(Trust::Always, &well, Some(&state(false, None, true)));
        assert!(by_word.state == State::Warn && by_word.advice.unwrap().contains("other-time-service.conf"));
        assert_eq!(judge(Trust::Auto, &ill, Some(&well)).state, State::Ok);
    }
}
