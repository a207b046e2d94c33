//! Debian with systemd, on a disk whose power can be cut: as a container on this machine's kernel, or emulated.
//!
//! | | container (`systemd-nspawn`) | machine (`qemu`) |
//! |---|---|---|
//! | disk | [`Volatile`] → `qemu-storage-daemon`, FUSE → loop device → ext4 of this kernel | [`Volatile`] → virtio disk of the guest |
//! | power cut | every process is killed, the disk goes; this kernel's cached pages of it find no disk and are dropped with the mount | qemu is killed with the guest's memory, the disk goes |
//! | shell | its namespaces are entered | a port that is forwarded from loopback |
//! | network | this machine's loopback | qemu's user network: the host's loopback is 10.0.2.2 |
//!
//! Both run in a process tree and mount namespace that end with the test (`cargo xtask vm`), and are ended by pid when a value
//! is dropped.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::given::{Given, Kind};
use crate::processes::{alive, child_of, kill, run};
use crate::rig::free_port;
use crate::volatile::{Loss, Volatile};

/// Between two looks at something that is about to happen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// An emulated machine on a busy host takes a minute and a half to boot.
const BOOT_WITHIN: Duration = Duration::from_secs(300);
/// Emulated, `apt install` takes half a minute.
const SCRIPT_WITHIN: Duration = Duration::from_secs(300);
/// The host, as the guest of qemu's user network sees it.
const HOST_IN_GUEST: &str = "10.0.2.2";
/// Where the daemon listens in a guest; `board-floor.socket` of the image forwards to it.
const FLOOR_IN_GUEST: u16 = 1883;
const FORWARDED_IN_GUEST: u16 = 1884;
const SHELL_IN_GUEST: u16 = 2222;
/// The demo's table takes any key; a user of AWS has them from a role.
pub const KEYS: [&str; 2] = ["AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test"];

/// What a script said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub code: i32,
    pub text: String,
}

