//! Tensors on the wire: arrays of numbers in JSON (nested or flat, as the Open Inference Protocol has it), raw
//! little-endian bytes in MessagePack. Sizes and ranges are checked when they are read.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeSeq, ser::SerializeStruct};
use utoipa::ToSchema;

/// A named tensor: `{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The model's name for it.
    pub name: String,
    /// `BOOL`, `UINT8` to `UINT64`, `INT8` to `INT64`, `FP16`, `BF16`, `FP32`, `FP64`, `BYTES`.
    pub datatype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Little-endian, row-major; `BYTES` elements are preceded by their length as `u32`.
    pub data: Bytes,
}

/// How a [`Tensor`] looks in JSON; for the API's description only.
#[derive(ToSchema)]
#[schema(as = Tensor)]
#[expect(dead_code, reason = "describes the JSON form; never built")]
pub struct TensorJson {
    /// The model's name for it.
    name: String,
    /// `BOOL`, `UINT8` to `UINT64`, `INT8` to `INT64`, `FP16`, `BF16`, `FP32`, `FP64`, `BYTES`.
    datatype: String,
    /// Dimensions, outermost first.
    shape: Vec<u64>,
    /// Numbers, booleans or strings; flat in row-major order, or nested.
    data: Vec<serde_json::Value>,
}

impl utoipa::PartialSchema for Tensor {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        TensorJson::schema()
    }
}

impl ToSchema for Tensor {
    fn name() -> std::borrow::Cow<'static, str> {
        "Tensor".into()
    }
}

/// Bytes of one element of a datatype; `None` for `BYTES` and unknown ones.
pub fn element_bytes(datatype: &str) -> Option<usize> {
    match datatype {
        "BOOL" | "UINT8" | "INT8" => Some(1),
        "UINT16" | "INT16" | "FP16" | "BF16" => Some(2),
        "UINT32" | "INT32" | "FP32" => Some(4),
        "UINT64" | "INT64" | "FP64" => Some(8),
        _ => None,
    }
}

/// The byte strings of `BYTES` data, or `None` when a length runs past the end.
pub fn byte_strings(mut data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        strings.push(string);
        data = rest;
    }
    Some(strings)
}

/// One value of a JSON array.
#[derive(Debug, Clone, PartialEq)]
enum Scalar {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
}

/// The values of a JSON array, nested ones flattened in order.
struct Flat(Vec<Scalar>);

struct FlatSeed<'a> {
    into: &'a mut Vec<Scalar>,
    depth: usize,
}

/// Deeper nesting than any tensor has is an attack on the stack.
const DEPTH_MAX: usize = 16;

impl<'de> de::DeserializeSeed<'de> for FlatSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for FlatSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, booleans or strings, flat or nested")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.into.push(Scalar::Bool(value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.into.push(Scalar::Unsigned(value));
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.into.push(Scalar::Signed(value));
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.into.push(Scalar::Float(value));
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.into.push(Scalar::Text(value.into()));
        Ok(())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if self.depth == DEPTH_MAX {
            return Err(de::Error::custom(format!("data is nested more than {DEPTH_MAX} deep")));
        }
        while seq.next_element_seed(FlatSeed { into: &mut *self.into, depth: self.depth + 1 })?.is_some() {}
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values = Vec::new();
        de::DeserializeSeed::deserialize(FlatSeed { into: &mut values, depth: 0 }, deserializer)?;
        Ok(Self(values))
    }
}

#[derive(Serialize, Deserialize)]
struct Binary {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct Json {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    data: Flat,
}

impl<'de> Deserialize<'de> for Tensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let Json { name, datatype, shape, data } = Json::deserialize(deserializer)?;
            let data = to_bytes(&name, &datatype, &data.0).map_err(de::Error::custom)?;
            Ok(Self { name, datatype, shape, data: data.into() })
        } else {
            let Binary { name, datatype, shape, data } = Binary::deserialize(deserializer)?;
            Ok(Self { name, datatype, shape, data: data.into() })
        }
    }
}

fn to_bytes(name: &str, datatype: &str, values: &[Scalar]) -> Result<Vec<u8>, String> {
    let mut data = Vec::with_capacity(values.len() * element_bytes(datatype).unwrap_or(8));
    for (index, value) in values.iter().enumerate() {
        append(&mut data, datatype, value)
            .ok_or_else(|| format!("tensor {name:?}: data[{index}] is not a value of {datatype:?}"))?;
    }
    Ok(data)
}

