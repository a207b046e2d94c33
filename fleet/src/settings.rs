//! The environment and the flags as valid types; the only reader of the environment.
