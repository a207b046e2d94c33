//! Whether the service's user may read what the configuration names.
//!
//! `sudo floorgate check` reads as root, who may read everything: a key that belongs to root alone would pass it and keep the
//! service from starting. So owner, group and mode of each file and of the folders above it are held against the user's.
//! A file with an access list counts as readable, because its list is not read here. What stands in `/run/credentials` is
//! made for the service when it starts, and is not looked at.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::report::{Check, Finding};
use super::service::{USER, Unit};
use crate::config::{Config, CredentialsConfig};

/// Files that are named; of more only the number is.
const TOLD_MAX: usize = 5;
/// Where systemd puts the credentials of services.
const CREDENTIALS: &str = "/run/credentials";

const READ: u32 = 4;
const WRITE: u32 = 2;
const ENTER: u32 = 1;

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    id: u32,
    groups: BTreeSet<u32>,
}

impl User {
    /// From the files of users and groups below `root`; `None` if there is no such user in them.
    pub(super) fn of<'a>(root: &Path, name: &str, more_groups: impl Iterator<Item = &'a str>) -> Option<Self> {
        let users = std::fs::read_to_string(root.join("etc/passwd")).ok()?;
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let found = users.lines().map(fields).find(|user| user.first().is_some_and(|its| its == name))?;
        let (id, group) = (found.get(2)?.parse().ok()?, found.get(3)?.parse().ok()?);
        let more: Vec<_> = more_groups.collect();
        let groups = std::fs::read_to_string(root.join("etc/group")).unwrap_or_default();
        let its = groups.lines().map(fields).filter(|group| {
            let member = group.get(3).is_some_and(|members| members.split(',').any(|member| member == name));
            member || group.first().is_some_and(|group| more.contains(&group.as_str()))
        });
        let its = its.filter_map(|group| group.get(2)?.parse().ok());
        Some(Self { name: name.to_owned(), id, groups: its.chain([group]).collect() })
    }

    /// The service's user, if it has one of its own and that is not who asks.
    fn of_service(root: &Path, unit: &Unit) -> Option<Self> {
        let user = Self::of(root, unit.user()?, unit.groups())?;
        (user.id != 0 && !user.asks()).then_some(user)
    }

    /// Whether it is who runs this.
    fn asks(&self) -> bool {
        self.id == rustix::process::geteuid().as_raw()
    }

    fn may(&self, found: &Metadata, wanted: u32) -> bool {
        let mode = found.mode();
        let bits = if found.uid() == self.id {
            mode >> 6
        } else if self.groups.contains(&found.gid()) {
            mode >> 3
        } else {
            mode
        };
        bits & wanted == wanted
    }

    /// What keeps it from a file or folder; `None` also for what is not there.
    fn kept_from(&self, path: &Path, wanted: u32) -> Option<String> {
        let real = path.canonicalize().ok()?;
        let mut seen = BTreeSet::new();
        // The way there by name, and behind links: both are walked.
        let folders = path.ancestors().skip(1).chain(real.ancestors().skip(1));
        let closed = folders.filter(|folder| !folder.as_os_str().is_empty() && seen.insert(*folder));
        let closed: Vec<_> = closed.filter(|folder| self.refused(folder, ENTER).is_some()).collect();
        if let Some((folder, found)) = closed.last().and_then(|folder| Some((folder, self.refused(folder, ENTER)?))) {
            return Some(format!("its folder `{}` ({})", folder.display(), owner(&found)));
        }
        self.refused(&real, wanted).map(|found| owner(&found))
    }

    fn refused(&self, path: &Path, wanted: u32) -> Option<Metadata> {
        let found = std::fs::metadata(path).ok()?;
        (!self.may(&found, wanted) && !has_access_list(path)).then_some(found)
    }
}

fn owner(found: &Metadata) -> String {
    format!("owner {}, group {}, mode {:04o}", found.uid(), found.gid(), found.mode() & 0o7777)
}

fn has_access_list(path: &Path) -> bool {
    let mut list = [0_u8; 64];
    let read = rustix::fs::getxattr(path, c"system.posix_acl_access", &mut list[..]);
    matches!(read, Ok(_) | Err(rustix::io::Errno::RANGE))
}

/// A file the service cannot read, and why.
type Unreadable = (PathBuf, String);

fn unreadable(files: &[PathBuf], user: &User, unit: Option<&Unit>) -> Vec<Unreadable> {
    let here = std::env::current_dir().unwrap_or_default();
    let files = files.iter().map(|file| here.join(file)).filter(|file| !file.starts_with(CREDENTIALS));
    let why = |file: PathBuf| {
        let wanted = if file.is_dir() { READ | ENTER } else { READ };
        let hidden = unit.and_then(|unit| unit.hides(&file)).map(|line| format!("the unit's {line} hides it"));
        let why = hidden.or_else(|| user.kept_from(&file, wanted))?;
        Some((file, why))
    };
    files.filter_map(why).collect()
}

