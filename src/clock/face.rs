//! What the machine's clocks show: the wall clock, the clock that counts from the boot, the boot's id, and whether the
//! kernel calls the wall clock synchronised. Or, in tests, what they were set to.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use floorgate_model::Timestamp;

/// Which boot of the machine: `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId(u128);

/// Touched by systemd-timesyncd each time it has set the clock right; in a folder that is empty after a boot.
const TIMESYNC_FILE: &str = "/run/systemd/timesync/synchronized";
/// How old its time may be: timesyncd asks at least every 2,048 s, and one answer may be lost.
const TIMESYNC_COUNTS_FOR_S: i64 = 2 * 2_048 + 60;
/// Two looks at the wall clock that differ by more, milliseconds, from what passed between them: it was stepped.
const STEP_MS: u64 = 5_000;
/// Where the kernel tells it.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

impl BootId {
    /// Reads 32 hexadecimal digits with or without hyphens; `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.trim().chars().filter(|letter| *letter != '-').collect();
        if digits.len() != 32 { None } else { u128::from_str_radix(&digits, 16).ok().map(Self) }
    }

    /// The running one. Where the kernel does not tell it, every start counts as a boot of its own: then nothing is
    /// measured across starts, which is the careful side.
    fn running() -> Self {
        let told = std::fs::read_to_string(BOOT_ID_FILE).ok().and_then(|text| Self::parse(&text));
        told.unwrap_or_else(|| Self(fastrand::u128(..)))
    }
}

impl std::fmt::Display for BootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = format!("{:032x}", self.0);
        let (a, rest) = digits.split_at(8);
        let (b, rest) = rest.split_at(4);
        let (c, rest) = rest.split_at(4);
        let (d, e) = rest.split_at(4);
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl serde::Serialize for BootId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BootId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a boot id is a UUID"))
    }
}

/// What the clocks show at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// The wall clock, right or wrong.
    pub(super) wall: Timestamp,
    /// Milliseconds since the boot, suspended time included.
    pub(super) boot_ms: i64,
}

/// Where the time is read from.
#[derive(Debug)]
pub(super) enum Face {
    /// The machine.
    System { boot_id: BootId, timesync: Mutex<Option<Heard>> },
    /// A test.
    Set(SetFace),
}

/// Clocks that stand where they are put.
#[derive(Debug)]
pub(super) struct SetFace {
    pub(super) wall_ms: AtomicI64,
    pub(super) boot_ms: AtomicI64,
    pub(super) boots: AtomicU64,
    pub(super) synchronised: AtomicBool,
}

impl Face {
    pub(super) fn system() -> Self {
        Self::System { boot_id: BootId::running(), timesync: Mutex::default() }
    }

    pub(super) fn set_to(now: Timestamp) -> Self {
        Self::Set(SetFace {
            wall_ms: AtomicI64::new(now.as_millis()),
            boot_ms: AtomicI64::new(0),
            boots: AtomicU64::new(1),
            synchronised: AtomicBool::new(true),
        })
    }

    pub(super) fn boot_id(&self) -> BootId {
        match self {
            Self::System { boot_id, .. } => *boot_id,
            Self::Set(set) => BootId(u128::from(set.boots.load(Ordering::Relaxed))),
        }
    }

    pub(super) fn shown(&self) -> Shown {
        match self {
            Self::System { .. } => Shown {
                wall: Timestamp::from_millis(jiff::Timestamp::now().as_millisecond()),
                boot_ms: since_boot_ms(),
            },
            Self::Set(set) => Shown {
                wall: Timestamp::from_millis(set.wall_ms.load(Ordering::Relaxed)),
                boot_ms: set.boot_ms.load(Ordering::Relaxed),
            },
        }
    }

    /// Whether the kernel says that something keeps its clock right. Who may not ask it (a sandbox without the call, a
    /// container) takes systemd-timesyncd's word, and where there is none, "no".
    pub(super) fn synchronised(&self) -> bool {
        match self {
            Self::System { timesync, .. } => {
                let (answer, status) = adjtimex();
                if answer >= 0 {
                    return is_synchronised(answer, status);
                }
                let mut heard = timesync.lock().unwrap_or_else(PoisonError::into_inner);
                told_by_timesyncd(Path::new(TIMESYNC_FILE), &mut heard, self.shown())
            }
            Self::Set(set) => set.synchronised.load(Ordering::Relaxed),
        }
    }
}

