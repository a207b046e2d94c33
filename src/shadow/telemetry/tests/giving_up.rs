//! What is given up for the quota, and that every reading stays accounted for meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use floorgate_model::{DeviceLedger, Loss, LossReason};

use super::*;
use crate::shadow::ledgers::KnownLedger;
use crate::shadow::view::GapRecord;

/// A report of one of many devices.
fn of(which: usize, offset_ms: i64, value: f64) -> TelemetryReport {
    TelemetryReport { device_id: device(which), ..report(offset_ms, value) }
}

/// Closes one block of ten samples for each of the devices, beginning at `offset_ms`.
fn a_block_of_each(bench: &mut Bench, devices: usize, offset_ms: i64) {
    for which in 0..devices {
        for n in 0..10_i32 {
            bench.stage(&of(which, offset_ms + i64::from(n) * 1_000, f64::from(n)));
        }
    }
    bench.close_blocks();
}

fn ledger(bench: &mut Bench, which: usize) -> DeviceLedger {
    bench.db().ledger(&device(which), &BTreeSet::new()).unwrap()
}

/// Gap records that wait, without handing them out.
fn gaps(bench: &mut Bench) -> Vec<(i64, i64, i64, i64, i64, String)> {
    let sql = "SELECT device, key, since, until, lost, reason FROM gap WHERE sent = 0 ORDER BY key, id";
    let mut statement = bench.db().conn.prepare(sql).unwrap();
    let read =
        |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?));
    statement.query_map([], read).unwrap().collect::<Result<_, _>>().unwrap()
}

/// What the books say agrees with what is in the rows, for every device.
pub(super) fn audit(bench: &mut Bench) {
    let count = |bench: &mut Bench, sql: &str, row: i64| -> u64 {
        bench.db().conn.query_row(sql, [row], |found| found.get::<_, i64>(0)).unwrap().unsigned_abs()
    };
    let devices: Vec<(DeviceId, i64)> = bench.db().names.iter().map(|(row, device)| (device.clone(), *row)).collect();
    let mut totals = (0, 0, 0);
    for (device, row) in devices {
        let ledger = bench.db().ledger(&device, &BTreeSet::new()).unwrap();
        assert!(ledger.balances(), "{device}: {ledger:?}");
        let waiting = "SELECT coalesce(sum(samples), 0) FROM block WHERE sent = 0 AND device = ?1";
        let parked = "SELECT coalesce(sum(samples), 0) FROM parked WHERE device = ?1";
        let waiting = count(bench, waiting, row);
        let db = bench.db();
        let open = db.tracks[&device]
            .open_blocks()
            .chain(db.closed.iter().filter(|closed| closed.device == device).map(|closed| &closed.block));
        let open = open.map(|block| block.samples().len() as u64).sum::<u64>();
        let staged = db.staged_of.get(&row).copied().unwrap_or(0);
        let parked = count(bench, parked, row);
        assert_eq!(ledger.stored, waiting + parked + open - staged, "{device}");
        totals = (totals.0 + waiting, totals.1 + open, totals.2 + ledger.lost.total());
    }
    let stats = bench.stats();
    assert_eq!((stats.samples_waiting, stats.samples_open), (totals.0, totals.1));
}

/// Every reading lost is told of by a gap record, in so many words and not more often.
fn lost_is_told(bench: &mut Bench, devices: usize) {
    let told = gaps(bench).iter().fold(BTreeMap::<String, i64>::new(), |mut told, gap| {
        *told.entry(gap.5.clone()).or_default() += gap.4;
        told
    });
    let mut lost = BTreeMap::<String, i64>::new();
    for which in 0..devices {
        for (reason, count) in ledger(bench, which).lost.iter() {
            *lost.entry(reason.to_string()).or_default() += i64::try_from(count).unwrap();
        }
    }
    assert_eq!(told, lost);
}