/// What the service has to read. The shared credentials file comes from the environment of whoever asks: a service with keys
/// of its own does not read it.
fn files(config: &Config, unit: Option<&Unit>) -> Vec<PathBuf> {
    let mut files = config.files();
    if let Some(CredentialsConfig::SharedFile { path, .. }) = config.dynamodb.as_ref().map(|tables| &tables.credentials)
        && unit.is_some_and(Unit::has_keys_of_its_own)
    {
        files.retain(|file| file != path);
    }
    files
}

fn advice(user: &User, file: &Path, why: &str) -> String {
    if why.contains("hides it") {
        return "put it into /etc/floorgate".to_owned();
    }
    // Folders of others have groups of their own, for other programs.
    if why.starts_with("its folder") {
        return "put it into /etc/floorgate, or hand it over by LoadCredential= (docs/operations.md, \"The service\")"
            .to_owned();
    }
    let (what, right) = (file.display(), if file.is_dir() { "g+rx" } else { "g+r" });
    let name = &user.name;
    format!(
        "`chgrp {name} {what} && chmod {right} {what}`, or hand it over by LoadCredential= (docs/operations.md, \"The service\")"
    )
}

/// The line of the doctor.
pub(super) fn look(root: &Path, config: &Config, unit: Option<&Unit>) -> Vec<Finding> {
    let check = Check::Access;
    let Some(user) = unit.and_then(|unit| User::of_service(root, unit)) else {
        return vec![Finding::skipped(check, "no service with a user of its own runs this configuration")];
    };
    let files = files(config, unit);
    judge(&files, &user, unit)
}

fn judge(files: &[PathBuf], user: &User, unit: Option<&Unit>) -> Vec<Finding> {
    let check = Check::Access;
    let wrong = unreadable(files, user, unit);
    if wrong.is_empty() {
        return vec![Finding::ok(check, format!("`{}` may read all {} files and folders", user.name, files.len()))];
    }
    let told = wrong.iter().take(TOLD_MAX).map(|(file, why)| {
        let found = format!("the service's user `{}` cannot read it: {why}", user.name);
        Finding::fail(check, found, advice(user, file, why)).of(file.display().to_string())
    });
    let mut findings: Vec<_> = told.collect();
    if wrong.len() > TOLD_MAX {
        let found = format!("and {} files more", wrong.len() - TOLD_MAX);
        findings.push(Finding::fail(check, found, "as above"));
    }
    findings
}

/// What `check` has to say: the files that the service's user cannot read, as one text.
#[must_use]
pub fn problems(config: &Config) -> Option<String> {
    let root = Path::new("/");
    // The service itself, at a reload: what it cannot read it has told already.
    if User::of(root, USER, std::iter::empty()).is_some_and(|user| user.asks()) {
        return None;
    }
    let unit = Unit::of(&config.file)?;
    let user = User::of_service(root, &unit)?;
    let wrong = unreadable(&files(config, Some(&unit)), &user, Some(&unit));
    let lines = wrong
        .iter()
        .take(TOLD_MAX)
        .map(|(file, why)| format!("\n  {}: {why}; {}", file.display(), advice(&user, file, why)));
    let lines: String = lines.collect();
    let more = wrong.len().saturating_sub(TOLD_MAX);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    (!wrong.is_empty()).then(|| {
        format!("the configuration is right, but the service's user `{}` cannot read:{lines}{more}", user.name)
    })
}

