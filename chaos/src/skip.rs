//! Tests that cannot be run where they are.

use std::io::Write as _;

/// Says that a test is skipped, and why, in a line of its own that begins with `SKIPPED: `.
///
/// It goes to the process's own standard error: the harness keeps back what a test prints that passes.
pub fn skip(why: &str) {
    let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
    // Who closed standard error does not want to know.
    drop(writeln!(std::io::stderr(), "\nSKIPPED: {line}"));
}
