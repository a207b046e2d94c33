//! What `cargo xtask vm` says that is to be done.

use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Container,
    Machine,
}

impl Kind {
    /// How much longer the same takes at most: an emulated processor is ten to twenty times slower, and what waits for the
    /// network or a timer is not.
    pub fn slowness(self) -> u32 {
        match self {
            Self::Container => 1,
            Self::Machine => 6,
        }
    }

    pub fn in_words(self) -> &'static str {
        match self {
            Self::Container => "a container",
            Self::Machine => "an emulated machine",
        }
    }
}

/// What `cargo xtask vm` says.
#[derive(Debug, Clone)]
pub struct Given {
    pub kind: Kind,
    pub arch: String,
    pub image: PathBuf,
    pub package: PathBuf,
    pub cuts: u64,
    pub seed: u64,
    /// The daemon's flushes are swallowed: the judge must find that readings are lost.
    pub no_flush: bool,
}

impl Given {
    pub fn from_environment() -> Self {
        let text = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run this with `cargo xtask vm`"))
        };
        Self {
            kind: if text("FLOORGATE_BOARD_KIND") == "container" { Kind::Container } else { Kind::Machine },
            arch: text("FLOORGATE_BOARD_ARCH"),
            image: text("FLOORGATE_BOARD_IMAGE").into(),
            package: text("FLOORGATE_BOARD_PACKAGE").into(),
            cuts: text("FLOORGATE_BOARD_CUTS").parse().unwrap(),
            no_flush: std::env::var_os("FLOORGATE_BOARD_NO_FLUSH").is_some(),
            seed: std::env::var("FLOORGATE_TEST_SEED")
                .map_or_else(|_| fastrand::u64(..1 << 32), |s| s.parse().unwrap()),
        }
    }
}
