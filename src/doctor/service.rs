//! What systemd knows of the packaged service: whether it is to run, how it ended, and what its sandbox hides from it.
//!
//! Asked once, by `systemctl show`, which answers to anybody; where there is no systemd or no such unit there is no
//! [`Unit`], and nothing is said. Only the unit that runs the configuration at hand counts.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::report::{Check, Finding};
use crate::config::DEFAULT_FILE;

/// The service of the package.
const UNIT: &str = "floorgate.service";
/// How long systemd may take to answer; it takes 10 ms.
pub const SYSTEMD_WITHIN: Duration = Duration::from_secs(3);
/// Most of its answer that is read, bytes.
const ANSWER_MAX: u64 = 64 * 1024;
/// What is asked for. Older systemd leaves out what it does not know.
const PROPERTIES: &str = "LoadState,ActiveState,SubState,UnitFileState,Result,ExecMainStatus,NRestarts,User,\
    SupplementaryGroups,ExecStart,ProtectSystem,ProtectHome,PrivateTmp,ReadWritePaths,BindPaths,StateDirectory,Environment,EnvironmentFiles";
/// The user of the package's unit.
pub(super) const USER: &str = "floorgate";

/// The service as systemd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit(BTreeMap<String, String>);

impl Unit {
    /// Asks systemd for the service that runs this configuration. Blocks for [`SYSTEMD_WITHIN`] at most.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["show", UNIT, "--property", PROPERTIES]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = systemctl.stdout(Stdio::piped()).spawn().ok()?;
        let out = child.stdout.take()?;
        let (sender, answer) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = out.take(ANSWER_MAX).read_to_string(&mut text);
            // Nobody listens any more if it took too long.
            let _ = sender.send(read.map(|_| text));
        });
        let text = answer.recv_timeout(SYSTEMD_WITHIN);
        if text.is_err() {
            let _ = child.kill();
        }
        let _ = child.wait();
        Self::parse(&text.ok()?.ok()?).filter(|unit| unit.runs(file))
    }

    /// Lines `Name=value`; `None` for a unit that is not there.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let kept = |(name, value): (&str, &str)| {
            // Of the environment, which holds secrets, nothing is kept but whether AWS is in it.
            let value = if name == "Environment" { if value.contains("AWS_") { "AWS_" } else { "" } } else { value };
            (name.to_owned(), value.to_owned())
        };
        let unit = Self(lines.map(kept).collect());
        matches!(unit.get("LoadState"), "loaded" | "masked").then_some(unit)
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        self.get(name).split_whitespace()
    }

    /// Whether it runs this configuration.
    fn runs(&self, file: &Path) -> bool {
        let mut words = self.words("ExecStart").skip_while(|word| *word != "--config").skip(1);
        let its = Path::new(words.next().unwrap_or(DEFAULT_FILE));
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        its == file || real(its) == real(file)
    }

    /// Whose rights it has; `None`: root's.
    pub(super) fn user(&self) -> Option<&str> {
        Some(self.get("User")).filter(|user| !user.is_empty())
    }

    /// Groups it has besides its user's.
    pub(super) fn groups(&self) -> impl Iterator<Item = &str> {
        self.words("SupplementaryGroups")
    }

    /// Whether it may have AWS keys of its own, which are not in the environment of whoever asks.
    pub(super) fn has_keys_of_its_own(&self) -> bool {
        self.get("Environment").contains("AWS_") || !self.get("EnvironmentFiles").is_empty()
    }

    /// The line of the unit that hides a file from it.
    pub(super) fn hides(&self, path: &Path) -> Option<&'static str> {
        let under = |folders: &[&str]| folders.iter().any(|folder| path.starts_with(folder));
        if matches!(self.get("ProtectHome"), "yes" | "tmpfs") && under(&["/home", "/root", "/run/user"]) {
            Some("ProtectHome=")
        } else if matches!(self.get("PrivateTmp"), "yes" | "connected" | "disconnected") && under(&["/tmp", "/var/tmp"])
        {
            Some("PrivateTmp=")
        } else {
            None
        }
    }

    /// Whether it keeps this folder for the service, with its owner and mode.
    pub(super) fn provides(&self, folder: &Path) -> bool {
        self.words("StateDirectory").any(|name| {
            // Newer ones may add a link's name after a colon.
            let name = name.split(':').next().unwrap_or(name);
            folder.starts_with(Path::new("/var/lib").join(name))
        })
    }

    /// The line of the unit that keeps the service from writing into a folder.
    pub(super) fn forbids_writing(&self, folder: &Path) -> Option<&'static str> {
        let given = self.words("ReadWritePaths").map(|path| path.trim_start_matches(['-', '+']));
        let bound = self.words("BindPaths").map(|bind| {
            let mut parts = bind.trim_start_matches('-').split(':');
            let source = parts.next().unwrap_or_default();
            parts.next().filter(|to| !to.is_empty()).unwrap_or(source)
        });
        let allowed = given.chain(bound).any(|path| folder.starts_with(path));
        if self.provides(folder) || allowed {
            return None;
        }
        let under = |folders: &[&str]| folders.iter().any(|path| folder.starts_with(path));
        let system = match self.get("ProtectSystem") {
            "strict" => !under(&["/dev", "/proc", "/sys", "/tmp", "/var/tmp"]),
            "full" => under(&["/usr", "/boot", "/efi", "/etc"]),
            "yes" => under(&["/usr", "/boot", "/efi"]),
            _ => false,
        };
        let home = self.get("ProtectHome") == "read-only" && under(&["/home", "/root", "/run/user"]);
        if system { Some("ProtectSystem=") } else { self.hides(folder).or_else(|| home.then_some("ProtectHome=")) }
    }

    /// Whether systemd says that it runs.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.get("ActiveState"), "active" | "reloading" | "deactivating")
    }

    /// What is wrong with a service whose daemon does not answer; `None` if nothing says that it should run.
    pub(super) fn not_running(&self) -> Option<Finding> {
        let check = Check::Daemon;
        let journal = "`journalctl -u floorgate` says why; put it right, then `systemctl restart floorgate`";
        match (self.get("ActiveState"), self.get("UnitFileState")) {
            ("failed", _) => Some(Finding::fail(
                check,
                format!("the service has failed: {}", self.how_it_ended()),
                self.what_to_do(),
            )),
            ("activating", _) if self.get("SubState").starts_with("auto-restart") => {
                let found = format!(
                    "the service ends and is started again, {} times: {}",
                    self.restarts(),
                    self.how_it_ended()
                );
                Some(Finding::fail(check, found, journal))
            }
            ("activating", _) => {
                let advice = "wait: opening may rescue a damaged file, which takes minutes; `journalctl -u floorgate`";
                Some(Finding::warn(check, "the service is being started", advice))
            }
            ("active" | "reloading" | "deactivating", _) => {
                let found = "systemd says that the service runs, and nobody answers at its control socket";
                Some(Finding::fail(check, found, "look into its log; if it hangs, `systemctl restart floorgate`"))
            }
            (_, "enabled" | "enabled-runtime" | "linked" | "linked-runtime") => {
                let found = "the service is installed and enabled, and does not run";
                let advice = "`systemctl start floorgate`; if that is not wanted, `systemctl disable floorgate`";
                Some(Finding::fail(check, found, advice))
            }
            _ => None,
        }
    }

    fn restarts(&self) -> &str {
        Some(self.get("NRestarts")).filter(|n| !n.is_empty()).unwrap_or("some")
    }

    fn how_it_ended(&self) -> String {
        match (self.get("Result"), self.get("ExecMainStatus")) {
            ("exit-code", "78") => "its configuration cannot be used as the service sees it (exit 78)".to_owned(),
            ("exit-code", "64") => "it was started with arguments that it does not know (exit 64)".to_owned(),
            ("exit-code", status) => format!("exit {status}"),
            ("watchdog", _) => "it hung, and the watchdog ended it".to_owned(),
            ("oom-kill", _) => "it was ended for want of memory".to_owned(),
            ("" | "success", _) => "it ended".to_owned(),
            (other, _) => other.to_owned(),
        }
    }

    fn what_to_do(&self) -> &'static str {
        match self.get("ExecMainStatus") {
            "78" => {
                "see the lines `configuration`, `access` and `disk_space`, and `journalctl -u floorgate`; it is not tried again \
                 by itself: then `systemctl restart floorgate`"
            }
            _ => "`journalctl -u floorgate` says why; put it right, then `systemctl restart floorgate`",
        }
    }
}

