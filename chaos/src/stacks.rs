//! Where the threads of a process stand: what is told of one that does not end.

use std::{fmt::Write as _, fs, process::Command};

/// How long a debugger may take.
const DEBUGGER_SECONDS: &str = "30";

/// What every thread of a process does: by the debugger where there is one, else by what the kernel says.
pub fn stacks(pid: u32) -> String {
    by_debugger(pid).unwrap_or_else(|| by_kernel(pid))
}

fn by_debugger(pid: u32) -> Option<String> {
    let pid = pid.to_string();
    let output = Command::new("timeout")
        .args([
            "-k",
            "5",
            DEBUGGER_SECONDS,
            "gdb",
            "-p",
            &pid,
            "-batch",
            "-nx",
            "-ex",
            "thread apply all bt 16",
        ])
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.contains("\n#0 ").then_some(said)
}

/// A line a thread: its name, the state it is in, what it waits for in the kernel.
fn by_kernel(pid: u32) -> String {
    let mut out = String::new();
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let state = read("status")
            .lines()
            .find_map(|line| line.strip_prefix("State:").map(str::trim).map(str::to_owned));
        let (name, waits, call) = (read("comm"), read("wchan"), read("syscall"));
        let _ = writeln!(
            out,
            "{} {}: {}, {} {}",
            thread.file_name().to_string_lossy(),
            name.trim(),
            state.unwrap_or_default(),
            waits.trim(),
            call.trim()
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_of_a_process_is_told() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("a-waiting-one".to_owned());
        let thread = thread.spawn(move || wait.recv().is_err()).expect("a thread");
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let (own, childs) = (by_kernel(std::process::id()), stacks(child.id()));
        child.kill().and_then(|()| child.wait()).expect("killed");
        drop(end);
        assert!(thread.join().expect("ended"));
        assert!(own.contains("a-waiting-one: S"), "{own}");
        assert!(childs.contains("sleep"), "{childs}");
    }
}
