//! A damaged file and too little space to rebuild it.

use floorgate_model::DeviceLedger;

use super::*;
use crate::shadow::rescue::{Rescue, aside, steps};

/// Six blocks of one reading, of which the table has four, and one reading in the journal.
fn filled() -> Bench {
    let mut bench = Bench::new();
    for n in 0..6 {
        bench.stage(&report(n * 1_000_000, 1.0));
        bench.close_blocks();
    }
    let sent = bench.blocks()[..4].iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&sent).unwrap();
    bench.stage(&report(6_000_000, 1.0));
    bench.commit();
    assert_eq!(ledger(&mut bench), (7, 4, 3, 0));
    bench
}

fn ledger(bench: &mut Bench) -> (u64, u64, u64, u64) {
    let DeviceLedger { accepted, delivered, stored, lost, .. } =
        bench.db().ledger(&device(1), &BTreeSet::new()).unwrap();
    (accepted, delivered, stored, lost.total())
}

fn rescue(bench: &mut Bench, how: How) -> Rescue {
    drop(bench.db.take());
    let opened = TelemetryDb::open_or_rescue(&bench.path(), RETENTION, bench.now, at(0), how).unwrap();
    bench.db = Some(opened.0);
    opened.2.unwrap()
}

fn suspect() -> How {
    How { suspect: true, ..How::default() }
}

#[test]
fn where_space_is_short_a_rebuilding_leaves_out_what_the_table_has_and_nothing_else() {
    let mut bench = filled();
    let before = steps();
    let rescue = rescue(&mut bench, How { free: Some(0), ..suspect() });
    assert_eq!((rescue.saved["block"], rescue.saved["segment"]), (2, 1), "{rescue:?}");
    assert!(rescue.outcome.contains("without what the table has"), "{}", rescue.outcome);
    assert_eq!(ledger(&mut bench), (7, 4, 3, 0));
    assert_eq!(bench.blocks().len(), 2);
    assert!(steps() > before, "the watchdog sees it");
}

#[test]
fn older_damaged_copies_go_before_anything_is_left_out_of_a_rebuilding() {
    let mut bench = filled();
    rescue(&mut bench, suspect());
    let path = bench.path();
    let copies = aside::copies(&path);
    assert_eq!(copies.len(), 1);
    drop(bench.db.take());
    let bytes = crate::shadow::files::bytes_with_log;
    let free = bytes(&path) + 1024 * 1024 - bytes(&copies[0]);
    let rescued = rescue(&mut bench, How { free: Some(free), ..suspect() });
    assert_eq!(rescued.saved["block"], 6, "{rescued:?}");
    let left = aside::copies(&path);
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_file_that_finds_no_space_for_long_is_begun_anew_and_what_waited_is_declared_lost() {
    let mut bench = filled();
    let rescue = rescue(&mut bench, How { books_alone: true, ..suspect() });
    assert!(rescue.outcome.starts_with("begun anew, because there was no space"), "{}", rescue.outcome);
    assert!(rescue.aside.is_some(), "someone may still save what waits in it");
    let (accepted, delivered, stored, lost) = ledger(&mut bench);
    assert_eq!((accepted, delivered, stored, lost), (7, 4, 1, 2), "the journal stays");
    bench.stage(&report(9_000_000, 2.0));
    bench.close_blocks();
    assert_eq!(ledger(&mut bench), (8, 4, 2, 2), "it goes on");
}
