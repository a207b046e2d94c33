//! What happens to a sample, step by step.

use std::time::Duration;

use floorgate_model::Timestamp;

use super::{Bench, START_MS, at, device, readings, report};
use crate::shadow::store::{StoreError, Taken};
use crate::shadow::telemetry::TelemetryDb;

fn whole(number: i64) -> f64 {
    f64::from(i32::try_from(number).unwrap())
}

#[test]
fn a_sample_comes_out_of_its_block_as_it_went_in() {
    let mut bench = Bench::new();
    let staged = bench.stage(&report(0, 142.7));
    assert_eq!((staged.taken, staged.at, staged.is_newest), (Taken::Stored, at(0), true));
    bench.stage(&report(5_000, 142.8));
    assert_eq!(bench.db().staged(), 2);
    assert_eq!(bench.commit(), 0);
    assert_eq!(bench.db().staged(), 0);
    assert!(bench.blocks().is_empty());
    assert_eq!(bench.close_blocks(), 1);

    let blocks = bench.blocks();
    assert_eq!(blocks.len(), 1);
    let block = &blocks[0];
    assert_eq!((&block.device_id, block.first), (&device(1), at(0)));
    assert_eq!(block.offsets_ms, [0, 5_000]);
    let values: Vec<f64> = block.readings["pressure_psi"].iter().map(|value| value.unwrap().value()).collect();
    assert_eq!(values, [142.7, 142.8]);
    assert_eq!(block.expires_at, at(5_000).saturating_add(super::RETENTION));
}

#[test]
fn blocks_are_closed_at_sixty_seconds_and_not_before() {
    let mut bench = Bench::new();
    bench.stage(&report(0, 1.0));
    bench.commit();
    bench.pass(Duration::from_millis(59_999));
    let now = bench.now;
    assert!(!bench.db().has_due_blocks(now));
    assert_eq!(bench.commit(), 0);
    bench.pass(Duration::from_millis(1));
    let now = bench.now;
    assert!(bench.db().has_due_blocks(now));
    assert_eq!(bench.commit(), 1);
    assert!(!bench.db().has_due_blocks(now));
}

#[test]
fn a_gap_closes_a_block_at_once() {
    let mut bench = Bench::new();
    for second in 0..5 {
        bench.stage(&report(second * 1_000, 1.0));
    }
    bench.commit();
    bench.stage(&report(4_000 + 60_000, 1.0));
    assert_eq!(bench.commit(), 0, "60 s is still no gap");
    bench.stage(&report(4_000 + 120_001, 1.0));
    assert_eq!(bench.commit(), 1, "more than 60 s is");
    assert_eq!(bench.blocks()[0].offsets_ms.len(), 6);
}

#[test]
fn a_device_that_reports_rarely_still_packs_its_backlog() {
    let mut bench = Bench::new();
    bench.stage(&report(0, 1.0));
    for step in 0..20 {
        bench.stage(&report(-86_400_000 + step * 300_000, 1.0));
    }
    bench.commit();
    bench.close_blocks();
    let mut counts: Vec<usize> = bench.blocks().iter().map(|block| block.offsets_ms.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 19], "only the first distance of five minutes looks like a gap");
}

#[test]
fn late_readings_do_not_move_time_back_and_pack_among_themselves() {
    let mut bench = Bench::new();
    bench.stage(&report(3_600_000, 5.0));
    for step in 0..10 {
        let late = crate::shadow::TelemetryReport { received_at: at(3_600_000), ..report(step * 1_000, 1.0) };
        let late = bench.stage(&late);
        assert_eq!((late.taken, late.at, late.is_newest), (Taken::Stored, at(step * 1_000), false));
        let live = bench.stage(&report(3_601_000 + step * 1_000, 5.0));
        assert!(live.is_newest);
    }
    bench.commit();
    bench.close_blocks();
    let counts: Vec<usize> = bench.blocks().iter().map(|block| block.offsets_ms.len()).collect();
    assert_eq!(counts, [10, 11]);
    let newest = bench.reopen();
    assert_eq!(newest[&device(1)], (at(3_610_000), readings(&[("pressure_psi", 5.0)])));
}

