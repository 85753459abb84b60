//! Dense tensors as they cross the edges: a data type, a shape and little-endian bytes in row-major order.
//! Checked once when made; never a view of a device's memory.

use bytes::Bytes;

/// Element type. The names in parentheses are those of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// One byte, 0 or 1 (`BOOL`).
    Bool,
    /// Unsigned 8 bit (`UINT8`).
    U8,
    /// Unsigned 16 bit (`UINT16`).
    U16,
    /// Unsigned 32 bit (`UINT32`).
    U32,
    /// Unsigned 64 bit (`UINT64`).
    U64,
    /// Signed 8 bit (`INT8`).
    I8,
    /// Signed 16 bit (`INT16`).
    I16,
    /// Signed 32 bit (`INT32`).
    I32,
    /// Signed 64 bit (`INT64`).
    I64,
    /// IEEE half precision (`FP16`).
    F16,
    /// bfloat16 (`BF16`).
    BF16,
    /// IEEE single precision (`FP32`).
    F32,
    /// IEEE double precision (`FP64`).
    F64,
    /// Byte strings, each preceded by its length as a little-endian `u32` (`BYTES`).
    Bytes,
}

impl DataType {
    /// Every data type with its protocol name.
    pub const ALL: &[(DataType, &'static str)] = &[
        (DataType::Bool, "BOOL"),
        (DataType::U8, "UINT8"),
        (DataType::U16, "UINT16"),
        (DataType::U32, "UINT32"),
        (DataType::U64, "UINT64"),
        (DataType::I8, "INT8"),
        (DataType::I16, "INT16"),
        (DataType::I32, "INT32"),
        (DataType::I64, "INT64"),
        (DataType::F16, "FP16"),
        (DataType::BF16, "BF16"),
        (DataType::F32, "FP32"),
        (DataType::F64, "FP64"),
        (DataType::Bytes, "BYTES"),
    ];

    /// Name in the Open Inference Protocol, e.g. `FP32`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(t, _)| *t == self).map(|(_, n)| *n).expect("ALL lists every data type")
    }

    /// The data type of a protocol name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(t, _)| *t)
    }

    /// Bytes of one element; `None` for [`DataType::Bytes`], whose elements differ in length.
    pub fn size(self) -> Option<usize> {
        match self {
            DataType::Bool | DataType::U8 | DataType::I8 => Some(1),
            DataType::U16 | DataType::I16 | DataType::F16 | DataType::BF16 => Some(2),
            DataType::U32 | DataType::I32 | DataType::F32 => Some(4),
            DataType::U64 | DataType::I64 | DataType::F64 => Some(8),
            DataType::Bytes => None,
        }
    }
}

/// A dense tensor. Its bytes always fit its type and shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    datatype: DataType,
    shape: Vec<usize>,
    data: Bytes,
}

/// A tensor with the name under which a model knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// The model's name for this input or output.
    pub name: String,
    /// The values.
    pub tensor: Tensor,
}

/// Why bytes are not a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of bytes does not fit the shape.
    #[error("shape {shape:?} of {datatype} needs {need} bytes, the data has {have}; send one value per element")]
    Length {
        /// Element type's protocol name.
        datatype: &'static str,
        /// Shape as given.
        shape: Vec<usize>,
        /// Bytes that the shape needs.
        need: usize,
        /// Bytes that came.
        have: usize,
    },
    /// The product of the dimensions does not fit memory.
    #[error("shape {shape:?} is too large")]
    TooLarge {
        /// Shape as given.
        shape: Vec<usize>,
    },
    /// A length-prefixed byte string runs past the end of the data, or their number is not the shape's.
    #[error("BYTES data does not hold {need} length-prefixed elements")]
    Strings {
        /// Elements that the shape needs.
        need: usize,
    },
    /// Values of another type were asked for.
    #[error("the tensor holds {have}, not {want}")]
    Type {
        /// The wanted type's protocol name.
        want: &'static str,
        /// The actual type's protocol name.
        have: &'static str,
    },
    /// A `BOOL` that is neither 0 nor 1.
    #[error("BOOL element {index} is neither 0 nor 1")]
    Bool {
        /// Position of the element.
        index: usize,
    },
}

impl Tensor {
    /// A tensor from little-endian bytes.
    ///
    /// # Errors
    /// When the bytes do not fit the type and shape.
    pub fn new(datatype: DataType, shape: Vec<usize>, data: Bytes) -> Result<Self, Error> {
        let elements = shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .ok_or_else(|| Error::TooLarge { shape: shape.clone() })?;
        match datatype.size() {
            Some(size) => {
                let need = elements.checked_mul(size).ok_or_else(|| Error::TooLarge { shape: shape.clone() })?;
                if need != data.len() {
                    return Err(Error::Length { datatype: datatype.name(), shape, need, have: data.len() });
                }
                if datatype == DataType::Bool
                    && let Some(index) = data.iter().position(|b| *b > 1)
                {
                    return Err(Error::Bool { index });
                }
            }
            None => {
                if byte_strings(&data).is_none_or(|s| s.len() != elements) {
                    return Err(Error::Strings { need: elements });
                }
            }
        }
        Ok(Self { datatype, shape, data })
    }

