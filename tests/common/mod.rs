//! What every end-to-end test begins with.

#![allow(dead_code)] // no test uses all of it

use std::time::Duration;

use keystead_chaos::{Builder, Cluster};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_keystead");

/// Three nodes by stock configuration, to be changed before they start.
pub fn three() -> Builder {
    Builder::new(BINARY, 3)
}

/// One node by stock configuration.
pub fn one() -> Builder {
    Builder::new(BINARY, 1)
}

/// Three nodes, initialised, unsealed, voting, with kv v2 at `secret/`.
pub async fn ready() -> Cluster {
    Box::pin(three().ready()).await.expect("a cluster by stock configuration starts")
}

/// A bound on time that holds for a release, made wider for a build without optimisation.
pub fn at_most(release: Duration) -> Duration {
    if cfg!(debug_assertions) { release * 3 } else { release }
}

/// Whether the full numbers are asked for: `tests/run --long`.
pub fn long() -> bool {
    std::env::var_os("KEYSTEAD_TESTS_LONG").is_some()
}
