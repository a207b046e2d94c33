//! How many commands may be sent in a while: a guard against a batch that nobody meant.
//!
//! A model that is asked to "recalibrate every pressure sensor" calls `send_command` in a loop over the fleet. Each
//! device's gateway guards its device; nobody but the tools sees the whole. So each caller has a budget for each
//! command, and all callers together have [`EVERYONE_FACTOR`] times as much. It holds over all instances of a Lambda,
//! because it stands in a table: one number for each owner and command, moved on conditionally.
//!
//! The number is the time until which the budget is used up if it were spent evenly (the generic cell rate algorithm):
//! `N in S seconds` lets N go at once and then one every S/N seconds. Nothing has to be cleaned up. A repeat of a
//! command that was sent, and a dry run, cost nothing of it; a dry run has a budget of its own.

use std::time::Duration;

use floorgate_model::{CommandName, Reason, Timestamp};
use serde_json::json;

use super::Asked;
use crate::error::{ToolError, code};
use crate::fleet::Call;

/// All callers together may send so many times what one may.
pub(crate) const EVERYONE_FACTOR: u32 = 4;
/// Tries to move a budget on against others that do so at the same time.
const TRIES: u32 = 8;
/// Whose budget is for everyone together.
const EVERYONE: &str = "everyone";

/// So many in such a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Commands at once.
    pub commands: u32,
    /// The time after which all of it is there again.
    pub within: Duration,
}

/// One budget for each command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budgets {
    /// For `recalibrate`.
    pub recalibrate: Budget,
    /// For `reboot`.
    pub reboot: Budget,
    /// For `update_config`.
    pub update_config: Budget,
    /// For `set_status`.
    pub set_status: Budget,
    /// For dry runs of every command.
    pub dry_run: Budget,
}

const fn budget(commands: u32, seconds: u64) -> Budget {
    Budget { commands, within: Duration::from_secs(seconds) }
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            recalibrate: budget(5, 600),
            reboot: budget(3, 900),
            update_config: budget(10, 600),
            set_status: budget(20, 600),
            dry_run: budget(60, 120),
        }
    }
}

impl Budgets {
    /// The budget that a command counts against, and its name in the table.
    fn of(&self, command: CommandName, dry_run: bool) -> (&'static str, Budget) {
        if dry_run {
            return ("dry_run", self.dry_run);
        }
        let budget = match command {
            CommandName::Recalibrate => self.recalibrate,
            CommandName::Reboot => self.reboot,
            CommandName::UpdateConfig => self.update_config,
            CommandName::SetStatus => self.set_status,
        };
        (command.as_str(), budget)
    }
}

impl Budget {
    fn times(self, factor: u32) -> Self {
        Self { commands: self.commands.saturating_mul(factor), within: self.within }
    }

    /// Milliseconds for one command.
    fn each(self) -> i64 {
        let ms = i64::try_from(self.within.as_millis()).unwrap_or(i64::MAX);
        (ms / i64::from(self.commands.max(1))).max(1)
    }

    /// What the budget becomes with one more command, or how long to wait for it.
    ///
    /// # Errors
    /// The wait.
    fn one_more(self, used_until: Option<i64>, now: Timestamp) -> Result<i64, Duration> {
        let now = now.as_millis();
        let all = self.each().saturating_mul(i64::from(self.commands));
        // Never further ahead than a budget that is used up: a clock that was wrong once does not lock it for long.
        let used_until = used_until.unwrap_or(now).clamp(now, now.saturating_add(all));
        let becomes = used_until.saturating_add(self.each());
        let over = becomes.saturating_sub(now).saturating_sub(all);
        if over <= 0 { Ok(becomes) } else { Err(Duration::from_millis(u64::try_from(over).unwrap_or(0))) }
    }
}