    /// An `FP32` tensor. `values.len()` must be the product of `shape`.
    ///
    /// # Errors
    /// When it is not.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, Error> {
        Self::new(DataType::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into())
    }

    /// An `INT64` tensor. `values.len()` must be the product of `shape`.
    ///
    /// # Errors
    /// When it is not.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Result<Self, Error> {
        Self::new(DataType::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into())
    }

    /// A `BYTES` tensor of byte strings.
    ///
    /// # Errors
    /// When their number is not the product of `shape`.
    pub fn from_strings<S: AsRef<[u8]>>(shape: Vec<usize>, values: &[S]) -> Result<Self, Error> {
        let mut data = Vec::new();
        for value in values {
            let value = value.as_ref();
            let length = u32::try_from(value.len()).map_err(|_| Error::TooLarge { shape: shape.clone() })?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(value);
        }
        Self::new(DataType::Bytes, shape, data.into())
    }

    /// Element type.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Dimensions, outermost first. Empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian bytes, row-major.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Size of the outermost dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The values of an `FP32` tensor.
    ///
    /// # Errors
    /// When it holds another type.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        self.expect_type(DataType::F32)?;
        Ok(self.data.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
    }

    /// The values of an `INT64` tensor.
    ///
    /// # Errors
    /// When it holds another type.
    pub fn to_i64(&self) -> Result<Vec<i64>, Error> {
        self.expect_type(DataType::I64)?;
        let value = |c: &[u8]| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]);
        Ok(self.data.chunks_exact(8).map(value).collect())
    }

    /// The byte strings of a `BYTES` tensor.
    ///
    /// # Errors
    /// When it holds another type.
    pub fn to_strings(&self) -> Result<Vec<&[u8]>, Error> {
        self.expect_type(DataType::Bytes)?;
        Ok(byte_strings(&self.data).expect("checked when the tensor was made"))
    }

    /// Whether every floating-point value is finite. Other types always are.
    pub fn is_finite(&self) -> bool {
        let chunks = |size| self.data.chunks_exact(size);
        match self.datatype {
            DataType::F16 => chunks(2).all(|c| half::f16::from_le_bytes([c[0], c[1]]).is_finite()),
            DataType::BF16 => chunks(2).all(|c| half::bf16::from_le_bytes([c[0], c[1]]).is_finite()),
            DataType::F32 => chunks(4).all(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]).is_finite()),
            DataType::F64 => {
                chunks(8).all(|c| f64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]).is_finite())
            }
            _ => true,
        }
    }

    fn expect_type(&self, want: DataType) -> Result<(), Error> {
        if self.datatype == want {
            return Ok(());
        }
        Err(Error::Type { want: want.name(), have: self.datatype.name() })
    }
}

fn byte_strings(mut data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        strings.push(string);
        data = rest;
    }
    Some(strings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(datatype: DataType, shape: &[usize], bytes: usize, want: bool) {
        let made = Tensor::new(datatype, shape.to_vec(), vec![0; bytes].into());
        assert_eq!(made.is_ok(), want, "{datatype:?} {shape:?} {bytes}: {made:?}");
    }

    #[test]
    fn bytes_must_fit_type_and_shape() {
        check(DataType::F32, &[2, 3], 24, true);
        check(DataType::F32, &[2, 3], 23, false);
        check(DataType::F64, &[], 8, true);
        check(DataType::I8, &[0, 7], 0, true);
        check(DataType::F32, &[usize::MAX, 2], 8, false);
        check(DataType::F64, &[usize::MAX / 4], 8, false);
        check(DataType::Bytes, &[2], 8, true);
        check(DataType::Bytes, &[2], 7, false);
        check(DataType::Bytes, &[1], 8, false);
    }

    #[test]
    fn a_bool_is_zero_or_one() {
        assert_eq!(Tensor::new(DataType::Bool, vec![3], vec![0, 1, 2].into()), Err(Error::Bool { index: 2 }));
    }

    #[test]
    fn strings_come_back_as_they_went_in() {
        let tensor = Tensor::from_strings(vec![3], &["a", "", "three"]).unwrap();
        assert_eq!(tensor.to_strings().unwrap(), [b"a".as_slice(), b"", b"three"]);
    }

    #[test]
    fn not_a_number_is_found_in_every_float_type() {
        assert!(!Tensor::from_f32(vec![2], &[0.0, f32::NAN]).unwrap().is_finite());
        assert!(Tensor::from_f32(vec![2], &[0.0, f32::MAX]).unwrap().is_finite());
        let infinity = half::bf16::INFINITY.to_le_bytes().to_vec();
        assert!(!Tensor::new(DataType::BF16, vec![1], infinity.into()).unwrap().is_finite());
    }
}