#[test]
fn several_contents_of_one_instant_are_each_kept_under_a_time_of_their_own() {
    let mut bench = Bench::new();
    let times = |bench: &mut Bench, offset: i64| -> Vec<i64> {
        (0..4).map(|n| bench.stage(&report(offset, f64::from(n))).at.as_millis() - START_MS).collect()
    };
    assert_eq!(times(&mut bench, 60_000), [60_000, 60_001, 60_002, 60_003]);
    assert_eq!(times(&mut bench, 0), [0, 1, 2, 3], "late ones too");
    bench.commit();
    bench.reopen();
    let again = bench.stage(&report(60_000, 9.0));
    assert_eq!((again.at, again.is_newest), (at(60_004), true), "the restart does not make it late");
}

#[test]
fn a_late_sample_that_is_moved_past_the_newest_is_the_newest() {
    let mut bench = Bench::new();
    bench.stage(&report(500, 0.0));
    bench.close_blocks();
    let mut timeless = report(500, 1.0);
    timeless.device_time = None;
    assert_eq!(bench.stage(&timeless).at, at(501));
    bench.commit();
    bench.reopen();
    // The journal cannot tell that the second one asked for 500 too, so the third looks late until it has its time.
    let third = bench.stage(&report(500, 2.0));
    assert_eq!((third.at, third.is_newest), (at(502), true));
}

#[test]
fn a_device_clock_that_cannot_be_right_is_replaced_by_the_gateways() {
    let mut bench = Bench::new();
    for (device_time, kept) in [
        (at(300_000), at(300_000)),
        (at(300_001), at(0)),
        (Timestamp::EPOCH, at(0)),
        (Timestamp::parse("2019-12-31T23:59:59.999Z").unwrap(), at(0)),
        (Timestamp::parse("2020-01-01T00:00:00Z").unwrap(), Timestamp::parse("2020-01-01T00:00:00Z").unwrap()),
    ] {
        // Each from a device of its own, so that none is late.
        let mut bench_report = report(0, 1.0);
        bench_report.device_time = Some(device_time);
        bench_report.device_id = floorgate_model::DeviceId::new(&format!("D{}", device_time.as_millis())).unwrap();
        assert_eq!(bench.stage(&bench_report).at, kept, "{device_time}");
    }
}

#[test]
fn a_duplicate_is_folded_wherever_the_first_one_is_kept() {
    let mut bench = Bench::new();
    let mut replaced = report(0, 2.0);
    (replaced.device_time, replaced.seq) = (Some(Timestamp::EPOCH), Some(7));
    let originals = [report(0, 1.0), report(1_000, 1.0), replaced, report(500, 3.0)];
    for original in &originals {
        assert_eq!(bench.stage(original).taken, Taken::Stored);
    }
    let fold_all = |bench: &mut Bench, place: &str| {
        for original in &originals {
            assert_eq!(bench.stage(original).taken, Taken::Duplicate, "{place}");
        }
    };
    fold_all(&mut bench, "staged");
    bench.commit();
    fold_all(&mut bench, "committed");
    bench.reopen();
    fold_all(&mut bench, "in the journal");
    bench.close_blocks();
    bench.reopen();
    fold_all(&mut bench, "in closed blocks");
    let ids: Vec<i64> = bench.blocks().iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&ids[1..].iter().copied().collect()).unwrap();
    bench.db().park_block(ids[0], "refused").unwrap();
    bench.reopen();
    fold_all(&mut bench, "sent and parked");
}

