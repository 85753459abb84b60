//! A stack of dense layers with ReLU between them: rows of one tensor go in, rows of logits come out. It scales its
//! input by one constant and does nothing else to it.
//!
//! ```text
//! x_0 = scale · x      x_{i+1} = relu(W_i x_i + b_i)      logits = W_last x_last + b_last
//! ```

use super::Architecture;
use serde::Deserialize;
use serde_json::Value;

/// The line for the list of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "mlp",
    claims: |config| config["model_type"] == "mlp",
    describe: None,
    decode: None,
    #[cfg(feature = "candle")]
    build: Some(candle::build),
};

/// What a `config.json` states.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    /// Name of the input.
    pub input: String,
    /// Name of the output.
    pub output: String,
    /// Every input value is multiplied by this.
    #[serde(default = "one")]
    pub input_scale: f64,
    /// Widths, the input's first and the output's last.
    pub layers: Vec<usize>,
}

fn one() -> f64 {
    1.0
}

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn from_json(config: &Value) -> Result<Self, String> {
        let config: Self = serde_json::from_value(config.clone()).map_err(|e| e.to_string())?;
        if config.layers.len() < 2 || config.layers.iter().any(|width| !(1..=1 << 24).contains(width)) {
            return Err("layers must be two or more widths between 1 and 16777216".into());
        }
        if !config.input_scale.is_finite() {
            return Err("input_scale must be finite".into());
        }
        Ok(config)
    }
}

#[cfg(feature = "candle")]
mod candle {
    //! The layers on Candle tensors: `[n, width]` in, `[n, width]` out.

    use super::Config;
    use crate::arch::{Rows, Weights};
    use crate::engine::TensorSpec;
    use crate::load::{Error, inspect};
    use crate::manifest::Manifest;
    use crate::tensor::DataType;
    use candle_core::{DType, Result, Tensor};
    use serde_json::Value;

    struct Mlp {
        config: Config,
        /// `W` as `[in, out]`, `b` as `[out]`.
        layers: Vec<(Tensor, Tensor)>,
        dtype: DType,
    }

    pub(super) fn build(
        config: &Value,
        _: &Manifest,
        weights: &Weights<'_>,
    ) -> std::result::Result<Box<dyn Rows>, Error> {
        let config = Config::from_json(config).map_err(|e| Error::config(inspect::CONFIG, e))?;
        let widths = config.layers.iter().zip(&config.layers[1..]).enumerate();
        let layers = widths.map(|(i, (&input, &output))| {
            let weight = weights.transposed(&format!("layers.{i}.weight"), input, output)?;
            Ok((weight, weights.get(&format!("layers.{i}.bias"), &[output])?))
        });
        let layers = layers.collect::<std::result::Result<_, Error>>()?;
        Ok(Box::new(Mlp { config, layers, dtype: weights.dtype() }))
    }

    impl Mlp {
        fn spec(&self, name: &str, width: Option<&usize>) -> TensorSpec {
            TensorSpec { name: name.into(), datatype: DataType::F32, shape: vec![None, width.copied()] }
        }
    }

    impl Rows for Mlp {
        fn input(&self) -> TensorSpec {
            self.spec(&self.config.input, self.config.layers.first())
        }

        fn output(&self) -> TensorSpec {
            self.spec(&self.config.output, self.config.layers.last())
        }

        fn forward(&self, rows: &Tensor) -> Result<Tensor> {
            let mut x = (rows.to_dtype(self.dtype)? * self.config.input_scale)?;
            for (i, (weight, bias)) in self.layers.iter().enumerate() {
                if i > 0 {
                    x = x.relu()?;
                }
                x = x.matmul(weight)?.broadcast_add(bias)?;
            }
            x.to_dtype(DType::F32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(layers: Value, scale: Value, want: bool) {
        let config = json!({"input": "x", "output": "y", "layers": layers, "input_scale": scale});
        assert_eq!(Config::from_json(&config).is_ok(), want, "{config}");
    }

    #[test]
    fn widths_and_scale_are_checked() {
        check(json!([4, 2]), json!(0.5), true);
        check(json!([4]), json!(1.0), false);
        check(json!([4, 0]), json!(1.0), false);
        check(json!([4, 2]), json!("x"), false);
    }
}
