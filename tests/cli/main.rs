//! Golden transcripts: the real command line against a real development server.
//!
//! A transcript is a text file beside this one. A line that begins with `$ ` is run by a shell; below it stands
//! what it must print: its standard output as it is, its standard error behind `! `, its exit code behind `? `
//! where that is not 0. `# ` begins a comment. What differs from run to run is replaced by names in angle
//! brackets, see `settled`; a last line without a newline ends in `<no newline>`.
//!
//! After a change that is meant, `KEYSTEAD_TRANSCRIPTS=write cargo test --test cli` writes down what is printed
//! now; the difference is then to be read line by line before it is committed.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod settled;
mod stage;

use std::fmt::Write as _;
use std::path::PathBuf;

use stage::Stage;

fn play(name: &str, stage: &Stage) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(format!("{name}.txt"));
    let expected = std::fs::read_to_string(&path).unwrap();
    let mut actual = String::new();
    for line in expected.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            let _ = write!(actual, "{line}\n{}", stage.run(command));
        } else if line.starts_with("# ") || line.is_empty() && !in_output(&actual) {
            actual.push_str(line);
            actual.push('\n');
        }
    }
    if std::env::var_os("KEYSTEAD_TRANSCRIPTS").is_some_and(|wish| wish == "write") {
        std::fs::write(&path, &actual).unwrap();
        return;
    }
    let differing = expected.lines().zip(actual.lines()).position(|(expected, actual)| expected != actual);
    let at = differing.unwrap_or(expected.lines().count().min(actual.lines().count()));
    let excerpt =
        |text: &str| text.lines().skip(at.saturating_sub(6)).take(16).collect::<Vec<_>>().join("\n");
    assert!(
        expected == actual,
        "{name}.txt, line {}\n--- expected\n{}\n--- printed\n{}\n",
        at + 1,
        excerpt(&expected),
        excerpt(&actual)
    );
}

/// Whether an empty line would belong to what a command printed.
fn in_output(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("$ "))
}

macro_rules! transcripts {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            play(stringify!($name), &Stage::set());
        }
    )* };
}

#[test]
fn break_glass() {
    play("break_glass", &Stage::set_with_seal());
}

transcripts! {
    addresses
    enrolment
    formats
    key_holders
    kv
    kv_misuse
    kv_without_versions
    local
    logical
    login
    misuse
    names
    members
    operator
    secrets
}