#[test]
fn the_last_256_reports_are_remembered_across_a_restart() {
    let mut bench = Bench::new();
    for step in 0..600 {
        bench.stage(&report(step * 1_000, 1.0));
        if step % 50 == 0 {
            bench.close_blocks();
        }
    }
    bench.commit();
    bench.reopen();
    for step in 600 - 256..600 {
        assert_eq!(bench.stage(&report(step * 1_000, 1.0)).taken, Taken::Duplicate, "{step}");
    }
    assert_eq!(bench.stage(&report(0, 1.0)).taken, Taken::Stored);
}

#[test]
fn without_a_device_time_only_a_redelivery_of_the_last_report_folds() {
    let mut bench = Bench::new();
    let mut timeless = report(0, 1.0);
    timeless.device_time = None;
    bench.stage(&timeless);
    timeless.received_at = at(5_000);
    assert_eq!(bench.stage(&timeless).taken, Taken::Stored, "a steady reading is no duplicate");
    bench.commit();
    bench.reopen();
    timeless.redelivered = true;
    assert_eq!(bench.stage(&timeless).taken, Taken::Duplicate);
    timeless.seq = Some(1);
    assert_eq!(bench.stage(&timeless).taken, Taken::Stored);
}

#[test]
fn a_failed_commit_leaves_nothing_behind_and_the_same_reports_are_taken_again() {
    let mut bench = Bench::new();
    bench.stage(&report(0, 1.0));
    bench.commit();
    let other = bench.block_writes();
    let first = [bench.stage(&report(1_000, 2.0)), bench.stage(&report(200_000, 3.0)), bench.stage(&report(500, 4.0))];
    let now = bench.now;
    assert!(matches!(bench.db().commit(now), Err(StoreError::Io { .. })));
    assert_eq!(bench.db().staged(), 0);
    assert_eq!(bench.stats().samples_open, 1);
    drop(other);
    let second = [bench.stage(&report(1_000, 2.0)), bench.stage(&report(200_000, 3.0)), bench.stage(&report(500, 4.0))];
    assert_eq!(first, second);
    bench.close_blocks();
    let samples: usize = bench.blocks().iter().map(|block| block.offsets_ms.len()).sum();
    assert_eq!(samples, 4);
}

#[test]
fn a_commit_that_fails_while_blocks_are_due_keeps_them_open() {
    let mut bench = Bench::new();
    bench.stage(&report(0, 1.0));
    bench.commit();
    let other = bench.block_writes();
    bench.pass(super::super::BLOCK_AGE_MAX);
    bench.stage(&report(60_000, 1.0));
    let now = bench.now;
    assert!(bench.db().commit(now).is_err());
    assert!(bench.db().has_due_blocks(now));
    drop(other);
    assert_eq!(bench.commit(), 1);
    assert_eq!(bench.blocks()[0].offsets_ms, [0]);
}

#[test]
fn a_block_that_was_open_before_a_start_is_closed_soon_after_it() {
    let mut bench = Bench::new();
    for start in 0..10 {
        bench.stage(&report(start * 30_000, 1.0));
        assert_eq!(bench.commit(), 0, "start {start}");
        bench.reopen();
        bench.pass(super::super::replay::REOPENED_WITHIN);
        assert_eq!(bench.commit(), 1, "start {start}: a gateway that never runs for a minute sends nothing");
    }
    assert_eq!(bench.blocks().len(), 10);
}

#[test]
fn no_two_blocks_of_a_device_share_a_key() {
    let mut bench = Bench::new();
    // The backlog is sent twice, with other contents and beyond what is remembered.
    for round in 0..3 {
        bench.stage(&report(10_000_000 + round, 0.0));
        for step in 0..300 {
            bench.stage(&report(step * 1_000, whole(step) + whole(round) / 10.0));
        }
        bench.close_blocks();
        bench.reopen();
    }
    let mut keys: Vec<Timestamp> = bench.blocks().iter().map(|block| block.first).collect();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all);
    let samples: usize = bench.blocks().iter().map(|block| block.offsets_ms.len()).sum();
    assert_eq!(samples, 903);
}

