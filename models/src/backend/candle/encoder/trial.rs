//! A small calculation on a device, to see that this build's code runs there: a product of the vendor's library and a kernel of ours
//! come in, nothing or what is wrong goes out. Never a time.

use candle_core::{Device, Result, Tensor};

/// Rows and columns: more than a warp, and no multiple of one.
const ROWS: usize = 5;
const WIDTH: usize = 70;

/// Tries a device against the CPU.
///
/// # Errors
/// In words, when something fails there or the numbers differ.
pub(crate) fn try_device(device: &Device) -> std::result::Result<(), String> {
    let run = |device: &Device| -> Result<Vec<f32>> {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
        let numbers = |count: usize| (0..count).map(value).collect::<Vec<_>>();
        let x = Tensor::from_vec(numbers(ROWS * WIDTH), (ROWS, WIDTH), device)?;
        let weight = Tensor::from_vec(numbers(WIDTH * WIDTH), (WIDTH, WIDTH), device)?;
        let bias = Tensor::from_vec(numbers(WIDTH), WIDTH, device)?;
        super::ops::activate(x.matmul(&weight)?, Some(&bias), super::Activation::Gelu)?.flatten_all()?.to_vec1()
    };
    let found = run(device).map_err(|error| error.to_string())?;
    let expected = run(&Device::Cpu).map_err(|error| format!("on the CPU: {error}"))?;
    let worst = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    // Sums of 70 products of numbers up to 4; TF32, should the library use it, is off by a thousandth of each.
    let is_close = worst <= 0.1 && found.iter().all(|value| value.is_finite());
    if is_close { Ok(()) } else { Err(format!("a result is off by {worst}")) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_trial_passes_where_the_code_runs() {
        assert_eq!(super::try_device(&super::Device::Cpu), Ok(()));
        match super::Device::new_cuda(0) {
            Ok(device) => assert_eq!(super::try_device(&device), Ok(())),
            Err(_) => println!("skipped: CUDA: this build or this machine has none"),
        }
    }
}
