//! The five devices of the seed: ids, types, places, firmware, configuration.

use std::time::Duration;

/// What a device measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name with its unit.
    pub name: &'static str,
    /// Around which value.
    pub centre: f64,
    /// How far it drifts to either side.
    pub swing: f64,
    /// How much it rises in a surge.
    pub surge: f64,
    /// Digits after the point.
    pub decimals: u8,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its id, and MQTT client id.
    pub id: &'static str,
    /// Its type, which has a built-in profile.
    pub device_type: &'static str,
    /// Where it stands.
    pub location: &'static str,
    /// Its firmware.
    pub firmware_version: &'static str,
    /// What it is configured to when it leaves the box.
    pub configuration: Vec<(&'static str, &'static str)>,
    /// What it measures.
    pub metrics: Vec<Metric>,
    /// How often it measures, where its configuration has no `sample_rate_seconds`.
    pub sample_rate: Duration,
    /// The commands it can execute.
    pub commands: Vec<&'static str>,
    /// Why it refuses to be recalibrated, if it does.
    pub refuses_recalibration: Option<&'static str>,
    /// In its moods it falls silent, where others surge.
    pub moods_are_silent: bool,
}

fn metric(name: &'static str, centre: f64, swing: f64, decimals: u8) -> Metric {
    Metric { name, centre, swing, surge: 0.0, decimals }
}

fn spec(id: &'static str, device_type: &'static str, location: &'static str, firmware_version: &'static str) -> Spec {
    Spec {
        id,
        device_type,
        location,
        firmware_version,
        configuration: Vec::new(),
        metrics: Vec::new(),
        sample_rate: Duration::from_secs(5),
        commands: vec!["reboot", "update_config"],
        refuses_recalibration: None,
        moods_are_silent: false,
    }
}

/// The pressure sensor of line 7: surges above its threshold now and then.
pub const PRESSURE: &str = "SENSOR-LINE7-PRESS-001";
/// The temperature sensor of line 7: refuses every recalibration.
pub const TEMPERATURE: &str = "SENSOR-LINE7-TEMP-002";
/// The valve of line 3.
pub const VALVE: &str = "ACTUATOR-LINE3-VALVE-001";
/// Another floor's gateway, here attached as a device.
pub const GATEWAY: &str = "GATEWAY-FLOOR2-001";
/// The vibration sensor of line 3: falls silent now and then.
pub const VIBRATION: &str = "SENSOR-LINE3-VIBR-001";

/// The five devices of the seed.
#[must_use]
pub fn seed() -> Vec<Spec> {
    let sensor = || vec!["recalibrate", "reboot", "update_config"];
    vec![
        Spec {
            configuration: vec![
                ("sample_rate_seconds", "5"),
                ("alert_threshold_psi", "150"),
                ("calibration_date", "2025-06-01"),
            ],
            metrics: vec![
                Metric { surge: 12.0, ..metric("pressure_psi", 142.7, 2.5, 1) },
                metric("temperature_c", 38.2, 0.8, 1),
            ],
            commands: sensor(),
            ..spec(PRESSURE, "pressure_sensor", "factory-floor-1/line-7", "2.4.1")
        },
        Spec {
            configuration: vec![
                ("sample_rate_seconds", "10"),
                ("alert_threshold_c", "80"),
                ("calibration_date", "2025-05-15"),
            ],
            metrics: vec![metric("temperature_c", 72.5, 1.5, 1), metric("humidity_pct", 45.2, 3.0, 1)],
            commands: sensor(),
            refuses_recalibration: Some("zero offset out of tolerance"),
            ..spec(TEMPERATURE, "temperature_sensor", "factory-floor-1/line-7", "2.4.1")
        },
        Spec {
            configuration: vec![
                ("max_position_pct", "100"),
                ("emergency_shutoff", "enabled"),
                ("control_mode", "automatic"),
            ],
            metrics: vec![metric("position_pct", 75.0, 2.0, 0), metric("flow_rate_lpm", 120.3, 4.0, 1)],
            ..spec(VALVE, "valve_actuator", "factory-floor-1/line-3", "3.1.0")
        },
        Spec {
            configuration: vec![
                ("max_connections", "50"),
                ("telemetry_batch_interval_seconds", "30"),
                ("firmware_auto_update", "false"),
            ],
            metrics: vec![
                metric("connected_devices", 47.0, 2.0, 0),
                metric("cpu_pct", 82.1, 6.0, 1),
                metric("memory_pct", 71.3, 1.5, 1),
                metric("uptime_hours", 2184.0, 0.0, 0),
            ],
            ..spec(GATEWAY, "edge_gateway", "factory-floor-2", "4.0.2")
        },
        Spec {
            configuration: vec![
                ("sample_rate_seconds", "1"),
                ("alert_threshold_mm_s", "8.0"),
                ("calibration_date", "2025-04-01"),
            ],
            metrics: vec![metric("vibration_mm_s", 4.2, 0.9, 2), metric("frequency_hz", 120.0, 1.0, 0)],
            commands: sensor(),
            moods_are_silent: true,
            ..spec(VIBRATION, "vibration_sensor", "factory-floor-1/line-3", "1.8.3")
        },
    ]
}