#[test]
fn time_known_from_elsewhere_never_moves_back() {
    let mut bench = Bench::new();
    bench.db().known_newest(&device(1), at(10_000));
    assert!(!bench.stage(&report(9_000, 1.0)).is_newest);
    assert!(bench.stage(&report(11_000, 1.0)).is_newest);
    bench.db().known_newest(&device(1), at(20_000));
    let other = bench.block_writes();
    let now = bench.now;
    assert!(bench.db().commit(now).is_err());
    drop(other);
    assert!(!bench.stage(&report(19_000, 1.0)).is_newest, "a failed commit does not forget it");
}

#[test]
fn figures_follow_a_sample_from_the_journal_to_the_table() {
    let mut bench = Bench::new();
    bench.stage(&report(0, 1.0));
    bench.commit();
    let open = bench.stats();
    assert_eq!((open.samples_open, open.blocks_waiting, open.oldest), (1, 0, Some(at(0))));
    bench.close_blocks();
    bench.stage(&report(60_000, 1.0));
    bench.close_blocks();
    for _ in 0..2 {
        let waiting = bench.stats();
        assert_eq!((waiting.samples_open, waiting.blocks_waiting, waiting.samples_waiting), (0, 2, 2));
        assert_eq!(waiting.oldest, Some(at(0)));
        bench.reopen();
    }
    let ids: Vec<i64> = bench.blocks().iter().map(|block| block.id).collect();
    bench.db().confirm_blocks(&[ids[0], 4_711].into()).unwrap();
    bench.db().park_block(ids[1], "refused").unwrap();
    bench.db().park_block(ids[1], "refused").unwrap();
    for _ in 0..2 {
        let done = bench.stats();
        assert_eq!((done.blocks_waiting, done.samples_waiting, done.blocks_parked, done.oldest), (0, 0, 1, None));
        assert!(bench.blocks().is_empty());
        bench.reopen();
    }
}

