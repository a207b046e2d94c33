//! The board test: floorgate on Debian with systemd, installed from its package, and its power cut (`cargo xtask vm`,
//! `docs/testing.md`).
//!
//! Broker, table, senders, devices and the judge run on this host; the machine runs the daemon and nothing else. Three stories,
//! each on a machine of its own: [`life`], what a user does with a package in its life, [`acts`], the demo against it, and
//! [`power`], power cuts and other harm under load.
//! The figures are lines that begin with `board:`.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise"
)]

mod acts;
mod given;
mod harm;
mod life;
#[path = "../load/mod.rs"]
mod load;
mod machine;
mod power;
mod processes;
#[path = "../rig/mod.rs"]
mod rig;
mod service;
mod unit;
mod volatile;

use given::Given;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_is_installed_configured_used_upgraded_rolled_back_and_purged() {
    let given = Given::from_environment();
    if !given.no_flush {
        life::story(&given).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demos_acts_end_as_they_should_against_the_package() {
    let given = Given::from_environment();
    if !given.no_flush {
        acts::story(&given).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_runs_twice_however_often_the_power_is_cut() {
    power::story(&Given::from_environment()).await;
}
