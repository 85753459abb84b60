//! Our tensors become `ort`'s values and come back. Bytes are copied, never shared, and values never change.

use crate::engine;
use crate::tensor::{DataType, Tensor};
use half::{bf16, f16};
use ort::value::{DynValue, DynValueTypeMarker, Tensor as OrtTensor, TensorElementType, ValueRef};
use std::borrow::Cow;

/// Runs `$run!(rust type, our type)` for the type of a tensor that has elements of one size.
macro_rules! for_each_number {
    ($run:ident) => {
        $run!(
            (u8, U8, Uint8),
            (u16, U16, Uint16),
            (u32, U32, Uint32),
            (u64, U64, Uint64),
            (i8, I8, Int8),
            (i16, I16, Int16),
            (i32, I32, Int32),
            (i64, I64, Int64),
            (f16, F16, Float16),
            (bf16, BF16, Bfloat16),
            (f32, F32, Float32),
            (f64, F64, Float64)
        )
    };
}

/// Our name for an element type.
pub(super) fn from_element_type(element: TensorElementType) -> Option<DataType> {
    macro_rules! matches {
        ($(($rust:ty, $ours:ident, $theirs:ident)),*) => {
            match element {
                $(TensorElementType::$theirs => Some(DataType::$ours),)*
                TensorElementType::Bool => Some(DataType::Bool),
                TensorElementType::String => Some(DataType::Bytes),
                _ => None,
            }
        };
    }
    for_each_number!(matches)
}

/// A value for a session.
pub(super) fn to_ort(tensor: &Tensor) -> Result<DynValue, engine::Error> {
    let shape = tensor.shape().to_vec();
    let data = tensor.data();
    let failed = |e: ort::Error| engine::Error::Input(e.to_string());
    macro_rules! make {
        ($(($rust:ty, $ours:ident, $theirs:ident)),*) => {
            match tensor.datatype() {
                $(DataType::$ours => {
                    let value = |chunk: &[u8]| {
                        <$rust>::from_le_bytes(chunk.try_into().expect("chunks_exact gives chunks of this size"))
                    };
                    let values: Vec<$rust> = data.chunks_exact(size_of::<$rust>()).map(value).collect();
                    OrtTensor::from_array((shape, values)).map(|t| t.into_dyn()).map_err(failed)
                })*
                DataType::Bool => {
                    let values: Vec<bool> = data.iter().map(|byte| *byte != 0).collect();
                    OrtTensor::from_array((shape, values)).map(|t| t.into_dyn()).map_err(failed)
                }
                DataType::Bytes => {
                    let strings = tensor.to_strings().map_err(|e| engine::Error::Input(e.to_string()))?;
                    let text = |bytes: &&[u8]| std::str::from_utf8(bytes).ok().map(str::to_string);
                    let strings: Option<Vec<String>> = strings.iter().map(text).collect();
                    let strings = strings.ok_or_else(|| engine::Error::Input("BYTES elements must be UTF-8".into()))?;
                    OrtTensor::from_string_array((shape, strings.as_slice())).map(|t| t.into_dyn()).map_err(failed)
                }
            }
        };
    }
    for_each_number!(make)
}

/// A session's output of floats, as it lies there where it is f32.
pub(super) fn floats<'a>(value: &'a ValueRef<'_, DynValueTypeMarker>) -> Result<(Vec<usize>, Cow<'a, [f32]>), String> {
    let dims = |shape: &ort::value::Shape| shape.iter().map(|dim| *dim as usize).collect();
    macro_rules! read {
        ($rust:ty, $convert:expr) => {{
            let (shape, values) = value.try_extract_tensor::<$rust>().map_err(|e| e.to_string())?;
            Ok((dims(shape), $convert(values)))
        }};
    }
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => read!(f32, Cow::Borrowed),
        Some(TensorElementType::Float16) => read!(f16, |values: &[f16]| values.iter().map(|x| x.to_f32()).collect()),
        Some(TensorElementType::Bfloat16) => read!(bf16, |values: &[bf16]| values.iter().map(|x| x.to_f32()).collect()),
        other => Err(format!("an output is of {other:?}, not of floats")),
    }
}

/// A session's output.
pub(super) fn from_ort(value: &ValueRef<'_, DynValueTypeMarker>) -> Result<Tensor, String> {
    let element = value.dtype().tensor_type().ok_or("an output is not a tensor")?;
    let datatype = from_element_type(element).ok_or_else(|| format!("an output is of type {element}"))?;
    let dims = |shape: &ort::value::Shape| shape.iter().map(|dim| *dim as usize).collect::<Vec<_>>();
    macro_rules! read {
        ($(($rust:ty, $ours:ident, $theirs:ident)),*) => {
            match datatype {
                $(DataType::$ours => {
                    let (shape, values) = value.try_extract_tensor::<$rust>().map_err(|e| e.to_string())?;
                    let mut bytes = vec![0; size_of_val(values)];
                    let places = bytes.chunks_exact_mut(size_of::<$rust>());
                    places.zip(values).for_each(|(place, value)| place.copy_from_slice(&value.to_le_bytes()));
                    Tensor::new(datatype, dims(shape), bytes.into())
                })*
                DataType::Bool => {
                    let (shape, values) = value.try_extract_tensor::<bool>().map_err(|e| e.to_string())?;
                    let bytes: Vec<u8> = values.iter().map(|v| u8::from(*v)).collect();
                    Tensor::new(datatype, dims(shape), bytes.into())
                }
                DataType::Bytes => {
                    let (shape, values) = value.try_extract_strings().map_err(|e| e.to_string())?;
                    Tensor::from_strings(dims(shape), &values)
                }
            }
        };
    }
    for_each_number!(read).map_err(|e| e.to_string())
}
