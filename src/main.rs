//! The floorgate binary: everything is in the library, from [`floorgate::cli`] on.

use std::process::ExitCode;

fn main() -> ExitCode {
    // TLS needs its cryptography named once a process; a second naming would change nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    floorgate::cli::main()
}