#[test]
fn the_thousand_and_first_parked_block_drops_the_oldest() {
    let mut bench = Bench::new();
    for step in 0..1_001 {
        bench.stage(&report(step * 61_000, 1.0));
        bench.close_blocks();
    }
    for block in bench.blocks() {
        bench.db().park_block(block.id, "ValidationException").unwrap();
    }
    assert_eq!(bench.stats().blocks_parked, 1_000);
    let (kept, oldest): (i64, i64) = bench
        .db()
        .conn
        .query_row("SELECT count(*), min(id) FROM parked", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!((kept, oldest, bench.db().tally.parked_dropped), (1_000, 2, 1));
}

#[test]
fn shedding_drops_sent_blocks_oldest_first_and_never_one_that_waits() {
    let mut bench = Bench::new();
    for minute in 0..4_000 {
        for step in 0..10 {
            let mut sample = report(minute * 60_000 + step * 1_000, whole(minute) / 7.0);
            sample.seq = Some(u64::try_from(step).unwrap() * 982_451_653);
            bench.stage(&sample);
        }
        bench.close_blocks();
    }
    let blocks = bench.blocks();
    let sent: Vec<i64> = blocks.iter().take(3_000).map(|block| block.id).collect();
    bench.db().confirm_blocks(&sent.iter().copied().collect()).unwrap();
    let full = bench.stats().bytes_on_disk;
    let quota = full / 2;
    bench.db().keep_within(quota).unwrap();
    assert!(bench.stats().bytes_on_disk <= quota);
    let kept: Vec<i64> = bench
        .db()
        .conn
        .prepare("SELECT id FROM block WHERE sent = 1 ORDER BY id")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(!kept.is_empty() && sent.ends_with(&kept), "the newest are kept");
    assert_eq!(bench.db().tally.blocks_sent, i64::try_from(kept.len()).unwrap());

    bench.db().keep_within(1).unwrap();
    assert_eq!(bench.blocks(), blocks[3_000..], "what waits stays, whatever the quota");
}

#[test]
fn closing_properly_keeps_what_is_open() {
    let mut bench = Bench::new();
    bench.stage(&report(0, 1.0));
    let now = bench.now;
    bench.db.take().unwrap().close(now).unwrap();
    assert!(!bench.path().with_extension("db-wal").exists());
    let newest = bench.reopen();
    assert_eq!(newest[&device(1)], (at(0), readings(&[("pressure_psi", 1.0)])));
    bench.close_blocks();
    assert_eq!(bench.blocks().len(), 1);
}

#[test]
fn a_file_of_a_newer_floorgate_is_left_alone() {
    let mut bench = Bench::new();
    bench.db().conn.pragma_update(None, "user_version", 99).unwrap();
    drop(bench.db.take());
    let refused = TelemetryDb::open(&bench.path(), super::RETENTION, bench.now).unwrap_err();
    let StoreError::Newer { found, known, .. } = refused else { panic!("{refused}") };
    assert_eq!((found, known), (99, i64::try_from(crate::shadow::telemetry::schema::MIGRATIONS.len()).unwrap()));
}

#[test]
fn what_cannot_be_opened_says_why_and_what_to_do() {
    let bench = Bench::new();
    let missing = bench.dir.path().join("nowhere").join("telemetry.db");
    let refused = TelemetryDb::open(&missing, super::RETENTION, bench.now).unwrap_err().to_string();
    assert!(refused.contains("nowhere/telemetry.db") && refused.contains("may write there"), "{refused}");
    let text = bench.dir.path().join("text.db");
    std::fs::write(&text, "this is no database, whatever its name says".repeat(100)).unwrap();
    let refused = TelemetryDb::open(&text, super::RETENTION, bench.now).unwrap_err().to_string();
    assert!(refused.contains("moves it aside"), "{refused}");
}

#[test]
fn a_damaged_segment_costs_its_own_samples_alone() {
    let mut bench = Bench::new();
    for step in 0..3 {
        bench.stage(&report(step * 1_000, 1.0));
        bench.commit();
    }
    // The second segment begins with a count of names that cannot be.
    let mut body: Vec<u8> = bench.db().conn.query_row("SELECT body FROM segment", [], |row| row.get(0)).unwrap();
    let second = usize::from(body[0]) + 1;
    body[second + 1] = 0x7f;
    bench.db().conn.execute("UPDATE segment SET body = ?1", [body]).unwrap();
    bench.reopen();
    assert_eq!(bench.stats().samples_open, 2);
}

#[test]
fn a_damaged_block_is_parked_and_the_others_go_on() {
    let mut bench = Bench::new();
    for start in [0, 1_000_000, 2_000_000] {
        bench.stage(&report(start, 1.0));
        bench.close_blocks();
    }
    let all = bench.blocks();
    assert_eq!(all.len(), 3);
    bench.db().conn.execute("UPDATE block SET body = x'00ff' WHERE id = ?1", [all[0].id]).unwrap();
    assert_eq!(bench.db().peek_blocks(1).unwrap(), all[1..2], "an intact one behind it");
    assert_eq!(bench.blocks(), all[1..]);
    let stats = bench.stats();
    assert_eq!((stats.blocks_parked, stats.blocks_waiting, stats.samples_waiting), (1, 2, 2));
}

#[test]
fn the_newest_blocks_are_those_that_wait_from_the_other_end() {
    let mut bench = Bench::new();
    for start in [0, 1_000_000, 2_000_000] {
        bench.stage(&report(start, 1.0));
        bench.close_blocks();
    }
    let all = bench.blocks();
    let newest = bench.db().peek_newest_blocks(2).unwrap();
    assert_eq!(newest, [all[2].clone(), all[1].clone()]);
}
