//! The files a configuration points at: certificates, keys, passwords. Paths are relative to its folder.

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::problem::Problem;
use super::section::Section;
use super::types::{Identity, Pem, Secret, SecretFile};

/// Largest certificate, key or password file, bytes; a bundle of 150 root certificates has 230 KB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Below it systemd shows each service the files of its `LoadCredential=`, and shows them to nobody else.
const CREDENTIALS: &str = "/run/credentials";

/// Reads the files. Relative paths start at its folder.
#[derive(Debug)]
pub(super) struct Folder {
    base: PathBuf,
    /// What is below it may be out of sight.
    out_of_sight: Option<PathBuf>,
    unseen: RefCell<Vec<Problem>>,
}

/// What a path leads to.
enum Found {
    Bytes(Vec<u8>),
    /// Only the service can see it.
    Unseen,
}

impl Folder {
    /// The folder of the main file; every file has to be there.
    pub(super) fn of(config_file: &Path) -> Self {
        let base = config_file.parent().unwrap_or_else(|| Path::new("")).to_owned();
        Self { base, out_of_sight: None, unseen: RefCell::default() }
    }

    /// The same for somebody who is not the service: its credentials may be out of sight. Such a file is taken for good
    /// and empty, and told of by [`Self::unseen`].
    pub(super) fn from_outside(config_file: &Path) -> Self {
        Self { out_of_sight: Some(PathBuf::from(CREDENTIALS)), ..Self::of(config_file) }
    }

    /// What was not looked at.
    pub(super) fn unseen(self) -> Vec<Problem> {
        self.unseen.into_inner()
    }

    /// A path as the configuration means it.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    /// Certificates, at least one.
    pub(super) fn certificates(&self, section: &Section<'_>, key: &'static str) -> Option<Pem> {
        self.pem(section, key, "a PEM certificate (-----BEGIN CERTIFICATE-----)", |bytes| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
            all.is_ok_and(|certificates| !certificates.is_empty())
        })
    }

    /// A certificate chain and its key; both or neither.
    pub(super) fn identity(&self, section: &Section<'_>) -> Option<Identity> {
        let has = (section.has("cert"), section.has("key"));
        match has {
            (true, false) => section.missing("key", "the private key of `cert`, a PEM file"),
            (false, true) => section.missing("cert", "the certificate of `key`, a PEM file"),
            _ => {}
        }
        let cert = self.certificates(section, "cert");
        let key = self.pem(section, "key", "an unencrypted PEM private key (-----BEGIN PRIVATE KEY-----)", |bytes| {
            PrivateKeyDer::from_pem_slice(bytes).is_ok()
        });
        Some(Identity { cert: cert?, key: key? })
    }

    /// A password: the file's first line.
    pub(super) fn password(&self, section: &Section<'_>, key: &'static str) -> Option<SecretFile> {
        let (path, text) = self.secret_text(section, key)?;
        let Some(text) = text else { return Some(SecretFile { path, secret: Secret::new(String::new()) }) };
        let password = text.lines().next().unwrap_or_default().to_owned();
        if password.is_empty() {
            section.refuse(key, format_args!("the first line of `{}` has to be the password", path.display()));
            return None;
        }
        Some(SecretFile { path, secret: Secret::new(password) })
    }

    /// A password file: lines `name:secret`; empty ones and those with `#` are skipped.
    pub(super) fn users(&self, section: &Section<'_>, key: &'static str) -> Option<SecretFile> {
        let (path, text) = self.secret_text(section, key)?;
        let Some(text) = text else { return Some(SecretFile { path, secret: Secret::new(String::new()) }) };
        let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let bad = lines().find(
            |(_, line)| !matches!(line.split_once(':'), Some((name, secret)) if !name.is_empty() && !secret.is_empty()),
        );
        if let Some((n, _)) = bad {
            section.refuse(key, format_args!("line {} of `{}` must be name:secret", n + 1, path.display()));
            return None;
        }
        if lines().next().is_none() {
            section.refuse(key, format_args!("`{}` names no user; write lines name:secret", path.display()));
            return None;
        }
        Some(SecretFile { path, secret: Secret::new(text) })
    }

    /// `None` as text: only the service can see it.
    fn secret_text(&self, section: &Section<'_>, key: &'static str) -> Option<(PathBuf, Option<String>)> {
        let (path, found) = self.read(section, key)?;
        let Found::Bytes(bytes) = found else { return Some((path, None)) };
        match String::from_utf8(bytes) {
            Ok(text) => Some((path, Some(text))),
            Err(_) => {
                section.refuse(key, format_args!("`{}` is not UTF-8 text", path.display()));
                None
            }
        }
    }

    fn pem(
        &self,
        section: &Section<'_>,
        key: &'static str,
        wanted: &str,
        fits: impl FnOnce(&[u8]) -> bool,
    ) -> Option<Pem> {
        let (path, found) = self.read(section, key)?;
        let Found::Bytes(bytes) = found else { return Some(Pem { path, bytes: Vec::new() }) };
        if !fits(&bytes) {
            section.refuse(key, format_args!("`{}` must hold {wanted}", path.display()));
            return None;
        }
        Some(Pem { path, bytes })
    }

    fn read(&self, section: &Section<'_>, key: &'static str) -> Option<(PathBuf, Found)> {
        let path = self.resolve(section.text(key)?);
        if self.is_out_of_sight(&path) {
            let (name, shown) = (section.key_name(key), path.display());
            let text = format!("`{name}` = \"{shown}\": not looked at: only the service can read it (LoadCredential=)");
            let told = section.spot(key).map(|spot| Problem::new(&spot.file, Some(spot.line), text));
            self.unseen.borrow_mut().extend(told);
            return Some((path, Found::Unseen));
        }
        match read_bounded(&path, FILE_BYTES_MAX) {
            Ok(bytes) => Some((path, Found::Bytes(bytes))),
            Err(why) => {
                section.refuse(key, format_args!("cannot read `{}`: {why}", path.display()));
                None
            }
        }
    }

    /// A credential that we cannot see: of a service that does not run, or not of ours.
    fn is_out_of_sight(&self, path: &Path) -> bool {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        self.out_of_sight.as_ref().is_some_and(|folder| path.starts_with(folder))
            && std::fs::File::open(path).is_err_and(|error| matches!(error.kind(), NotFound | PermissionDenied))
    }
}

/// The file this process is reading, for whoever waits for it in vain.
static BEING_READ: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The file that is being read for a configuration right now. A pipe, a disk on the network or a dying card may keep a
/// reader for ever, and only this tells which one it is.
#[must_use]
pub fn being_read() -> Option<PathBuf> {
    BEING_READ.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A whole file, if it is not larger than `max` bytes.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, Unread> {
    let note =
        |path: Option<&Path>| *BEING_READ.lock().unwrap_or_else(PoisonError::into_inner) = path.map(Path::to_owned);
    note(Some(path));
    let bytes = read(path, max);
    note(None);
    bytes
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>, Unread> {
    let file = std::fs::File::open(path).map_err(Unread::System)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(Unread::System)?;
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size > max { Err(Unread::TooLarge(max)) } else { Ok(bytes) }
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// The system did not let us.
    #[error("{}", plain(.0))]
    System(std::io::Error),
    /// It holds more bytes than this.
    #[error("is larger than {0} bytes")]
    TooLarge(u64),
    /// It holds no text.
    #[error("is not UTF-8 text")]
    NotText,
}

impl Unread {
    /// Whether another user might have read it.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::System(error) if error.kind() == std::io::ErrorKind::PermissionDenied)
    }
}

/// What the system says, without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