fn append(data: &mut Vec<u8>, datatype: &str, value: &Scalar) -> Option<()> {
    macro_rules! integer {
        ($t:ty) => {
            match value {
                Scalar::Unsigned(v) => <$t>::try_from(*v).ok()?.to_le_bytes(),
                Scalar::Signed(v) => <$t>::try_from(*v).ok()?.to_le_bytes(),
                _ => return None,
            }
        };
    }
    let float = || match value {
        Scalar::Unsigned(v) => Some(*v as f64),
        Scalar::Signed(v) => Some(*v as f64),
        Scalar::Float(v) => Some(*v),
        _ => None,
    };
    match datatype {
        "BOOL" => match value {
            Scalar::Bool(v) => data.push(u8::from(*v)),
            Scalar::Unsigned(v @ (0 | 1)) => data.push(*v as u8),
            _ => return None,
        },
        "UINT8" => data.extend(integer!(u8)),
        "UINT16" => data.extend(integer!(u16)),
        "UINT32" => data.extend(integer!(u32)),
        "UINT64" => data.extend(integer!(u64)),
        "INT8" => data.extend(integer!(i8)),
        "INT16" => data.extend(integer!(i16)),
        "INT32" => data.extend(integer!(i32)),
        "INT64" => data.extend(integer!(i64)),
        "FP16" => data.extend(half::f16::from_f64(float()?).to_le_bytes()),
        "BF16" => data.extend(half::bf16::from_f64(float()?).to_le_bytes()),
        "FP32" => data.extend((float()? as f32).to_le_bytes()),
        "FP64" => data.extend(float()?.to_le_bytes()),
        "BYTES" => match value {
            Scalar::Text(text) => {
                data.extend(u32::try_from(text.len()).ok()?.to_le_bytes());
                data.extend(text.as_bytes());
            }
            _ => return None,
        },
        _ => return None,
    }
    Some(())
}

impl Serialize for Tensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Tensor", 4)?;
        let human = HumanReadable(&self.datatype, &self.data);
        out.serialize_field("name", &self.name)?;
        out.serialize_field("datatype", &self.datatype)?;
        out.serialize_field("shape", &self.shape)?;
        out.serialize_field("data", &human)?;
        out.end()
    }
}

/// The data of a tensor: an array of values where people read, bytes where they do not.
struct HumanReadable<'a>(&'a str, &'a [u8]);

impl Serialize for HumanReadable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(datatype, data) = *self;
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(data);
        }
        macro_rules! numbers {
            ($t:ty) => {{
                let values = data
                    .chunks_exact(size_of::<$t>())
                    .map(|c| <$t>::from_le_bytes(c.try_into().expect("chunks_exact gives this length")));
                serializer.collect_seq(values)
            }};
        }
        match datatype {
            "BOOL" => serializer.collect_seq(data.iter().map(|b| *b != 0)),
            "UINT8" => numbers!(u8),
            "UINT16" => numbers!(u16),
            "UINT32" => numbers!(u32),
            "UINT64" => numbers!(u64),
            "INT8" => numbers!(i8),
            "INT16" => numbers!(i16),
            "INT32" => numbers!(i32),
            "INT64" => numbers!(i64),
            "FP16" => {
                serializer.collect_seq(data.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()))
            }
            "BF16" => {
                serializer.collect_seq(data.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()))
            }
            "FP32" => numbers!(f32),
            "FP64" => numbers!(f64),
            _ => {
                let strings = byte_strings(data)
                    .ok_or_else(|| serde::ser::Error::custom("BYTES data is not length-prefixed strings"))?;
                serializer.collect_seq(strings.into_iter().map(String::from_utf8_lossy))
            }
        }
    }
}

/// A matrix of `f32`: an array of rows in JSON, raw bytes on the link.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Length of a row; at least 1 when there are rows.
    pub columns: usize,
    /// Row-major values; a multiple of `columns`.
    pub values: Vec<f32>,
}

impl Matrix {
    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.columns.max(1))
    }
}

impl utoipa::PartialSchema for Matrix {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        Vec::<Vec<f32>>::schema()
    }
}

