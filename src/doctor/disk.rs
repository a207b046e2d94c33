//! The disk under the state folder: room, mount, and the life of its flash where the kernel shows it.
//!
//! All files of the kernel's are read below `root`, so that tests bring their own.

use std::path::{Path, PathBuf};

use super::access::kept_from_writing;
use super::report::{Check, Finding};
use super::service::{self, Unit};
use crate::cli::words;

/// Room without which the store's files cannot even be put in order.
const FREE_MIN: u64 = 16 << 20;
/// Where a disk may be made of others (LVM, RAID, encryption): layers that are followed.
const LAYERS_MAX: u32 = 4;
/// Largest file of the kernel's that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the file system says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) read_only: bool,
}

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    device: String,
    point: PathBuf,
    kind: String,
    options: Vec<String>,
    /// Read-only at this place alone: its file system takes writes elsewhere. A sandbox does so, or a bind mount; a disk
    /// that went read-only, or is mounted so, is it as a whole.
    read_only_here: bool,
}

/// Looks at the folder, or while it is not there, at the folder it will be made in. `unit`: the service that will write
/// there, with the eyes of its own.
pub(super) fn look(root: &Path, folder: &Path, quota: u64, unit: Option<&Unit>) -> Vec<Finding> {
    let Some(there) = nearest(folder) else {
        return vec![Finding::skipped(Check::DiskSpace, format!("`{}` cannot be looked at", folder.display()))];
    };
    let space = rustix::fs::statvfs(&there).map(|found| Space {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    });
    let room = match space {
        Ok(space) => {
            let refused = unit.filter(|_| !space.read_only).and_then(|unit| refused(root, folder, unit));
            refused.unwrap_or_else(|| room(folder, space, used(folder), quota))
        }
        Err(error) => Finding::skipped(Check::DiskSpace, format!("`{}` cannot be looked at: {error}", there.display())),
    };
    let mounts = read(root, "proc/self/mountinfo");
    let mut findings = vec![room];
    match mounts.as_deref().and_then(|text| mount_of(text, &there)) {
        None => findings.push(Finding::skipped(Check::Mount, "this kernel does not show its mounts")),
        Some(mount) => {
            let disk = disk_of(root, &mount.device);
            findings.push(options(&mount, disk.as_deref()));
            findings.push(flash(disk.as_deref()));
        }
    }
    findings
}

/// The folder, or the nearest one above that is there.
fn nearest(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find_map(|folder| {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        folder.canonicalize().ok()
    })
}

/// Why the service cannot write into a folder in which others can.
fn refused(root: &Path, folder: &Path, unit: &Unit) -> Option<Finding> {
    let (check, subject) = (Check::DiskSpace, folder.display().to_string());
    if let Some(line) = unit.forbids_writing(folder) {
        let found = format!("the service's sandbox keeps it read-only ({line} in the unit), though its disk is not");
        return Some(Finding::fail(check, found, service::let_it_write(folder)).of(subject));
    }
    // Of its own folders systemd sees to owner and mode.
    let why =
        Some(unit).filter(|unit| !unit.provides(folder)).and_then(|unit| kept_from_writing(root, folder, unit))?;
    let user = unit.user().unwrap_or("root");
    let advice = format!("`install -d -o {user} -g {user} -m 0700 {subject}`, then `systemctl restart floorgate`");
    Some(Finding::fail(check, why, advice).of(subject))
}

/// Why nothing can be written into a state folder, whatever time passes: it is, or would be, at a place that is mounted
/// read-only while its file system is not. That is a sandbox's doing, and somebody has to change its settings. `None` also
/// for a disk that is read-only as a whole, which may be mounted otherwise in a minute.
#[must_use]
pub fn kept_read_only(root: &Path, folder: &Path) -> Option<String> {
    let there = nearest(folder)?;
    let mount = mount_of(&read(root, "proc/self/mountinfo")?, &there).filter(|mount| mount.read_only_here)?;
    let (folder_text, point) = (folder.display(), mount.point.display());
    let missing = if folder.exists() { "" } else { " is not there and cannot be made:" };
    Some(format!(
        "state_dir `{folder_text}`{missing} `{point}` is mounted read-only here, though its file system is writable. As a \
         service: {}. Else mount it writable here, or give another `state_dir` under [store]",
        service::let_it_write(folder)
    ))
}

/// Bytes of the folder's files; it has no folders of its own.
fn used(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|found| found.is_file()).map(|found| found.len()).sum()
}

