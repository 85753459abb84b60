//! Matrix products and copies by the libraries that serve the models, for measuring what a device can do. A device and sizes go in, a call
//! that works so many times comes out; the time that it takes is the caller's business.

use super::{cuda, pool};
use crate::engine;
use candle_core::{DType, Device, Tensor};
use kernels::linear::Epilogue;
use kernels::linear_int8::{Quantized, Rows, linear_int8};
use kernels::stored::Values;
use rayon::prelude::*;

/// Works so many times one after the other, waits for the end, and says whether it could.
pub type Work = Box<dyn FnMut(usize) -> bool>;

/// What numbers a product is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single precision.
    F32,
    /// IEEE half precision, summed in f32.
    F16,
    /// The upper half of an f32, summed in f32.
    Bf16,
    /// 8 bits, with a scale for each row of the input, which is put into 8 bits as it comes.
    Int8,
}

impl Precision {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

/// What models are calculated in on a device: nothing that it would only imitate.
pub fn precisions(device: engine::Device) -> &'static [Precision] {
    match device {
        engine::Device::Cpu => &[Precision::F32, Precision::Int8],
        engine::Device::Cuda(ordinal) if cuda::has_bf16(ordinal) => &[Precision::F32, Precision::F16, Precision::Bf16],
        engine::Device::Cuda(_) | engine::Device::Metal(_) => &[Precision::F32, Precision::F16],
    }
}

/// Products of two square matrices of this edge, on a CPU by so many threads. `None` where the device is not there, does not know the
/// precision, or has no room for the operands.
pub fn products(device: engine::Device, precision: Precision, edge: usize, threads: usize) -> Option<Work> {
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
        Precision::Int8 if device == engine::Device::Cpu => return products_int8(edge, threads),
        Precision::Int8 => return None,
    };
    let device = super::candle::open(device).ok()?;
    let operand = || Tensor::rand(-1f32, 1f32, (edge, edge), &device)?.to_dtype(dtype);
    let (a, b) = (operand().ok()?, operand().ok()?);
    let pool = pool(threads).ok()?;
    Some(Box::new(move |times| {
        let all = || (0..times).all(|_| std::hint::black_box(a.matmul(&b)).is_ok());
        super::candle::on(&device, &pool, all) && device.synchronize().is_ok()
    }))
}

/// Each thread has some of the rows.
fn products_int8(edge: usize, threads: usize) -> Option<Work> {
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let values: Vec<f32> = (0..edge * edge).map(value).collect();
    let weights = Quantized::new(&[Values::of_f32(&values)], edge).ok()?;
    let pool = pool(threads).ok()?;
    let rows_each = edge.div_ceil(threads.max(1));
    let mut rows: Vec<Rows> = (0..edge.div_ceil(rows_each)).map(|_| Rows::default()).collect();
    let mut out = vec![0.0; edge * edge];
    Some(Box::new(move |times| {
        let product = |((x, out), rows): ((&[f32], &mut [f32]), &mut Rows)| {
            rows.quantize(x, &weights).and_then(|()| linear_int8(rows, &weights, &Epilogue::default(), out)).is_ok()
        };
        (0..times).all(|_| {
            let parts = values.par_chunks(rows_each * edge).zip(out.par_chunks_mut(rows_each * edge));
            pool.install(|| parts.zip(rows.par_iter_mut()).map(product).reduce(|| true, |a, b| a && b))
        })
    }))
}

/// Copies of a block of so many bytes within a device's memory. `None` where the device is not there or has no room for two of them.
pub fn copies(device: engine::Device, bytes: usize) -> Option<Work> {
    let device = super::candle::open(device).ok()?;
    let block = Tensor::zeros(bytes / size_of::<f32>(), DType::F32, &device).ok()?;
    drop(block.copy().ok()?);
    Some(Box::new(move |times| {
        (0..times).all(|_| std::hint::black_box(block.copy()).is_ok()) && device.synchronize().is_ok()
    }))
}

/// A call that multiplies two f32 matrices (`m` × `k`) · (`k` × `n`) on the CPU, on as many threads as models use, and says
/// whether it could. `None` when there is no room for the operands.
pub fn matmul(m: usize, n: usize, k: usize) -> Option<impl FnMut() -> bool> {
    let operand = |rows, columns| Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu).ok();
    let (a, b) = (operand(m, k)?, operand(k, n)?);
    Some(move || std::hint::black_box(a.matmul(&b)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_multiplied_again_and_again() {
        let mut multiply = super::matmul(8, 4, 2).unwrap();
        assert!(multiply() && multiply());
    }

    #[test]
    fn a_cpu_multiplies_in_what_models_are_calculated_in_there() {
        for precision in precisions(engine::Device::Cpu) {
            // No multiple of the threads, nor of what instructions take at once.
            let mut work = products(engine::Device::Cpu, *precision, 70, 3).unwrap();
            assert!(work(0) && work(2), "{}", precision.name());
        }
        assert!(copies(engine::Device::Cpu, 4096).unwrap()(3));
    }

    #[test]
    fn a_device_that_is_not_there_gives_no_work() {
        let metal = engine::Device::Metal(9);
        if cuda::IS_BUILT || cfg!(feature = "metal") {
            return println!("skipped: this build has GPUs");
        }
        assert!(products(metal, Precision::F32, 8, 1).is_none());
        assert!(copies(engine::Device::Cuda(0), 4096).is_none());
        assert!(products(engine::Device::Cuda(0), Precision::Int8, 8, 1).is_none());
    }
}
