//! Damage of every kind, at random places, to either file: the store opens within 2 s, the other file is untouched,
//! nothing outside of the damaged part is missing, no command that was ever given to a device runs again, and the
//! books balance.
//!
//! `FLOORGATE_TEST_MUTATIONS` sets the number (default 100), `FLOORGATE_TEST_SEED` the first seed; a failure names its
//! own, so that `FLOORGATE_TEST_MUTATIONS=1 FLOORGATE_TEST_SEED=…` repeats it.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::rescued::backed_up;
use super::*;

/// G7.
const START_WITHIN: Duration = Duration::from_secs(2);
const PAGE: u64 = 4_096;
const DONE: usize = 60;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// What was there before the damage.
struct Before {
    _folder: tempfile::TempDir,
    /// Closed in order, and as a killed process leaves it.
    closed: PathBuf,
    killed: PathBuf,
    samples: u64,
    executed: Vec<String>,
}

/// A store that lived: samples delivered, waiting and open, commands of every status, before and after a backup.
async fn before() -> Before {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let store = open(&live);
    let (device, mut executed) = (id("A"), Vec::new());
    for device in ["A", "B"] {
        take(&store, state(device, true)).await;
    }
    store.save_session("C".to_owned(), Some(vec!["a/+".to_owned()])).await.unwrap();
    for n in 0..DONE {
        if n == DONE / 2 {
            backed_up(&store, &live).await;
        }
        let name = format!("done-{n}");
        store.journal(command("A", "recalibrate", &name)).await.unwrap();
        let command = CommandId::new(&name).unwrap();
        store.claim(&device, &command).await.unwrap().unwrap();
        store.finish(&device, &command, ending(ExecutionStatus::Succeeded, None)).await.unwrap().unwrap();
        executed.push(name);
        let mut receipts = Vec::new();
        for step in 0..20 {
            let n = i64::try_from(n).unwrap() * 70_000 + step * 3_000;
            for device in ["A", "B"] {
                let value = f64::from(u32::try_from(step).unwrap()) * 1.7 + 140.0;
                receipts.push(store.submit(sample(device, n, value)).await.unwrap());
            }
        }
        for receipt in receipts {
            receipt.await.unwrap().unwrap();
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        store.tick().await.unwrap();
        if n < 10 {
            let ids = store.peek_blocks(2).await.unwrap().iter().map(|block| block.id).collect();
            store.confirm_blocks(ids).await.unwrap();
        }
    }
    store.journal(command("A", "recalibrate", "running")).await.unwrap();
    store.claim(&device, &CommandId::new("running").unwrap()).await.unwrap().unwrap();
    executed.push("running".to_owned());
    store.journal(command("A", "reboot", "waiting")).await.unwrap();
    take(&store, sample("A", 9_000_000, 150.0)).await;
    tokio::time::advance(Duration::from_secs(31)).await;
    store.tick().await.unwrap();
    let copied = killed(&live);
    let (killed, closed) = (folder.path().join("killed"), folder.path().join("closed"));
    copy(copied.path(), &killed);
    let stats = store.stats().await.unwrap();
    store.close().await.unwrap();
    copy(&live, &closed);
    Before { _folder: folder, closed, killed, samples: stats.samples_waiting + stats.samples_open, executed }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// What was damaged, for the judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Damage {
    what: String,
    state: bool,
    telemetry: bool,
    /// The one page of `telemetry.db` that was changed, counted from 1.
    page: Option<u64>,
}

fn damage(folder: &Path, killed: bool, random: &mut fastrand::Rng) -> Damage {
    let telemetry = random.bool();
    let name = if telemetry { "telemetry.db" } else { "state.db" };
    let (path, log) = (folder.join(name), folder.join(format!("{name}-wal")));
    let mut damaged = (!telemetry, telemetry);
    let (what, page) = match random.u8(0..if killed { 14 } else { 10 }) {
        kind @ 0..7 => damage_bytes(&path, kind, random),
        7 if random.bool() => {
            std::fs::write(&path, "").unwrap();
            ("emptied".to_owned(), None)
        }
        7 => {
            std::fs::remove_file(&path).unwrap();
            ("deleted".to_owned(), None)
        }
        8 => {
            let other = folder.join("other");
            std::fs::rename(folder.join("state.db"), &other).unwrap();
            std::fs::rename(folder.join("telemetry.db"), folder.join("state.db")).unwrap();
            std::fs::rename(other, folder.join("telemetry.db")).unwrap();
            damaged = (true, true);
            ("swapped with the other".to_owned(), None)
        }
        9 if random.bool() => {
            damaged = (true, false);
            std::fs::remove_file(folder.join("witness")).unwrap();
            ("the witness deleted".to_owned(), None)
        }
        9 => {
            damaged = (true, false);
            std::fs::copy(folder.join("state.db.backup"), folder.join("state.db")).unwrap();
            ("an older copy put in place".to_owned(), None)
        }
        kind => (damage_log(&log, kind, random), None),
    };
    let page = page.filter(|_| telemetry && !killed);
    Damage { what: format!("{name}: {what}"), state: damaged.0, telemetry: damaged.1, page }
}

/// Damages a database in one place; answers in which page, if in one alone.
fn damage_bytes(path: &Path, kind: u8, random: &mut fastrand::Rng) -> (String, Option<u64>) {
    let file = std::fs::OpenOptions::new().write(true).read(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let at = random.u64(0..length);
    let page = at / PAGE * PAGE;
    let hit = Some(at / PAGE + 1);
    match kind {
        0 | 1 => {
            let (bit, mut byte) = (random.u8(0..8), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            (format!("bit {bit} of byte {at} flipped"), hit)
        }
        2 | 3 => {
            file.write_all_at(&[0; 4_096], page).unwrap();
            (format!("page at {page} zeroed"), hit)
        }
        4 => {
            let garbage: Vec<u8> = (0..PAGE).map(|_| random.u8(..)).collect();
            file.write_all_at(&garbage, page).unwrap();
            (format!("page at {page} overwritten"), hit)
        }
        5 => {
            file.write_all_at(&[random.u8(..); 64], at.min(length - 64)).unwrap();
            (format!("64 bytes at {at} overwritten"), None)
        }
        _ => {
            file.set_len(at).unwrap();
            (format!("cut to {at}"), None)
        }
    }
}

fn damage_log(log: &Path, kind: u8, random: &mut fastrand::Rng) -> String {
    let mut bytes = std::fs::read(log).unwrap_or_default();
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let at = random.usize(..bytes.len());
    match kind {
        10 => {
            std::fs::remove_file(log).unwrap();
            return "log deleted".to_owned();
        }
        11 => bytes = vec![random.u8(..); random.usize(1..100_000)],
        12 => bytes.truncate(at),
        _ => bytes[at] ^= 1 << random.u8(0..8),
    }
    std::fs::write(log, bytes).unwrap();
    ["log replaced by garbage", "log cut", "a bit of the log flipped"][usize::from(kind - 11)].to_owned()
}

/// How many samples the loss of this page may cost; `None` for a page that leads to others.
fn costs(folder: &Path, page: u64) -> Option<u64> {
    if page == 1 {
        return None;
    }
    let connection = rusqlite::Connection::open(folder.join("telemetry.db")).unwrap();
    let sql = "SELECT name, pagetype, ncell FROM dbstat WHERE pageno = ?1";
    let row = connection.query_row(sql, [i64::try_from(page).unwrap()], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
    });
    match row {
        Ok((_, kind, _)) if kind == "internal" => None,
        Ok((table, _, rows)) if table == "block" => {
            let most: i64 = connection.query_row("SELECT max(samples) FROM block", [], |row| row.get(0)).unwrap();
            u64::try_from(rows * most).ok()
        }
        Ok((table, ..)) if table == "segment" => Some(100),
        // Another table, an index, or a page in no use. A list of pages may make any of them doubtful.
        Ok(_) => Some(0),
        Err(_) => None,
    }
}

async fn survives(before: &Before, seed: u64) -> (bool, Damage) {
    let mut random = fastrand::Rng::with_seed(seed);
    let killed = random.bool();
    let folder = tempfile::tempdir().unwrap();
    let origin = if killed { &before.killed } else { &before.closed };
    copy(origin, folder.path());
    let damage = damage(folder.path(), killed, &mut random);
    let about = format!("seed {seed}, killed: {killed}, {damage:?}");

    let started = Instant::now();
    let store = Store::open(config(folder.path()), clock()).unwrap_or_else(|error| panic!("{about}: {error}"));
    let took = started.elapsed();
    assert!(took <= START_WITHIN, "{about}: {took:?}");

    let stats = store.stats().await.unwrap();
    let samples = stats.samples_waiting + stats.samples_open;
    let inhibited = store.inhibition().now().is_some();
    if !damage.state {
        assert!(!inhibited, "{about}");
        assert_eq!(store.executions(None, 1_000).await.unwrap().len(), DONE + 2, "{about}");
    }
    if !damage.telemetry {
        assert_eq!(samples, before.samples, "{about}");
    }
    if let Some(most) = damage.page.and_then(|page| costs(origin, page)) {
        let told = store.rescues().await.unwrap();
        assert!(
            samples + most >= before.samples,
            "{about}: {samples} of {} left, {most} may go; {told:?}",
            before.samples
        );
    }
    for view in store.devices().await.unwrap() {
        assert!(view.ledger.balances(), "{about}: {:?}", view.ledger);
    }
    let waiting: Vec<_> = store.waiting().await.unwrap().into_iter().map(|open| open.record.command_id).collect();
    for executed in &before.executed {
        assert!(!waiting.iter().any(|id| id.as_str() == executed), "{about}: {executed} waits to be sent again");
        let again = store.journal(command("A", "recalibrate", executed)).await;
        let known = !matches!(again, Ok(Journalled::New(_)));
        assert!(known || inhibited, "{about}: {executed} is taken for new");
    }
    for n in 0..3 {
        take(&store, sample("B", 20_000_000 + n, 141.0)).await;
    }
    store.close().await.unwrap_or_else(|error| panic!("{about}: {error}"));
    let again = open(folder.path());
    assert_eq!(again.inhibition().now().is_some(), inhibited, "{about}");
    (inhibited, damage)
}

#[tokio::test(start_paused = true)]
async fn whatever_is_damaged_it_starts_and_the_loss_is_no_larger_than_the_damage() {
    let (count, first) = (number("FLOORGATE_TEST_MUTATIONS", 100), number("FLOORGATE_TEST_SEED", 1));
    let before = before().await;
    let mut inhibited = 0;
    for seed in first..first + count {
        inhibited += u64::from(survives(&before, seed).await.0);
    }
    println!("{count} mutations from seed {first}: all survived, {inhibited} inhibited");
    assert!(count < 50 || (inhibited > 0 && inhibited < count), "{inhibited} of {count} inhibited");
    println!("faults: mutations runs={count} ok={count} {inhibited} of them inhibited the commands");
}
