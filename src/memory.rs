//! How the daemon asks for memory: from one arena.
//!
//! glibc gives each thread an arena of its own, up to eight a core, and each keeps what was freed in it. The daemon has
//! few threads, and their peaks lie minutes apart: one arena serves them all and saves 0.7 to 0.9 MB of PSS with 50
//! devices (`cargo xtask measure`). Small pieces still come from a cache of each thread's own, so that the threads do
//! not wait for each other more than before.
//!
//! It bounds nothing: how much may wait where stands in `docs/limits.md`.

/// Tells the allocator to keep to one arena, where it has several (glibc). To be called before the first thread is
/// started: arenas that exist stay. Answers whether it was told; without it the daemon works as well, and needs more.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator's own switch has no safe wrapper; its variable is read before `main`")]
pub fn one_arena() -> bool {
    // SAFETY: `mallopt` takes two numbers, no pointer, changes only how later requests are served, and takes the
    // allocator's lock itself.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) == 1 }
}

/// As with glibc; other allocators have one arena or know no such switch.
#[cfg(not(target_env = "gnu"))]
pub fn one_arena() -> bool {
    false
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #[test]
    fn the_allocator_takes_the_switch() {
        assert!(super::one_arena());
    }
}
