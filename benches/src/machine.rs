//! What a reader must know of the machine to judge a number. Nothing comes in but what the system says of itself. Never a
//! measurement: `roofline` measures.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The processor's name, or its architecture where the system does not tell.
pub fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Bytes of the last level of cache that a core can use, or 32 MiB where the system does not tell.
pub fn last_cache_bytes() -> usize {
    let caches = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let sizes = (0..8).filter_map(|index| fs::read_to_string(caches.join(format!("index{index}/size"))).ok());
    sizes.filter_map(|size| parse_size(size.trim())).max().unwrap_or(32 << 20)
}

/// `32768K` as bytes.
fn parse_size(size: &str) -> Option<usize> {
    let (digits, unit) = match size.strip_suffix(['K', 'M']) {
        Some(digits) if size.ends_with('K') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (size, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// Starts this program anew with `RAYON_NUM_THREADS=1` unless the variable is set, and ends with its exit code. The ops
/// use the calling thread alone; a library that is timed beside them must not use more, and reads the variable only when it
/// starts.
pub fn on_one_thread() {
    const THREADS: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(THREADS).is_some() {
        return;
    }
    let program = std::env::current_exe().expect("a bench knows its own file");
    let ended = Command::new(program).args(std::env::args_os().skip(1)).env(THREADS, "1").status();
    std::process::exit(ended.expect("a bench can start itself").code().unwrap_or(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes_are_read_as_the_system_writes_them() {
        for (size, bytes) in [
            ("32K", Some(32 << 10)),
            ("32768K", Some(32 << 20)),
            ("2M", Some(2 << 20)),
            ("512", Some(512)),
            ("", None),
            ("xK", None),
        ] {
            assert_eq!(parse_size(size), bytes, "{size:?}");
        }
    }
}