fn since_boot_ms() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
}

fn is_synchronised(answer: libc::c_int, status: libc::c_int) -> bool {
    answer >= 0 && answer != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0
}

/// What timesyncd told last: when the file was touched, and what the clocks showed when that was first seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    touched: (i64, i64),
    first: Shown,
}

/// Whether timesyncd set the clock right a short while ago. A clock that was set by hand since does not count: one that was
/// set back stands before the file's time, and any step shows against the time since the boot.
fn told_by_timesyncd(file: &Path, heard: &mut Option<Heard>, shown: Shown) -> bool {
    let Ok(found) = std::fs::metadata(file) else { return false };
    let touched = (found.mtime(), found.mtime_nsec());
    let last = match heard {
        Some(last) if last.touched == touched => *last,
        _ => *heard.insert(Heard { touched, first: shown }),
    };
    let age = shown.wall.as_millis().div_euclid(1_000).saturating_sub(touched.0);
    let by_wall = shown.wall.as_millis().saturating_sub(last.first.wall.as_millis());
    let stepped = by_wall.abs_diff(shown.boot_ms.saturating_sub(last.first.boot_ms)) > STEP_MS;
    (0..=TIMESYNC_COUNTS_FOR_S).contains(&age) && !stepped
}

/// The kernel's clock state and its status bits.
#[expect(unsafe_code, reason = "the one system call that tells whether the clock is synchronised has no safe wrapper")]
fn adjtimex() -> (libc::c_int, libc::c_int) {
    // SAFETY: `timex` is plain data for which all zeros is a valid value, and `modes` = 0 asks the kernel to change
    // nothing and to fill in the structure behind the pointer, which is valid and exclusive for the whole call.
    unsafe {
        let mut state: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut state), state.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_is_read_as_it_is_meant() {
        assert!(is_synchronised(0, 0x2001));
        assert!(!is_synchronised(libc::TIME_ERROR, 0));
        assert!(!is_synchronised(0, libc::STA_UNSYNC));
        assert!(!is_synchronised(-1, 0));
        let (answer, _) = adjtimex();
        assert!((-1..=libc::TIME_ERROR).contains(&answer));
    }

    #[test]
    fn without_the_kernels_word_that_of_timesyncd_counts_while_it_is_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("synchronized");
        let at = |wall: i64, boot: i64| Shown {
            wall: Timestamp::from_millis(1_800_000_000_000 + wall * 1_000),
            boot_ms: boot * 1_000,
        };
        let told = |heard: &mut Option<Heard>, wall, boot| told_by_timesyncd(&file, heard, at(wall, boot));
        assert!(!told(&mut None, 0, 0), "nobody said so");
        let opened = std::fs::File::create(&file).unwrap();
        let touch = |seconds: u64| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000 + seconds);
            opened.set_modified(time).unwrap();
        };
        touch(0);
        let mut heard = None;
        assert!(told(&mut heard, 0, 100) && told(&mut heard, 4_156, 4_256));
        assert!(!told(&mut heard, 4_157, 4_257), "it has not been heard for too long");
        assert!(!told(&mut None, -1, 100), "the clock was set back, before the last word");
        let mut heard = None;
        assert!(told(&mut heard, 600, 700) && told(&mut heard, 660, 760));
        assert!(!told(&mut heard, 300, 770) && !told(&mut heard, 1_000, 780), "it was set back, it was set forward");
        touch(900);
        assert!(told(&mut heard, 900, 1_000), "and right again");
    }

    #[test]
    fn a_boot_id_reads_back_as_it_is_written() {
        let text = "c5a3f0de-0001-4cbb-9e5d-0123456789ab";
        assert_eq!(BootId::parse(text).unwrap().to_string(), text);
        assert_eq!(BootId::parse("c5a3f0de"), None);
        assert_eq!(BootId::parse("x5a3f0de-0001-4cbb-9e5d-0123456789ab"), None);
        let json = serde_json::to_string(&BootId::parse(text)).unwrap();
        assert_eq!(serde_json::from_str::<BootId>(&json).unwrap().to_string(), text);
    }

    #[test]
    fn the_machines_boot_time_runs_and_its_boot_id_stays() {
        let face = Face::system();
        let before = face.shown().boot_ms;
        assert!(before > 0 && face.shown().boot_ms >= before);
        assert_eq!(face.boot_id(), face.boot_id());
    }
}
