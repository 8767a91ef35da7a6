//! What `sys/host-info` says about the machine, as the kernel tells it.

use std::fs;

use serde_json::{Map, Value, json};

use super::time::rfc3339;

/// The machine: its name, processors, memory and the disk below the root directory. What the kernel does not
/// tell is left out.
pub(super) fn info() -> Map<String, Value> {
    let now_ms = keystead_raft::clock::wall_ms();
    let mut data = Map::new();
    data.insert("timestamp".to_owned(), rfc3339(now_ms).into());
    data.insert("host".to_owned(), host(now_ms));
    data.insert("cpu".to_owned(), cpus(&read("/proc/cpuinfo")));
    data.insert("memory".to_owned(), memory(&read("/proc/meminfo")));
    data.insert("disk".to_owned(), disk());
    data
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn host(now_ms: u64) -> Value {
    let name = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let uptime_s: u64 = read("/proc/uptime").split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0);
    json!({
        "bootTime": (now_ms / 1_000).saturating_sub(uptime_s),
        "hostname": text(name.nodename()),
        "kernelArch": text(name.machine()),
        "kernelVersion": text(name.release()),
        "os": std::env::consts::OS,
        "uptime": uptime_s,
    })
}

fn cpus(cpuinfo: &str) -> Value {
    let blocks = cpuinfo.split("\n\n").filter(|block| block.contains("processor"));
    let cpus = blocks.enumerate().map(|(number, block)| {
        let model = block.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        json!({ "cpu": number, "modelName": model.trim_start_matches(['\t', ' ', ':']) })
    });
    cpus.collect()
}

fn memory(meminfo: &str) -> Value {
    let bytes = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1_024)
    };
    let (total, available) = (bytes("MemTotal"), bytes("MemAvailable"));
    json!({
        "available": available,
        "free": bytes("MemFree"),
        "swapfree": bytes("SwapFree"),
        "swaptotal": bytes("SwapTotal"),
        "total": total,
        "used": total.saturating_sub(available),
    })
}

fn disk() -> Value {
    let Ok(found) = rustix::fs::statvfs("/") else { return Value::Array(Vec::new()) };
    let (total, free) = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize);
    json!([{ "free": free, "path": "/", "total": total, "used": total.saturating_sub(free) }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let shown = memory("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n");
        assert_eq!((&shown["total"], &shown["used"]), (&json!(2_097_152), &json!(1_048_576)));
        let shown =
            cpus("processor\t: 0\nmodel name\t: Fast One\n\nprocessor\t: 1\nmodel name\t: Fast One\n\n");
        assert_eq!(shown[1]["modelName"], "Fast One");
        assert!(!info()["host"]["hostname"].as_str().unwrap().is_empty());
    }
}
