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
//!
//! Both budgets are looked at before either is touched: who is refused has paid nothing. What certainly did not leave
//! (`NOT_SENT`, joined to another call's, a device removed) is given back to both. Who tries without end what does not leave
//! is stopped all the same: each such try, but not a join, is taken out of a budget of its own, and where that is used up
//! nothing is given back. A call that dies before it could give back has paid; time gives it back. Where an answer of the table is lost, one command may be counted, or given back, twice.

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
/// Longest pause after a try that lost; as much longer after each further one.
const STEP_ASIDE: Duration = Duration::from_millis(10);
/// Tries of a caller that cost nothing of a command's own budget when they do not leave.
const UNSENT_TRIES: Budget = budget(20, 600);
/// The name of the budget for what did not leave.
const NOT_SENT: &str = "not_sent";
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
    /// For tries of every command that did not leave: so many cost nothing of the command's own budget.
    pub not_sent: Budget,
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
            not_sent: UNSENT_TRIES,
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

/// Who lost a race for one number of a table tries again a little later than the others who lost it.
pub(super) async fn step_aside(try_number: u32) {
    let longest = STEP_ASIDE.saturating_mul(try_number + 1);
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
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

/// One command, taken out of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    /// What that made of the budget.
    becomes: i64,
    /// What one command is.
    each: i64,
}

impl Taken {
    /// What the budget becomes when it gets the command back; `None` if time has given it back already.
    fn back(self, used_until: i64) -> Option<i64> {
        // Others move it on and back by whole commands. Anything else between means that it had run out and began anew.
        let whole = used_until.saturating_sub(self.becomes).rem_euclid(self.each) == 0;
        whole.then(|| used_until.saturating_sub(self.each))
    }
}

/// One command, taken out of the caller's budget and out of everyone's.
#[derive(Debug)]
pub(super) struct Spent {
    name: &'static str,
    own: Taken,
    all: Taken,
}

impl Call<'_> {
    /// Takes one command out of the caller's budget and out of everyone's, or nothing out of either.
    pub(super) async fn spend(&self, asked: &Asked) -> Result<Spent, ToolError> {
        let (name, budget) = self.parts.budgets.of(asked.command, asked.dry_run);
        self.spend_of(name, budget).await
    }

    async fn spend_of(&self, name: &'static str, budget: Budget) -> Result<Spent, ToolError> {
        let (caller, everyone) = (self.caller.key(), budget.times(EVERYONE_FACTOR));
        let own_used = self.parts.store.budget(&caller, name).await?;
        budget.one_more(own_used, self.now).map_err(|wait| self.used_up("your", name, budget, wait))?;
        let all_used = self.parts.store.budget(EVERYONE, name).await?;
        let all_used_up = |wait| self.used_up("everyone's together", name, everyone, wait);
        everyone.one_more(all_used, self.now).map_err(all_used_up)?;
        let own = self.take(&caller, name, budget, own_used).await?;
        let own = own.map_err(|wait| self.used_up("your", name, budget, wait))?;
        // Others may have been quicker since it was looked at.
        let all = match self.take(EVERYONE, name, everyone, all_used).await {
            Ok(all) => all.map_err(all_used_up),
            Err(error) => Err(error),
        };
        match all {
            Ok(all) => Ok(Spent { name, own, all }),
            Err(error) => {
                self.give_back_to(&caller, name, own).await;
                Err(error)
            }
        }
    }

    /// Gives back what was spent on a command that certainly did not leave. A table that fails here costs one command for a
    /// while; its failure is in the log.
    pub(super) async fn give_back(&self, spent: &Spent) {
        self.give_back_to(&self.caller.key(), spent.name, spent.own).await;
        self.give_back_to(EVERYONE, spent.name, spent.all).await;
    }

    /// The same for a try that did not leave, as long as the budget for those has room.
    pub(super) async fn give_back_unsent(&self, spent: &Spent) {
        if self.spend_of(NOT_SENT, self.parts.budgets.not_sent).await.is_ok() {
            self.give_back(spent).await;
        }
    }

    async fn give_back_to(&self, owner: &str, name: &str, taken: Taken) {
        let mut used_until = taken.becomes;
        for try_number in 0..TRIES {
            let Some(becomes) = taken.back(used_until) else { return };
            if self.parts.store.spend(owner, name, Some(used_until), becomes).await.unwrap_or(true) {
                return;
            }
            step_aside(try_number).await;
            let Ok(Some(now)) = self.parts.store.budget(owner, name).await else { return };
            used_until = now;
        }
    }

    /// Out of the budget of one owner, which was looked at a moment ago.
    async fn take(
        &self,
        owner: &str,
        name: &str,
        budget: Budget,
        mut was: Option<i64>,
    ) -> Result<Result<Taken, Duration>, ToolError> {
        for try_number in 0..TRIES {
            let becomes = match budget.one_more(was, self.now) {
                Ok(becomes) => becomes,
                Err(wait) => return Ok(Err(wait)),
            };
            if self.parts.store.spend(owner, name, was, becomes).await? {
                return Ok(Ok(Taken { becomes, each: budget.each() }));
            }
            step_aside(try_number).await;
            was = self.parts.store.budget(owner, name).await?;
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

    #[test]
    fn a_command_is_given_back_once_and_only_while_it_counts() {
        let budget = budget(5, 600);
        let take = |used: Option<i64>, now: i64| {
            let becomes = budget.one_more(used, at(now)).unwrap();
            Taken { becomes, each: budget.each() }
        };
        let first = take(None, 0);
        assert_eq!(first.back(first.becomes), Some(at(0).as_millis()));
        // Another one on top of it: one of the two stays, whoever gives back first.
        let second = take(Some(first.becomes), 1_000);
        let one_left = first.back(second.becomes).unwrap();
        assert_eq!(Some(one_left), second.back(second.becomes));
        assert_eq!(second.back(one_left), Some(at(0).as_millis()));
        // It ran out meanwhile, and another one began anew: that one is not to be given away.
        let later = take(Some(first.becomes), 130_500);
        assert_eq!(first.back(later.becomes), None);
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