#[test]
fn first_what_was_sent_goes_then_the_oldest_is_thinned_then_dropped_and_one_record_a_device_stays() {
    let mut bench = Bench::new();
    let (devices, blocks) = (4, 60);
    for n in 0..blocks {
        a_block_of_each(&mut bench, devices, n * 1_800_000);
    }
    let sent: BTreeSet<i64> = bench.db().peek_blocks(8).unwrap().iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&sent).unwrap();
    let offered: Vec<i64> = bench.db().offered.iter().collect();
    let mut stages = Vec::new();
    loop {
        let more = bench.db().give_up_some(16 * 1024 * 1024).unwrap();
        audit(&mut bench);
        lost_is_told(&mut bench, devices);
        if !more {
            break;
        }
        let ledgers: Vec<DeviceLedger> = (0..devices).map(|which| ledger(&mut bench, which)).collect();
        let sum = |reason| ledgers.iter().map(|ledger| ledger.lost.of(reason)).sum::<u64>();
        stages.push((gaps(&mut bench).len(), sum(LossReason::Thinned), sum(LossReason::Quota)));
    }
    println!("{stages:?}");
    assert_eq!(stages[0], (0, 0, 0), "what was sent goes first and costs nothing");
    let quota_began = stages.iter().position(|stage| stage.2 > 0).unwrap();
    let all = u64::try_from(blocks).unwrap() * 10 * devices as u64;
    let (delivered, kept) = (80, offered.len() as u64 * 10);
    assert_eq!(stages[quota_began - 1].1, all - delivered - kept, "all is thinned before the first is dropped");
    let coarse = stages.iter().map(|stage| stage.0).collect::<Vec<_>>();
    assert!(coarse.windows(2).any(|pair| pair[1] < pair[0] / 4), "an hour's records become a day's: {coarse:?}");
    let left = gaps(&mut bench);
    assert_eq!(left.len(), devices);
    assert!(left.iter().all(|gap| gap.5 == "quota" && gap.1 == gap.2), "{left:?}");
    for id in offered {
        assert!(super::super::rows::if_waiting(&bench.db().conn, id).unwrap().is_some(), "{id} may be in the table");
    }
}

#[test]
fn what_was_handed_out_is_never_given_up_whatever_became_of_it() {
    let mut bench = Bench::new();
    for n in 0..20 {
        a_block_of_each(&mut bench, 2, n * 60_000);
    }
    let handed_out = bench.db().peek_blocks(6).unwrap();
    // No answer; power cut; not handed out again before the quota is reached.
    bench.reopen();
    while bench.db().give_up_some(16 * 1024 * 1024).unwrap() {}
    let left = bench.blocks();
    let blocks: Vec<_> = left.iter().filter(|block| block.gap.is_none()).cloned().collect();
    assert_eq!(blocks[..6], handed_out[..], "their keys and bytes are what they were");
    let keys: BTreeSet<_> = left.iter().map(|block| (&block.device_id, block.first)).collect();
    assert_eq!(keys.len(), left.len(), "no gap record shares a key with one");
    let lost: u64 = left.iter().filter_map(|block| Some(block.gap.as_ref()?.lost)).sum();
    assert_eq!(lost + blocks.len() as u64 * 10, 400);
    audit(&mut bench);
}

#[test]
fn a_gap_record_that_was_handed_out_never_changes() {
    let mut bench = Bench::new();
    a_block_of_each(&mut bench, 1, 0);
    bench.db().give_up_some(16 * 1024 * 1024).unwrap();
    let told = bench.blocks();
    let gap = GapRecord {
        from: at(0),
        to: at(9_000),
        lost: 10,
        reason: LossReason::Thinned,
        summary: told[0].gap.as_ref().unwrap().summary.clone(),
    };
    assert_eq!((told.len(), told[0].gap.as_ref()), (1, Some(&gap)));
    let figures = gap.summary["pressure_psi"];
    assert_eq!((figures.min.value(), figures.max.value(), figures.mean.value(), figures.count), (0.0, 9.0, 4.5, 10));
    assert_eq!(told[0].expires_at, at(9_000).saturating_add(RETENTION));
    a_block_of_each(&mut bench, 1, 60_000);
    while bench.db().give_up_some(16 * 1024 * 1024).unwrap() {}
    bench.reopen();
    let later = bench.blocks();
    assert_eq!(later[0], told[0]);
    assert_eq!(later.len(), 2, "the next readings given up have a record of their own");
    bench.db().confirm_blocks(&later.iter().map(|block| block.id).collect()).unwrap();
    assert!(bench.blocks().is_empty() && bench.stats().gaps_waiting == 0);
    audit(&mut bench);
}

