use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
const T0: Timestamp = Timestamp::EPOCH;

fn t0() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

/// Boots in 1970 and knows nothing.
fn booted_in_1970() -> Clock {
    let face = Face::set_to(T0);
    let clock = Clock::new(face, Trust::Auto, Clock::not_before());
    clock.reboot(T0);
    clock
}

#[test]
fn each_rule_asks_for_what_it_says() {
    let table: Vec<_> = [(false, false), (false, true), (true, false), (true, true)]
        .map(|(kernel, table)| Trust::ALL.map(|trust| trust.holds(kernel, table)))
        .to_vec();
    assert_eq!(table, [[false, false, true], [true, false, true], [true, true, true], [true, true, true]]);
}

#[test]
fn the_table_vouches_for_an_hour_unless_the_clock_is_stepped() {
    let agreement = Anchor { wall: t0(), boot_ms: 7 };
    let age = |real: Duration, shown: Duration| agreement.age(t0().saturating_add(shown), 7 + as_ms(real));
    assert_eq!(age(MINUTE, MINUTE), Some(MINUTE));
    assert_eq!(age(MINUTE, MINUTE + TABLE_AGREES_WITHIN), Some(MINUTE));
    assert_eq!(age(MINUTE, MINUTE * 2), None, "stepped forward");
    assert_eq!(age(MINUTE * 10, MINUTE), None, "stepped back");
    assert_eq!(age(TABLE_COUNTS_FOR, TABLE_COUNTS_FOR), Some(TABLE_COUNTS_FOR));
    let late = TABLE_COUNTS_FOR + Duration::from_millis(1);
    assert_eq!(age(late, late), None);
}

#[test]
fn the_hour_of_the_tables_word_passes_while_the_machine_sleeps() {
    let clock = Clock::set_to(t0());
    clock.set_trusted(false);
    clock.observe_table_date(Some(t0()));
    assert!(clock.is_trusted());
    clock.pass(TABLE_COUNTS_FOR + MINUTE);
    assert!(!clock.is_trusted());
    assert_eq!(clock.moment().quality, Quality::HeldOver);
}

#[test]
fn a_response_that_disagrees_ends_what_an_earlier_one_gave() {
    let clock = Clock::system(Trust::Auto);
    assert_eq!(clock.state().table_agreed_seconds_ago, None);
    clock.observe_table_date(Some(clock.now()));
    assert_eq!(clock.state().table_agreed_seconds_ago, Some(0));
    assert!(clock.is_trusted());
    clock.observe_table_date(Some(clock.now().saturating_sub(MINUTE)));
    assert_eq!(clock.state().table_agreed_seconds_ago, None);
}

#[test]
fn a_set_clock_stands_where_it_is_put() {
    let clock = Clock::set_to(Timestamp::EPOCH);
    let later = Timestamp::from_millis(5);
    clock.put(later);
    clock.set_trusted(false);
    assert_eq!((clock.now(), clock.is_trusted()), (later, false));
}

#[test]
fn a_boot_in_1970_goes_on_from_the_floor_and_says_that_it_guesses() {
    let before = Clock::set_to(t0());
    before.pass(MINUTE);
    let kept = before.floor();
    assert_eq!((kept.wall, kept.right), (t0().saturating_add(MINUTE), true));
    let clock = booted_in_1970();
    assert_eq!(clock.now(), Clock::not_before(), "nothing kept: the time of the build");
    clock.pass(MINUTE);
    clock.resume(kept);
    let moment = clock.moment();
    assert_eq!(moment.wall, kept.wall.saturating_add(MINUTE), "the boot began after what was kept");
    assert_eq!((moment.quality, clock.is_trusted()), (Quality::Unsynchronised, false));
    assert_eq!(moment.guess_base(), Some(kept.wall.as_millis()));
    clock.pass(MINUTE);
    assert_eq!(clock.moment().guess_base(), moment.guess_base(), "one guess, running on with boot time");
    let again = clock.floor();
    clock.reboot(T0);
    clock.resume(again);
    assert_eq!(
        clock.now(),
        kept.wall.saturating_add(MINUTE * 2),
        "a second boot without the time goes on from the first"
    );
}