/// Whether the store can grow to its quota.
fn room(folder: &Path, space: Space, used: u64, quota: u64) -> Finding {
    let (check, subject) = (Check::DiskSpace, folder.display().to_string());
    let found =
        format!("{} free, {} used of a quota of {}", words::bytes(space.free), words::bytes(used), words::bytes(quota));
    let finding = if space.read_only {
        let advice = "nothing is taken while it is so: look after the disk (`dmesg`), then `mount -o remount,rw`";
        Finding::fail(check, format!("{found}, mounted read-only"), advice)
    } else if space.free < FREE_MIN {
        Finding::fail(check, found, "make room on this disk, or lower `quota` under [store] and restart")
    } else if space.free < quota.saturating_sub(used) {
        let advice = "the disk is full before the quota is reached: make room, or lower `quota` under [store]";
        Finding::warn(check, found, advice)
    } else {
        Finding::ok(check, found)
    };
    finding.of(subject)
}

/// The mount a folder is on: the one with the longest path, and of several on one path the last.
fn mount_of(mountinfo: &str, folder: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parse).filter(|mount| folder.starts_with(&mount.point));
    mounts.max_by_key(|mount| mount.point.components().count())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<_> = front.split(' ').collect();
    let back: Vec<_> = back.split(' ').collect();
    let (here, whole) = (*front.get(5)?, *back.get(2)?);
    let options = [here, whole].into_iter().flat_map(|all| all.split(',')).map(str::to_owned).collect();
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        device: (*front.get(2)?).to_owned(),
        point: PathBuf::from(unescape(front.get(4)?)),
        kind: (*back.first()?).to_owned(),
        options,
        read_only_here: read_only(here) && !read_only(whole),
    })
}

