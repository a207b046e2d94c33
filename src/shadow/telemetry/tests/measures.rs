//! Figures that take long or much disk; `cargo xtask measure` runs them (feature `suites`).

use std::time::{Duration, Instant};

use super::Bench;
use super::figures::{DEVICES, Floor, Meter, PER_SECOND, live};

#[test]
fn with_sent_blocks_being_shed_the_disk_still_gets_at_most_600_bytes_a_message() {
    let mut bench = Bench::new();
    // From the fifth hour on, as many blocks are shed as are written.
    let (seconds, mut meter) = (8 * 3_600, Meter::default());
    live(&mut bench, seconds, &mut meter);
    let messages = seconds * PER_SECOND;
    let (log, checkpoint) = (meter.log_bytes / messages, meter.checkpoint_bytes / messages);
    let sent = bench.db().tally.blocks_sent;
    println!("8 hours: {log} B a message in the log, {checkpoint} B copied into the file; {sent} sent blocks kept");
    println!("{:?}", bench.stats());
    assert!(sent < 15_000, "nothing was shed: {sent}");
    assert!(log + checkpoint <= 600, "{log} + {checkpoint} B a message");
}

#[test]
fn a_full_file_opens_at_once() {
    let mut bench = Bench::new();
    live(&mut bench, 1_200, &mut Meter::default());
    // The same twenty minutes of blocks again and again, all still waiting.
    let mut copies = 1_i64;
    while bench.stats().bytes_on_disk < 512 * 1024 * 1024 {
        let shift = format!(
            "INSERT INTO block SELECT id + {copies} * 10000, device, first - {copies} * 1200000, 0, previous, samples, body, era
             FROM block WHERE id < {copies} * 10000"
        );
        bench.db().conn.execute_batch(&shift).unwrap();
        bench.db().empty_log().unwrap();
        copies *= 2;
    }
    let started = Instant::now();
    bench.reopen();
    let opened = started.elapsed();
    let mut floor = Floor::new();
    let started = Instant::now();
    for number in 0..DEVICES {
        bench.stage(&floor.report(1_200 * PER_SECOND + number));
    }
    let staged = started.elapsed();
    let started = Instant::now();
    let peeked = bench.db().peek_blocks(25).unwrap().len();
    let stats = bench.stats();
    println!("opened in {opened:?}; first report of each of {DEVICES} devices in {staged:?}");
    println!("{peeked} blocks and the figures in {:?}; {stats:?}", started.elapsed());
    assert!(opened < Duration::from_millis(100), "{opened:?}");
}
