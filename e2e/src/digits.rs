//! Handwritten digits that the bundled model was not trained on, as requests.

use serde_json::{Value, json};

/// The held-out digits.
#[derive(Debug, serde::Deserialize)]
pub struct Digits {
    /// 64 values of 0 to 16 each.
    pub pixels: Vec<Vec<f32>>,
    /// What they show.
    pub labels: Vec<u32>,
}

/// Reads them from the repository.
///
/// # Panics
/// When the file is missing or damaged.
pub fn held_out() -> Digits {
    let path = crate::root().join("models/tests/data/digits_heldout.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Digits {
    /// The task of classifying one of them.
    pub fn task(&self, index: usize) -> Value {
        let pixels = &self.pixels[index % self.pixels.len()];
        json!({
            "kind": "classify",
            "model": "digits",
            "input": {
                "tensors": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": pixels}],
                "top_n": 1,
            },
        })
    }

    /// What one of them shows.
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index % self.labels.len()]
    }
}

/// The best label in a task's result.
pub fn best_label(result: &Value) -> Option<u32> {
    result["output"]["results"][0][0]["label"].as_str()?.parse().ok()
}