#[test]
fn even_always_does_not_trust_a_time_before_the_build() {
    let clock = Clock::new(Face::set_to(T0), Trust::Always, Clock::not_before());
    assert!(!clock.is_trusted());
    clock.put(t0());
    assert!(clock.is_trusted());
}

#[test]
fn a_wrong_year_is_forgotten_as_soon_as_the_time_is_right() {
    let clock = Clock::set_to(t0().saturating_add(YEAR));
    assert_eq!(clock.floor().wall, t0().saturating_add(YEAR));
    clock.put(t0());
    assert_eq!(clock.now(), t0());
    assert_eq!(clock.floor().wall, t0());
}

#[test]
fn a_wrong_year_that_nobody_called_right_never_moves_the_floor() {
    let clock = booted_in_1970();
    let kept =
        Floor { wall: t0(), boot: BootTime { boot_id: BootId::parse(&"a".repeat(32)).unwrap(), ms: 5 }, right: true };
    clock.resume(kept);
    clock.put(t0().saturating_add(YEAR));
    assert_eq!(clock.now(), t0().saturating_add(YEAR), "a clock with a battery is the best guess there is");
    assert_eq!(clock.floor().wall, t0());
    clock.put(t0().saturating_add(MINUTE));
    assert_eq!(clock.now(), t0().saturating_add(MINUTE), "a guess may be put back, down to the floor");
    clock.put(T0);
    assert_eq!(clock.now(), t0());
}

#[test]
fn once_right_the_time_runs_on_with_boot_time_whatever_the_wall_clock_does() {
    for step in [1_000, -1_000, 60_000, -60_000, 3_600_000, -3_600_000, as_ms(YEAR), -as_ms(YEAR)] {
        let clock = Clock::set_to(t0());
        assert_eq!(clock.moment().quality, Quality::Synchronised);
        clock.set_trusted(false);
        clock.pass(MINUTE);
        clock.step(step);
        let moment = clock.moment();
        let wrong = apart(moment.wall, t0().saturating_add(MINUTE));
        assert!(wrong <= TABLE_AGREES_WITHIN, "{step}: {wrong:?}");
        assert_eq!((moment.quality, clock.is_trusted()), (Quality::HeldOver, false));
        clock.set_trusted(true);
        assert_eq!(clock.now().as_millis(), t0().as_millis() + 60_000 + step, "a synchronised clock is followed");
    }
}

#[test]
fn a_restart_in_the_same_boot_still_knows_the_time() {
    let before = Clock::set_to(t0());
    let kept = before.floor();
    let clock = Clock::set_to(T0);
    clock.set_trusted(false);
    clock.pass_boot(MINUTE);
    clock.resume(kept);
    assert_eq!(clock.moment().quality, Quality::HeldOver);
    assert_eq!(clock.now(), t0().saturating_add(MINUTE));
}

#[test]
fn the_table_tells_the_time_to_a_gateway_that_has_none_but_not_for_commands() {
    let clock = booted_in_1970();
    clock.observe_table_date(Some(t0()));
    clock.pass(MINUTE);
    let moment = clock.moment();
    assert_eq!((moment.wall, moment.quality), (t0().saturating_add(MINUTE), Quality::Told));
    assert!(!clock.is_trusted());
    assert!(clock.floor().wall < t0(), "one response alone does not move the floor");
}

#[test]
fn a_table_that_tells_no_time_is_waited_for_ten_minutes() {
    let clock = booted_in_1970();
    clock.pass(YEAR);
    assert!(!clock.guess_must_do(), "nobody answers, so nothing would be sent");
    clock.observe_table_date(None);
    clock.pass(GUESS_HELD_MAX - Duration::from_millis(1));
    clock.observe_table_date(Some(T0));
    assert!(!clock.guess_must_do());
    clock.pass(Duration::from_millis(1));
    assert!(clock.guess_must_do());
    clock.observe_table_date(Some(t0()));
    assert!(!clock.guess_must_do());
}