/// The system; dropping it ends all of its processes.
pub struct Machine {
    given: Given,
    folder: tempfile::TempDir,
    disk: Option<Volatile>,
    /// Ended in this order.
    children: Vec<Child>,
    mounted: bool,
    /// PID 1 of a container.
    leader: Option<u32>,
    shell: u16,
    /// Where the floor is reached from here.
    floor: SocketAddr,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

impl Machine {
    /// A machine with a fresh copy of the image and these packages, not yet booted. Its daemon's floor endpoint will be
    /// reached at `floor`.
    pub fn new(given: &Given, packages: &[PathBuf], floor: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("floorgate-board-").tempdir().unwrap();
        let path = folder.path();
        run(Command::new("cp").arg("--sparse=always").arg(given.image.join("root.ext4")).arg(path.join("disk")));
        for name in ["mount", "packages"] {
            std::fs::create_dir(path.join(name)).unwrap();
        }
        // apt's own user reads it.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(path.join("fuse"), "").unwrap();
        for package in packages {
            std::fs::copy(package, path.join("packages").join(package.file_name().unwrap())).unwrap();
        }
        let (given, shell) = (given.clone(), free_port());
        Self { given, folder, disk: None, children: Vec::new(), mounted: false, leader: None, shell, floor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn kind(&self) -> Kind {
        self.given.kind
    }

    /// Where the daemon's floor endpoint listens, as the machine itself sees it.
    pub fn floor_inside(&self) -> SocketAddr {
        match self.given.kind {
            Kind::Container => self.floor,
            Kind::Machine => SocketAddr::from(([127, 0, 0, 1], FLOOR_IN_GUEST)),
        }
    }

    /// How often the disk was flushed since the power came.
    pub fn flushes(&self) -> u64 {
        self.disk.as_ref().map_or(0, Volatile::flushes)
    }

    /// The text of a configuration with this host's addresses, as the machine must have them.
    pub fn translated(&self, config: &str) -> String {
        match self.given.kind {
            Kind::Container => config.to_owned(),
            Kind::Machine => {
                let listen = format!("listen = \"{}\"", self.floor);
                let config = config.replace(&listen, &format!("listen = \"127.0.0.1:{FLOOR_IN_GUEST}\""));
                config.replace("//127.0.0.1:", &format!("//{HOST_IN_GUEST}:"))
            }
        }
    }

    /// Switches the power on and waits until systemd has started everything. `clock`: what the machine's battery-backed
    /// clock says (`1970-01-01T00:00:00`), where it has one of its own.
    pub async fn boot(&mut self, clock: Option<&str>) -> Duration {
        assert!(self.children.is_empty(), "it runs already");
        let began = Instant::now();
        self.disk = Some(Volatile::switch_on(&self.path("disk"), &self.path("nbd")));
        match self.given.kind {
            Kind::Container => self.start_container().await,
            Kind::Machine => self.start_machine(clock),
        }
        loop {
            let said = self.try_sh("systemctl is-system-running --wait").await;
            match said.as_ref().map(|said| said.text.trim()) {
                Some("running") => return began.elapsed(),
                Some("degraded") => {
                    let failed = self
                        .sh("systemctl --failed --no-legend --plain; journalctl -b -p warning --no-pager | tail -30")
                        .await;
                    panic!("units failed at boot:\n{failed}");
                }
                _ => {}
            }
            for child in &mut self.children {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{ended:?} while booting:\n{}", self.console());
            }
            assert!(began.elapsed() < BOOT_WITHIN, "no boot within {BOOT_WITHIN:?}: {said:?}\n{}", self.console());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn console(&self) -> String {
        let text = crate::rig::read(&self.folder.path().join("console"));
        text.lines().rev().take(30).fold(String::new(), |text, line| format!("{line}\n{text}"))
    }

    fn spawn(&mut self, command: &mut Command) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("console")).unwrap();
        let started = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.children.insert(0, started.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")));
    }

    async fn start_container(&mut self) {
        let fuse = self.path("fuse");
        let mut storage = Command::new("qemu-storage-daemon");
        let socket = self.disk.as_ref().unwrap().socket().display().to_string();
        storage.arg("--blockdev").arg(format!("driver=nbd,node-name=disk,server.type=unix,server.path={socket}"));
        storage.arg("--export");
        storage.arg(format!("type=fuse,id=export,node-name=disk,mountpoint={},writable=on", fuse.display()));
        self.spawn(&mut storage);
        let began = Instant::now();
        while std::fs::metadata(&fuse).map_or(0, |file| file.len()) == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "no disk over FUSE:\n{}", self.console());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop,noatime"]).arg(&fuse).arg(self.path("mount")));
        self.mounted = true;
        let mut nspawn = Command::new("systemd-nspawn");
        nspawn.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").args(["--quiet", "--boot", "--register=no", "--keep-unit"]);
        nspawn.args(["--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]);
        nspawn.arg(format!("--bind-ro={}:/packages", self.path("packages").display()));
        nspawn.arg(format!("--machine=board-{}", self.shell)).arg("--directory").arg(self.path("mount"));
        self.spawn(&mut nspawn);
        let nspawn = self.children[0].id();
        while self.leader.is_none() {
            assert!(began.elapsed() < Duration::from_secs(30), "no systemd:\n{}", self.console());
            self.leader = child_of(nspawn, "systemd");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn start_machine(&mut self, clock: Option<&str>) {
        let mut qemu = match self.given.arch.as_str() {
            "arm64" => {
                let mut qemu = Command::new("qemu-system-aarch64");
                qemu.args(["-M", "virt", "-cpu", "cortex-a53"]);
                qemu
            }
            _ => {
                let mut qemu = Command::new("qemu-system-x86_64");
                qemu.args(["-M", "q35", "-cpu", "max"]);
                qemu
            }
        };
        let terminal = if self.given.arch == "arm64" { "ttyAMA0" } else { "ttyS0" };
        let socket = self.disk.as_ref().unwrap().socket().display().to_string();
        let (tar, image) = (self.path("packages.tar"), &self.given.image);
        run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(self.path("packages")).arg("."));
        qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "512", "-nographic", "-nodefaults", "-no-reboot"]);
        qemu.args(["-monitor", "none", "-serial", "stdio"]).arg("-kernel").arg(image.join("vmlinuz"));
        qemu.arg("-initrd").arg(image.join("initrd.img"));
        qemu.arg("-append").arg(format!("root=/dev/vda rw console={terminal} panic=5 quiet systemd.show_status=false"));
        // The guest's flushes reach the disk, and nothing else does: no cache of the host is between them.
        qemu.arg("-drive").arg(format!(
            "file.driver=nbd,file.server.type=unix,file.server.path={socket},format=raw,if=none,id=root,cache=none"
        ));
        qemu.args(["-device", "virtio-blk-pci,drive=root"]);
        qemu.arg("-drive").arg(format!("file={},format=raw,if=none,id=packages,readonly=on", tar.display()));
        qemu.args(["-device", "virtio-blk-pci,drive=packages"]);
        qemu.args(["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"]);
        qemu.arg("-netdev").arg(format!(
            "user,id=net,hostfwd=tcp:127.0.0.1:{}-:{SHELL_IN_GUEST},hostfwd=tcp:127.0.0.1:{}-:{FORWARDED_IN_GUEST}",
            self.shell,
            self.floor.port()
        ));
        qemu.args(["-device", "virtio-net-pci,netdev=net"]);
        if let Some(clock) = clock {
            qemu.arg("-rtc").arg(format!("base={clock}"));
        }
        self.spawn(&mut qemu);
    }

    /// Runs a script as root; panics if it does not end with 0. Answers what it said, both streams.
    pub async fn sh(&self, script: &str) -> String {
        let said = self.try_sh(script).await.unwrap_or_else(|| panic!("no shell for `{script}`\n{}", self.console()));
        assert_eq!(said.code, 0, "`{script}` said:\n{}", said.text);
        said.text
    }

    /// Runs a script as root; `None` if there is no shell, or it goes away.
    pub async fn try_sh(&self, script: &str) -> Option<Said> {
        let ran = async {
            match self.given.kind {
                Kind::Container => self.enter(script).await,
                Kind::Machine => self.connect(script).await,
            }
        };
        tokio::time::timeout(SCRIPT_WITHIN, ran).await.ok().flatten()
    }

    async fn enter(&self, script: &str) -> Option<Said> {
        let mut enter = tokio::process::Command::new("nsenter");
        enter.arg("-t").arg(self.leader?.to_string()).args(["-a", "--", "env", "-i"]);
        enter.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]);
        enter.args(KEYS).args(["bash", "-c"]);
        enter.arg(format!("exec 2>&1\n{script}")).stdin(Stdio::null()).kill_on_drop(true);
        let output = enter.output().await.ok()?;
        Some(Said { code: output.status.code()?, text: String::from_utf8_lossy(&output.stdout).into_owned() })
    }

    async fn connect(&self, script: &str) -> Option<Said> {
        let mut shell = TcpStream::connect(("127.0.0.1", self.shell)).await.ok()?;
        let whole = format!(
            "exec 2>&1; export HOME=/root LANG=C.UTF-8 {}; {{ {script}\n}} </dev/null; echo \"@@$?\"; exit\n",
            KEYS.join(" ")
        );
        shell.write_all(whole.as_bytes()).await.ok()?;
        let mut bytes = Vec::new();
        shell.read_to_end(&mut bytes).await.ok()?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (text, code) = text.rsplit_once("@@")?;
        Some(Said { code: code.trim().parse().ok()?, text: text.to_owned() })
    }

    /// A program on this host that runs `floorgate TASK --json` in the machine: what comes after the task is left out.
    pub fn command_line(&self) -> PathBuf {
        let path = self.path("floorgate");
        let task = "/usr/bin/floorgate \"$1\" --json --config /etc/floorgate/floorgate.toml";
        let keys = KEYS.join(" ");
        let text = match self.given.kind {
            Kind::Container => {
                format!("#!/bin/bash\nexec nsenter -t {} -a -- env {keys} {task}\n", self.leader.expect("it runs"))
            }
            Kind::Machine => format!(
                "#!/bin/bash\nset -eu\nexec 3<>/dev/tcp/127.0.0.1/{}\necho \"{{ {keys} {} ; }} </dev/null; echo @@\\$?; exit\" >&3\n\
                 said=$(cat <&3)\necho \"${{said%@@*}}\"\nexit \"${{said##*@@}}\"\n",
                self.shell,
                task.replace("\"$1\"", "$1")
            ),
        };
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// The packages, at `/packages` in the machine.
    pub async fn insert_packages(&self) {
        if self.given.kind == Kind::Machine {
            self.sh("tar -C /packages --no-same-owner -xf /dev/vdb").await;
        }
    }

    /// Writes a file in the machine.
    pub async fn write(&self, path: &str, text: &str) {
        self.sh(&format!("mkdir -p \"$(dirname {path})\"\ncat > {path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE")).await;
    }

    /// Cuts the power: no process gets another instruction, then the disk goes. Nothing is told before.
    pub async fn cut(&mut self, random: &mut fastrand::Rng) -> Loss {
        // The other way round a daemon would live for a moment beside a disk that fails, which is another fault.
        if let Some(leader) = self.leader.take() {
            // The kernel ends every process of a container with its PID 1, which is the last to be gone.
            kill(leader);
            while alive(leader) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } else if let Some(qemu) = self.children.first_mut() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        let loss = self.disk.take().expect("it runs").cut(random);
        self.end();
        loss
    }

    /// Shuts down in order.
    pub async fn power_off(&mut self) {
        let _ = self.try_sh("systemctl poweroff").await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(90) && self.children[0].try_wait().unwrap().is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // What it flushed at its end is on the disk; the rest of the stack has nothing of its own.
        self.end();
    }

    fn end(&mut self) {
        if let Some(leader) = self.leader.take() {
            kill(leader);
        }
        let mut children = std::mem::take(&mut self.children).into_iter();
        let finish = |child: Option<Child>| {
            if let Some(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
        };
        finish(children.next());
        if std::mem::take(&mut self.mounted) {
            // With its disk gone, the kernel drops what it had not written; with its disk there, this writes it.
            let unmounted = Command::new("umount").arg(self.path("mount")).stderr(Stdio::null()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                let _ = Command::new("umount").arg("-l").arg(self.path("mount")).status();
            }
        }
        children.for_each(|child| finish(Some(child)));
        if self.given.kind == Kind::Container {
            let _ = Command::new("umount").arg("-l").arg(self.path("fuse")).stderr(Stdio::null()).status();
        }
        self.disk = None;
    }
}
