//! The way in for every command, from the cloud and from an operator at the gateway alike: judged, then journalled.
//!
//! A command that is refused is journalled too, as terminal: it is announced like any other outcome, and whatever the
//! cloud's tools wrote optimistically is put right. Only what concerns no device of ours leaves no trace here.

use floorgate_model::{ExecutionRecord, ExecutionStatus, GatewayId, Reason, Request};
use serde_json::Map;

use super::decision::{Decision, Source};
use super::judge::{self, Judge};
use super::log::CommandLog;
use crate::shadow::store::{Journalled, NewExecution};
use crate::shadow::{Store, StoreError};

/// What became of a command that came in. In every case it is settled: it may be acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub enum Admitted {
    /// Journalled and committed: `created`, or terminal with its reason (`rejected`, `expired`).
    Journalled(ExecutionRecord),
    /// Known already: this is where it stands. It is announced once more.
    Duplicate(ExecutionRecord),
    /// Its id belongs to a different command, this one (`DUPLICATE_ID`). Nothing is stored: an id has one record.
    Conflict(ExecutionRecord),
    /// No such device is attached here (`UNKNOWN_DEVICE`). Nothing is stored: strangers must not fill the journal.
    UnknownDevice,
}

impl Admitted {
    /// Why it is not going to be executed; `None` while it is.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        match self {
            Self::Journalled(record) | Self::Duplicate(record) => record.reason,
            Self::Conflict(_) => Some(Reason::DuplicateId),
            Self::UnknownDevice => Some(Reason::UnknownDevice),
        }
    }
}

/// Admits commands.
#[derive(Debug, Clone)]
pub struct Admission<L = Store> {
    log: L,
    judge: Judge,
    gateway_id: GatewayId,
}

impl<L: CommandLog> Admission<L> {
    /// Admission to the journal `log`, by `judge`, in the name of `gateway_id`.
    #[must_use]
    pub fn new(log: L, judge: Judge, gateway_id: GatewayId) -> Self {
        Self { log, judge, gateway_id }
    }

    /// Judges and journals one command; returns after the commit, so the message may be acknowledged then.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot take it: nothing is journalled, do not acknowledge.
    ///
    /// # Cancel safety
    /// After a drop the command is either journalled or not; asking again with the same id is harmless.
    pub async fn admit(&self, request: Request, source: Source) -> Result<Admitted, StoreError> {
        let device = self.log.device(&request.device_id).await?;
        let moment = self.judge.clock.moment();
        let (now, received_boot) = (moment.wall, Some(moment.boot));
        let decision = self.judge.on_receipt(&request, device.as_ref(), source, now);
        let mut record = ExecutionRecord {
            command_id: request.command_id,
            device_id: request.device_id,
            command: request.command,
            parameters: request.parameters,
            issuer: judge::issuer(source, request.issuer.as_deref()),
            issued_at: request.issued_at,
            expires_at: request.expires_at,
            received_at: now,
            status: ExecutionStatus::Created,
            reason: None,
            message: None,
            details: None,
            started_at: None,
            completed_at: None,
            gateway_id: self.gateway_id.clone(),
        };
        let checked_parameters = match decision {
            Decision::Accept { checked_parameters } => checked_parameters,
            Decision::Refuse(refusal) if refusal.reason == Reason::UnknownDevice => return Ok(Admitted::UnknownDevice),
            Decision::Refuse(refusal) => {
                record.status = refusal.status;
                record.reason = Some(refusal.reason);
                record.message = Some(refusal.message);
                record.completed_at = Some(now);
                Map::new()
            }
        };
        Ok(match self.log.journal(NewExecution { record, checked_parameters, received_boot }).await? {
            Journalled::New(record) => Admitted::Journalled(record),
            Journalled::Duplicate(record) => Admitted::Duplicate(record),
            Journalled::Conflict(record) => Admitted::Conflict(record),
        })
    }
}

#[cfg(test)]
mod tests;
