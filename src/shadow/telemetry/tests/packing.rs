//! Properties of the formats and of the size rule.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use floorgate_model::id::DEVICE_ID_MAX;
use floorgate_model::table::{history, number_size};
use floorgate_model::{Reading, Readings};
use proptest::prelude::*;

use crate::shadow::telemetry::open_block::OpenBlock;
use crate::shadow::telemetry::samples::{Origin, Sample, Samples};
use crate::shadow::telemetry::segment::{self, Entry, Packer, Tail};
use crate::shadow::telemetry::{body, bytes};

/// Values as devices send them, and values as nobody should.
fn value() -> impl Strategy<Value = Reading> {
    prop_oneof![
        8 => (-99_999_i64..99_999, 0_u8..4).prop_map(|(scaled, places)| bytes::unscaled(scaled, places).unwrap()),
        1 => proptest::num::f64::NORMAL.prop_map(|value| Reading::new(value).unwrap()),
        1 => Just(Reading::new(1e300).unwrap()),
    ]
}

fn some_readings() -> impl Strategy<Value = Readings> {
    let name = prop_oneof![4 => "[a-c]_psi", 1 => "[a-zA-Z0-9_.:-]{60,64}"];
    proptest::collection::btree_map(name, value(), 0..5).prop_map(collect)
}

fn collect(values: BTreeMap<String, Reading>) -> Readings {
    let mut readings = Readings::new();
    for (name, value) in values {
        readings.insert(&name, value).unwrap();
    }
    readings
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        4 => Just(Origin::Device),
        1 => Just(Origin::Gateway),
        1 => (0..253_402_300_799_999_i64).prop_map(Origin::Replaced),
    ]
}

/// Samples with strictly increasing times.
fn run() -> impl Strategy<Value = Vec<Sample>> {
    let step = (1_i64..20_000, origin(), proptest::option::of(any::<u64>()), some_readings());
    proptest::collection::vec(step, 1..80).prop_map(|steps| {
        let mut at = super::START_MS;
        let next = |(distance, origin, seq, readings)| {
            at += distance;
            Sample { at, origin, seq, readings }
        };
        steps.into_iter().map(next).collect()
    })
}

/// What DynamoDB counts for the item, from its published rules, attribute by attribute.
fn item_size(device: &str, samples: &Samples) -> usize {
    let scalar = |name: &str, value: usize| name.len() + value;
    let first = samples.first().unwrap();
    let element = |text: &str, is_number: bool| 1 + if is_number { number_size(text) } else { text.len() };
    let offsets: usize = samples.times.iter().map(|at| element(&(at - first).to_string(), true)).sum();
    let readings: usize = samples
        .columns
        .iter()
        .map(|(name, column)| {
            let value = |value: &Option<Reading>| {
                value.map_or(2, |reading| element(&reading.to_string(), reading.fits_table_number()))
            };
            1 + name.len() + 3 + column.iter().map(value).sum::<usize>()
        })
        .sum();
    scalar("device_id", device.len())
        + scalar("timestamp", 24)
        + scalar("end", 24)
        + scalar("count", number_size(&samples.len().to_string()))
        + scalar("gateway_id", DEVICE_ID_MAX)
        + scalar("offsets_ms", 3 + offsets)
        + scalar("readings", 3 + readings)
        + scalar("expires_at", number_size("1797933600"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_block_reads_back_as_it_was_written(samples in run(), retention_ms in 0_u64..1_000_000_000_000) {
        let mut columns = Samples::default();
        samples.iter().for_each(|sample| columns.push(sample));
        let retention = Duration::from_millis(retention_ms);
        let written = body::encode(&columns, retention);
        prop_assert_eq!(body::decode(columns.first().unwrap(), &written), Some((columns.clone(), retention)));
        prop_assert_eq!(columns.iter().collect::<Vec<_>>(), samples);
    }

    #[test]
    fn the_journal_reads_back_as_it_was_written(
        commits in proptest::collection::vec(
            proptest::collection::vec((1_i64..1_000, any::<bool>(), any::<bool>(), any::<Option<u8>>(), run()), 0..6), 1..8),
    ) {
        let (mut tail, mut pages, mut expected) = (Tail::default(), BTreeMap::new(), Vec::new());
        for commit in commits {
            let mut packer = Packer::default();
            for (device, late, starts_block, era, samples) in commit {
                let era = era.map(i64::from);
                for sample in samples {
                    packer.push(device, (late, era), starts_block, &sample);
                    expected.push(Entry { device, late, era, starts_block, sample });
                }
            }
            pages.extend(tail.extend(packer.segments()));
        }
        let (mut found, mut last) = (Vec::new(), Vec::new());
        for page in pages.values() {
            let (segments, used) = segment::segments(page);
            found.extend(segments.into_iter().flat_map(|segment| segment::unpack(segment).unwrap()));
            last = page[..used].to_vec();
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!(last, tail.body);
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_and_never_panic(noise: Vec<u8>, samples in run(), flip: usize) {
        let _ = (body::decode(0, &noise), segment::unpack(&noise), segment::segments(&noise));
        let mut columns = Samples::default();
        samples.iter().for_each(|sample| columns.push(sample));
        let mut written = body::encode(&columns, Duration::ZERO);
        let place = flip % written.len();
        written[place] ^= 0x55;
        let _ = body::decode(0, &written);
    }

    #[test]
    fn an_item_is_never_larger_than_counted_nor_than_its_limit(samples in run(), device in "[A-Za-z0-9]{1,64}") {
        let opened = Instant::now();
        let mut block: Option<OpenBlock> = None;
        for sample in &samples {
            match &mut block {
                Some(open) if open.takes(sample, None, None) => open.push(sample),
                _ => block = Some(OpenBlock::new(&device, false, None, sample, opened)),
            }
            let open = block.as_ref().unwrap();
            let size = item_size(&device, open.samples());
            prop_assert!(size <= open.item_bytes(), "{size} > {}", open.item_bytes());
            // At most what the count and the TTL might still need.
            prop_assert!(open.item_bytes() - size <= 8, "{size} << {}", open.item_bytes());
            prop_assert!(open.item_bytes() <= history::ITEM_BYTES_MAX || open.samples().len() == 1);
            prop_assert!(open.samples().times.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}

#[test]
fn a_sample_larger_than_an_item_unit_is_a_block_of_its_own() {
    let mut readings = Readings::new();
    for number in 0..64 {
        readings.insert(&format!("{number:064}"), Reading::new(0.1).unwrap()).unwrap();
    }
    let mut bench = super::Bench::new();
    for step in 0..3 {
        let mut report = super::report(step * 1_000, 1.0);
        report.readings = readings.clone();
        bench.stage(&report);
        bench.stage(&super::report(step * 1_000 + 500, 1.0));
    }
    bench.commit();
    bench.reopen();
    bench.close_blocks();
    let blocks = bench.blocks();
    assert!(blocks.iter().all(|block| block.offsets_ms.len() == 1));
    assert_eq!(blocks.iter().filter(|block| block.readings.len() == 64).count(), 3);
    assert_eq!(blocks.len(), 6);
}
