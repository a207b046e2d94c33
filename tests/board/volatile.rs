//! A disk with a volatile write cache, whose power can be cut.
//!
//! It is served over NBD on a Unix socket, so that both an emulated machine and, through FUSE and a loop device, this
//! machine's kernel use it. What is written goes into memory, as into the cache that real disks and cards have; a flush, or a
//! write with "forced unit access", brings it to the file behind. [`Volatile::cut`] ends the power: what was not flushed is
//! lost, or, by chance and sector by sector, some of it is there and some is not, in no order, because a disk may write its
//! cache whenever it likes. Nothing is promised for it but what a disk promises.
//!
//! Bounds: the cache holds [`CACHE_SECTORS`]; a fuller one is written out, as a disk does. One connection at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;
/// 64 MiB: more than a card has, so that as much as possible is at stake.
const CACHE_SECTORS: usize = 128 * 1024;
/// Largest request, bytes: what qemu and the kernel send is smaller.
const REQUEST_MAX: usize = 32 * 1024 * 1024;

type Sector = [u8; SECTOR];

/// What a cut did to the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Sectors that were written, never flushed, and are gone.
    pub lost: usize,
    /// Sectors that were written, never flushed, and are there by luck.
    pub kept: usize,
}

struct Medium {
    file: File,
    size: u64,
    cache: BTreeMap<u64, Sector>,
    powered: bool,
    flushes: u64,
}

impl Medium {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)?;
        let end = offset + bytes.len() as u64;
        for (number, sector) in self.cache.range(offset / SECTOR as u64..end.div_ceil(SECTOR as u64)) {
            let at = number * SECTOR as u64;
            let (from, to) = (at.max(offset), (at + SECTOR as u64).min(end));
            bytes[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&sector[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8], through: bool) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        for number in offset / SECTOR as u64..end.div_ceil(SECTOR as u64) {
            let at = number * SECTOR as u64;
            let mut sector = [0; SECTOR];
            let (from, to) = (at.max(offset), (at + SECTOR as u64).min(end));
            if to - from < SECTOR as u64 {
                self.read(at, &mut sector)?;
            }
            sector[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&bytes[(from - offset) as usize..(to - offset) as usize]);
            if through {
                self.cache.remove(&number);
                self.file.write_all_at(&sector, at)?;
            } else {
                self.cache.insert(number, sector);
            }
        }
        if self.cache.len() > CACHE_SECTORS { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let mut run = Vec::new();
        let mut first = 0;
        for (number, sector) in std::mem::take(&mut self.cache) {
            if !run.is_empty() && first + (run.len() / SECTOR) as u64 != number {
                self.file.write_all_at(&run, first * SECTOR as u64)?;
                run.clear();
            }
            if run.is_empty() {
                first = number;
            }
            run.extend_from_slice(&sector);
        }
        self.file.write_all_at(&run, first * SECTOR as u64)
    }
}

/// The disk, switched on; dropping it switches it off as [`Volatile::cut`] does.
pub struct Volatile {
    medium: Arc<Mutex<Medium>>,
    socket: PathBuf,
}

impl Drop for Volatile {
    fn drop(&mut self) {
        self.medium.lock().unwrap().powered = false;
        // Wakes the thread that waits for a connection, which then ends.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Volatile {
    /// A disk with this file's content, and its cache empty, served on `socket`.
    pub fn switch_on(file: &Path, socket: &Path) -> Self {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let size = file.metadata().unwrap().len();
        let medium = Medium { file, size, cache: BTreeMap::new(), powered: true, flushes: 0 };
        let medium = Arc::new(Mutex::new(medium));
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let served = Arc::clone(&medium);
        std::thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                if !served.lock().unwrap().powered {
                    return;
                }
                // A client that goes away, or the cut, ends the connection with an error.
                let _ = serve(connection, &served);
            }
        });
        Self { medium, socket: socket.to_owned() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How often it was flushed.
    pub fn flushes(&self) -> u64 {
        self.medium.lock().unwrap().flushes
    }

    /// Cuts the power, at once and between two requests: from now on nothing is read, written or answered. Of what was not
    /// flushed, a share that is itself chosen by chance is kept: nothing, all, or some.
    pub fn cut(&self, random: &mut fastrand::Rng) -> Loss {
        let mut medium = self.medium.lock().unwrap();
        medium.powered = false;
        let share = match random.u8(..4) {
            0 => 1.0,
            1 => random.f64(),
            _ => 0.0,
        };
        let mut loss = Loss::default();
        for (number, sector) in std::mem::take(&mut medium.cache) {
            if random.f64() < share {
                medium.file.write_all_at(&sector, number * SECTOR as u64).unwrap();
                loss.kept += 1;
            } else {
                loss.lost += 1;
            }
        }
        loss
    }
}

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes.
const HANDSHAKE: u16 = 3;
/// Has flags, can flush, can force unit access.
const EXPORT: u16 = 1 | 1 << 2 | 1 << 3;
const GO: u32 = 7;
const INFO: u32 = 6;
const UNSUPPORTED: u32 = 0x8000_0001;

