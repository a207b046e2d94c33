//! What the tools' role in `deploy/aws` lets them ask of the tables, held against every request of every test.
//!
//! AWS would refuse anything else with a 400 that no test here could show. How AWS counts attributes: those that an update sets and
//! those that its condition names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use floorgate_demo::dynamo;
use serde_json::{Value, json};

static RIGHTS: LazyLock<Rights> = LazyLock::new(Rights::of_the_template);

#[derive(Debug, PartialEq, Eq, Hash, Clone, PartialOrd, Ord)]
enum Resource {
    Table(&'static str),
    Index,
}

/// What a role may do.
#[derive(Debug)]
struct Rights {
    actions: BTreeMap<Resource, BTreeSet<String>>,
    /// Attributes that an update of a device may name; `*` as AWS has it.
    of_devices: Vec<String>,
}

/// What is between the next brackets.
fn listed(text: &str) -> Vec<String> {
    let (_, after) = text.split_once('[').unwrap();
    let (inside, _) = after.split_once(']').unwrap();
    inside.split(',').map(|word| word.trim().trim_matches('"').to_owned()).collect()
}

impl Rights {
    fn of_the_template() -> Self {
        let template = include_str!("../../../deploy/aws/template.yaml");
        let (_, role) = template.split_once("\n  ToolsRole:\n").unwrap();
        let (role, _) = role.split_once("\n  ToolsLog:\n").unwrap();
        let mut rights = Self { actions: BTreeMap::new(), of_devices: Vec::new() };
        for statement in role.split("- Sid: ").skip(1) {
            let after = |word: &str| statement.split_once(word).map(|(_, after)| after.lines().next().unwrap().trim());
            let resource = match after("Resource: ").unwrap() {
                "!GetAtt DevicesTable.Arn" => Resource::Table(dynamo::DEVICES),
                "!GetAtt HistoryTable.Arn" => Resource::Table(dynamo::HISTORY),
                "!GetAtt CommandsTable.Arn" => Resource::Table(dynamo::COMMANDS),
                r#"!Sub "${DevicesTable.Arn}/index/location-index""# => Resource::Index,
                _ => continue,
            };
            let action = after("Action: ").unwrap();
            let actions = if action.starts_with('[') { listed(action) } else { vec![action.to_owned()] };
            if statement.contains("dynamodb:Attributes") {
                assert_eq!(actions, ["dynamodb:UpdateItem"], "a list of attributes holds for updates of devices alone");
                assert_eq!(resource, Resource::Table(dynamo::DEVICES));
                rights.of_devices = listed(statement.split_once("dynamodb:Attributes").unwrap().1);
            }
            rights.actions.entry(resource).or_default().extend(actions);
        }
        assert!(rights.actions.len() == 4 && rights.of_devices.len() > 2, "{rights:?}");
        rights
    }

    /// Whether a request is within them; why not.
    fn permit(&self, operation: &str, body: &Value) -> Result<(), String> {
        let action = format!("dynamodb:{operation}");
        let many = body["RequestItems"].as_object().into_iter().flatten().map(|(table, _)| table.as_str());
        for table in many.chain(body["TableName"].as_str()) {
            // A test may call its tables otherwise.
            let Some(table) = [dynamo::DEVICES, dynamo::HISTORY, dynamo::COMMANDS].into_iter().find(|t| *t == table)
            else {
                continue;
            };
            let resource = if body.get("IndexName").is_some() { Resource::Index } else { Resource::Table(table) };
            if !self.actions.get(&resource).is_some_and(|actions| actions.contains(&action)) {
                return Err(format!("{action} of {resource:?}"));
            }
            if operation == "UpdateItem" && table == dynamo::DEVICES {
                self.permit_update(body)?;
            }
        }
        Ok(())
    }

