//! A device's word on a command, as a JSON column.

use std::collections::BTreeMap;

use floorgate_model::{ExecutionRecord, Timestamp};
use rusqlite::Row;
use serde_json::{Map, Value};

use super::report::{Answer, AnswerStatus};
use super::words::{json, read_opt_json};

/// Device and command stand in the row already.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    status: AnswerStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    configuration: Option<BTreeMap<String, String>>,
    received_at: Timestamp,
}

pub(super) fn write_answer(answer: &Answer) -> String {
    json(&Stored {
        status: answer.status,
        reason: answer.reason.clone(),
        details: answer.details.clone(),
        configuration: answer.configuration.clone(),
        received_at: answer.received_at,
    })
}

pub(super) fn read_answer(row: &Row<'_>, index: usize, record: &ExecutionRecord) -> rusqlite::Result<Option<Answer>> {
    let stored: Option<Stored> = read_opt_json(row, index)?;
    Ok(stored.map(|stored| Answer {
        device_id: record.device_id.clone(),
        command_id: record.command_id.clone(),
        status: stored.status,
        reason: stored.reason,
        details: stored.details,
        configuration: stored.configuration,
        received_at: stored.received_at,
    }))
}
