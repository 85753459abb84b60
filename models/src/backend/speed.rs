//! A matrix product by the library that serves the models, for measuring what this machine can do. Sizes go in, a call that
//! multiplies comes out; the time that it takes is the caller's business.

use candle_core::{Device, Tensor};

/// A call that multiplies two f32 matrices (`m` × `k`) · (`k` × `n`) on the CPU, on as many threads as models use, and says
/// whether it could. `None` when there is no room for the operands.
pub fn matmul(m: usize, n: usize, k: usize) -> Option<impl FnMut() -> bool> {
    let operand = |rows, columns| Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu).ok();
    let (a, b) = (operand(m, k)?, operand(k, n)?);
    Some(move || std::hint::black_box(a.matmul(&b)).is_ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn matrices_are_multiplied_again_and_again() {
        let mut multiply = super::matmul(8, 4, 2).unwrap();
        assert!(multiply() && multiply());
    }
}
