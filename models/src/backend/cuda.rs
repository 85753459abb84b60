//! The CUDA devices as the driver's own library shows them to this process: an ordinal comes in, facts, free memory and a trial of this
//! build's code go out. Builds without the feature `cuda` have none, and say so. Never a model, and never a choice of a device.

/// Whether this build can use CUDA devices.
pub const IS_BUILT: bool = cfg!(feature = "cuda");

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Number in the order of this process, which `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` change.
    pub ordinal: usize,
    /// As the driver names it.
    pub name: String,
    /// `GPU-…`, as the management library writes it.
    pub uuid: String,
    /// Bus address, such as `0000:01:00.0`.
    pub pci_address: String,
    /// Compute capability, such as (8, 9).
    pub compute_capability: (u32, u32),
    /// Device memory in all.
    pub memory_bytes: u64,
    /// Device memory that can be had now.
    pub free_bytes: u64,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The build has no CUDA.
    #[error("this build has no CUDA; use the CUDA binary or the CUDA container image")]
    NotBuilt,
    /// The driver refused.
    #[error("{doing}: CUDA error {code}, {}", meaning(*.code).0)]
    Driver {
        /// What was asked.
        doing: &'static str,
        /// The driver's number, `CUresult`.
        code: u32,
    },
    /// The card is older than what this build was compiled for.
    #[error("{name} has compute capability {}.{}, this build needs {}.{} or newer", have.0, have.1, need.0, need.1)]
    TooOld {
        /// The card.
        name: String,
        /// Its compute capability.
        have: (u32, u32),
        /// The least that the kernels were compiled for.
        need: (u32, u32),
    },
    /// A small calculation did not end, or not with the right numbers.
    #[error("a trial calculation failed: {0}")]
    Trial(String),
}

impl Error {
    /// What mends it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::NotBuilt => "use the CUDA binary or the CUDA container image",
            Error::Driver { code, .. } => meaning(*code).1,
            Error::TooOld { .. } => {
                "use a build for this card: `cargo xtask cuda` builds for Turing (7.5) and all newer ones; CUDA 13 supports none that is older"
            }
            Error::Trial(_) => {
                "restart the machine and update the driver to 580 or newer; if it fails again, the card may be broken: try it elsewhere"
            }
        }
    }
}

/// What the driver's numbers mean to the owner of a card, and what mends it. From the descriptions of `CUresult` in the header cuda.h of
/// CUDA 13.0.
fn meaning(code: u32) -> (&'static str, &'static str) {
    const RESTART: &str =
        "restart the worker; if it comes back, see `dmesg` for Xid lines, and check the card's power and seat";
    match code {
        2 => ("out of memory", "end other programs that use the card"),
        3 | 34 | 999 => (
            "the driver's library does not work: it is a stand-in, or the driver is not loaded",
            "install NVIDIA's driver 580 or newer; in Docker, start the container with --gpus all",
        ),
        35 | 803 => (
            "the driver's library and its kernel module do not fit together, or are too old",
            "restart the machine after updating the driver to 580 or newer",
        ),
        46 => ("another program has the card for itself", "end it, or set the card's compute mode to default"),
        100 => (
            "there is no CUDA device",
            "in Docker, start the container with --gpus all; check CUDA_VISIBLE_DEVICES; see whether nvidia-smi lists the card",
        ),
        101 => ("there is no such device", "choose one that `neurogrid profile` lists, and check CUDA_VISIBLE_DEVICES"),
        209 | 218 | 222 => ("the driver cannot run this build's code", "update the driver to 580 or newer"),
        214 => (
            "device memory has an error that cannot be corrected",
            "restart the machine; if it comes back, replace the card",
        ),
        700 | 702 | 710 | 714..=719 => ("a kernel failed, and the device is of no use to this process", RESTART),
        802 => ("the system is not ready for CUDA", "start NVIDIA's fabric manager, and wait until it is up"),
        804 => ("the driver does not support this CUDA on this card", "update the driver to 580 or newer"),
        _ => ("see cuda.h", RESTART),
    }
}

/// How many devices this process may use.
///
/// # Errors
/// When the build has no CUDA, or the driver does not start.
pub fn count() -> Result<usize, Error> {
    driver::count()
}

/// One device's facts. Makes its context, which takes some hundred MiB of it until the process ends.
///
/// # Errors
/// When the driver refuses.
pub fn device(ordinal: usize) -> Result<CudaDevice, Error> {
    driver::device(ordinal)
}

/// Runs a product and a kernel of ours on a device and looks at the numbers: whether the driver takes this build's code shows nowhere
/// else.
///
/// # Errors
/// When the card is too old, the driver refuses, or the numbers are wrong.
pub fn try_device(ordinal: usize) -> Result<(), Error> {
    driver::try_device(ordinal)
}

/// Whether a device multiplies in bf16: from compute capability 8.0 (Ampere) on. A device that does not answer is told of where it is
/// opened, so it is taken to be like most.
pub(crate) fn has_bf16(ordinal: usize) -> bool {
    let is_new = |(major, _): (u32, u32)| major >= 8;
    driver::compute_capability(ordinal).map_or(true, is_new)
}

