use std::time::Duration;

use floorgate_model::profile::{ParameterError, ParameterKind};
use floorgate_model::{CommandName, Profile};
use serde_json::json;

use super::*;

const EXAMPLE: &str = include_str!("../../../docs/profiles.example.toml");

fn keys(result: Result<Vec<Profile>, Vec<ProfileError>>) -> Vec<String> {
    result.unwrap_err().into_iter().map(|error| error.key).collect()
}

#[test]
fn the_documented_example_says_what_the_document_says() {
    assert!(include_str!("../../../docs/profiles.md").contains(EXAMPLE.trim()), "docs/profiles.md shows the example");
    let profiles = parse("profiles.d/example.toml", EXAMPLE).unwrap();
    let [flow, tank] = profiles.as_slice() else { panic!("{} profiles", profiles.len()) };
    assert_eq!(flow.device_type, "flow_sensor");
    assert_eq!(flow.commands[&CommandName::Recalibrate].timeout, Duration::from_secs(600));
    let config = &flow.commands[&CommandName::UpdateConfig];
    assert!(config.parameters.contains_key("sample_rate_seconds"), "inherited");
    let given = json!({"alert_threshold_lpm": "480", "filter": "fast"});
    assert_eq!(
        serde_json::Value::from(config.check("flow_sensor", given.as_object().unwrap()).unwrap()),
        json!({"alert_threshold_lpm": 480, "filter": "fast"})
    );
    let allowed: Vec<_> = tank.commands.keys().copied().collect();
    assert_eq!(allowed, [CommandName::UpdateConfig, CommandName::SetStatus]);
    assert_eq!(tank.warning_off_delay, Duration::from_secs(120));
}

#[test]
fn everything_wrong_in_a_file_is_told_at_once() {
    let text = r#"
        colour = "blue"
        [[profile]]
        device_type = "a type with spaces"
        deadband_percent = 51
        warning_off_delay = 15
        [profile.commands.explode]
        [profile.commands.set_status]
        [profile.commands.reboot]
        timeout = "0s"
        idempotnet = true
        idempotent = "yes"
        [profile.commands.update_config.parameters]
        emergency_shutoff = { type = "boolean" }
        rate = { type = "integer", min = 1.5, max = 10 }
        span = { type = "number", min = 10, max = 1 }
        open = { type = "number" }
        mode = { type = "choice", values = [] }
        "a/b" = { type = "boolean" }
        flag = { type = "boolean", min = 0 }
        text = { type = "string" }
        none = { required = "no" }
        [[profile]]
        based_on = "toaster"
        deadband_percent = "wide"
        [profile.commands.update_config]
    "#;
    let mut found = keys(parse("p.toml", text));
    found.sort();
    let commands = "profile[0].commands";
    let parameters = "profile[0].commands.update_config.parameters";
    let mut expected = vec![
        "colour".to_owned(),
        "profile[0].deadband_percent".to_owned(),
        "profile[0].device_type".to_owned(),
        "profile[0].warning_off_delay".to_owned(),
        "profile[1].based_on".to_owned(),
        "profile[1].commands.update_config.parameters".to_owned(),
        "profile[1].deadband_percent".to_owned(),
        "profile[1].device_type".to_owned(),
    ];
    expected.extend(
        ["explode", "set_status", "reboot.timeout", "reboot.idempotnet", "reboot.idempotent"]
            .map(|key| format!("{commands}.{key}")),
    );
    expected.extend(
        [
            "emergency_shutoff",
            "rate.min",
            "span.min",
            "open.min",
            "open.max",
            "mode.values",
            "a/b",
            "flag.min",
            "text.type",
            "none.required",
            "none.type",
        ]
        .map(|key| format!("{parameters}.{key}")),
    );
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn an_error_names_file_key_value_and_what_is_allowed() {
    let text = "[[profile]]\ndevice_type = \"x\"\n[profile.commands.reboot]\ntimeout = \"2 hours\"\n";
    let errors = parse("profiles.d/x.toml", text).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "`profiles.d/x.toml`: `profile[0].commands.reboot.timeout` is \"2 hours\"; \
         allowed: a duration like \"90s\" or \"5m\", from 1 s to 3600 s"
    );
    let text = "[[profile]]\ndevice_type = \"x\"\n[profile.commands.reboot]\nidempotnet = true\n";
    let errors = parse("x.toml", text).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "`x.toml`: `profile[0].commands.reboot.idempotnet` is not a key here (its value is true); \
         allowed: timeout, idempotent, parameters"
    );
    let errors = parse("p.toml", "[[profile]]\ndevice_type = \n").unwrap_err();
    assert_eq!((errors.len(), errors[0].key.as_str()), (1, "line 2"));
}

#[test]
fn no_file_opens_a_safety_key_for_any_command_of_any_type() {
    let respelt = ["Emergency_Shutoff", "MAX_POSITION_PCT", "control-mode", "calibration-Date"];
    for device_type in BUILT_IN_TYPES {
        for key in SAFETY_KEYS.into_iter().chain(respelt) {
            for command in ["update_config", "reboot", "recalibrate"] {
                let text = format!(
                    "[[profile]]\ndevice_type = \"mine\"\nbased_on = \"{device_type}\"\n\
                     [profile.commands.{command}.parameters]\n{key} = {{ type = \"boolean\" }}\n"
                );
                assert_eq!(keys(parse("p", &text)), [format!("profile[0].commands.{command}.parameters.{key}")]);
            }
        }
    }
}

