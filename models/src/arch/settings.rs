//! Reads a `config.json`: keys come in, checked values go out, or an error that names the key. Never a value that the file
//! does not state or the published default.

use super::encoder::Activation;
use crate::load::{Error, inspect};
use serde_json::Value;

/// The settings of one model.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a>(pub(super) &'a Value);

/// A bound that no real model comes near keeps products of sizes far from overflow.
const SIZE_MAX: u64 = 1 << 24;

/// Layers at most: a description lists every one before a tensor is looked at. The deepest models have some hundred.
pub(super) const LAYERS_MAX: usize = 1024;

fn wrong(detail: String) -> Error {
    Error::config(inspect::CONFIG, detail)
}

impl<'a> Settings<'a> {
    /// A size from 1 on.
    pub(super) fn size(&self, key: &str) -> Result<usize, Error> {
        match self.0[key].as_u64() {
            Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(size as usize),
            _ => Err(wrong(format!("{key} is {}; a whole number from 1 to {SIZE_MAX} is needed", self.0[key]))),
        }
    }

    /// A number of layers.
    pub(super) fn layers(&self, key: &str) -> Result<usize, Error> {
        match self.size(key)? {
            layers if layers <= LAYERS_MAX => Ok(layers),
            layers => Err(wrong(format!("{key} is {layers}; at most {LAYERS_MAX} are supported"))),
        }
    }

    /// A size, or the default where the key is absent or null.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.0[key].is_null() { Ok(default) } else { self.size(key) }
    }

    /// A positive number, or the default where the key is absent or null.
    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        match &self.0[key] {
            Value::Null => Ok(default),
            value => value
                .as_f64()
                .filter(|number| *number > 0.0 && number.is_finite())
                .ok_or_else(|| wrong(format!("{key} is {value}; a positive number is needed"))),
        }
    }

    /// A word, or the default.
    pub(super) fn word_or(&self, key: &str, default: &'a str) -> &'a str {
        self.0[key].as_str().unwrap_or(default)
    }

    /// What is under a key.
    pub(super) fn under(&self, key: &str) -> Settings<'a> {
        Settings(&self.0[key])
    }

    /// The activation that a key names.
    pub(super) fn activation(&self, key: &str, default: &'a str) -> Result<Activation, Error> {
        match self.word_or(key, default) {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            "relu" => Ok(Activation::Relu),
            other => Err(wrong(format!("{key} {other:?} is not supported; gelu, gelu_new, silu and relu are"))),
        }
    }

    /// Refuses a model that asks for what is not computed here: every key must be absent, null or the value beside it.
    pub(super) fn only(&self, keys: &[(&str, Value)]) -> Result<(), Error> {
        match keys.iter().find(|(key, value)| !self.0[*key].is_null() && self.0[*key] != *value) {
            Some((key, value)) => Err(wrong(format!("{key} {} is not supported; {value} is", self.0[*key]))),
            None => Ok(()),
        }
    }

    /// Refuses heads that do not divide the width. Gives a head's elements.
    pub(super) fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, Error> {
        if hidden.is_multiple_of(heads) {
            return Ok(hidden / heads);
        }
        Err(wrong(format!("a width of {hidden} is not a multiple of {heads} attention heads")))
    }
}

/// Whether `architectures[0]` says that a model has a head for whole sequences.
pub(crate) fn has_head(config: &Value) -> bool {
    config["architectures"][0].as_str().is_some_and(|name| name.ends_with("ForSequenceClassification"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_supported_is_refused_and_named() {
        let config =
            json!({"size": 8, "deep": 16_000_000, "zero": 0, "text": "x", "act": "mish", "flag": true, "none": null});
        let settings = Settings(&config);
        let check = |outcome: Result<(), Error>, key: Option<&str>| match key {
            None => assert_eq!(outcome, Ok(())),
            Some(key) => assert!(outcome.unwrap_err().to_string().contains(key), "{key}"),
        };
        check(settings.size("size").map(|_| ()), None);
        check(settings.size("zero").map(|_| ()), Some("zero"));
        check(settings.size("text").map(|_| ()), Some("text"));
        check(settings.size("missing").map(|_| ()), Some("missing"));
        check(settings.layers("size").map(|_| ()), None);
        check(settings.layers("deep").map(|_| ()), Some("deep"));
        assert_eq!(settings.size_or("none", 3), Ok(3));
        check(settings.activation("act", "gelu").map(|_| ()), Some("mish"));
        assert_eq!(settings.activation("missing", "swish"), Ok(Activation::Silu));
        check(settings.only(&[("flag", json!(true)), ("none", json!(1)), ("missing", json!(1))]), None);
        check(settings.only(&[("flag", json!(false))]), Some("flag"));
        check(settings.positive_or("zero", 1.0).map(|_| ()), Some("zero"));
        check(settings.head_dim(9, 2).map(|_| ()), Some("9"));
    }
}