fn number<const N: usize>(connection: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    connection.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn answer_option(connection: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = OPTION_REPLY.to_be_bytes().to_vec();
    for value in [option, kind, data.len() as u32] {
        reply.extend(value.to_be_bytes());
    }
    reply.extend(data);
    connection.write_all(&reply)
}

/// The handshake, then requests until the client or the power goes.
fn serve(mut connection: UnixStream, medium: &Mutex<Medium>) -> io::Result<()> {
    let size = medium.lock().unwrap().size;
    let mut hello = NBD_MAGIC.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(HANDSHAKE.to_be_bytes());
    connection.write_all(&hello)?;
    number::<4>(&mut connection)?;
    loop {
        number::<8>(&mut connection)?;
        let option = u32::from_be_bytes(number(&mut connection)?);
        let length = u32::from_be_bytes(number(&mut connection)?);
        io::copy(&mut Read::by_ref(&mut connection).take(length.into()), &mut io::sink())?;
        if option != GO && option != INFO {
            answer_option(&mut connection, option, UNSUPPORTED, &[])?;
            continue;
        }
        let mut export = vec![0, 0];
        export.extend(size.to_be_bytes());
        export.extend(EXPORT.to_be_bytes());
        answer_option(&mut connection, option, 3, &export)?;
        answer_option(&mut connection, option, 1, &[])?;
        if option == GO {
            break;
        }
    }
    while requested(&mut connection, medium)? {}
    Ok(())
}

/// One request; false if it was the last.
fn requested(connection: &mut UnixStream, medium: &Mutex<Medium>) -> io::Result<bool> {
    if u32::from_be_bytes(number(connection)?) != REQUEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (flags, kind) = (u16::from_be_bytes(number(connection)?), u16::from_be_bytes(number(connection)?));
    let handle: [u8; 8] = number(connection)?;
    let (offset, length) = (u64::from_be_bytes(number(connection)?), u32::from_be_bytes(number(connection)?) as usize);
    if length > REQUEST_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut data = vec![0; if kind <= 1 { length } else { 0 }];
    if kind == 1 {
        connection.read_exact(&mut data)?;
    }
    let mut medium = medium.lock().unwrap();
    if !medium.powered || kind == 2 {
        return Ok(false);
    }
    let done = match kind {
        0 => medium.read(offset, &mut data),
        1 => medium.write(offset, &data, flags & 1 != 0),
        3 => {
            medium.flushes += 1;
            medium.write_out()
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    // Under the lock, so that the power is never cut between the flush and its answer.
    let mut reply = REPLY.to_be_bytes().to_vec();
    reply.extend(if done.is_ok() { 0u32 } else { 5 }.to_be_bytes());
    reply.extend(handle);
    if kind == 0 && done.is_ok() {
        reply.extend(&data);
    }
    connection.write_all(&reply)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(folder: &Path) -> Medium {
        let path = folder.join("disk");
        std::fs::write(&path, vec![0; 64 * SECTOR]).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Medium { file, size: 64 * SECTOR as u64, cache: BTreeMap::new(), powered: true, flushes: 0 }
    }

    fn byte(folder: &Path, at: usize) -> u8 {
        std::fs::read(folder.join("disk")).unwrap()[at]
    }

    #[test]
    fn what_is_written_is_read_back_at_once_and_on_the_disk_after_a_flush_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut medium = medium(folder.path());
        medium.write(700, &[7; 1000], false).unwrap();
        let mut back = [0; 1002];
        medium.read(699, &mut back).unwrap();
        assert_eq!((back[0], back[1], back[1000], back[1001]), (0, 7, 7, 0));
        assert_eq!(byte(folder.path(), 800), 0, "nothing is flushed yet");
        medium.write_out().unwrap();
        assert_eq!((byte(folder.path(), 699), byte(folder.path(), 700)), (0, 7));
        assert_eq!((byte(folder.path(), 1699), byte(folder.path(), 1700)), (7, 0));
        medium.write(5 * SECTOR as u64, &[9; SECTOR], true).unwrap();
        assert_eq!(byte(folder.path(), 5 * SECTOR), 9, "forced unit access");
    }

    #[test]
    fn a_cut_loses_what_was_not_flushed_and_never_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..20 {
            let mut medium = medium(folder.path());
            medium.write(0, &[1; 4 * SECTOR], false).unwrap();
            medium.write_out().unwrap();
            medium.write(2 * SECTOR as u64, &[2; 8 * SECTOR], false).unwrap();
            let disk = Volatile { medium: Arc::new(Mutex::new(medium)), socket: folder.path().join("no") };
            let loss = disk.cut(&mut fastrand::Rng::with_seed(seed));
            assert_eq!(loss.lost + loss.kept, 8);
            (lost, kept) = (lost + loss.lost, kept + loss.kept);
            assert_eq!((byte(folder.path(), 0), byte(folder.path(), SECTOR)), (1, 1), "what was flushed is there");
            let there = (2..10).filter(|sector| byte(folder.path(), sector * SECTOR) == 2).count();
            assert_eq!(there, loss.kept);
        }
        assert!(lost > 40 && kept > 20, "both happen: {lost} lost, {kept} kept");
    }
}
