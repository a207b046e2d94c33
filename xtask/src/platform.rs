//! The machines that floorgate is packaged for, and what it takes to build and run programs of theirs here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools;

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    /// Debian's name.
    pub(crate) debian: &'static str,
    /// Rust's name.
    pub(crate) target: &'static str,
    /// How its programs run on a machine of another kind; `None` for the kind that builds.
    pub(crate) emulated: Option<Emulation>,
}

/// qemu for programs, with the C library of a Debian cross package.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Emulation {
    pub(crate) qemu: &'static str,
    /// Where the dynamic loader and the C library are. Never used together with a foreign architecture's own libc6 on
    /// this machine: then that one would be loaded by this one's loader, and threads hang.
    pub(crate) libraries: &'static str,
    /// Debian packages that bring them.
    pub(crate) packages: [&'static str; 2],
}

/// All of them. x86-64 is there for gateways that are small PCs, and for tests in a container.
pub(crate) const ALL: [Platform; 3] = [
    Platform { debian: "amd64", target: "x86_64-unknown-linux-gnu", emulated: None },
    Platform {
        debian: "arm64",
        target: "aarch64-unknown-linux-gnu",
        emulated: Some(Emulation {
            qemu: "qemu-aarch64-static",
            libraries: "/usr/aarch64-linux-gnu",
            packages: ["libc6-arm64-cross", "libgcc-s1-arm64-cross"],
        }),
    },
    Platform {
        debian: "armhf",
        target: "armv7-unknown-linux-gnueabihf",
        emulated: Some(Emulation {
            qemu: "qemu-arm-static",
            libraries: "/usr/arm-linux-gnueabihf",
            packages: ["libc6-armhf-cross", "libgcc-s1-armhf-cross"],
        }),
    },
];

impl Platform {
    /// By Debian's name or Rust's.
    ///
    /// # Errors
    /// If there is none of that name; the text lists them.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        let known = || ALL.iter().map(|p| format!("{} ({})", p.target, p.debian)).collect::<Vec<_>>().join(", ");
        let found = ALL.iter().find(|platform| platform.debian == name || platform.target == name);
        found.with_context(|| format!("{name:?} is no platform of floorgate's: {}", known()))
    }

    /// Runs a program of this platform's here.
    ///
    /// # Errors
    /// If qemu or the C library for it are missing and cannot be installed.
    pub(crate) fn command(&self, program: &Path) -> Result<Command> {
        let Some(emulation) = &self.emulated else { return Ok(Command::new(program)) };
        emulation.need()?;
        let mut command = Command::new(emulation.qemu);
        command.arg("-L").arg(emulation.libraries).arg(program);
        Ok(command)
    }
}

impl Emulation {
    /// Makes sure that it is there.
    ///
    /// # Errors
    /// If something is missing and cannot be installed.
    pub(crate) fn need(&self) -> Result<()> {
        tools::need(self.qemu, "qemu-user-static")?;
        let [libc, libgcc] = self.packages;
        tools::need_file(&Path::new(self.libraries).join("lib/libc.so.6"), libc)?;
        tools::need_file(&Path::new(self.libraries).join("lib/libgcc_s.so.1"), libgcc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_lead_to_a_platform_and_others_are_refused_with_a_list() {
        for platform in &ALL {
            assert_eq!(Platform::named(platform.debian).ok(), Some(platform));
            assert_eq!(Platform::named(platform.target).ok(), Some(platform));
        }
        let refused = Platform::named("riscv64").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("armv7-unknown-linux-gnueabihf (armhf)"), "{refused}");
    }
}
