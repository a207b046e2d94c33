//! The door for people and scripts: `floorgate-fleet call TOOL key=value…`.
//!
//! A value that is JSON (`5`, `true`, `{"status":"maintenance"}`) is that, anything else is a text; `parameters.NAME=…`
//! is a member of `parameters`. Where the tool wants a text, the value is one: ids of digits are not numbers. The caller
//! is the user of this machine; what he may do is decided by his AWS credentials.

use serde_json::{Map, Value};

use crate::caller::Caller;
use crate::tools;

/// `key=value` words as arguments.
///
/// # Errors
/// The word that is none.
pub fn arguments(tool: &str, words: &[String]) -> Result<Map<String, Value>, String> {
    let properties =
        tools::find(tool).and_then(|tool| tool.input_schema.get("properties").cloned()).unwrap_or_default();
    let mut arguments = Map::new();
    for word in words {
        let wrong = || format!("`{word}` is no argument; write key=value, or parameters.NAME=value");
        let (key, value) = word.split_once('=').ok_or_else(wrong)?;
        match key.split_once('.') {
            Some((parent, name)) if !name.is_empty() && !parent.is_empty() => {
                let members = arguments.entry(parent).or_insert_with(|| Value::Object(Map::new()));
                let members = members.as_object_mut().ok_or_else(wrong)?;
                let wanted = properties.get(parent).and_then(|parent| parent.get("properties")?.get(name));
                members.insert(name.to_owned(), value_of(value, wanted));
            }
            None if !key.is_empty() => {
                arguments.insert(key.to_owned(), value_of(value, properties.get(key)));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(arguments)
}

fn value_of(text: &str, schema: Option<&Value>) -> Value {
    if schema.and_then(|schema| schema.get("type")).and_then(Value::as_str) == Some("string") {
        return text.into();
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// The user of this machine, as the kernel and `/etc/passwd` know him: not by a variable that he may set.
#[must_use]
pub fn caller() -> Caller {
    let id = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&users, id).unwrap_or_default().to_owned();
    Caller { subject: format!("os:{id}"), name, client_id: "floorgate-fleet call".to_owned(), ..Caller::default() }
}

fn name_of(users: &str, id: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(tool: &str, words: &[&str]) -> Result<Value, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments(tool, &words).map(Value::Object)
    }

    #[test]
    fn words_become_arguments_of_the_types_that_the_tool_wants() {
        let words = ["device_id=007", "command=update_config", "parameters.sample_rate_seconds=10", "dry_run=true"];
        let wanted = json!({"device_id": "007", "command": "update_config", "dry_run": true,
            "parameters": {"sample_rate_seconds": 10}});
        assert_eq!(read("send_command", &words), Ok(wanted));
        let whole = read("send_command", &["parameters={\"status\":\"maintenance\"}", "idempotency_key=a=b"]);
        assert_eq!(whole, Ok(json!({"parameters": {"status": "maintenance"}, "idempotency_key": "a=b"})));
    }

    #[test]
    fn what_is_no_argument_is_named() {
        for word in ["device_id", "=x", ".x=1", "parameters.=1"] {
            assert!(read("send_command", &[word]).unwrap_err().contains(word), "{word}");
        }
        assert!(read("send_command", &["parameters=5", "parameters.status=online"]).is_err());
    }

    #[test]
    fn the_user_is_named_by_his_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\nkim:x:1000:1000::/home/kim:/bin/sh\n";
        assert_eq!((name_of(users, 1000), name_of(users, 7)), (Some("kim"), None));
    }
}