#[test]
fn an_update_config_that_opens_nothing_is_refused() {
    let text = "[[profile]]\ndevice_type = \"x\"\n[profile.commands.update_config]\n";
    assert_eq!(keys(parse("p", text)), ["profile[0].commands.update_config.parameters"]);
}

#[test]
fn what_is_of_the_wrong_shape_is_told_and_nothing_falls_over() {
    let wrapped = |text: &str| format!("[[profile]]\ndevice_type = \"x\"\n{text}\n");
    for (text, key) in [
        ("profile = 1".to_owned(), "profile"),
        ("profile = [1]".to_owned(), "profile[0]"),
        (wrapped("commands = 1"), "profile[0].commands"),
        (wrapped("commands.reboot = true"), "profile[0].commands.reboot"),
        (wrapped("commands.reboot.timeout = 180"), "profile[0].commands.reboot.timeout"),
        (wrapped("commands.reboot.timeout = \"3601s\""), "profile[0].commands.reboot.timeout"),
        (wrapped("commands.reboot.parameters = []"), "profile[0].commands.reboot.parameters"),
        (wrapped("commands.reboot.parameters.delay = 5"), "profile[0].commands.reboot.parameters.delay"),
        (wrapped("deadband_percent = nan"), "profile[0].deadband_percent"),
        (wrapped("warning_off_delay = \"61m\""), "profile[0].warning_off_delay"),
        (wrapped("device_type = \"y\""), "line 3"),
    ] {
        assert_eq!(keys(parse("p", &text)), [key], "{text}");
    }
    let many: String = (0..33).map(|n| format!("p{n} = {{ type = \"boolean\" }}\n")).collect();
    let text = wrapped(&format!("[profile.commands.reboot.parameters]\n{many}"));
    assert_eq!(keys(parse("p", &text)), ["profile[0].commands.reboot.parameters"]);
}

#[test]
fn a_required_parameter_and_a_choice_refuse_what_does_not_fit() {
    let profile = parse("p", EXAMPLE).unwrap().remove(1);
    let check = |given: serde_json::Value| {
        profile.commands[&CommandName::UpdateConfig].check("tank_display", given.as_object().unwrap())
    };
    assert_eq!(check(json!({"night_mode": true})), Err(ParameterError::Missing("brightness".to_owned())));
    assert!(matches!(check(json!({"brightness": 101})), Err(ParameterError::Value { .. })));
    assert!(matches!(check(json!({"brightness": 50, "colour": 1})), Err(ParameterError::Unknown { .. })));
    assert_eq!(serde_json::Value::from(check(json!({"brightness": "50"})).unwrap()), json!({"brightness": 50}));
    assert!(!profile.commands.contains_key(&CommandName::Reboot), "what is not named is not allowed");
}

#[test]
fn a_type_is_described_once() {
    let one = "[[profile]]\ndevice_type = \"x\"\n";
    let errors = combine([("a.toml", one), ("b.toml", one)]).unwrap_err();
    assert_eq!((errors[0].file.as_str(), errors.len()), ("b.toml", 1));
    assert!(errors[0].value.contains("a.toml"), "{}", errors[0]);
}

#[test]
fn a_profile_of_a_built_in_type_takes_its_place_until_it_is_removed() {
    let text = "[[profile]]\ndevice_type = \"pressure_sensor\"\n";
    let profiles = Profiles::default();
    assert!(profiles.get("pressure_sensor").unwrap().commands.contains_key(&CommandName::Reboot));
    profiles.replace(parse("p", text).unwrap());
    assert!(!profiles.get("pressure_sensor").unwrap().commands.contains_key(&CommandName::Reboot));
    profiles.replace(Vec::new());
    assert!(profiles.get("pressure_sensor").unwrap().commands.contains_key(&CommandName::Reboot));
    assert_eq!(profiles.types().len(), BUILT_IN_TYPES.len());
}

#[test]
fn a_parameter_of_the_base_can_be_narrowed_and_then_refuses_more() {
    let text = r#"
        [[profile]]
        device_type = "pressure_sensor"
        based_on = "pressure_sensor"
        [profile.commands.update_config.parameters]
        alert_threshold_psi = { type = "number", min = 100, max = 160 }
    "#;
    let profile = parse("p", text).unwrap().remove(0);
    let config = &profile.commands[&CommandName::UpdateConfig];
    assert_eq!(config.parameters["alert_threshold_psi"].kind, ParameterKind::Number { min: 100.0, max: 160.0 });
    let result = config.check("pressure_sensor", json!({"alert_threshold_psi": 161}).as_object().unwrap());
    assert!(matches!(result, Err(ParameterError::Value { .. })));
}

#[test]
fn durations_are_whole_numbers_with_a_unit() {
    assert_eq!(duration("300s"), Some(Duration::from_secs(300)));
    assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
    assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
    assert_eq!(duration("1h"), Some(Duration::from_secs(3_600)));
    for text in ["", "5", "s", "1.5s", "-1s", "5 m", "1d", "99999999999999999999s", "18446744073709551615h"] {
        assert_eq!(duration(text), None, "{text:?}");
    }
}

#[test]
fn an_empty_file_describes_nothing_and_is_no_error() {
    assert_eq!(parse("p", ""), Ok(Vec::new()));
}