/// What to do about a state folder that the sandbox keeps read-only.
pub(super) fn let_it_write(folder: &Path) -> String {
    let folder: PathBuf = folder.to_owned();
    format!(
        "give it the folder: `ReadWritePaths={}` by `systemctl edit floorgate`, then `systemctl restart floorgate`; \
         other-state-dir.conf (deploy/systemd, in the package /usr/share/doc/floorgate/examples) is an example",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    /// The package's unit.
    fn unit(more: &str) -> Unit {
        let text = format!(
            "LoadState=loaded\nActiveState=inactive\nSubState=dead\nUnitFileState=enabled\nUser=floorgate\n\
             ExecStart={{ path=/usr/bin/floorgate ; argv[]=/usr/bin/floorgate run --config /etc/floorgate/floorgate.toml ; \
             ignore_errors=no }}\nProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nStateDirectory=floorgate\n{more}"
        );
        Unit::parse(&text).unwrap()
    }

    #[test]
    fn a_service_that_is_enabled_or_has_failed_and_does_not_run_is_red() {
        let told = |more: &str| unit(more).not_running();
        let red = |more: &str, says: &str| {
            let finding = told(more).unwrap();
            assert!(finding.state == State::Fail && finding.found.contains(says), "{finding:?}");
        };
        red("", "enabled, and does not run");
        red("ActiveState=failed\nResult=exit-code\nExecMainStatus=78", "exit 78");
        red("ActiveState=failed\nUnitFileState=disabled\nResult=watchdog", "watchdog");
        red(
            "ActiveState=activating\nSubState=auto-restart\nNRestarts=11\nResult=exit-code\nExecMainStatus=1",
            "11 times: exit 1",
        );
        red("ActiveState=active\nSubState=running", "nobody answers");
        assert_eq!(told("ActiveState=activating\nSubState=start").unwrap().state, State::Warn);
        assert_eq!(told("UnitFileState=disabled"), None, "who switched it off does not want it to run");
        assert_eq!(told("UnitFileState=masked\nLoadState=masked"), None);
    }

    #[test]
    fn only_the_unit_that_runs_this_configuration_counts() {
        assert!(unit("").runs(Path::new("/etc/floorgate/floorgate.toml")));
        assert!(!unit("").runs(Path::new("/srv/other.toml")));
        assert_eq!(Unit::parse("LoadState=not-found\nActiveState=inactive\n"), None);
        assert_eq!(Unit::parse(""), None);
    }

    #[test]
    fn a_folder_outside_of_what_the_unit_gives_is_read_only_to_the_service() {
        let forbids = |more: &str, folder: &str| unit(more).forbids_writing(Path::new(folder));
        assert_eq!(forbids("", "/var/lib/floorgate"), None);
        assert_eq!(forbids("", "/data/fg"), Some("ProtectSystem="));
        assert_eq!(forbids("", "/var/lib/floorgate-data"), Some("ProtectSystem="));
        assert_eq!(forbids("ReadWritePaths=-/srv /data/fg", "/data/fg"), None);
        assert_eq!(forbids("BindPaths=/mnt/card:/data/fg:rbind", "/data/fg/x"), None);
        assert_eq!(forbids("ProtectSystem=no", "/data/fg"), None);
        assert_eq!(forbids("ProtectSystem=no", "/home/fg"), Some("ProtectHome="));
    }
}
