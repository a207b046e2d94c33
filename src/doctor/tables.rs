//! What the probe of the tables found, in sentences with what to do.

use super::report::{Check, Finding};
use crate::config::CredentialsConfig;
use crate::sync::dynamo::probe::{Permission, TableFound, TablesFound};
use crate::sync::{CredentialsError, SyncError, TableError};

/// What came of it. `source`: where the configuration has the credentials from.
pub(super) fn judge(source: &CredentialsConfig, found: Result<TablesFound, SyncError>) -> Vec<Finding> {
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let advice = "correct [dynamodb] in the configuration; `floorgate check` prints what counts";
            return vec![Finding::fail(Check::Credentials, error.to_string(), advice)];
        }
    };
    match &found.credentials {
        Err(error) => vec![Finding::fail(Check::Credentials, error.to_string(), no_credentials(error))],
        Ok(()) => {
            let mut findings = vec![Finding::ok(Check::Credentials, told(source))];
            findings.extend(found.tables.iter().flat_map(of_table));
            findings
        }
    }
}

fn told(source: &CredentialsConfig) -> String {
    match source {
        CredentialsConfig::IotRole(role) => format!("temporary keys through the role alias `{}`", role.role_alias),
        CredentialsConfig::Keys(_) => "keys from this process's environment".to_owned(),
        CredentialsConfig::SharedFile { path, profile } => format!("profile `{profile}` of `{}`", path.display()),
    }
}

fn no_credentials(error: &CredentialsError) -> &'static str {
    match error {
        CredentialsError::File { .. } => "repair the file; it is read again at the next request",
        CredentialsError::Settings(_) => "correct [dynamodb.credentials] in the configuration",
        CredentialsError::Unreachable { .. } | CredentialsError::Unreadable { .. } => {
            "check `iot_endpoint` (`aws iot describe-endpoint --endpoint-type iot:CredentialProvider`), the name service and TCP port 443"
        }
        CredentialsError::Refused { .. } => {
            "check thing, role alias and policies against docs/operations.md, \"AWS\"; the role's trust must name credentials.iot.amazonaws.com"
        }
    }
}

fn of_table(found: &TableFound) -> Vec<Finding> {
    let schema = match &found.schema {
        Ok(()) => Finding::ok(Check::Table, "is there, with the keys and the index that are needed"),
        Err(SyncError::Schema(what)) => Finding::fail(
            Check::Table,
            what.clone(),
            "`floorgate provision` makes what is missing, with credentials that may; docs/operations.md, \"AWS\"",
        ),
        Err(SyncError::Table { error: TableError::Misconfigured { text, .. }, .. }) if text.contains("may not use") => {
            let advice =
                "allow dynamodb:DescribeTable on it (docs/operations.md, \"AWS\"), or compare its keys by hand";
            Finding::warn(Check::Table, format!("its keys were not compared: {text}"), advice)
        }
        Err(error) => {
            let text = error.to_string().replace("; trying again", "");
            Finding::fail(Check::Table, text, "check `region` and `endpoint_url`, the network, and what the text names")
        }
    };
    let unanswered = matches!(&found.schema, Err(SyncError::Schema(_)))
        || matches!(&found.schema, Err(SyncError::Table { error: TableError::Retry { .. }, .. }));
    let mut findings = vec![schema.of(&found.table)];
    // A table that is not there, or does not answer, says nothing about permissions.
    if !unanswered {
        findings.push(permissions(found).of(&found.table));
    }
    findings
}

fn permissions(found: &TableFound) -> Finding {
    let named = |wanted: fn(&Permission) -> bool| {
        let some = found.permissions.iter().filter(|(_, permission)| wanted(permission));
        some.map(|(action, _)| *action).collect::<Vec<_>>().join(", ")
    };
    let refused = named(|permission| matches!(permission, Permission::Refused(_)));
    let allowed = named(|permission| matches!(permission, Permission::Allowed));
    let unknown = found.permissions.iter().filter_map(|(action, permission)| match permission {
        Permission::Unknown(why) => Some(format!("{action} was not tried: {}", why.replace("; trying again", ""))),
        _ => None,
    });
    let mut parts = Vec::new();
    if !refused.is_empty() {
        parts.push(format!("not allowed: {refused}"));
    }
    if !allowed.is_empty() {
        parts.push(format!("allowed: {allowed}"));
    }
    parts.extend(unknown);
    let text = parts.join("; ");
    if !refused.is_empty() {
        Finding::fail(
            Check::Permission,
            text,
            "allow it in the role's policy; docs/operations.md, \"AWS\" has the whole policy",
        )
    } else if allowed.is_empty() {
        Finding::skipped(Check::Permission, text)
    } else {
        Finding::ok(Check::Permission, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;
    use crate::sync::table::{Cause, Scope};

    fn table(schema: Result<(), SyncError>, permissions: Vec<(&'static str, Permission)>) -> Vec<Finding> {
        of_table(&TableFound { table: "iot-devices".into(), schema, permissions })
    }

    fn failed(error: TableError) -> Result<(), SyncError> {
        Err(SyncError::Table { table: "iot-devices".into(), error })
    }

    #[test]
    fn a_permission_that_is_missing_is_red_and_what_cannot_be_tried_is_said() {
        let all = table(
            Ok(()),
            vec![("dynamodb:GetItem", Permission::Allowed), ("dynamodb:UpdateItem", Permission::Refused("no".into()))],
        );
        assert_eq!((all[0].state, all[1].state), (State::Ok, State::Fail));
        assert_eq!(all[1].found, "not allowed: dynamodb:UpdateItem; allowed: dynamodb:GetItem");
        let all = table(Ok(()), vec![("dynamodb:BatchWriteItem", Permission::Unknown("no condition".into()))]);
        assert_eq!(
            (all[1].state, all[1].found.as_str()),
            (State::Skipped, "dynamodb:BatchWriteItem was not tried: no condition")
        );
    }

    #[test]
    fn a_table_that_may_not_be_described_is_a_warning_and_one_that_is_wrong_or_away_is_red() {
        let text = "these credentials may not use table `iot-devices` (x); check the policy of their role".to_owned();
        let all = table(failed(TableError::Misconfigured { scope: Scope::Table, text }), Vec::new());
        assert_eq!(all[0].state, State::Warn);
        let all = table(Err(SyncError::Schema("table `iot-devices` does not exist".into())), Vec::new());
        assert_eq!((all.len(), all[0].state), (1, State::Fail));
        let away =
            TableError::Retry { cause: Cause::Timeout, text: "table `iot-devices` did not answer in time".into() };
        let all = table(failed(away), Vec::new());
        assert!(all.len() == 1 && all[0].state == State::Fail && !all[0].found.contains("trying again"), "{all:?}");
    }

    #[test]
    fn credentials_that_are_refused_say_what_to_check() {
        let error =
            CredentialsError::Refused { thing: "GW".into(), alias: "a".into(), status: 403, message: "no".into() };
        let found = Ok(TablesFound { credentials: Err(error), tables: Vec::new() });
        let source = CredentialsConfig::SharedFile { path: "x".into(), profile: "default".into() };
        let all = judge(&source, found);
        assert!(
            all.len() == 1 && all[0].state == State::Fail && all[0].advice.as_ref().unwrap().contains("role alias")
        );
    }
}