/// Device memory that can be had now, after all that was freed has been given back. `None` where that is not known: on a CPU,
/// without CUDA, on a device that does not answer.
pub fn free_bytes(device: crate::engine::Device) -> Option<u64> {
    match device {
        crate::engine::Device::Cuda(ordinal) => driver::free_bytes(ordinal).ok(),
        crate::engine::Device::Cpu | crate::engine::Device::Metal(_) => None,
    }
}

#[cfg(feature = "cuda")]
mod driver {
    use super::{CudaDevice, Error};
    use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};
    use std::sync::Arc;

    fn refused(doing: &'static str) -> impl Fn(DriverError) -> Error {
        move |error| Error::Driver { doing, code: error.0 as u32 }
    }

    pub(super) fn count() -> Result<usize, Error> {
        let count = CudaContext::device_count().map_err(refused("starting CUDA"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn context(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
        CudaContext::new(ordinal).map_err(refused("opening the device"))
    }

    pub(super) fn device(ordinal: usize) -> Result<CudaDevice, Error> {
        let context = context(ordinal)?;
        let asked = refused("asking the device");
        let number = |attribute| context.attribute(attribute).map(|number| number.unsigned_abs()).map_err(&asked);
        let (domain, bus, slot) = (
            number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
        );
        let bytes = context.uuid().map_err(&asked)?.bytes.map(|byte| byte as u8);
        let (free, total) = context.mem_get_info().map_err(&asked)?;
        Ok(CudaDevice {
            ordinal,
            name: context.name().map_err(&asked)?,
            uuid: super::uuid_text(bytes),
            pci_address: format!("{domain:04x}:{bus:02x}:{slot:02x}.0"),
            compute_capability: capability_of(&context)?,
            memory_bytes: total as u64,
            free_bytes: free as u64,
        })
    }

    fn capability_of(context: &CudaContext) -> Result<(u32, u32), Error> {
        let (major, minor) = context.compute_capability().map_err(refused("asking the device"))?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }

    pub(super) fn compute_capability(ordinal: usize) -> Result<(u32, u32), Error> {
        capability_of(&*context(ordinal)?)
    }

    pub(super) fn try_device(ordinal: usize) -> Result<(), Error> {
        let CudaDevice { name, compute_capability: have, .. } = device(ordinal)?;
        let need = kernels::launch::cuda::COMPUTE_CAPABILITY_MIN;
        if have < need {
            return Err(Error::TooOld { name, have, need });
        }
        let device = crate::backend::candle::open(crate::engine::Device::Cuda(ordinal));
        let device = device.map_err(|error| Error::Trial(error.to_string()))?;
        crate::backend::candle::try_device(&device).map_err(Error::Trial)
    }

    pub(super) fn free_bytes(ordinal: usize) -> Result<u64, Error> {
        let context = context(ordinal)?;
        // What was freed goes back to the driver at the next synchronisation, and counts as used until then.
        context.synchronize().map_err(refused("waiting for the device"))?;
        context.mem_get_info().map(|(free, _)| free as u64).map_err(refused("asking for free memory"))
    }
}

#[cfg(not(feature = "cuda"))]
mod driver {
    use super::{CudaDevice, Error};

    pub(super) fn count() -> Result<usize, Error> {
        Err(Error::NotBuilt)
    }

    pub(super) fn device(_: usize) -> Result<CudaDevice, Error> {
        Err(Error::NotBuilt)
    }

    pub(super) fn compute_capability(_: usize) -> Result<(u32, u32), Error> {
        Err(Error::NotBuilt)
    }

    pub(super) fn try_device(_: usize) -> Result<(), Error> {
        Err(Error::NotBuilt)
    }

    pub(super) fn free_bytes(_: usize) -> Result<u64, Error> {
        Err(Error::NotBuilt)
    }
}

/// As NVIDIA's tools write it.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only devices have one"))]
fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_the_management_library_writes_it() {
        let bytes = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0, 1, 2, 3, 4, 5, 6, 0xff];
        assert_eq!(uuid_text(bytes), "GPU-12345678-9abc-def0-0001-0203040506ff");
    }

    #[test]
    fn every_refusal_says_what_it_means_and_what_mends_it() {
        for code in [2, 3, 34, 35, 46, 100, 101, 209, 214, 222, 700, 719, 802, 803, 804, 999, 12_345] {
            let error = Error::Driver { doing: "starting CUDA", code };
            assert!(error.to_string().starts_with(&format!("starting CUDA: CUDA error {code}, ")), "{error}");
            assert!(!error.remedy().is_empty());
        }
        let error = Error::TooOld { name: "Card".into(), have: (7, 5), need: (8, 0) };
        assert_eq!(error.to_string(), "Card has compute capability 7.5, this build needs 8.0 or newer");
    }

    #[test]
    fn a_build_without_cuda_says_so() {
        if IS_BUILT {
            return println!("skipped: this build has CUDA");
        }
        assert_eq!(count(), Err(Error::NotBuilt));
        assert_eq!(device(0), Err(Error::NotBuilt));
        assert_eq!(try_device(0), Err(Error::NotBuilt));
        assert_eq!(free_bytes(crate::engine::Device::Cuda(0)), None);
        assert_eq!(free_bytes(crate::engine::Device::Cpu), None);
    }
}
