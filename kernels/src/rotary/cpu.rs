//! The oracle: the rotation as the formula says it, in f64. What `rotary` takes comes in and goes out. Never fast.

use super::{Error, Table, check};

/// What [`super::rotary`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::rotary`].
///
/// # Errors
/// As [`super::rotary`].
pub fn rotary(x: &mut [f32], stride: usize, width: usize, positions: &[u32], table: &Table) -> Result<(), Error> {
    check(x, stride, width, positions, table)?;
    for (row, position) in x.chunks_exact_mut(stride).zip(positions) {
        let (cos, sin) = table.at(*position);
        for head in row[..width].chunks_exact_mut(table.head_dim()) {
            let (first, second) = head.split_at_mut(table.half);
            for i in 0..table.half {
                let (a, b) = (f64::from(first[i]), f64::from(second[i]));
                let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                first[i] = (a * cos - b * sin) as f32;
                second[i] = (b * cos + a * sin) as f32;
            }
        }
    }
    Ok(())
}
