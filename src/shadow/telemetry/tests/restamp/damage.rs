//! Guesses in a file that was damaged.

use super::*;

#[test]
fn a_new_guess_is_never_taken_for_one_that_damage_took() {
    let mut site = Site::booted_in_1970();
    site.clock.put(at(HOUR));
    site.report(None);
    site.bench.commit();
    site.pass(2 * MINUTE);
    site.bench.commit();
    site.report(None);
    site.bench.commit();
    site.bench.db().conn.execute("DELETE FROM era", []).unwrap();
    site.restart();
    site.clock.put(at(2 * HOUR));
    site.report(None);
    site.bench.close_blocks();
    site.synchronise(0);
    site.settle(false);
    // By how much the first two were wrong nobody knows any more.
    let minutes = i64::try_from(MINUTE.as_millis()).unwrap();
    assert_eq!(
        site.samples().into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([(1, HOUR, true), (2, HOUR + 2 * minutes, true), (3, 2 * minutes, false)])
    );
}

#[test]
fn an_account_that_cannot_be_read_does_not_keep_the_file_from_being_rebuilt_and_guesses_stay_what_they_are() {
    let mut site = Site::booted_in_1970();
    site.clock.put(at(HOUR));
    for _ in 0..3 {
        site.report(None);
        site.pass(MINUTE / 10);
    }
    site.bench.close_blocks();
    site.bench.db().conn.execute("UPDATE ledger SET lost = '{'", []).unwrap();
    let (path, now) = (site.bench.path(), site.bench.now);
    drop(site.bench.db.take());
    let opened = TelemetryDb::open_or_rescue(&path, RETENTION, now, at(0), How::default()).unwrap();
    let (mut db, _, rescued) = opened;
    assert_eq!(rescued.unwrap().saved["block"], 1);
    db.booted(site.clock.boot().boot_id);
    site.bench.db = Some(db);
    let ledger = site.bench.db().ledger(&device(1), &BTreeSet::new()).unwrap();
    assert_eq!((ledger.accepted, ledger.stored), (3, 3));
    assert_eq!(
        (site.bench.stats().samples_provisional, site.bench.blocks().len()),
        (3, 0),
        "nothing goes up under a guess"
    );
    site.synchronise(0);
    site.settle(false);
    assert_eq!(site.samples(), [(1, 0, false), (2, 6_000, false), (3, 12_000, false)], "the era came along");
}