    fn permit_update(&self, body: &Value) -> Result<(), String> {
        if !matches!(body["ReturnValues"].as_str(), None | Some("NONE")) {
            return Err(format!("an update that answers {}", body["ReturnValues"]));
        }
        let name = |part: &str| match part.strip_prefix('#') {
            Some(_) => body["ExpressionAttributeNames"][part].as_str().unwrap().to_owned(),
            None => part.to_owned(),
        };
        let expressions = ["UpdateExpression", "ConditionExpression"].map(|which| body[which].as_str().unwrap_or(""));
        let key = body["Key"].as_object().unwrap().keys().cloned();
        let paths =
            expressions.iter().flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && !"#_.:".contains(c)));
        let paths = paths.filter(|path| path.starts_with('#'));
        let named: BTreeSet<_> =
            paths.map(|path| path.split('.').map(name).collect::<Vec<_>>().join(".")).chain(key).collect();
        let within = |path: &str| {
            self.of_devices.iter().any(|allowed| match allowed.strip_suffix('*') {
                Some(beginning) => path.starts_with(beginning),
                None => path == allowed,
            })
        };
        match named.iter().find(|path| !within(path)) {
            Some(path) => Err(format!("an update that names {path}")),
            None => Ok(()),
        }
    }
}

/// What carries the tools' requests, and stops the test at one that their role forbids.
#[derive(Debug)]
struct Watched(SharedHttpClient);

#[derive(Debug)]
struct WatchedConnector(SharedHttpConnector);

pub fn watched(client: SharedHttpClient) -> SharedHttpClient {
    SharedHttpClient::new(Watched(client))
}

impl HttpClient for Watched {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(WatchedConnector(self.0.http_connector(settings, components)))
    }
}

impl HttpConnector for WatchedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").and_then(|target| target.strip_prefix("DynamoDB_20120810."));
        if let Some(operation) = target {
            let body: Value = serde_json::from_slice(request.body().bytes().unwrap()).unwrap();
            if let Err(what) = RIGHTS.permit(operation, &body) {
                panic!("the tools' role in deploy/aws/template.yaml forbids {what}: {body}");
            }
        }
        self.0.call(request)
    }
}

#[test]
fn the_tools_role_keeps_what_is_the_gateways() {
    let update = |expression: &str, condition: &str, names: Value| {
        json!({"TableName": dynamo::DEVICES, "Key": {"device_id": {"S": "D"}}, "UpdateExpression": expression,
            "ConditionExpression": condition, "ExpressionAttributeNames": names})
    };
    let names = json!({"#last_command": "last_command", "#status": "status", "#id": "device_id"});
    let permits = |body: &Value| RIGHTS.permit("UpdateItem", body);
    permits(&update("SET #last_command.#status = :x", "attribute_exists(#id)", names.clone())).unwrap();
    permits(&update("SET #status = :x", "attribute_exists(#id)", names.clone())).unwrap_err();
    permits(&update("SET #last_command = :x", "#status = :x", names.clone())).unwrap_err();
    let mut answering = update("SET #last_command = :x", "attribute_exists(#id)", names);
    answering["ReturnValues"] = json!("ALL_OLD");
    permits(&answering).unwrap_err();
    let query = json!({"TableName": dynamo::DEVICES, "IndexName": "location-index"});
    RIGHTS.permit("Query", &query).unwrap();
    RIGHTS.permit("Query", &json!({"TableName": dynamo::DEVICES})).unwrap_err();
    RIGHTS.permit("BatchGetItem", &json!({"RequestItems": {dynamo::DEVICES: {}}})).unwrap();
    RIGHTS.permit("BatchGetItem", &json!({"RequestItems": {dynamo::HISTORY: {}}})).unwrap_err();
    RIGHTS.permit("PutItem", &json!({"TableName": dynamo::COMMANDS})).unwrap();
    RIGHTS.permit("PutItem", &json!({"TableName": dynamo::DEVICES})).unwrap_err();
    RIGHTS.permit("DeleteItem", &json!({"TableName": dynamo::COMMANDS})).unwrap_err();
}