#[test]
fn readings_declared_lost_get_a_key_that_no_sample_has_or_will_have() {
    let mut bench = Bench::new();
    bench.stage(&report(5_000, 1.0));
    // Before the commit, which then fails: the key stays taken.
    let loss = Loss { device_id: device(1), from: at(0), to: at(4_000), count: 3, reason: LossReason::RateLimited };
    bench.db().declare_lost(std::slice::from_ref(&loss)).unwrap();
    let other = bench.block_writes();
    let now = bench.now;
    assert!(bench.db().commit(now).is_err());
    drop(other);
    audit(&mut bench);
    assert_eq!(bench.stage(&report(5_000, 1.0)).at, at(5_002));
    bench.close_blocks();
    let all = bench.blocks();
    let keys: Vec<_> =
        all.iter().map(|block| (block.first, block.gap.as_ref().map(|gap| (gap.from, gap.lost)))).collect();
    assert_eq!(keys, [(at(5_001), Some((at(0), 3))), (at(5_002), None)]);
    let ledger = ledger(&mut bench, 1);
    assert_eq!((ledger.accepted, ledger.stored, ledger.lost.total()), (4, 1, 3));
    assert_eq!(bench.stage(&report(5_001, 2.0)).at, at(5_001 + 2), "a late one does not get it either");
}

#[test]
fn losses_within_an_hour_are_one_record_and_later_ones_another() {
    let mut bench = Bench::new();
    let loss = |from: i64, to: i64, reason| Loss { device_id: device(1), from: at(from), to: at(to), count: 1, reason };
    let limited = |from, to| loss(from, to, LossReason::RateLimited);
    bench.db().declare_lost(&[limited(0, 10), limited(3_599_000, 3_600_000), limited(3_600_000, 3_600_001)]).unwrap();
    bench.db().declare_lost(&[limited(7_000_000, 7_000_001), loss(5, 6, LossReason::Damaged)]).unwrap();
    let told: Vec<_> = gaps(&mut bench).iter().map(|gap| (gap.2 - START_MS, gap.3 - START_MS, gap.4)).collect();
    assert_eq!(told, [(0, 3_600_000, 2), (3_600_000, 7_000_001, 2), (5, 6, 1)]);
    audit(&mut bench);
}

#[test]
fn the_last_of_the_parked_blocks_that_is_dropped_is_declared_refused() {
    let mut bench = Bench::new();
    a_block_of_each(&mut bench, 1, 0);
    for n in 1..=super::super::PARKED_MAX {
        a_block_of_each(&mut bench, 1, n * 60_000);
        let first = bench.db().peek_blocks(1).unwrap();
        bench.db().park_block(first[0].id, "refused").unwrap();
    }
    assert_eq!(ledger(&mut bench, 0).lost.total(), 0, "what is kept aside is stored");
    let last = bench.db().peek_blocks(1).unwrap();
    bench.db().park_block(last[0].id, "refused").unwrap();
    let ledger = ledger(&mut bench, 0);
    assert_eq!((ledger.stored, ledger.lost.of(LossReason::Refused)), (10_000, 10));
    assert_eq!(gaps(&mut bench), [(1, START_MS, START_MS, START_MS + 9_000, 10, "refused".to_owned())]);
    audit(&mut bench);
    // A table that refuses the record too gets no other one about it.
    let told = bench.db().peek_blocks(1).unwrap();
    bench.db().park_block(told[0].id, "refused").unwrap();
    assert_eq!((gaps(&mut bench).len(), bench.stats().gaps_waiting), (0, 0));
    audit(&mut bench);
}

#[test]
fn a_block_that_cannot_be_read_any_more_is_given_up_as_damaged() {
    let mut bench = Bench::new();
    a_block_of_each(&mut bench, 2, 0);
    bench.db().conn.execute("UPDATE block SET body = x'07' WHERE device = 2", []).unwrap();
    while bench.db().give_up_some(16 * 1024 * 1024).unwrap() {}
    let mut reasons: Vec<_> = gaps(&mut bench).iter().map(|gap| (gap.0, gap.4, gap.5.clone())).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [(1, 10, "quota".to_owned()), (2, 10, "damaged".to_owned())]);
    audit(&mut bench);
}

