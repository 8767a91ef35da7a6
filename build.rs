//! Puts the commit and its date into the binary, where git knows them.

use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn main() {
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-env-changed=KEYSTEAD_COMMIT");
    println!("cargo::rerun-if-env-changed=KEYSTEAD_BUILD_DATE");
    let set = |name: &str, value: Option<String>| {
        if let Some(value) = std::env::var(name).ok().or(value) {
            println!("cargo::rustc-env={name}={value}");
        }
    };
    set("KEYSTEAD_COMMIT", git(&["rev-parse", "HEAD"]));
    // The commit's date and not the clock's, so that a build can be repeated to the byte.
    let date = git(&["show", "-s", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "HEAD"]);
    set("KEYSTEAD_BUILD_DATE", date);
}
