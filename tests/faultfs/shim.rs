//! A disk that fails on demand: loaded into the daemon with `LD_PRELOAD`, compiled by the test that needs it.
//!
//! `FAULTFS_FOLDER` is the folder whose files are concerned, `FAULTFS_CONTROL` a file outside of it that says what
//! fails, read again at every call: one rule a line, `ERRNO OPERATIONS FILES LIMIT`. OPERATIONS is a list of `write`,
//! `fsync`, `truncate`, `open` (for writing), `remove`; FILES a piece of the path or `*`; LIMIT how many calls fail, 0 for
//! all. An empty file: nothing fails.
//!
//! `FAULTFS_DISK`, if set, is a folder that is kept as the disk would be after a power cut: a file there gets what was
//! written when a flush succeeds. After a flush that failed, what was written before it is taken for clean, as Linux does:
//! the files show it, the next flush succeeds, and the disk never gets it.
#![allow(unsafe_code, clippy::missing_safety_doc)]

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}
const NEXT: *mut c_void = usize::MAX as *mut c_void;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Does `work` with the functions here out of the way; `None` if that is so already.
fn inside<T>(work: impl FnOnce() -> T) -> Option<T> {
    if INSIDE.with(|inside| inside.replace(true)) {
        return None;
    }
    let done = work();
    INSIDE.with(|inside| inside.set(false));
    Some(done)
}

static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("FAULTFS_FOLDER").map(PathBuf::from));
static DISK: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("FAULTFS_DISK").map(PathBuf::from));
/// Rule → how often it has struck.
static STRUCK: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);
/// What was written and not flushed: file → (offset, length).
static DIRTY: LazyLock<Mutex<HashMap<PathBuf, Vec<(u64, u64)>>>> = LazyLock::new(Mutex::default);

fn errno(name: &str) -> c_int {
    match name {
        "ENOSPC" => 28,
        "EROFS" => 30,
        "EDQUOT" => 122,
        _ => 5,
    }
}

/// The errno with which this operation fails now.
fn verdict(operation: &str, path: &Path) -> Option<c_int> {
    let rules = std::fs::read_to_string(std::env::var_os("FAULTFS_CONTROL")?).ok()?;
    for rule in rules.lines() {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let [name, operations, files, limit] = words[..] else { continue };
        let concerned = files == "*" || path.to_string_lossy().contains(files);
        if !concerned || !operations.split(',').any(|one| one == operation) {
            continue;
        }
        let (limit, mut struck) = (limit.parse::<u64>().unwrap_or(0), STRUCK.lock().unwrap());
        let count = struck.entry(rule.to_owned()).or_default();
        if limit == 0 || *count < limit {
            *count += 1;
            return Some(errno(name));
        }
    }
    None
}

/// The file behind a descriptor, if it is one of ours.
fn path_of(fd: c_int) -> Option<PathBuf> {
    let folder = FOLDER.as_ref()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    path.starts_with(folder).then_some(path)
}

fn fail<T: From<i8>>(code: c_int) -> T {
    unsafe { *__errno_location() = code };
    T::from(-1)
}

fn on_disk(path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(FOLDER.as_ref()?).ok()?;
    Some(DISK.as_ref()?.join(below))
}

fn wrote(path: PathBuf, offset: u64, length: isize) {
    if DISK.is_some() && length > 0 {
        DIRTY.lock().unwrap().entry(path).or_default().push((offset, length as u64));
    }
}

fn flushed(path: &Path, failed: bool) {
    let dirty = DIRTY.lock().unwrap().remove(path).unwrap_or_default();
    let (Some(disk), false) = (on_disk(path), failed) else { return };
    let Ok(source) = std::fs::File::open(path) else { return };
    let Ok(target) = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(disk) else { return };
    for (offset, length) in dirty {
        let mut bytes = vec![0; length as usize];
        if source.read_exact_at(&mut bytes, offset).is_ok() {
            let _ = target.write_all_at(&bytes, offset);
        }
    }
}

macro_rules! next {
    ($name:literal as $type:ty) => {{
        let found = unsafe { dlsym(NEXT, concat!($name, "\0").as_ptr().cast()) };
        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
    }};
}