/// Blanks and their like stand as `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                plain.push_str(part.get(3..).unwrap_or_default());
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// Whether what is written there is safe, and stays.
fn options(mount: &Mount, disk: Option<&Path>) -> Finding {
    let has = |option: &str| mount.options.iter().any(|given| given == option);
    let subject = mount.point.display().to_string();
    let mut wrong: Vec<(&str, &str)> = Vec::new();
    match mount.kind.as_str() {
        "tmpfs" | "ramfs" => {
            wrong.push(("it is memory, and empty after a restart", "set `state_dir` to a folder on a disk"));
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "fuse.sshfs" | "ceph" => {
            wrong
                .push(("it is on the network, where the store's log does not work", "set `state_dir` to a local disk"));
        }
        "overlay" => wrong.push((
            "it is an overlay, which may be gone with its container or at a restart",
            "mount a disk or a volume there, or set `state_dir` to one",
        )),
        _ => {}
    }
    if has("data=writeback") {
        wrong.push(("data=writeback may leave old bytes in files after a power cut", "mount it with data=ordered"));
    }
    // f2fs has it as a mode of its fsync.
    if has("nobarrier") || has("barrier=0") || has("fsync_mode=nobarrier") {
        wrong.push(("without barriers a flush does not reach the medium", "mount it with barriers"));
    }
    if has("strictatime") {
        wrong.push(("strictatime writes at every read", "mount it with noatime"));
    }
    if disk.is_some_and(|disk| text(&disk.join("removable")).as_deref() == Some("1")) {
        wrong.push(("the disk is removable", "see to it that nobody pulls it, or move the state to a built-in one"));
    }
    let atime = if has("noatime") { ", noatime" } else { "" };
    let found = format!("{}{atime}", mount.kind);
    if wrong.is_empty() {
        return Finding::ok(Check::Mount, found).of(subject);
    }
    let told: Vec<_> = wrong.iter().map(|(what, _)| *what).collect();
    let advice: Vec<_> = wrong.iter().map(|(_, advice)| *advice).collect();
    Finding::warn(Check::Mount, format!("{found}: {}", told.join("; ")), advice.join("; ")).of(subject)
}

/// The folder of the whole disk behind a device number, through partitions and layers.
fn disk_of(root: &Path, device: &str) -> Option<PathBuf> {
    let mut folder = root.join("sys/dev/block").join(device).canonicalize().ok()?;
    for _ in 0..LAYERS_MAX {
        if folder.join("partition").exists() {
            folder = folder.parent()?.to_owned();
        }
        let below = std::fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten().next();
        match below.and_then(|below| below.path().canonicalize().ok()) {
            Some(below) => folder = below,
            None => break,
        }
    }
    Some(folder)
}

/// What an eMMC says of its wear: `life_time` in tenths for both kinds of cells, `pre_eol_info` for its reserve.
fn flash(disk: Option<&Path>) -> Finding {
    let check = Check::Flash;
    let Some(disk) = disk else { return Finding::skipped(check, "the state is not on a block device of its own") };
    let name = disk.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let code = |text: &str| u8::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let wear = text(&disk.join("device/life_time"));
    let wear = wear.and_then(|text| text.split_whitespace().filter_map(code).max());
    let reserve = text(&disk.join("device/pre_eol_info")).as_deref().and_then(code);
    let Some(wear) = wear.filter(|wear| *wear > 0) else {
        let more = if name.starts_with("nvme") { "; `nvme smart-log` tells it" } else { "" };
        return Finding::skipped(check, format!("the life of `{name}` is not shown by this kernel{more}"));
    };
    let used = if wear > 10 { "all".to_owned() } else { format!("{} to {} %", (wear - 1) * 10, wear * 10) };
    let left = match reserve {
        Some(1) => ", its reserve is normal",
        Some(2) => ", 80 % of its reserve are used",
        Some(3) => ", 90 % of its reserve are used",
        _ => "",
    };
    let found = format!("{used} of its life is used{left}");
    let finding = if wear > 10 || reserve == Some(3) {
        Finding::fail(check, found, "replace it now; docs/damage.md says how to move the state folder")
    } else if wear >= 9 || reserve == Some(2) {
        Finding::warn(check, found, "plan to replace it; docs/damage.md says how to move the state folder")
    } else {
        Finding::ok(check, found)
    };
    finding.of(name)
}

fn read(root: &Path, path: &str) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(root.join(path)).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    const MB: u64 = 1_000_000;

    #[test]
    fn free_space_is_held_against_what_the_quota_may_still_take() {
        let state = |free, read_only, used| room(Path::new("/s"), Space { free, read_only }, used, 512 * MB).state;
        assert_eq!(state(600 * MB, false, 0), State::Ok);
        assert_eq!(state(100 * MB, false, 500 * MB), State::Ok, "most of the quota is used already");
        assert_eq!(state(100 * MB, false, 0), State::Warn);
        assert_eq!(state(10 * MB, false, 511 * MB), State::Fail);
        assert_eq!(state(600 * MB, true, 0), State::Fail);
    }

    fn mount(text: &str) -> Mount {
        parse(text).unwrap()
    }

    #[test]
    fn of_nested_mounts_the_innermost_counts_and_of_equal_ones_the_last() {
        let info = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,data=writeback\n\
            2 1 0:5 / /var\\040lib/floorgate rw - tmpfs tmpfs rw\n\
            3 1 179:2 / /var\\040lib/floorgate rw,noatime - ext4 /dev/mmcblk0p2 rw\n4 1 0:6 / /var rw - proc x rw\n";
        let inner = mount_of(info, Path::new("/var lib/floorgate/x")).unwrap();
        assert_eq!((inner.kind.as_str(), inner.device.as_str()), ("ext4", "179:2"));
        let outer = mount_of(info, Path::new("/var lib")).unwrap();
        assert!(outer.options.contains(&"data=writeback".to_owned()), "{outer:?}");
    }

    #[test]
    fn every_risky_mount_is_told_with_what_to_do() {
        for (line, says) in [
            ("1 0 0:5 / /s rw - tmpfs t rw", "empty after a restart"),
            ("1 0 0:5 / /s rw - nfs4 h:/x rw", "on the network"),
            ("1 0 0:5 / /s rw - overlay o rw", "overlay"),
            ("1 0 8:1 / /s rw - ext4 d rw,data=writeback", "old bytes"),
            ("1 0 8:1 / /s rw - ext4 d rw,nobarrier", "does not reach the medium"),
            ("1 0 8:1 / /s rw - f2fs d rw,fsync_mode=nobarrier", "does not reach the medium"),
            ("1 0 8:1 / /s rw,strictatime - ext4 d rw", "every read"),
        ] {
            let finding = options(&mount(line), None);
            assert!(finding.state == State::Warn && finding.found.contains(says), "{line}: {finding:?}");
            assert!(finding.advice.is_some_and(|advice| !advice.is_empty()), "{line}");
        }
        let finding = options(&mount("1 0 8:1 / /s rw,noatime - ext4 d rw,data=ordered"), None);
        assert_eq!((finding.state, finding.found.as_str()), (State::Ok, "ext4, noatime"));
    }

    /// A machine with one eMMC, the state on its second partition.
    fn machine(life_time: Option<&str>, pre_eol: &str, removable: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("sys/devices/mmc/block/mmcblk0");
        std::fs::create_dir_all(disk.join("mmcblk0p2")).unwrap();
        std::fs::create_dir_all(disk.join("device")).unwrap();
        std::fs::write(disk.join("mmcblk0p2/partition"), "2\n").unwrap();
        std::fs::write(disk.join("removable"), removable).unwrap();
        if let Some(life_time) = life_time {
            std::fs::write(disk.join("device/life_time"), life_time).unwrap();
            std::fs::write(disk.join("device/pre_eol_info"), pre_eol).unwrap();
        }
        let blocks = root.path().join("sys/dev/block");
        std::fs::create_dir_all(&blocks).unwrap();
        std::os::unix::fs::symlink("../../devices/mmc/block/mmcblk0/mmcblk0p2", blocks.join("179:2")).unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let info = "3 1 179:2 / / rw,noatime - ext4 /dev/mmcblk0p2 rw\n";
        std::fs::write(root.path().join("proc/self/mountinfo"), info).unwrap();
        root
    }

    #[test]
    fn the_life_of_an_emmc_is_told_by_tenths_and_its_end_is_red() {
        let told = |life: Option<&str>, reserve: &str| {
            let (root, state) = (machine(life, reserve, "0\n"), tempfile::tempdir().unwrap());
            let mut all = look(root.path(), state.path(), MB, None);
            assert_eq!(
                all.iter().map(|finding| finding.check).collect::<Vec<_>>(),
                [Check::DiskSpace, Check::Mount, Check::Flash]
            );
            assert_eq!(all[1].state, State::Ok, "{all:?}");
            all.remove(2)
        };
        let young = told(Some("0x01 0x02\n"), "0x01\n");
        assert_eq!((young.state, young.subject.as_deref()), (State::Ok, Some("mmcblk0")));
        assert_eq!(young.found, "10 to 20 % of its life is used, its reserve is normal");
        assert_eq!(told(Some("0x09 0x01\n"), "0x01\n").state, State::Warn);
        assert_eq!(told(Some("0x03 0x03\n"), "0x02\n").state, State::Warn);
        assert_eq!(told(Some("0x0b 0x01\n"), "0x01\n").state, State::Fail);
        assert_eq!(told(Some("0x03 0x03\n"), "0x03\n").state, State::Fail);
        let silent = told(None, "");
        assert!(silent.state == State::Skipped && silent.found.contains("not shown by this kernel"), "{silent:?}");
        assert_eq!(told(Some("garbage\n"), "").state, State::Skipped);
    }

    #[test]
    fn a_removable_disk_is_a_warning() {
        let (root, state) = (machine(None, "", "1\n"), tempfile::tempdir().unwrap());
        let all = look(root.path(), &state.path().join("not/made/yet"), MB, None);
        assert!(all[1].state == State::Warn && all[1].found.contains("removable"), "{all:?}");
    }

    #[test]
    fn a_kernel_that_shows_nothing_is_no_failure() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let all = look(root.path(), state.path(), MB, None);
        assert_eq!(all[1].state, State::Skipped);
    }

    #[test]
    fn a_folder_that_is_writable_here_and_not_to_the_service_is_red_with_what_to_do() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let unit = Unit::parse("LoadState=loaded\nProtectSystem=full\nProtectHome=no\nReadWritePaths=/x\n").unwrap();
        assert_eq!(look(root.path(), state.path(), MB, Some(&unit))[0].state, State::Ok);
        let all = look(root.path(), Path::new("/usr/floorgate-state"), MB, Some(&unit));
        assert!(all[0].state == State::Fail && all[0].found.contains("ProtectSystem="), "{all:?}");
        assert!(all[0].advice.as_ref().unwrap().contains("`ReadWritePaths=/usr/floorgate-state`"), "{all:?}");
    }

    #[test]
    fn a_sandbox_is_told_from_a_disk_that_is_read_only() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let told = |mount: &str| {
            std::fs::write(root.path().join("proc/self/mountinfo"), format!("1 0 8:1 / / {mount}\n")).unwrap();
            kept_read_only(root.path(), &state.path().join("fg"))
        };
        let text = told("ro,noatime - ext4 d rw").unwrap();
        assert!(text.contains("is not there and cannot be made") && text.contains("ReadWritePaths="), "{text}");
        assert_eq!(told("ro - ext4 d ro"), None, "it may be mounted otherwise in a minute");
        assert_eq!(told("rw - ext4 d rw"), None);
    }
}
