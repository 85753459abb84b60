//! How fast this machine multiplies matrices with the library that serves the models. Sizes go in, seconds come out; what to
//! conclude from them is the caller's business.

use candle_core::{Device, Tensor};
use std::time::Instant;

/// Multiplies f32 matrices (`m` × `k`) · (`k` × `n`) on the CPU, `iterations` times one after the other, on as many threads as
/// models use. Returns the seconds that this took, without preparing the operands; NaN when it cannot be done.
pub fn matmul_seconds(m: usize, n: usize, k: usize, iterations: usize) -> f64 {
    let operand = |rows, columns| Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu);
    let (Ok(a), Ok(b)) = (operand(m, k), operand(k, n)) else { return f64::NAN };
    let started = Instant::now();
    for _ in 0..iterations {
        let Ok(product) = a.matmul(&b) else { return f64::NAN };
        std::hint::black_box(product);
    }
    started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_more_work_more_of_it() {
        let (little, much) = (matmul_seconds(8, 8, 8, 1), matmul_seconds(256, 256, 256, 20));
        assert!(little > 0.0 && much > little, "{little} s, {much} s");
    }
}
