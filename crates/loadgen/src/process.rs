//! Resource use of a process on this machine, from `/proc`; unknown on systems without `/proc`.

use std::time::Duration;

use crate::model::LoadError;

/// A process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process(u32);

impl Process {
    /// A process that must exist.
    pub(super) fn new(pid: u32) -> Result<Self, LoadError> {
        let process = Self(pid);
        let seen = process.cpu().and(process.resident());
        seen.map(|_| process).ok_or(LoadError::NoProcess(pid))
    }

    /// This process.
    pub(super) fn own() -> Self {
        Self(std::process::id())
    }

    /// CPU time of all its threads, in user and kernel mode.
    pub(super) fn cpu(self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        cpu_ticks(&stat).map(|ticks| {
            let hertz = rustix::param::clock_ticks_per_second().max(1);
            Duration::from_secs_f64(ticks as f64 / hertz as f64)
        })
    }

    /// Resident memory, bytes.
    pub(super) fn resident(self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }
}

/// User and system time, fields 14 and 15. The name before them, in parentheses, may contain
/// anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process__cpu_ticks_are_parsed_after_any_process_name() {
        let stat = "7 (a) 9 (b) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(cpu_ticks("7 (a) S 1 7"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn process__own_is_measured_and_missing_is_an_error() {
        assert!(Process::own().resident() > Some(0));
        assert!(Process::own().cpu().is_some());
        // Larger than any process id that a kernel assigns.
        assert!(matches!(Process::new(u32::MAX), Err(LoadError::NoProcess(u32::MAX))));
    }
}
