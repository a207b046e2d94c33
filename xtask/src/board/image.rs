//! Debian images for the board test: made once with mmdebstrap, kept in a cache folder outside of the checkout.
//!
//! An image is a folder: `root.ext4` (sparse, 1 GiB), and for a virtual machine `vmlinuz` and `initrd.img`. Its name holds a
//! hash of the recipe, so a changed recipe makes a new one; it is made beside its place and moved there, so an interrupted
//! build is never taken for an image. Nothing of floorgate is in it but what its package depends on: the package is installed
//! by the test, as a user would, without a network.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Arch, Kind};
use crate::tools::{self, run};

const MIRROR: &str = "http://deb.debian.org/debian";
/// Size of the file system; what is not used takes no room.
const ROOT_SIZE: &str = "1G";

/// What the package depends on and a minimal system lacks, and what the test looks with.
const PACKAGES: &str = "systemd-sysv,udev,dbus,kmod,iproute2,ca-certificates,zstd,strace";
/// Units that only cost time here.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "console-getty.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
];
/// The test's way into a virtual machine: a shell for each connection to a port that is forwarded from the host's loopback
/// alone. A container is entered through its namespaces.
const SHELL: &[(&str, &str)] = &[
    (
        "etc/systemd/system/board.socket",
        "[Unit]\nConditionVirtualization=!container\n[Socket]\nListenStream=2222\nAccept=yes\nMaxConnections=64\n\
         TriggerLimitIntervalSec=0\n[Install]\nWantedBy=sockets.target\n",
    ),
    (
        "etc/systemd/system/board@.service",
        "[Unit]\nCollectMode=inactive-or-failed\n[Service]\nExecStart=-/bin/bash\nStandardInput=socket\nStandardError=inherit\n",
    ),
    (
        "etc/systemd/network/80-board.network",
        "[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n",
    ),
    ("etc/systemd/system/systemd-networkd.service.d/board.conf", "[Unit]\nConditionVirtualization=!container\n"),
    ("etc/systemd/system/systemd-networkd.socket.d/board.conf", "[Unit]\nConditionVirtualization=!container\n"),
    // What systemd puts in for PID 1's own children when the test enters the container, it lacks.
    ("etc/hostname", "board\n"),
    ("etc/hosts", "127.0.0.1 localhost board\n"),
];

/// The arguments of mmdebstrap, but the folder and the sources.
fn recipe(arch: Arch, kind: Kind) -> Vec<String> {
    let mut arguments: Vec<String> = ["--quiet", "--mode=root", "--variant=minbase"].map(str::to_owned).to_vec();
    let mut packages = PACKAGES.to_owned();
    if kind == Kind::Machine {
        packages += &format!(",initramfs-tools,linux-image-cloud-{}", arch.debian());
    }
    arguments.push(format!("--architectures={}", arch.debian()));
    arguments.push(format!("--include={packages}"));
    for option in ["Acquire::Languages \"none\"", "APT::Install-Recommends \"false\""] {
        arguments.push(format!("--aptopt={option}"));
    }
    let excluded = ["/usr/share/doc/*", "/usr/share/locale/*"].map(|path| format!("path-exclude={path}"));
    arguments.extend(excluded.iter().map(|option| format!("--dpkgopt={option}")));
    // The image, not the daemon, is built without flushes; the option does not stay in it.
    arguments.push("--dpkgopt=force-unsafe-io".to_owned());
    if kind == Kind::Machine {
        arguments.push(
            "--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\"; \
             printf 'MODULES=list\\nCOMPRESS=zstd\\nFSTYPE=ext4\\n' > \"$1/etc/initramfs-tools/conf.d/board\"; \
             printf 'virtio_blk\\nvirtio_pci\\nvirtio_mmio\\next4\\ncrc32c_generic\\nvirtio_net\\n' > \"$1/etc/initramfs-tools/modules\""
                .to_owned(),
        );
        arguments.push("--customize-hook=echo '/dev/vda / ext4 rw,noatime 0 1' > \"$1/etc/fstab\"".to_owned());
    }
    arguments.push(
        "--customize-hook=rm -f \"$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap\"; chroot \"$1\" passwd -d root >/dev/null"
            .to_owned(),
    );
    for (path, text) in SHELL {
        let text = text.replace('\n', "\\n");
        arguments
            .push(format!("--customize-hook=mkdir -p \"$(dirname \"$1/{path}\")\"; printf '{text}' > \"$1/{path}\""));
    }
    let masked = MASKED.join(" ");
    arguments.push(format!(
        "--customize-hook=for unit in {masked}; do ln -sf /dev/null \"$1/etc/systemd/system/$unit\"; done"
    ));
    arguments.push(
        "--customize-hook=ln -sf /lib/systemd/system/multi-user.target \"$1/etc/systemd/system/default.target\"; \
         mkdir -p \"$1/var/log/journal\" \"$1/packages\"; \
         chroot \"$1\" systemctl enable systemd-networkd board.socket >/dev/null 2>&1; \
         rm -rf \"$1\"/var/cache/apt/archives/*.deb \"$1\"/var/lib/apt/lists/*"
            .to_owned(),
    );
    arguments
}

