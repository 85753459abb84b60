//! Which device takes a model: the devices as they are now go in, a choice with its reason comes out. Pure. It never
//! chooses a slower kind of device without saying why.

use models::engine::Device;

use super::ledger::Size;

/// A device as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub device: Device,
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes that no model has reserved.
    pub free: u64,
}

/// Where a model goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Position in the list of candidates.
    pub index: usize,
    /// Why there, in words for the owner.
    pub reason: String,
}

/// Why no device takes the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device that was asked for is not there.
    #[error("{model} shall run on {asked}, which this worker does not use; it uses {have}")]
    NoSuchDevice {
        /// `name@version`.
        model: String,
        /// As asked.
        asked: Device,
        /// The worker's devices.
        have: String,
    },
    /// Larger than every device.
    #[error("{model} needs {need} of memory, the largest device that it may use has {largest}; choose a smaller model")]
    TooLarge {
        /// `name@version`.
        model: String,
        /// What it needs.
        need: Size,
        /// What the largest device has.
        largest: Size,
    },
}

/// Chooses a device: the one that is asked for; else the accelerator with the most free memory among those that could
/// hold the model; else the CPU.
///
/// # Errors
/// When the asked device is not there, or no device could hold the model even if it were empty.
pub fn place(model: &str, need: u64, asked: Option<Device>, candidates: &[Candidate]) -> Result<Choice, Error> {
    let allowed: Vec<usize> =
        (0..candidates.len()).filter(|&i| asked.is_none_or(|asked| candidates[i].device == asked)).collect();
    if let (Some(asked), []) = (asked, allowed.as_slice()) {
        let have: Vec<String> = candidates.iter().map(|c| c.device.to_string()).collect();
        return Err(Error::NoSuchDevice { model: model.into(), asked, have: have.join(", ") });
    }
    let is_fast = |i: &usize| candidates[*i].device != Device::Cpu;
    let best = allowed
        .iter()
        .copied()
        .filter(|&i| candidates[i].capacity >= need)
        .max_by_key(|i| (is_fast(i), candidates[*i].free, std::cmp::Reverse(*i)));
    let Some(index) = best else {
        let largest = allowed.iter().map(|&i| candidates[i].capacity).max().unwrap_or(0);
        return Err(Error::TooLarge { model: model.into(), need: Size(need), largest: Size(largest) });
    };
    let device = candidates[index].device;
    let fast: Vec<&usize> = allowed.iter().filter(|i| is_fast(i)).collect();
    let reason = match asked {
        Some(asked) => format!("{asked} was asked for"),
        None if is_fast(&index) => format!("{device} has the most free memory of the accelerators that can hold it"),
        None if fast.is_empty() => format!("{device} is the only kind of device in use"),
        None => format!("it needs {}, more than any accelerator has; {device} is slower", Size(need)),
    };
    Ok(Choice { index, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Device = Device::Cpu;
    const GPU: fn(usize) -> Device = Device::Cuda;

    /// `have` are (device, capacity, free).
    fn check(need: u64, asked: Option<Device>, have: &[(Device, u64, u64)], want: Option<(usize, &str)>) {
        let candidates: Vec<_> =
            have.iter().map(|&(device, capacity, free)| Candidate { device, capacity, free }).collect();
        let choice = place("m@1", need, asked, &candidates);
        assert_eq!(choice.as_ref().ok().map(|choice| choice.index), want.map(|(index, _)| index), "{choice:?}");
        if let (Ok(choice), Some((_, word))) = (choice, want) {
            assert!(choice.reason.contains(word), "{}", choice.reason);
        }
    }

    #[test]
    fn the_emptiest_accelerator_that_can_hold_it_is_chosen() {
        check(10, None, &[(CPU, 100, 100), (GPU(0), 50, 20), (GPU(1), 50, 30)], Some((2, "most free")));
        check(40, None, &[(CPU, 100, 100), (GPU(0), 50, 20), (GPU(1), 30, 30)], Some((1, "most free")));
        check(10, None, &[(CPU, 100, 100)], Some((0, "only kind")));
        check(10, None, &[(GPU(0), 50, 50), (GPU(1), 50, 50)], Some((0, "most free")));
    }

    #[test]
    fn the_cpu_instead_of_an_accelerator_has_its_reason() {
        check(60, None, &[(CPU, 100, 100), (GPU(0), 50, 50)], Some((0, "more than any accelerator")));
    }

    #[test]
    fn what_is_asked_for_is_used_or_refused() {
        check(10, Some(CPU), &[(CPU, 100, 100), (GPU(0), 50, 50)], Some((0, "asked")));
        check(60, Some(GPU(0)), &[(CPU, 100, 100), (GPU(0), 50, 50)], None);
        check(10, Some(GPU(1)), &[(CPU, 100, 100), (GPU(0), 50, 50)], None);
        check(101, None, &[(CPU, 100, 100), (GPU(0), 50, 50)], None);
    }
}
