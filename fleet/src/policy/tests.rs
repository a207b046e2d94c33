//! The policies that come with floorgate, and what becomes of others.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::*;
use crate::identity::testing::{claims, cognito};
use crate::tools::definitions;

const ARN: &str = "arn:aws:bedrock-agentcore:us-east-1:123456789012:gateway/iotdevicegateway-0123456789";
const AT: &str = "2027-01-15T08:00:00.000Z";

fn policies() -> Policies {
    Policies::load(&embedded(), definitions(), ARN).unwrap()
}

fn operator(groups: &[&str]) -> Operator {
    cognito().for_tests(claims(groups))
}

fn arguments(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn command(command: &str) -> Map<String, Value> {
    arguments(&json!({"device_id": "SENSOR-LINE7-PRESS-001", "command": command}))
}

fn with_policy(text: &str) -> Result<Policies, Vec<Fault>> {
    let mut files = embedded();
    files.push(PolicyFile { name: "own".to_owned(), text: text.to_owned() });
    Policies::load(&files, definitions(), ARN)
}

fn faults(text: &str) -> String {
    with_policy(text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

const HEAD: &str = r#"principal is AgentCore::OAuthUser,
  action == AgentCore::Action::"IoTDeviceTools___send_command",
  resource == AgentCore::Gateway::"${GatewayArn}""#;

#[test]
fn operators_calibrate_and_configure_and_only_seniors_reboot() {
    let policies = policies();
    for (groups, permitted) in [
        (&["operators"] as &[&str], &["recalibrate", "update_config"] as &[&str]),
        (&["senior_operator"], &["recalibrate", "update_config", "reboot", "set_status"]),
        (&["operators", "senior_operator"], &["recalibrate", "update_config", "reboot", "set_status"]),
        (&["not_senior_operator", "Operators", "senior_operator2"], &[]),
        (&["x\"senior_operator\"y", "[\"senior_operator\"]", "senior_operator\\"], &[]),
        (&[], &[]),
    ] {
        for word in ["recalibrate", "update_config", "reboot", "set_status", "explode", "", "REBOOT"] {
            let verdict = policies.decide(&operator(groups), "send_command", &command(word), AT).unwrap();
            assert_eq!(verdict == Verdict::Permitted, permitted.contains(&word), "{groups:?} {word}");
        }
    }
}

#[test]
fn a_policy_that_asks_whether_there_are_groups_hears_what_the_token_says() {
    let own = format!("permit ({HEAD}) when {{ principal.hasTag(\"cognito:groups\") }};");
    let asking = with_policy(&own).unwrap();
    let without = cognito().for_tests(crate::identity::testing::with(claims(&[]), &json!({"cognito:groups": null})));
    for (policies, operator, permitted) in [
        (&asking, &without, false),
        (&asking, &operator(&[]), true),
        (&asking, &operator(&["visitors"]), true),
        (&policies(), &without, false),
        (&policies(), &operator(&[]), false),
    ] {
        let verdict = policies.decide(operator, "send_command", &command("recalibrate"), AT).unwrap();
        assert_eq!(verdict == Verdict::Permitted, permitted, "{:?}", operator.tags);
    }
}

#[test]
fn a_denial_says_what_agentcore_says() {
    let said = policies().decide(&operator(&["operators"]), "send_command", &command("reboot"), AT).unwrap();
    let wanted = "AuthorizeActionException - Tool Execution Denied: Tool call not allowed due to policy enforcement \
                  [No policy applies to the request (denied by default).]";
    assert_eq!(said, Verdict::Denied(wanted.to_owned()));
}

#[test]
fn one_forbid_beats_every_permit() {
    let night = format!("forbid ({HEAD}) when {{ context.system.now > datetime(\"2027-01-15T07:00:00Z\") }};");
    let policies = with_policy(&night).unwrap();
    let senior = operator(&["senior_operator"]);
    let before = policies.decide(&senior, "send_command", &command("reboot"), "2027-01-15T06:59:59.000Z").unwrap();
    assert_eq!(before, Verdict::Permitted);
    let Verdict::Denied(after) = policies.decide(&senior, "send_command", &command("reboot"), AT).unwrap() else {
        panic!("permitted");
    };
    assert!(after.contains("own"), "{after}");
}

#[test]
fn a_policy_sees_the_declared_parameters() {
    let forbid = format!(
        "forbid ({HEAD}) when {{ context.input has parameters && context.input.parameters has sample_rate_seconds &&
            context.input.parameters.sample_rate_seconds < 5 }};"
    );
    let policies = with_policy(&forbid).unwrap();
    let slow = |seconds: u64| {
        let arguments =
            json!({"device_id": "D", "command": "update_config", "parameters": {"sample_rate_seconds": seconds}});
        policies.decide(&operator(&["operators"]), "send_command", &arguments.as_object().unwrap().clone(), AT).unwrap()
    };
    assert_eq!(slow(5), Verdict::Permitted);
    assert!(matches!(slow(4), Verdict::Denied(_)));
}

#[test]
fn the_list_shows_what_could_be_permitted_and_nothing_else() {
    let policies = policies();
    let shown = |groups: &[&str]| {
        let operator = operator(groups);
        definitions()
            .iter()
            .filter(|tool| policies.could(&operator, tool.name))
            .map(|tool| tool.name)
            .collect::<Vec<_>>()
    };
    let all: Vec<_> = definitions().iter().map(|tool| tool.name).collect();
    assert_eq!(shown(&["operators"]), all);
    assert_eq!(shown(&["senior_operator"]), all);
    assert_eq!(shown(&["visitors"]), Vec::<&str>::new());
    assert!(!policies.could(&operator(&["operators"]), "no_such_tool"));
}

#[test]
fn a_tool_that_only_some_arguments_open_is_shown() {
    let only = format!("permit ({HEAD}) when {{ context.input.device_id == \"D\" }};");
    let files = [PolicyFile { name: "own".to_owned(), text: only }];
    let policies = Policies::load(&files, definitions(), ARN).unwrap();
    let anyone = operator(&[]);
    assert!(policies.could(&anyone, "send_command"));
    assert!(!policies.could(&anyone, "list_devices"));
}

#[test]
fn arguments_of_other_types_are_a_misfit_and_never_judged() {
    let policies = policies();
    let operator = operator(&["senior_operator"]);
    for (arguments, named) in [
        (json!({"command": "reboot"}), "device_id"),
        (json!({"device_id": null, "command": "reboot"}), "device_id"),
        (json!({"device_id": 7, "command": "reboot"}), "device_id"),
        (
            json!({"device_id": {"__entity": {"type": "AgentCore::Gateway", "id": ARN}}, "command": "reboot"}),
            "device_id",
        ),
        (json!({"device_id": {"__extn": {"fn": "ip", "arg": "::1"}}, "command": "reboot"}), "device_id"),
        (json!({"device_id": "D", "command": ["reboot"]}), "command"),
        (json!({"device_id": "D", "command": "reboot", "parameters": "x"}), "parameters"),
        (json!({"device_id": "D", "command": "reboot", "dry_run": "yes"}), "dry_run"),
        (json!({"device_id": "D", "command": "reboot", "wait_seconds": 1.5}), "wait_seconds"),
        (json!({"device_id": "D", "command": "reboot", "wait_seconds": u64::MAX}), "wait_seconds"),
        (json!({"device_id": "D", "command": "x", "parameters": {"sample_rate_seconds": "5"}}), "sample_rate_seconds"),
    ] {
        let misfit = policies.decide(&operator, "send_command", &self::arguments(&arguments), AT).unwrap_err();
        assert!(misfit.argument.ends_with(named), "{arguments}: {misfit}");
    }
}

#[test]
fn what_a_schema_does_not_declare_is_invisible_to_policies() {
    let mut odd = command("recalibrate");
    odd.insert("operator_id".to_owned(), json!("somebody else"));
    odd.insert("parameters".to_owned(), json!({"role": {"__expr": "principal"}}));
    let verdict = policies().decide(&operator(&["operators"]), "send_command", &odd, AT).unwrap();
    assert_eq!(verdict, Verdict::Permitted, "the tool refuses them itself");
}

#[test]
fn a_broken_policy_is_refused_with_its_line_and_reason() {
    for (text, line, said) in [
        (format!("permit ({HEAD})\nwhen {{ context.input.command = \"reboot\" }};"), "line 4", "not a valid operator"),
        (format!("permit ({HEAD})\nwhen {{\n  context.arguments.command == \"reboot\" }};"), "line 5", "arguments"),
        (format!("permit ({HEAD})\nwhen {{ principal.role == \"senior_operator\" }};"), "line 4", "role"),
        (format!("permit ({HEAD})\nwhen {{ context.input.parameters has colour }};"), "line 4", "parameters"),
        (format!("permit ({HEAD})\nwhen {{ principal.getTag(\"role\") == \"x\" }};"), "line 4", "tag"),
        (
            HEAD.replace("send_command", "explode").replace("principal is", "permit (principal is") + ");",
            "line 2",
            "explode",
        ),
        (format!("permit ({HEAD});\npermit ({HEAD});"), "own.cedar", "one statement"),
        (
            format!("permit ({});", HEAD.replace("resource == AgentCore::Gateway::\"${GatewayArn}\"", "resource")),
            "own",
            "resource must",
        ),
        (format!("permit ({});", HEAD.replace("${GatewayArn}", "arn:aws:other")), "own.cedar", "resource must"),
        ("permit (principal, action, resource)".to_owned(), "own.cedar", ""),
        ("// nothing but a comment, long enough to be one".to_owned(), "own.cedar", "one statement"),
        ("".to_owned(), "own.cedar", "0 bytes"),
        (format!("permit ({HEAD}); // {}", "x".repeat(10_000)), "own.cedar", "bytes"),
    ] {
        let faults = faults(&text);
        assert!(faults.contains(line) && faults.contains(said), "{text:.200}\n=> {faults}");
    }
}

#[test]
fn the_seeds_policy_is_refused() {
    let seed = "permit (principal, action == Action::\"CallTool\", resource == Tool::\"send_command\")
when { principal.role == \"senior_operator\" };";
    assert!(faults(seed).contains("Action"), "{}", faults(seed));
}

#[test]
fn all_faults_of_all_files_are_told_at_once() {
    let file = |name: &str, text: &str| PolicyFile { name: name.to_owned(), text: text.to_owned() };
    let files =
        [file("a b", "permit (principal is X, action, resource);"), file("second", "forbid (principal, action")];
    let faults = Policies::load(&files, definitions(), ARN).unwrap_err();
    assert!(faults.iter().any(|fault| fault.file == "a b.cedar" && fault.reason.contains("name")), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.file == "second.cedar" && fault.line == Some(1)), "{faults:?}");
}

#[test]
fn a_folder_of_policies_is_read_and_an_empty_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(read_folder(folder.path()).unwrap_err()[0].reason.contains("no *.cedar"));
    std::fs::write(folder.path().join("b.cedar"), "x").unwrap();
    std::fs::write(folder.path().join("a.cedar"), "y").unwrap();
    std::fs::write(folder.path().join("notes.txt"), "z").unwrap();
    let names: Vec<_> = read_folder(folder.path()).unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(read_folder(&folder.path().join("none")).is_err());
}