impl Call<'_> {
    /// Takes one command out of the caller's budget and out of everyone's.
    pub(super) async fn spend(&self, asked: &Asked) -> Result<(), ToolError> {
        let (name, budget) = self.parts.budgets.of(asked.command, asked.dry_run);
        self.spend_of(&self.caller.key(), name, budget)
            .await?
            .map_err(|wait| self.used_up("your", name, budget, wait))?;
        let all = budget.times(EVERYONE_FACTOR);
        match self.spend_of(EVERYONE, name, all).await? {
            Ok(()) => Ok(()),
            // What was taken from the caller's own stays taken: it refills, and a flood is not worth a third write.
            Err(wait) => Err(self.used_up("everyone's together", name, all, wait)),
        }
    }

    async fn spend_of(&self, owner: &str, name: &str, budget: Budget) -> Result<Result<(), Duration>, ToolError> {
        for _ in 0..TRIES {
            let was = self.parts.store.budget(owner, name).await?;
            let becomes = match budget.one_more(was, self.now) {
                Ok(becomes) => becomes,
                Err(wait) => return Ok(Err(wait)),
            };
            if self.parts.store.spend(owner, name, was, becomes).await? {
                return Ok(Ok(()));
            }
        }
        let message = "too many commands are being sent at the same moment; nothing was sent, try again in a second";
        Err(ToolError::new(code::STORE_UNAVAILABLE, message))
    }

    fn used_up(&self, whose: &str, name: &str, budget: Budget, wait: Duration) -> ToolError {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let (commands, within) = (budget.commands, budget.within.as_secs());
        let message = format!(
            "{whose} budget for {name} is used up: {commands} in {within} s. Nothing was sent. The next {name} may be sent \
             in {seconds} s. What may be done now: read (get_device_status, list_devices, get_telemetry_history), find out \
             with dry_run which devices would accept it, or stop here and let a person decide about the rest of a batch"
        );
        ToolError::reason(Reason::RateLimited, message)
            .with("budget", json!({"command": name, "commands": commands, "within_seconds": within}))
            .with("retry_after_seconds", seconds)
            .with("retry_at", self.now.saturating_add(wait).to_string())
            .with(
                "allowed_now",
                json!(["get_device_status", "list_devices", "get_telemetry_history", "send_command with dry_run"]),
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: i64 = 1_795_341_600_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(T + ms)
    }

    #[test]
    fn so_many_go_at_once_and_then_one_by_one() {
        let budget = budget(5, 600);
        let mut used = None;
        for _ in 0..5 {
            used = Some(budget.one_more(used, at(0)).unwrap());
        }
        assert_eq!(budget.one_more(used, at(0)), Err(Duration::from_secs(120)));
        assert_eq!(budget.one_more(used, at(119_999)), Err(Duration::from_millis(1)));
        used = Some(budget.one_more(used, at(120_000)).unwrap());
        assert!(budget.one_more(used, at(120_000)).is_err());
        assert!(budget.one_more(used, at(10_000_000)).is_ok());
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_a_budget_no_longer_than_one_round() {
        let budget = budget(3, 900);
        let ahead = Some(at(1_000_000_000_000).as_millis());
        assert_eq!(budget.one_more(ahead, at(0)), Err(Duration::from_secs(300)));
    }

    proptest! {
        #[test]
        fn never_more_than_twice_the_budget_in_any_window(
            commands in 1_u32..20, seconds in 1_u64..1_000, gaps in proptest::collection::vec(0_i64..60_000, 1..200)
        ) {
            let budget = budget(commands, seconds);
            let (mut used, mut now, mut sent) = (None, 0, Vec::new());
            for gap in gaps {
                now += gap;
                if let Ok(becomes) = budget.one_more(used, at(now)) {
                    used = Some(becomes);
                    sent.push(now);
                }
            }
            let window = i64::try_from(seconds * 1_000).unwrap();
            for (first, start) in sent.iter().enumerate() {
                let within = sent[first..].iter().filter(|at| **at < start + window).count();
                prop_assert!(within <= 2 * commands as usize, "{within} of {commands} in {seconds} s");
            }
        }
    }
}
