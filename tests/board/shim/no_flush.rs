//! Flushes that are not made: loaded into the daemon with `LD_PRELOAD`, to see that the board test finds what then is lost.
#![allow(unsafe_code)]

#[unsafe(no_mangle)]
pub extern "C" fn fsync(_: i32) -> i32 {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(_: i32) -> i32 {
    0
}