#[test]
fn the_files_that_come_with_floorgate_are_all_of_the_folder() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut shipped = embedded();
    shipped.sort_by(|a, b| a.name.cmp(&b.name));
    let on_disk = read_folder(&folder).unwrap();
    let both = |files: &[PolicyFile]| files.iter().map(|f| (f.name.clone(), f.text.clone())).collect::<Vec<_>>();
    assert_eq!(both(&shipped), both(&on_disk));
}

#[test]
fn the_schema_is_agentcores() {
    let policies = policies();
    let text = policies.schema_text();
    for part in [
        "namespace AgentCore",
        "entity Gateway",
        "tags String",
        "action \"IoTDeviceTools___send_command\" in [Action::\"CallTool\"]",
        "IoTDeviceTools___send_commandInput",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("enum"), "an enumeration would be an entity here and a string there");
}

#[tokio::test(start_paused = true)]
async fn a_command_needs_a_status_read_of_the_same_device_within_five_minutes() {
    let reads = StatusReads::default();
    reads.note("kim", "A");
    assert!(reads.recent("kim", "A"));
    assert!(!reads.recent("kim", "B"), "of another device");
    assert!(!reads.recent("lee", "A"), "by another operator");
    tokio::time::advance(STATUS_FIRST_WITHIN).await;
    assert!(reads.recent("kim", "A"));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!reads.recent("kim", "A"));
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_reads_is_bounded_and_forgets_the_oldest() {
    let reads = StatusReads::default();
    for device in 0..=status_reads::OPERATOR_READS_MAX {
        reads.note("kim", &format!("D{device}"));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(!reads.recent("kim", "D0") && reads.recent("kim", "D1"));
    for operator in 0..status_reads::OPERATORS_MAX {
        reads.note(&format!("o{operator}"), "A");
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(!reads.recent("kim", "D1") && reads.recent("o0", "A"));
}

#[test]
fn a_thousand_policies_are_taken_and_not_one_more() {
    let one = &embedded()[0];
    let named = |n: usize| PolicyFile { name: format!("p{n}"), text: one.text.clone() };
    let files: Vec<_> = (0..=files::POLICIES_MAX).map(named).collect();
    assert!(Policies::load(&files[..files::POLICIES_MAX], definitions(), ARN).is_ok());
    let faults = Policies::load(&files, definitions(), ARN).unwrap_err();
    assert!(faults.len() == 1 && faults[0].reason.contains("at most 1000"), "{faults:?}");
}