/// What keeps the service's user from writing into the state folder, or from making it.
pub(super) fn kept_from_writing(root: &Path, folder: &Path, unit: &Unit) -> Option<String> {
    let user = User::of(root, unit.user()?, unit.groups()).filter(|user| user.id != 0)?;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let why = user.kept_from(there, WRITE | ENTER)?;
    let missing = if there == folder { "" } else { "is not there, and " };
    Some(format!("{missing}the service's user `{}` may not write in `{}`: {why}", user.name, there.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;
    use std::os::unix::fs::PermissionsExt;

    /// Somebody who is not who runs this test.
    fn stranger() -> User {
        User { name: "floorgate".to_owned(), id: 4_000_000, groups: BTreeSet::from([4_000_000]) }
    }

    fn put(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A folder that everybody may enter.
    fn open_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn a_key_of_roots_alone_is_red_with_the_command_that_mends_it() {
        let folder = open_folder();
        let (key, cert) = (put(folder.path(), "key.pem", 0o600), put(folder.path(), "cert.pem", 0o644));
        let all = judge(&[cert.clone(), key.clone()], &stranger(), None);
        assert_eq!((all.len(), all[0].state), (1, State::Fail), "{all:?}");
        assert!(all[0].found.contains("`floorgate` cannot read it: owner ") && all[0].found.ends_with("mode 0600"));
        assert_eq!(all[0].subject.as_deref(), key.to_str());
        assert!(all[0].advice.as_ref().unwrap().starts_with("`chgrp floorgate "), "{all:?}");
        assert_eq!(judge(&[cert], &stranger(), None)[0].state, State::Ok);
    }

    #[test]
    fn the_group_counts_and_so_do_the_folders_above_and_links() {
        let folder = open_folder();
        let key = put(folder.path(), "key.pem", 0o640);
        let group = std::fs::metadata(&key).unwrap().gid();
        let member = User { groups: BTreeSet::from([group]), ..stranger() };
        assert_eq!(unreadable(std::slice::from_ref(&key), &member, None), []);
        let owner = User { id: std::fs::metadata(&key).unwrap().uid(), ..stranger() };
        let none = put(folder.path(), "none.pem", 0o044);
        assert_eq!(unreadable(&[none], &owner, None).len(), 1, "its owner has the owner's rights alone");

        let inner = folder.path().join("private");
        std::fs::create_dir(&inner).unwrap();
        let cert = put(&inner, "cert.pem", 0o644);
        let link = folder.path().join("link.pem");
        std::os::unix::fs::symlink(&cert, &link).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o700)).unwrap();
        for path in [cert, link] {
            let wrong = unreadable(&[path], &stranger(), None);
            assert!(wrong.len() == 1 && wrong[0].1.contains("private` (owner "), "{wrong:?}");
        }
    }

    #[test]
    fn what_the_sandbox_hides_is_red_and_what_systemd_hands_over_is_not_looked_at() {
        let unit = Unit::parse("LoadState=loaded\nProtectHome=yes\n").unwrap();
        let wrong = unreadable(&["/root/key.pem".into(), "/run/credentials/x/key".into()], &stranger(), Some(&unit));
        assert!(wrong.len() == 1 && wrong[0].1.contains("ProtectHome="), "{wrong:?}");
    }

    #[test]
    fn a_user_has_its_own_group_those_it_is_a_member_of_and_those_of_the_unit() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nfg:x:990:980::/:/bin/false\n").unwrap();
        std::fs::write(root.path().join("etc/group"), "fg:x:980:\nssl:x:7:a,fg\ndialout:x:8:\nother:x:9:a\n").unwrap();
        let user = User::of(root.path(), "fg", ["dialout"].into_iter()).unwrap();
        assert_eq!((user.id, user.groups), (990, BTreeSet::from([980, 7, 8])));
        assert_eq!(User::of(root.path(), "none", [].into_iter()), None);
    }

    #[test]
    fn a_state_folder_that_is_not_there_or_not_the_services_is_told() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "fg:x:4000000:4000000::/:/bin/false\n").unwrap();
        let unit = Unit::parse("LoadState=loaded\nUser=fg\n").unwrap();
        let folder = open_folder();
        let told = |path: &Path| kept_from_writing(root.path(), path, &unit);
        assert!(
            told(&folder.path().join("not/there")).unwrap().starts_with("is not there, and the service's user `fg`")
        );
        assert!(told(folder.path()).unwrap().contains("may not write in"));
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(told(folder.path()), None);
    }

    #[test]
    fn the_askers_aws_keys_are_not_looked_at_where_the_service_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (file, keys) = (folder.path().join("floorgate.toml"), folder.path().join("keys"));
        std::fs::write(&keys, "[default]\naws_access_key_id = A\naws_secret_access_key = B\n").unwrap();
        std::fs::write(&file, "[gateway]\nid = \"G\"\nlocation = \"x\"\n[dynamodb]\nregion = \"us-east-1\"\n").unwrap();
        let environment =
            crate::config::Environment::from_pairs([("AWS_SHARED_CREDENTIALS_FILE", keys.display().to_string())]);
        let config = Config::load(&file, &environment, &crate::gateway::read_profiles).unwrap();
        let unit = |more: &str| Unit::parse(&format!("LoadState=loaded\n{more}\n")).unwrap();
        assert_eq!(files(&config, Some(&unit(""))), [file.clone(), keys]);
        assert_eq!(files(&config, Some(&unit("Environment=AWS_ACCESS_KEY_ID=A"))), [file]);
    }
}
