//! Commands.
mod admission;
pub mod decision;
pub mod judge;
pub mod log;
