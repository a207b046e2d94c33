use super::*;
use proptest::prelude::*;

fn limits() -> Limits {
    let sample_interval = Duration::from_secs(5);
    let warning_off_delay = Duration::from_secs(15);
    Limits { sample_interval, deadband_percent: 2.0, warning_off_delay, behind_floor: true }
}

fn readings(metric: &str, value: f64) -> Readings {
    let mut readings = Readings::new();
    readings.insert(metric, Reading::new(value).unwrap()).unwrap();
    readings
}

fn online(start: Instant) -> Observer {
    let mut observer = Observer::remembered(limits(), start, None);
    observer.configure(&BTreeMap::from([("alert_threshold_psi".to_owned(), "150".to_owned())]));
    observer
}

fn seconds(start: Instant, s: u64) -> Instant {
    start + Duration::from_secs(s)
}

fn shown(observer: &Observer) -> DeviceStatus {
    observer.status().0
}

#[test]
fn silence_makes_offline_at_its_limit_and_two_reports_in_a_row_bring_it_back() {
    let t = Instant::now();
    let mut observer = online(t);
    observer.tick(seconds(t, 14));
    assert_eq!(shown(&observer), DeviceStatus::Online);
    observer.tick(seconds(t, 15));
    assert_eq!(observer.status(), (DeviceStatus::Offline, Some("silent for 15 s".to_owned())));
    observer.reported(seconds(t, 20));
    observer.reported(seconds(t, 40));
    assert_eq!(shown(&observer), DeviceStatus::Offline, "20 s apart is not in a row");
    observer.reported(seconds(t, 45));
    assert_eq!(shown(&observer), DeviceStatus::Online);
}

#[test]
fn a_last_will_counts_at_once_and_its_own_word_ends_it_at_once() {
    let t = Instant::now();
    let mut observer = online(t);
    observer.reported(t);
    observer.said_offline(true);
    assert_eq!(shown(&observer), DeviceStatus::Online, "a retained will is older than what was heard since start");
    observer.said_offline(false);
    assert_eq!(shown(&observer), DeviceStatus::Offline);
    observer.said_online(t);
    assert_eq!(shown(&observer), DeviceStatus::Online);
    let mut fresh = online(t);
    fresh.said_offline(true);
    assert_eq!(shown(&fresh), DeviceStatus::Offline);
}

#[test]
fn while_the_broker_is_away_silence_proves_nothing_for_a_minute() {
    let t = Instant::now();
    let mut observer = online(t);
    observer.floor_reachable(false, seconds(t, 1));
    observer.tick(seconds(t, 61));
    assert_eq!(shown(&observer), DeviceStatus::Online);
    let mut back = observer.clone();
    back.floor_reachable(true, seconds(t, 61));
    back.tick(seconds(t, 75));
    assert_eq!(shown(&back), DeviceStatus::Online, "the silence timer began anew");
    back.tick(seconds(t, 76));
    assert_eq!(shown(&back), DeviceStatus::Offline);
    observer.tick(seconds(t, 62));
    assert_eq!(shown(&observer), DeviceStatus::Offline);
    observer.floor_reachable(true, seconds(t, 70));
    observer.reported(seconds(t, 71));
    assert_eq!(shown(&observer), DeviceStatus::Online, "it was not the device that was silent");
}

#[test]
fn a_warning_comes_with_the_second_sample_above_and_goes_after_its_delay_below_the_deadband() {
    let t = Instant::now();
    let mut observer = online(t);
    let mut sample = |value, s| {
        observer.sample(&readings("pressure_psi", value), seconds(t, s));
        observer.reported(seconds(t, s));
        observer.tick(seconds(t, s));
        observer.status()
    };
    assert_eq!(sample(150.0, 0).0, DeviceStatus::Online, "the threshold itself is allowed");
    assert_eq!(sample(152.3, 5).0, DeviceStatus::Online);
    assert_eq!(sample(152.3, 10), (DeviceStatus::Warning, Some("pressure_psi 152.3 > 150".to_owned())));
    assert_eq!(sample(148.0, 15).0, DeviceStatus::Warning);
    assert_eq!(sample(148.0, 60).0, DeviceStatus::Warning, "within the deadband");
    assert_eq!(sample(147.0, 65).0, DeviceStatus::Warning);
    assert_eq!(sample(147.0, 79).0, DeviceStatus::Warning);
    assert_eq!(sample(147.0, 80).0, DeviceStatus::Online);
}

#[test]
fn a_threshold_that_is_no_number_keeps_its_last_good_value_and_the_longest_suffix_wins() {
    let t = Instant::now();
    let mut observer = online(t);
    observer.configure(&BTreeMap::from([("alert_threshold_psi".to_owned(), "high".to_owned())]));
    assert_eq!(observer.threshold("pressure_psi"), Some(150.0));
    let keys = [("alert_threshold_s", "1"), ("alert_threshold_mm_s", "7.1")];
    observer.configure(&keys.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert_eq!(observer.threshold("vibration_mm_s"), Some(7.1));
    assert_eq!(observer.threshold("uptime_s"), Some(1.0));
    assert_eq!(observer.threshold("pressure_psi"), None);
}

#[test]
fn rebooting_ends_with_its_command_and_gives_a_whole_new_limit() {
    let t = Instant::now();
    let mut observer = online(t);
    observer.reboot(Some("c1"), t);
    observer.tick(seconds(t, 170));
    assert_eq!(shown(&observer), DeviceStatus::Rebooting);
    observer.reboot(None, seconds(t, 170));
    observer.tick(seconds(t, 184));
    assert_eq!(shown(&observer), DeviceStatus::Online);
    observer.tick(seconds(t, 185));
    assert_eq!(shown(&observer), DeviceStatus::Offline);
}

proptest! {
    #[test]
    fn nobody_is_offline_by_silence_before_the_limit_and_everybody_is_after_it(
        gaps in prop::collection::vec(0u64..40, 1..30),
    ) {
        let t = Instant::now();
        let mut observer = online(t);
        let mut at = 0;
        for gap in gaps {
            let before = shown(&observer);
            observer.tick(seconds(t, at + gap));
            if before == DeviceStatus::Online {
                prop_assert_eq!(shown(&observer) == DeviceStatus::Offline, gap >= 15);
            }
            at += gap;
            observer.said_online(seconds(t, at));
        }
    }

    #[test]
    fn a_warning_needs_two_in_a_row_above_and_none_shows_without_them(values in prop::collection::vec(140.0f64..160.0, 1..60)) {
        let t = Instant::now();
        let mut observer = online(t);
        let (mut in_a_row, mut ever) = (0, false);
        for (value, s) in values.into_iter().zip(0..) {
            observer.sample(&readings("pressure_psi", value), seconds(t, s));
            in_a_row = if value > 150.0 { in_a_row + 1 } else { 0 };
            ever |= in_a_row >= 2;
            if in_a_row >= 2 {
                prop_assert_eq!(shown(&observer), DeviceStatus::Warning);
            }
            prop_assert!(ever || shown(&observer) == DeviceStatus::Online);
        }
    }
}
