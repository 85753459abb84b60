//! Who holds how much of one device's memory: reservations go in, room or the reason why there is none comes out. Pure:
//! it loads and unloads nothing. Counted before anything is loaded, so that nothing is tried that cannot fit. What other programs take of
//! the device counts as well, where the device tells.

use std::collections::BTreeMap;

use models::engine::Device;

use crate::batch::backlog::LaneId;

/// The reservations on one device.
#[derive(Debug, Clone)]
pub struct Ledger {
    device: Device,
    capacity: u64,
    entries: BTreeMap<LaneId, Entry>,
    /// Bytes that others have taken.
    foreign: u64,
}

/// One model's reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `name@version`.
    pub model: String,
    /// Bytes.
    pub bytes: u64,
}

/// A model that could be unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// Which.
    pub lane: LaneId,
    /// The larger, the later it was used.
    pub last_used: u64,
}

/// There is no room, even without the models that could be unloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{model}: needs {need} of memory on {device}, {free} are free of {capacity}{}; unload one of {loaded}, or choose a smaller model",
    others(*.foreign)
)]
pub struct Short {
    /// `name@version` of what was to be loaded.
    pub model: String,
    /// Where.
    pub device: Device,
    /// What it needs.
    pub need: Size,
    /// What is left.
    pub free: Size,
    /// What there is in all.
    pub capacity: Size,
    /// What other programs have taken.
    pub foreign: Size,
    /// What is loaded, in words.
    pub loaded: String,
}

fn others(taken: Size) -> String {
    if taken.0 == 0 { String::new() } else { format!(" ({taken} are taken by other programs: end them)") }
}

/// A number of bytes that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 => write!(f, "{} GiB", bytes >> 30),
            bytes if bytes >= 10 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 10 << 10 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

impl Ledger {
    /// An empty one.
    pub fn new(device: Device, capacity: u64) -> Self {
        Self { device, capacity, entries: BTreeMap::new(), foreign: 0 }
    }

    /// Bytes in all.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are reserved.
    pub fn reserved(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    /// Bytes that others have taken.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Bytes that are neither reserved nor taken by others.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.reserved()).saturating_sub(self.foreign)
    }

    /// Takes in how many bytes of the device are free in fact. What is missing beside the reservations has been taken by others.
    pub fn observe(&mut self, free: u64) {
        self.foreign = self.capacity.saturating_sub(self.reserved()).saturating_sub(free);
    }

    /// Which of the idle models must go before `need` bytes fit, the least recently used first, and no more of them
    /// than necessary.
    ///
    /// # Errors
    /// When all of them together would not do. Then none should go.
    pub fn plan(&self, model: &str, need: u64, idle: &[Idle]) -> Result<Vec<LaneId>, Short> {
        let mut idle: Vec<Idle> = idle.to_vec();
        idle.sort_by_key(|idle| idle.last_used);
        let mut free = self.free();
        let mut victims = Vec::new();
        for candidate in idle {
            if free >= need {
                break;
            }
            if let Some(entry) = self.entries.get(&candidate.lane).filter(|entry| entry.bytes > 0) {
                free += entry.bytes;
                victims.push(candidate.lane);
            }
        }
        if free >= need {
            return Ok(victims);
        }
        let names: Vec<&str> = self.entries.values().map(|entry| entry.model.as_str()).collect();
        Err(Short {
            model: model.into(),
            device: self.device,
            need: Size(need),
            free: Size(self.free()),
            capacity: Size(self.capacity),
            foreign: Size(self.foreign),
            loaded: if names.is_empty() { "none (nothing is loaded)".into() } else { names.join(", ") },
        })
    }

    /// Reserves, or changes a reservation.
    pub fn reserve(&mut self, lane: LaneId, model: &str, bytes: u64) {
        self.entries.insert(lane, Entry { model: model.into(), bytes });
    }

    /// Gives a reservation back.
    pub fn release(&mut self, lane: LaneId) {
        self.entries.remove(&lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(Device::Cpu, 100);
        ledger.reserve(1, "a@1", 40);
        ledger.reserve(2, "b@1", 30);
        ledger
    }

    /// `idle` are (lane, last used).
    fn check(need: u64, idle: &[(LaneId, u64)], want: Option<&[LaneId]>) {
        let idle: Vec<Idle> = idle.iter().map(|&(lane, last_used)| Idle { lane, last_used }).collect();
        let plan = ledger().plan("c@1", need, &idle);
        assert_eq!(plan.as_ref().ok().map(Vec::as_slice), want, "{plan:?}");
    }

    #[test]
    fn idle_models_go_least_recently_used_first_and_only_when_it_helps() {
        check(30, &[(1, 0), (2, 0)], Some(&[]));
        check(31, &[(1, 5), (2, 9)], Some(&[1]));
        check(31, &[(1, 9), (2, 5)], Some(&[2]));
        check(71, &[(1, 9), (2, 5)], Some(&[2, 1]));
        check(101, &[(1, 9), (2, 5)], None);
        check(31, &[], None);
    }

    #[test]
    fn a_refusal_names_the_figures_and_what_could_go() {
        let short = ledger().plan("c@1", 50 << 20, &[]).unwrap_err().to_string();
        assert!(short.starts_with("c@1: needs 50 MiB of memory on cpu, 30 bytes are free of 100 bytes"), "{short}");
        assert!(short.contains("a@1, b@1"), "{short}");
    }

    #[test]
    fn what_other_programs_take_is_not_free() {
        let mut ledger = ledger();
        // Of 100 bytes 70 are reserved, of which models may not have taken all yet.
        ledger.observe(60);
        assert_eq!(ledger.free(), 30);
        ledger.observe(10);
        assert_eq!(ledger.free(), 10);
        let short = ledger.plan("c@1", 50, &[]).unwrap_err().to_string();
        assert!(short.contains("10 bytes are free of 100 bytes (20 bytes are taken by other programs"), "{short}");
        // A model that goes makes room for what it had reserved.
        assert_eq!(ledger.plan("c@1", 50, &[Idle { lane: 1, last_used: 0 }]), Ok(vec![1]));
        ledger.observe(100);
        assert_eq!(ledger.free(), 30);
    }

    #[test]
    fn what_is_released_is_free_again() {
        let mut ledger = ledger();
        ledger.reserve(1, "a@1", 60);
        assert_eq!((ledger.reserved(), ledger.free()), (90, 10));
        ledger.release(1);
        assert_eq!((ledger.reserved(), ledger.free()), (30, 70));
    }
}
