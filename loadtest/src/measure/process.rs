//! What a process uses, as Linux counts it in `/proc`.

use std::time::Duration;

use anyhow::{Context, ensure};

/// Ticks a second of the CPU times in `/proc/PID/stat`: Linux shows every architecture 100.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the resident memory of a process, in bytes (`VmRSS`).
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_resident(&status).with_context(|| format!("{path} has no VmRSS"))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Returns the CPU time that a process has used, of all its threads, user and system.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_cpu(&stat).with_context(|| format!("{path} cannot be understood"))
}

fn parse_cpu(stat: &str) -> Option<Duration> {
    // The second field is the program's name in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

/// Describes the machine for a report: CPUs and their name.
pub(crate) fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |name| {
            name.trim_start_matches([' ', '\t', ':'])
        });
    format!("{cpus} CPUs, {name}")
}

/// Fails early when there is no such process.
pub(crate) fn check(pid: u32) -> anyhow::Result<()> {
    ensure!(
        resident_bytes(pid).is_ok(),
        "there is no process {pid}, or it cannot be read"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t   10244 kB\n"),
            Some(10_244 * 1024)
        );
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(parse_cpu(stat), Some(Duration::from_secs(2)));
        let own = std::process::id();
        assert!(resident_bytes(own).unwrap() > 100_000);
        assert!(cpu_time(own).is_ok());
        assert!(check(u32::MAX).is_err());
    }
}
