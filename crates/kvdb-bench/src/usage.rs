//! What processes have used: processor time and memory, as Linux tells it under `/proc`.

use std::io;
use std::ops::Sub;
use std::time::Duration;

/// What some processes have used since each was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on processors, of the system's part too.
    pub(crate) cpu: Duration,
    /// Most memory that was resident at a time, in bytes; the sum of each process's own peak.
    pub(crate) peak_memory_bytes: u64,
}

impl Usage {
    /// Of these processes together.
    pub(crate) fn of(pids: &[u32]) -> io::Result<Usage> {
        let mut all = Usage::default();
        for pid in pids {
            let one = of_one(*pid).map_err(|error| {
                let words = format!("cannot read what process {pid} uses: {error}");
                io::Error::new(error.kind(), words)
            })?;
            all.cpu += one.cpu;
            all.peak_memory_bytes += one.peak_memory_bytes;
        }
        Ok(all)
    }

    pub(crate) fn of_this_process() -> io::Result<Usage> {
        Usage::of(&[std::process::id()])
    }
}

/// The time between two readings, with the later peak.
impl Sub for Usage {
    type Output = Usage;

    fn sub(self, earlier: Usage) -> Usage {
        Usage { cpu: self.cpu.saturating_sub(earlier.cpu), ..self }
    }
}

fn of_one(pid: u32) -> io::Result<Usage> {
    let ticks = cpu_ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?);
    let peak_kib = peak_kib(&std::fs::read_to_string(format!("/proc/{pid}/status"))?);
    let unlike = |what| io::Error::new(io::ErrorKind::InvalidData, format!("{what} isn't known"));
    let ticks = ticks.ok_or_else(|| unlike("processor time"))?;
    let peak_kib = peak_kib.ok_or_else(|| unlike("peak memory"))?;
    let cpu = Duration::from_secs_f64(ticks as f64 / ticks_per_second());
    Ok(Usage { cpu, peak_memory_bytes: peak_kib * 1024 })
}

/// `utime` and `stime` of `/proc/PID/stat`: the 14th and 15th field. The second is a name in
/// parentheses that may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn peak_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf only reads a constant of the system.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b (c)) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (short) S 1"), None);
    }

    #[test]
    fn what_this_process_uses_is_found_and_rises() {
        let before = Usage::of_this_process().unwrap();
        assert!(before.peak_memory_bytes > 100_000);
        let started = std::time::Instant::now();
        // The clock of processor time ticks a hundred times a second.
        while Usage::of_this_process().unwrap().cpu == before.cpu {
            assert!(started.elapsed() < Duration::from_secs(60), "busy, and yet no time was used");
        }
        assert!((Usage::of_this_process().unwrap() - before).cpu >= Duration::from_millis(10));
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let error = Usage::of(&[u32::MAX]).unwrap_err().to_string();
        assert!(error.contains(&u32::MAX.to_string()), "{error}");
    }
}
