//! `get_telemetry_history`.
//!
//! Blocks are expanded ([`blocks`]) into the samples they hold, or into figures for each interval of the range
//! ([`points`]); gap records are told as what they are. What has expired is left out even while DynamoDB has not deleted
//! it yet. An answer ends at its number of samples or at its size ([`Room`]), gaps included. The range is fixed by the
//! first answer: its cursor carries it, so pages of "the last hour" are of one hour.
//!
//! A block holds at most 60 s, so one that began up to [`LOOK_BACK`] before the range may reach into it, and is read. A
//! gap may be longer: the [`GAPS_BEFORE`] items before that are looked through for one that reaches into the range.

mod blocks;
mod points;

use std::time::Duration;

use floorgate_model::table::{devices, history};
use floorgate_model::{DeviceId, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Call;
use super::room::Room;
use crate::age::Leases;
use crate::arguments::Arguments;
use crate::cursor;
use crate::error::{ToolError, code};
use crate::store::Item;
use crate::tools::{POINTS_MAX, SAMPLES_DEFAULT, SAMPLES_MAX};
use blocks::Entry;
use points::Points;

/// The range, unless asked otherwise.
const RANGE_DEFAULT: Duration = Duration::from_secs(3_600);
/// How long before the range a block may begin that reaches into it: a block's 60 s, with room for clocks put right.
const LOOK_BACK: Duration = Duration::from_secs(300);
/// Items before that which are looked through for a gap that reaches into the range.
const GAPS_BEFORE: i32 = 25;
/// Longest name of a metric, characters.
const METRIC_MAX: u64 = 128;

/// What was asked for.
struct Asked {
    from: Timestamp,
    to: Timestamp,
    metric: Option<String>,
    points: Option<u64>,
    limit: usize,
    /// Where to go on; `None` at the beginning.
    resume: Option<Resume>,
}

/// Where an answer ended.
#[derive(Debug, Clone, Copy)]
struct Resume {
    /// Key of the item to begin with.
    key: Timestamp,
    /// Samples of it that were told; or, with `points`, the number of the first interval that was not.
    told: u64,
}

/// What is told.
struct Told {
    /// For samples and gaps together; intervals have their own, see [`first_that_does_not_fit`].
    room: Room,
    samples: Vec<Value>,
    /// With the key of its item.
    gaps: Vec<(Timestamp, Value)>,
    count: u64,
    next: Option<Resume>,
}

impl Call<'_> {
    pub(super) async fn get_telemetry_history(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let named = arguments.required("device_id")?;
        let asked = self.history_question(arguments)?;
        let (device, item) = self.device(&named).await?;
        let mut told = Told { room: Room::new(), samples: Vec::new(), gaps: Vec::new(), count: 0, next: None };
        if asked.resume.is_none() {
            told.gaps = self.gaps_before(&device, &asked).await?;
            // What they take is missing behind; all of them are told, for nobody asks for them again.
            for (_, gap) in &told.gaps {
                let _ = told.room.takes(gap);
            }
        }
        let mut answer = Item::new();
        match asked.points {
            None => {
                self.read_samples(&device, &asked, &mut told).await?;
                answer.insert("samples".to_owned(), std::mem::take(&mut told.samples).into());
            }
            Some(points) => {
                let points =
                    self.read_points(&device, &asked, Points::new(asked.from, asked.to, points), &mut told).await?;
                answer.insert("points".to_owned(), points.into());
            }
        }
        answer.insert(devices::DEVICE_ID.to_owned(), device.as_str().into());
        answer.insert("from".to_owned(), asked.from.to_string().into());
        answer.insert("to".to_owned(), asked.to.to_string().into());
        let gaps: Vec<_> = told.gaps.into_iter().map(|(_, gap)| gap).collect();
        answer.insert("gaps".to_owned(), gaps.into());
        answer.insert("count".to_owned(), told.count.into());
        answer.insert("complete".to_owned(), told.next.is_none().into());
        answer.insert("as_of".to_owned(), self.now.to_string().into());
        if let Some(next) = told.next {
            let place = json!({
                "f": asked.from.as_millis(), "t": asked.to.as_millis(), "k": next.key.as_millis(), "n": next.told,
            });
            answer.insert("next_cursor".to_owned(), cursor::write(&self.question, place).into());
        }
        Leases::of(&self.parts.store, std::slice::from_ref(&item)).await?.tell(&item, self.now, &mut answer);
        Ok(answer)
    }

    fn history_question(&self, arguments: &mut Arguments) -> Result<Asked, ToolError> {
        let to = arguments.time("to")?.unwrap_or(self.now);
        let from = arguments.time("from")?.unwrap_or_else(|| to.saturating_sub(RANGE_DEFAULT));
        if from >= to {
            let message = format!("argument `from` ({from}) must be before `to` ({to})");
            return Err(ToolError::new(code::INVALID_ARGUMENTS, message).with("argument", "from"));
        }
        let limit = arguments.whole("limit", 1, SAMPLES_MAX)?.unwrap_or(SAMPLES_DEFAULT);
        let mut asked = Asked {
            from,
            to,
            metric: arguments.text_of("metric", METRIC_MAX)?,
            points: arguments.whole("points", 1, POINTS_MAX)?,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            resume: None,
        };
        if let Some(given) = arguments.text_of("cursor", cursor::CURSOR_MAX)? {
            let at = cursor::read(&self.question, &given)?;
            let time = |name: &str| at.get(name).and_then(Value::as_i64).map(Timestamp::from_millis);
            let place = (|| Some((time("f")?, time("t")?, time("k")?, at.get("n")?.as_u64()?)))();
            let (from, to, key, told) = place.filter(|(from, to, ..)| from < to).ok_or_else(cursor::invalid)?;
            (asked.from, asked.to, asked.resume) = (from, to, Some(Resume { key, told }));
        }
        Ok(asked)
    }

    /// Gaps that began long before the range and reach into it.
    async fn gaps_before(&self, device: &DeviceId, asked: &Asked) -> Result<Vec<(Timestamp, Value)>, ToolError> {
        let until = asked.from.saturating_sub(LOOK_BACK + Duration::from_millis(1)).to_string();
        let beginning = Timestamp::EPOCH.to_string();
        let page = self.parts.store.history(device.as_str(), &beginning, &until, true, Some(GAPS_BEFORE)).await?;
        let mut gaps: Vec<_> =
            page.items.iter().filter_map(|item| self.entry(item)?.into_gap(asked.from, asked.to)).collect();
        gaps.reverse();
        Ok(gaps)
    }

    /// An item, unless it has expired or is none of ours.
    fn entry(&self, item: &Item) -> Option<Entry> {
        let expires = item.get(history::EXPIRES_AT).and_then(Value::as_i64);
        if expires.is_some_and(|expires| expires <= self.now.as_seconds()) {
            return None;
        }
        Entry::read(item)
    }

    async fn read_samples(&self, device: &DeviceId, asked: &Asked, told: &mut Told) -> Result<(), ToolError> {
        let (began, to) = (Instant::now(), asked.to.to_string());
        let mut from = asked.resume.map_or_else(|| asked.from.saturating_sub(LOOK_BACK), |resume| resume.key);
        for pages in 1.. {
            let page = self.parts.store.history(device.as_str(), &from.to_string(), &to, false, None).await?;
            for entry in page.items.iter().filter_map(|item| self.entry(item)) {
                let key = entry.key();
                if let Some(gap) = entry.gap(asked.from, asked.to) {
                    if !told.room.takes(&gap) {
                        told.next = Some(Resume { key, told: 0 });
                        return Ok(());
                    }
                    told.gaps.push((key, gap));
                    continue;
                }
                let skip = asked.resume.filter(|resume| resume.key == key).map_or(0, |resume| resume.told);
                for (place, sample) in (0_u64..).zip(entry.samples()) {
                    let wanted = place >= skip && (asked.from..=asked.to).contains(&sample.at);
                    let Some(readings) = sample.readings(asked.metric.as_deref()).filter(|_| wanted) else { continue };
                    let sample = entry.told(&sample, readings);
                    if told.samples.len() == asked.limit || !told.room.takes(&sample) {
                        told.next = Some(Resume { key, told: place });
                        return Ok(());
                    }
                    told.samples.push(sample);
                    told.count += 1;
                }
            }
            let Some(next) = self.next_key(page.last.as_ref())? else { return Ok(()) };
            if !self.may_read_more(began, pages) {
                told.next = Some(Resume { key: next, told: 0 });
                return Ok(());
            }
            from = next;
        }
        Ok(())
    }

    async fn read_points(
        &self,
        device: &DeviceId,
        asked: &Asked,
        mut points: Points,
        told: &mut Told,
    ) -> Result<Vec<Value>, ToolError> {
        let (began, to) = (Instant::now(), asked.to.to_string());
        let first = asked.resume.map_or(0, |resume| resume.told);
        // A resumed answer begins where its first interval does, with the blocks that reach into it.
        let mut from = points.start_of(first).saturating_sub(LOOK_BACK);
        // The first key that is not read.
        let mut stop = None;
        'pages: for pages in 1.. {
            let page = self.parts.store.history(device.as_str(), &from.to_string(), &to, false, None).await?;
            for entry in page.items.iter().filter_map(|item| self.entry(item)) {
                if let Some(gap) = entry.gap(points.start_of(first).max(asked.from), asked.to) {
                    // One that began before was told with the answer before.
                    if asked.resume.is_none() || entry.key() >= points.start_of(first) {
                        if !told.room.takes(&gap) {
                            stop = Some(entry.key());
                            break 'pages;
                        }
                        told.gaps.push((entry.key(), gap));
                    }
                    continue;
                }
                for sample in entry.samples().filter(|sample| (asked.from..=asked.to).contains(&sample.at)) {
                    points.add(&sample, asked.metric.as_deref(), first);
                }
            }
            let Some(next) = self.next_key(page.last.as_ref())? else { break };
            if !self.may_read_more(began, pages) {
                stop = Some(next);
                break;
            }
            from = next;
        }
        // All of an interval is known once every later block begins after it.
        let read = stop.map(|stop| points.number_of(stop));
        let whole = [read, first_that_does_not_fit(&points, &told.gaps)].into_iter().flatten().min();
        if let Some(whole) = whole {
            if whole <= first {
                let message = format!(
                    "one of {} intervals holds more than one call may read or answer; ask for a shorter range or for more points",
                    points.number()
                );
                return Err(ToolError::new(code::RANGE_TOO_LARGE, message));
            }
            points.cut(whole);
            // By the key, as the answer after this one tells them.
            told.gaps.retain(|(key, _)| *key < points.start_of(whole));
            told.next = Some(Resume { key: points.start_of(whole), told: whole });
        }
        told.count = points.count();
        Ok(points.told())
    }

    /// The key behind the last one: keys have milliseconds.
    fn next_key(&self, last: Option<&Item>) -> Result<Option<Timestamp>, ToolError> {
        let Some(last) = last else { return Ok(None) };
        let key = crate::age::time(last, history::TIMESTAMP);
        let next = key.map(|key| key.saturating_add(Duration::from_millis(1)));
        next.map(Some).ok_or_else(|| ToolError::new(code::INTERNAL, "the history holds a key that is no time"))
    }
}

/// The first interval that, with the gaps that begin in it, has no room in an answer.
fn first_that_does_not_fit(points: &Points, gaps: &[(Timestamp, Value)]) -> Option<u64> {
    let mut room = Room::new();
    let mut listed: Vec<_> = gaps.iter().map(|(key, gap)| (points.number_of(*key), gap.clone())).collect();
    listed.extend(points.numbers().zip(points.told()));
    // Stable: gaps of an interval before its figures.
    listed.sort_by_key(|(number, _)| *number);
    listed.iter().find(|(_, element)| !room.takes(element)).map(|(number, _)| *number)
}
