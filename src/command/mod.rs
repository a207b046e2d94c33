//! Commands: judged by one pure function, journalled before they are acknowledged, executed one at a time per device.

pub mod admission;
pub mod decision;
pub mod dispatcher;
pub mod judge;
pub mod log;
#[cfg(test)]
pub(crate) mod memory;
pub mod recovery;
pub mod verify;

pub use admission::{Admission, Admitted};
pub use decision::{Decision, Phase, Refusal, Source};
pub use dispatcher::Dispatcher;
pub use judge::Judge;
pub use log::CommandLog;