#[test]
fn after_the_file_is_lost_what_was_in_it_is_declared_as_far_as_it_was_known() {
    let mut bench = Bench::new();
    for n in 0..3 {
        a_block_of_each(&mut bench, 2, n * 60_000);
    }
    let sent: BTreeSet<i64> = bench.db().peek_blocks(3).unwrap().iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&sent).unwrap();
    bench.stage(&of(0, 600_000, 1.0));
    bench.commit();
    let known = bench.db().known_ledgers();
    assert_eq!(bench.db().reconcile(&known).unwrap(), [], "an intact file needs nothing");

    let before: Vec<DeviceLedger> = (0..2).map(|which| ledger(&mut bench, which)).collect();
    drop(bench.db.take());
    for end in ["telemetry.db", "telemetry.db-wal", "telemetry.db-shm"] {
        let _ = std::fs::remove_file(bench.dir.path().join(end));
    }
    bench.reopen();
    let losses = bench.db().reconcile(&known).unwrap();
    let told: Vec<_> = losses.iter().map(|loss| (loss.from, loss.to, loss.count, loss.reason)).collect();
    let stored = [before[0].stored, before[1].stored];
    assert_eq!(
        told,
        [
            (at(60_000), at(600_000), stored[0], LossReason::Damaged),
            (at(0), at(129_000), stored[1], LossReason::Damaged)
        ]
    );
    for (which, before) in before.iter().enumerate() {
        let after = ledger(&mut bench, which);
        assert_eq!((after.accepted, after.delivered, after.stored), (before.accepted, before.delivered, 0));
        assert_eq!(after.lost.of(LossReason::Damaged), before.stored);
    }
    audit(&mut bench);
    lost_is_told(&mut bench, 2);
    assert_eq!(bench.db().reconcile(&known).unwrap(), [], "once");
    assert!(bench.stage(&of(0, 600_000, 2.0)).at > at(600_000), "time goes on where it was");
    assert!(bench.blocks().iter().all(|block| block.first > at(129_000)), "no key of what may have been sent");
}

#[test]
fn books_put_right_from_the_rows_say_what_is_there() {
    let mut bench = Bench::new();
    for n in 0..5 {
        a_block_of_each(&mut bench, 2, n * 60_000);
    }
    let sent: BTreeSet<i64> = bench.db().peek_blocks(3).unwrap().iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&sent).unwrap();
    let parked = bench.db().peek_blocks(1).unwrap()[0].id;
    bench.db().park_block(parked, "refused").unwrap();
    let (tally, books): (_, Vec<_>) = (bench.db().tally, (0..2).map(|which| ledger(&mut bench, which)).collect());
    bench.db().conn.execute_batch("DELETE FROM ledger; UPDATE tally SET samples_waiting = 7, next_block = 1").unwrap();
    super::super::books::rebuild(&bench.db().conn).unwrap();
    bench.reopen();
    assert_eq!((0..2).map(|which| ledger(&mut bench, which)).collect::<Vec<_>>(), books);
    assert_eq!(bench.db().tally, tally);
    audit(&mut bench);
    assert!(!bench.db().thin_one(), "nobody knows what was handed out, so nothing of it is given up");
    let known = BTreeMap::from([(device(0), KnownLedger { ledger: books[0], ..KnownLedger::default() })]);
    assert_eq!(bench.db().reconcile(&known).unwrap(), []);
}

#[test]
fn a_file_from_before_the_books_gets_them_from_its_rows() {
    let mut bench = Bench::new();
    for n in 0..3 {
        a_block_of_each(&mut bench, 2, n * 60_000);
    }
    let sent: BTreeSet<i64> = bench.db().peek_blocks(2).unwrap().iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&sent).unwrap();
    bench.stage(&of(0, 600_000, 1.0));
    bench.commit();
    let books: Vec<_> = (0..2).map(|which| ledger(&mut bench, which)).collect();
    bench
        .db()
        .conn
        .execute_batch(
            "DROP TABLE era; DROP INDEX block_provisional; ALTER TABLE block DROP COLUMN era;
         DROP TABLE ledger; DROP TABLE gap; DROP TABLE offered; DROP TRIGGER device_came; DROP TABLE name;
         ALTER TABLE tally DROP COLUMN gaps_waiting; ALTER TABLE tally DROP COLUMN gaps_sent; PRAGMA user_version = 1;
         PRAGMA application_id = 0",
        )
        .unwrap();
    bench.reopen();
    assert_eq!((0..2).map(|which| ledger(&mut bench, which)).collect::<Vec<_>>(), books);
    audit(&mut bench);
    assert!(!bench.db().thin_one(), "what may have been handed out before is not given up");
}

/// Found by the model: room was made after the record was sent, and a restart put the newest time back.
#[test]
fn the_key_of_a_record_that_was_sent_stays_taken_when_room_is_made_and_over_a_restart() {
    let mut bench = Bench::new();
    bench.stage(&report(5_000, 1.0));
    bench.commit();
    let loss = Loss { device_id: device(1), from: at(0), to: at(4_000), count: 3, reason: LossReason::RateLimited };
    bench.db().declare_lost(&[loss]).unwrap();
    let told = bench.blocks();
    let key = told[0].first;
    bench.db().confirm_blocks(&[told[0].id].into()).unwrap();
    while bench.db().give_up_some(16 * 1024 * 1024).unwrap() {}
    bench.reopen();
    bench.stage(&report(key.as_millis() - START_MS, 2.0));
    bench.close_blocks();
    assert!(bench.blocks().iter().all(|block| block.first != key));
}