type Write = unsafe extern "C" fn(c_int, *const c_void, usize) -> isize;
type Pwrite = unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize;
type Sync = unsafe extern "C" fn(c_int) -> c_int;
type Truncate = unsafe extern "C" fn(c_int, i64) -> c_int;
type Open = unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int;
type Lseek = unsafe extern "C" fn(c_int, i64, c_int) -> i64;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize {
    let real = next!("write" as Write);
    let path = inside(|| path_of(fd).map(|path| (verdict("write", &path), path))).flatten();
    let Some((verdict, path)) = path else { return unsafe { real(fd, bytes, count) } };
    if let Some(code) = verdict {
        return fail::<isize>(code);
    }
    let offset = unsafe { next!("lseek" as Lseek)(fd, 0, 1) };
    let written = unsafe { real(fd, bytes, count) };
    inside(|| wrote(path, offset as u64, written));
    written
}

unsafe fn any_pwrite(real: Pwrite, fd: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize {
    let path = inside(|| path_of(fd).map(|path| (verdict("write", &path), path))).flatten();
    let Some((verdict, path)) = path else { return unsafe { real(fd, bytes, count, offset) } };
    if let Some(code) = verdict {
        return fail::<isize>(code);
    }
    let written = unsafe { real(fd, bytes, count, offset) };
    inside(|| wrote(path, offset as u64, written));
    written
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize {
    unsafe { any_pwrite(next!("pwrite" as Pwrite), fd, bytes, count, offset) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize {
    unsafe { any_pwrite(next!("pwrite64" as Pwrite), fd, bytes, count, offset) }
}

unsafe fn any_sync(real: Sync, fd: c_int) -> c_int {
    let path = inside(|| path_of(fd).map(|path| (verdict("fsync", &path), path))).flatten();
    let Some((verdict, path)) = path else { return unsafe { real(fd) } };
    let outcome = match verdict {
        Some(code) => fail::<c_int>(code),
        None => unsafe { real(fd) },
    };
    let code = unsafe { *__errno_location() };
    inside(|| flushed(&path, outcome != 0));
    unsafe { *__errno_location() = code };
    outcome
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    unsafe { any_sync(next!("fsync" as Sync), fd) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    unsafe { any_sync(next!("fdatasync" as Sync), fd) }
}

unsafe fn any_truncate(real: Truncate, fd: c_int, length: i64) -> c_int {
    let path = inside(|| path_of(fd).map(|path| (verdict("truncate", &path), path))).flatten();
    let Some((verdict, path)) = path else { return unsafe { real(fd, length) } };
    if let Some(code) = verdict {
        return fail::<c_int>(code);
    }
    let outcome = unsafe { real(fd, length) };
    inside(|| {
        let disk = on_disk(&path).and_then(|disk| std::fs::OpenOptions::new().write(true).open(disk).ok());
        disk.map(|disk| disk.set_len(length as u64))
    });
    outcome
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    unsafe { any_truncate(next!("ftruncate" as Truncate), fd, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    unsafe { any_truncate(next!("ftruncate64" as Truncate), fd, length) }
}

/// A path as it was given, if it is one of ours; relative ones are not.
unsafe fn named(path: *const c_char) -> Option<PathBuf> {
    let path = PathBuf::from(unsafe { CStr::from_ptr(path) }.to_str().ok()?);
    path.starts_with(FOLDER.as_ref()?).then_some(path)
}

unsafe fn any_open(real: Open, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // For writing, or making it.
    if flags & 0o3 != 0 || flags & 0o100 != 0 {
        let code = inside(|| unsafe { named(path) }.and_then(|path| verdict("open", &path))).flatten();
        if let Some(code) = code {
            return fail::<c_int>(code);
        }
    }
    unsafe { real(path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { any_open(next!("open" as Open), path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { any_open(next!("open64" as Open), path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    let verdict = inside(|| unsafe { named(path) }.map(|path| (verdict("remove", &path), path))).flatten();
    let real = next!("unlink" as unsafe extern "C" fn(*const c_char) -> c_int);
    let Some((verdict, path)) = verdict else { return unsafe { real(path) } };
    if let Some(code) = verdict {
        return fail::<c_int>(code);
    }
    let outcome = unsafe { real(path_pointer(&path).as_ptr()) };
    if outcome == 0 {
        inside(|| on_disk(&path).map(std::fs::remove_file));
    }
    outcome
}

fn path_pointer(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_string_lossy().as_bytes()).unwrap_or_default()
}