/// Where the image of this recipe belongs.
fn folder(cache: &Path, arch: Arch, kind: Kind, suite: &str) -> PathBuf {
    // The same in every build of this program: `DefaultHasher::new` has fixed keys.
    let mut hasher = DefaultHasher::new();
    (recipe(arch, kind), suite, ROOT_SIZE).hash(&mut hasher);
    let kind = if kind == Kind::Machine { "machine" } else { "container" };
    cache.join(format!("{suite}-{}-{kind}-{:016x}", arch.debian(), hasher.finish()))
}

/// The image, from the cache or made now; says how long that took.
///
/// # Errors
/// If mmdebstrap cannot be installed, or fails: it wants root and a Debian mirror.
pub(super) fn image(cache: &Path, arch: Arch, kind: Kind, suite: &str) -> Result<PathBuf> {
    let place = folder(cache, arch, kind, suite);
    if place.join("root.ext4").is_file() {
        println!("image: {} (cached)", place.display());
        return Ok(place);
    }
    let began = Instant::now();
    println!("image: building {}; this takes a minute, and about five for a foreign architecture", place.display());
    tools::need("mmdebstrap", "mmdebstrap")?;
    tools::need("mke2fs", "e2fsprogs")?;
    if arch == Arch::Arm64 {
        foreign_programs()?;
    }
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let work = tempfile::Builder::new().prefix("making-").tempdir_in(cache)?;
    let root = work.path().join("root");
    let mut mmdebstrap = Command::new("nice");
    mmdebstrap.args(["timeout", "1800", "mmdebstrap"]).args(recipe(arch, kind)).arg(suite).arg(&root);
    for source in [
        format!("deb {MIRROR} {suite} main"),
        format!("deb {MIRROR} {suite}-updates main"),
        format!("deb {MIRROR}-security {suite}-security main"),
    ] {
        mmdebstrap.arg(source);
    }
    run(mmdebstrap.stdin(Stdio::null()))?;
    let finished = work.path().join("finished");
    std::fs::create_dir(&finished)?;
    if kind == Kind::Machine {
        for name in ["vmlinuz", "initrd.img"] {
            std::fs::copy(newest(&root.join("boot"), name)?, finished.join(name))?;
        }
    }
    let disk = finished.join("root.ext4");
    run(Command::new("truncate").args(["-s", ROOT_SIZE]).arg(&disk))?;
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "board", "-d"]).arg(&root).arg(&disk))?;
    if let Err(error) = std::fs::rename(&finished, &place) {
        // Another run was quicker.
        if !place.join("root.ext4").is_file() {
            return Err(error).with_context(|| format!("cannot move the image to {}", place.display()));
        }
    }
    println!("image: made in {} s", began.elapsed().as_secs());
    Ok(place)
}

/// Lets this machine run programs of the other architecture, as the packages' own scripts are.
fn foreign_programs() -> Result<()> {
    tools::need("qemu-aarch64-static", "qemu-user-static")?;
    tools::need("update-binfmts", "binfmt-support")?;
    tools::need("arch-test", "arch-test")?;
    let registered = Path::new("/proc/sys/fs/binfmt_misc/qemu-aarch64");
    if !Path::new("/proc/sys/fs/binfmt_misc/register").exists() {
        run(Command::new("mount").args(["-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc"]))?;
    }
    if !registered.exists() {
        run(Command::new("update-binfmts").args(["--enable", "qemu-aarch64"]))?;
    }
    Ok(())
}

fn newest(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{prefix}-"))) {
            found.push(path);
        }
    }
    found.sort();
    found.pop().with_context(|| format!("no {prefix} in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_architecture_and_kind_has_an_image_of_its_own_with_a_stable_name() {
        let cache = Path::new("/cache");
        let all = [
            folder(cache, Arch::Amd64, Kind::Container, "bookworm"),
            folder(cache, Arch::Amd64, Kind::Machine, "bookworm"),
            folder(cache, Arch::Arm64, Kind::Machine, "bookworm"),
            folder(cache, Arch::Amd64, Kind::Container, "trixie"),
        ];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len(), "{all:?}");
        assert_eq!(folder(cache, Arch::Amd64, Kind::Machine, "bookworm"), all[1]);
    }
}