impl ToSchema for Matrix {
    fn name() -> std::borrow::Cow<'static, str> {
        "Matrix".into()
    }
}

#[derive(Serialize, Deserialize)]
struct BinaryMatrix {
    columns: u64,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

impl Serialize for Matrix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let rows = self.rows();
            let mut out = serializer.serialize_seq(Some(rows.len()))?;
            for row in rows {
                out.serialize_element(row)?;
            }
            return out.end();
        }
        let data = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        BinaryMatrix { columns: self.columns as u64, data }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Matrix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let rows = Vec::<Vec<f32>>::deserialize(deserializer)?;
            let columns = rows.first().map_or(0, Vec::len);
            if rows.iter().any(|row| row.len() != columns || row.is_empty()) {
                return Err(de::Error::custom("rows must be as long as each other and not empty"));
            }
            return Ok(Self { columns, values: rows.concat() });
        }
        let BinaryMatrix { columns, data } = BinaryMatrix::deserialize(deserializer)?;
        let columns = usize::try_from(columns).map_err(de::Error::custom)?;
        let values: Vec<f32> = data.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        // Nothing is a multiple of zero but zero itself.
        if !data.len().is_multiple_of(4) || (columns == 0) != values.is_empty() || !values.len().is_multiple_of(columns)
        {
            return Err(de::Error::custom(format!("{} bytes are no rows of {columns} values", data.len())));
        }
        Ok(Self { columns, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(datatype: &str, data: &str) -> Result<Tensor, String> {
        let json = format!(r#"{{"data": {data}, "name": "x", "shape": [2], "datatype": "{datatype}"}}"#);
        serde_json::from_str(&json).map_err(|e| e.to_string())
    }

    fn check(datatype: &str, data: &str, want: Option<&[u8]>) {
        let read = read(datatype, data);
        assert_eq!(read.as_ref().ok().map(|t| t.data.as_ref()), want, "{datatype} {data}: {read:?}");
    }

    #[test]
    fn json_data_is_read_by_its_type_and_refused_out_of_range() {
        check("UINT8", "[1, 255]", Some(&[1, 255]));
        check("UINT8", "[1, 256]", None);
        check("UINT8", "[1, -1]", None);
        check("INT8", "[[1], [-1]]", Some(&[1, 255]));
        check("INT16", "[1.5, 2]", None);
        check("BOOL", "[true, 0]", Some(&[1, 0]));
        check("BOOL", "[true, 2]", None);
        check("FP16", "[1, 0.5]", Some(&[0, 0x3c, 0, 0x38]));
        check("BYTES", r#"["a", ""]"#, Some(&[1, 0, 0, 0, b'a', 0, 0, 0, 0]));
        check("BYTES", "[1]", None);
        check("FP32", r#"["1"]"#, None);
        check("FP99", "[1]", None);
        check("FP32", "{}", None);
        check("FP32", &format!("{}1{}", "[".repeat(40), "]".repeat(40)), None);
    }

    #[test]
    fn tensors_come_back_in_both_encodings() {
        for (datatype, data) in [("INT64", "[-1,9007199254740993]"), ("FP32", "[0.1,2.0]"), ("BYTES", r#"["ä",""]"#)] {
            let tensor = read(datatype, data).unwrap();
            let json = serde_json::to_string(&tensor).unwrap();
            assert_eq!(serde_json::from_str::<Tensor>(&json).unwrap(), tensor);
            let packed = rmp_serde::to_vec_named(&tensor).unwrap();
            assert_eq!(rmp_serde::from_slice::<Tensor>(&packed).unwrap(), tensor);
        }
    }

    #[test]
    fn a_matrix_comes_back_in_both_encodings() {
        let matrix = Matrix { columns: 2, values: vec![0.1, -2.0, 3.0, 4.5] };
        let json = serde_json::to_string(&matrix).unwrap();
        assert_eq!(json, "[[0.1,-2.0],[3.0,4.5]]");
        assert_eq!(serde_json::from_str::<Matrix>(&json).unwrap(), matrix);
        let packed = rmp_serde::to_vec_named(&matrix).unwrap();
        assert_eq!(rmp_serde::from_slice::<Matrix>(&packed).unwrap(), matrix);
        assert!(serde_json::from_str::<Matrix>("[[1], [1, 2]]").is_err());
    }
}
