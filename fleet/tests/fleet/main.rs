//! The tools over a real table and a real broker. One program for all of it: linking takes longer than running.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    missing_docs,
    unreachable_pub,
    reason = "tests stop at the first surprise"
)]

mod ages;
mod bench;
mod bounds;
mod certificate;
mod doors;
mod hostile;
mod left;
mod lists;
mod many;
mod repeats;
mod rights;
mod runtime_api;
mod seed_defects;
mod status_first;
mod system;
mod told;
mod wire;
