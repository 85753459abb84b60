//! The oracle: GELU as the formula says it, in f64. What `gelu` takes comes in and goes out. Never fast.

use super::{Error, check};

/// What [`super::gelu`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::gelu`].
///
/// # Errors
/// As [`super::gelu`].
pub fn gelu(x: &mut [f32], bias: Option<&[f32]>) -> Result<(), Error> {
    check(x, bias)?;
    for (i, x) in x.iter_mut().enumerate() {
        let u = bias.map_or(*x, |bias| *x + bias[i % bias.len()]);
        *x = point(f64::from(u)) as f32;
    }
    Ok(())
}

/// `u · Φ(u)`, and its limit −0 for −∞.
pub(crate) fn point(u: f64) -> f64 {
    if u == f64::NEG_INFINITY { -0.0 } else { u * 0.5 * erfc(-u / std::f64::consts::SQRT_2) }
}

/// The complementary error function `1 − erf(z)`, to 1e-13 of its value.
///
/// Up to 2 from the series with terms of one sign, `erf z = 2/√π · e^(−z²) · Σ 2ⁿ z^(2n+1) / (1·3·5 … (2n+1))` (Abramowitz
/// and Stegun 7.1.6), where subtracting it from 1 loses two digits at most; beyond from the continued fraction
/// (7.1.14), evaluated from a depth at which it has settled.
fn erfc(z: f64) -> f64 {
    if z.is_nan() {
        return z;
    }
    let a = z.abs();
    let upper = if a < 2.0 {
        let (mut term, mut sum, mut odd) = (a, a, 1.0);
        while term > sum * 1e-17 {
            odd += 2.0;
            term *= 2.0 * a * a / odd;
            sum += term;
        }
        1.0 - std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else if a < 28.0 {
        // z + (1/2)/(z + 1/(z + (3/2)/(z + 2/(z + …))))
        let fraction = (1..=60).rev().fold(a, |below, k| a + f64::from(k) * 0.5 / below);
        0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() / fraction
    } else {
        0.0
    };
    if z < 0.0 { 2.0 - upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::erfc;

    #[test]
    fn erfc_agrees_with_a_table_of_forty_digits() {
        // Rounded from a computation with 40 digits.
        #[rustfmt::skip]
        let table = [
            (-3.0, 1.9999779095030015), (-1.0, 1.8427007929497148), (-0.25, 1.276326390168237), (0.0, 1.0),
            (1e-08, 0.9999999887162083), (0.25, 0.7236736098317631), (0.5, 0.4795001221869535), (1.0,
            0.15729920705028513), (1.75, 0.013328328780817557), (1.9921875, 0.004841741752687067), (2.0, 0.004677734981047266), (2.25, 0.0014627165866811518), (2.4921875,
            0.00042430625672297805), (2.5, 0.0004069520174449589), (2.75, 0.00010062192211963683), (3.0,
            2.209049699858544e-5), (4.0, 1.541725790028002e-8), (5.0, 1.537459794428035e-12), (8.0,
            1.1224297172982926e-29), (12.0, 1.3562611692059042e-64), (20.0, 5.395865611607901e-176), (26.0,
            5.663192408856143e-296),
        ];
        for (z, expected) in table {
            let found = erfc(z);
            assert!((found - expected).abs() <= 1e-13 * expected, "erfc({z}) = {found:e}, not {expected:e}");
        }
    }
}
