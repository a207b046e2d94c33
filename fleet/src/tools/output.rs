//! The answers of each tool. Members that are not required are left out when nothing is known.

use serde_json::{Value, json};

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

fn root(properties: Value, required: &[&str]) -> Value {
    let mut schema = object(properties, required);
    if let Some(members) = schema.as_object_mut() {
        members.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    }
    schema
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

fn whole(description: &str) -> Value {
    json!({"type": "integer", "description": description})
}

fn any_object(description: &str) -> Value {
    json!({"type": "object", "description": description})
}

fn age() -> [(&'static str, Value); 4] {
    [
        ("last_seen_at", text("When its gateway last heard of it.")),
        ("age_seconds", whole("How long ago that is, seconds.")),
        ("stale", flag("Its gateway is silent: what is told may no longer be so.")),
        ("stale_reason", text("Why it is stale.")),
    ]
}

/// Of an answer that is of one device only where that was asked for.
fn age_of_device() -> [(&'static str, Value); 4] {
    age().map(|(name, mut schema)| {
        let said = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let said = format!("With device_id: {said}");
        if let Some(members) = schema.as_object_mut() {
            members.insert("description".to_owned(), said.into());
        }
        (name, schema)
    })
}

fn with(mut schema: Value, more: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(more.into_iter().map(|(name, schema)| (name.to_owned(), schema)));
    }
    schema
}

fn device_head() -> Value {
    json!({
        "device_id": text("The device."),
        "device_type": text("Its type."),
        "location": text("Where it stands."),
        "status": text("online, offline, warning, rebooting or maintenance."),
        "firmware_version": text("As the device reports it."),
        "gateway_id": text("The gateway it is attached to."),
    })
}

pub(super) fn device() -> Value {
    let more = [
        ("last_telemetry", any_object("The newest readings as texts, and their `timestamp`.")),
        ("configuration", any_object("The device's configuration as texts.")),
        ("status_reason", text("Why it has this status.")),
        ("status_since", text("Since when.")),
        ("admin_state", text("in_service or maintenance.")),
        ("registered_at", text("When it was first registered.")),
        ("last_command", any_object("The last command, and where it stands.")),
        ("last_command_at", text("When it was asked for.")),
        ("last_execution", any_object("The gateway's record of the last execution.")),
        ("gateway_last_seen_at", text("When its gateway was last heard.")),
        (
            "gateway_connected",
            flag(
                "AWS IoT sees its gateway connected, so that commands arrive at once; says nothing of the age of readings.",
            ),
        ),
        ("gateway_connected_since", text("When that began: the connection, or its end.")),
    ];
    let schema = root(device_head(), &["device_id", "last_telemetry", "configuration", "stale"]);
    with(with(schema, age()), more)
}

pub(super) fn devices() -> Value {
    let one = with(object(device_head(), &["device_id", "stale"]), age());
    let properties = json!({
        "devices": {"type": "array", "items": one},
        "count": whole("Devices in this answer."),
        "complete": flag("There are no more: without a cursor in the question, `count` is all there are."),
        "next_cursor": text("To go on."),
        "examined": whole("Items that were looked at for this answer."),
        "as_of": text("When the tables were read."),
    });
    root(properties, &["devices", "count", "complete", "as_of"])
}

fn command_head() -> Value {
    json!({
        "command_id": text("The command's id, for get_command_status."),
        "device_id": text("The device."),
        "command": text("The command."),
        "parameters": any_object("Its parameters."),
        "delivered": flag("The gateway accepted it."),
        "status": text("created, in_progress, succeeded, failed, timed_out, indeterminate, rejected or expired."),
        "reason": text("Why, a stable code; a dry run that would be accepted has DRY_RUN_OK."),
        "message": text("Why, in words, and what can be done."),
        "timestamp": text("When it was asked for."),
        "issuer": text("Who asked."),
        "expires_at": text("It is not executed after this."),
        "received_at": text("When the gateway got it."),
        "started_at": text("When it went to the device."),
        "completed_at": text("When it ended."),
        "details": any_object("What the device told about it."),
        "gateway_id": text("The gateway that judged it."),
        "dry_run": flag("Only asked, not done."),
        "final": flag("The status will not change any more. A command past its expiry is not final while its gateway may still have to tell of it."),
    })
}

pub(super) fn command() -> Value {
    let more = [
        ("repeated", flag("This is the outcome of an earlier call; nothing was sent now.")),
        ("as_of", text("When the tables were read.")),
    ];
    let schema =
        root(command_head(), &["command_id", "device_id", "command", "parameters", "delivered", "status", "final"]);
    with(with(schema, age()), more)
}

pub(super) fn commands() -> Value {
    let one = object(command_head(), &["command_id", "device_id", "command", "delivered", "status", "final", "stale"]);
    let one = with(one, age().into_iter().filter(|(name, _)| matches!(*name, "stale" | "last_seen_at")));
    let properties = json!({
        "commands": {"type": "array", "items": one},
        "count": whole("Commands in this answer."),
        "newest_first": flag("Over all pages; false: only within this one, and later pages may hold newer commands."),
        "complete": flag("There are no more."),
        "next_cursor": text("To go on."),
        "examined": whole("Items that were looked at for this answer."),
        "as_of": text("When the tables were read."),
    });
    with(root(properties, &["commands", "count", "complete", "newest_first", "as_of"]), age_of_device())
}

pub(super) fn history() -> Value {
    let figures = || {
        object(
            json!({"min": {"type": "number"}, "max": {"type": "number"}, "mean": {"type": "number"}, "count": {"type": "integer"}}),
            &["min", "max", "mean", "count"],
        )
    };
    let sample = object(
        json!({
            "timestamp": text("When it was sampled."),
            "readings": any_object("Metric and value."),
            "clock": text("`unsynchronised`: the gateway did not know the time; order is right, times are a guess."),
        }),
        &["timestamp", "readings"],
    );
    let mut metrics = any_object("Metric and its figures: min, max, mean, count.");
    if let Some(members) = metrics.as_object_mut() {
        members.insert("additionalProperties".to_owned(), figures());
    }
    let point = object(
        json!({"from": text("Start, included."), "to": text("End, not included."), "metrics": metrics}),
        &["from", "to", "metrics"],
    );
    let gap = object(
        json!({
            "from": text("Time of the first reading that is missing."),
            "to": text("Time of the last one."),
            "lost": whole("How many are missing."),
            "reason": text("thinned, quota, damaged, rate_limited or refused."),
            "summary": any_object("What is left of them: metric and min, max, mean, count."),
        }),
        &["from", "to", "lost", "reason"],
    );
    let properties = json!({
        "device_id": text("The device."),
        "from": text("Start of the range."),
        "to": text("End of the range."),
        "samples": {"type": "array", "items": sample, "description": "Without `points`."},
        "points": {"type": "array", "items": point, "description": "With `points`; intervals without a reading are left out."},
        "gaps": {"type": "array", "items": gap, "description": "Readings that are known to be lost."},
        "count": whole("Samples that this answer tells of."),
        "complete": flag("The range is told to its end."),
        "next_cursor": text("To go on."),
        "as_of": text("When the tables were read."),
    });
    with(root(properties, &["device_id", "from", "to", "gaps", "count", "complete", "stale", "as_of"]), age())
}
