//! The gateway's own figures, from `/proc`: what it reports of itself as a device.
//!
//! `cpu_pct` is the share of all cores that was busy since the last sample; `memory_pct` the share of memory that no
//! program could get; `uptime_hours` that of the machine. A figure the kernel does not give is left out, never guessed.

use std::path::Path;

use floorgate_model::{Reading, Readings};

/// Largest file of `/proc` that is read, bytes; `/proc/stat` has a line for each core and interrupt.
const PROC_BYTES_MAX: u64 = 256 * 1024;

/// Takes samples; keeps the counters of the last one.
#[derive(Debug, Default)]
pub struct Vitals {
    last: Option<CpuTimes>,
}

/// One look at the machine and at this process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// Busy share of all cores since the last sample, percent; `None` in the first.
    pub cpu_pct: Option<f64>,
    /// Used share of the memory, percent.
    pub memory_pct: Option<f64>,
    /// How long the machine has been up, hours.
    pub uptime_hours: Option<f64>,
    /// Memory of this process, shared pages counted whole, bytes.
    pub process_rss_bytes: Option<u64>,
    /// Memory of this process, shared pages counted by share, bytes.
    pub process_pss_bytes: Option<u64>,
}

/// Ticks since boot, over all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    /// Doing something.
    pub busy: u64,
    /// Busy or not.
    pub total: u64,
}

impl Vitals {
    /// Nothing seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks once. Reads four small files of the kernel's; cheap enough for an async task every few seconds.
    pub fn sample(&mut self) -> Sample {
        let now = proc_file("stat").as_deref().and_then(cpu_times);
        let cpu_pct = self.last.zip(now).and_then(|(last, now)| busy_percent(last, now));
        self.last = now.or(self.last);
        let rollup = proc_file("self/smaps_rollup");
        let kilobytes = |name| rollup.as_deref().and_then(|text| kilobytes_of(text, name)).map(|kb| kb * 1024);
        let status = || proc_file("self/status").and_then(|text| kilobytes_of(&text, "VmRSS")).map(|kb| kb * 1024);
        Sample {
            cpu_pct,
            memory_pct: proc_file("meminfo").as_deref().and_then(memory_percent),
            uptime_hours: proc_file("uptime").as_deref().and_then(uptime_hours),
            process_rss_bytes: kilobytes("Rss").or_else(status),
            process_pss_bytes: kilobytes("Pss"),
        }
    }
}

impl Sample {
    /// As readings of the gateway, one decimal place: `cpu_pct`, `memory_pct`, `uptime_hours`, `process_memory_mb`.
    #[must_use]
    pub fn readings(&self) -> Readings {
        let memory = self.process_pss_bytes.or(self.process_rss_bytes).map(megabytes);
        let mut readings = Readings::new();
        for (name, value) in [
            ("cpu_pct", self.cpu_pct),
            ("memory_pct", self.memory_pct),
            ("uptime_hours", self.uptime_hours),
            ("process_memory_mb", memory),
        ] {
            if let Some(reading) = value.map(|value| (value * 10.0).round() / 10.0).and_then(Reading::new) {
                // These names are names of readings, and four are fewer than the limit.
                let _ = readings.insert(name, reading);
            }
        }
        readings
    }
}

/// The first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal guest guest_nice`.
#[must_use]
pub fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
    // Guests are part of `user` and `nice` already.
    let total: u64 = ticks.iter().take(8).sum();
    Some(CpuTimes { busy: total.saturating_sub(idle), total })
}

/// The busy share between two looks, percent; `None` if no time passed between them.
#[must_use]
pub fn busy_percent(before: CpuTimes, after: CpuTimes) -> Option<f64> {
    let total = after.total.checked_sub(before.total).filter(|total| *total > 0)?;
    // `iowait` may run backwards, so a core may seem busier than it could be.
    let busy = after.busy.saturating_sub(before.busy).min(total);
    Some(percent(busy, total))
}

/// The used share from `/proc/meminfo`, percent.
#[must_use]
pub fn memory_percent(meminfo: &str) -> Option<f64> {
    let total = kilobytes_of(meminfo, "MemTotal").filter(|total| *total > 0)?;
    let available = kilobytes_of(meminfo, "MemAvailable")?;
    Some(percent(total.saturating_sub(available), total))
}

/// The machine's uptime from `/proc/uptime`, hours.
#[must_use]
pub fn uptime_hours(uptime: &str) -> Option<f64> {
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some(seconds / 3_600.0)
}

/// A line `name:   123 kB`.
#[must_use]
pub fn kilobytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "ticks and kilobytes stay far below 2^53")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

#[expect(clippy::cast_precision_loss, reason = "memory stays far below 2^53 bytes")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn proc_file(name: &str) -> Option<String> {
    use std::io::Read;
    let file = std::fs::File::open(Path::new("/proc").join(name)).ok()?;
    let mut text = String::new();
    file.take(PROC_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_share_is_what_was_not_idle_between_two_looks() {
        let look = |line: &str| cpu_times(&format!("{line}\ncpu0 1 1 1 1\nintr 5\n")).unwrap();
        let before = look("cpu  100 0 50 800 50 0 0 0 90 0");
        assert_eq!(before, CpuTimes { busy: 150, total: 1_000 });
        let after = look("cpu  120 0 55 870 55 0 0 0 99 0");
        assert_eq!(busy_percent(before, after), Some(25.0));
        assert_eq!(busy_percent(before, before), None);
        assert_eq!(busy_percent(after, before), None);
    }

    #[test]
    fn memory_that_can_be_had_is_not_used() {
        let text = "MemTotal:        2000000 kB\nMemFree:          100000 kB\nMemAvailable:    1500000 kB\n";
        assert_eq!(memory_percent(text), Some(25.0));
        assert_eq!(memory_percent("MemTotal: 0 kB\nMemAvailable: 0 kB"), None);
        assert_eq!(memory_percent(""), None);
    }

    #[test]
    fn a_line_is_found_by_its_whole_name() {
        assert_eq!(kilobytes_of("Pss_Dirty: 1 kB\nPss:     7 kB\n", "Pss"), Some(7));
        assert_eq!(uptime_hours("7200.50 100.0\n").map(f64::floor), Some(2.0));
        assert_eq!(uptime_hours(""), None);
    }

    #[test]
    fn this_machine_gives_every_figure_from_the_second_look_on() {
        let mut vitals = Vitals::new();
        assert_eq!(vitals.sample().cpu_pct, None);
        let spin = std::time::Instant::now();
        while spin.elapsed() < std::time::Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let sample = vitals.sample();
        assert!(sample.process_rss_bytes.is_some_and(|bytes| bytes > 100_000), "{sample:?}");
        let readings = sample.readings();
        let names: Vec<_> = readings.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cpu_pct", "memory_pct", "process_memory_mb", "uptime_hours"]);
        assert!((0.0..=100.0).contains(&readings.get("cpu_pct").unwrap().value()));
    }
}
