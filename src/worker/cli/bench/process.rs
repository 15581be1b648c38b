//! The cost of a process, from `/proc`.

use std::fs;
use std::time::Duration;

/// Unit of processor times in `/proc` (USER_HZ).
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process, including all its threads, also ended ones.
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat).map_or(Duration::ZERO, |ticks| TICK * ticks)
}

/// utime and stime, proc(5) fields 14 and 15; the command in field 2 may contain blanks and parentheses.
fn ticks(stat: &str) -> Option<u32> {
    let (_, after_command) = stat.rsplit_once(')')?;
    let mut times = after_command.split_whitespace().skip(11).map(str::parse::<u32>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

/// The child processes.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Resident memory in MiB: current and peak.
pub fn memory(pid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    };
    (mib("VmRSS:"), mib("VmHWM:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_file_is_read_behind_any_command_name() {
        let stat = "77 (a) b) (c) S 1 77 77 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("garbage"), None);
    }

    #[test]
    fn this_process_has_memory_and_no_child_of_nobody() {
        let (now, most) = memory(std::process::id());
        assert!(now > 0.0 && most >= now);
        assert!(children(u32::MAX).is_empty());
    }
}
