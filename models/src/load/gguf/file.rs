//! A GGUF file, or the parts of one, go in, its metadata and its tensors as views of the mapped files come out. A broken file is refused
//! when it is opened; no number is copied or converted here, and nothing is believed that a file's length does not bear out.
//!
//! # Source
//! The format's description, `docs/gguf.md` of ggml, versions 2 and 3, little-endian.

use super::parts;
use crate::load::Error;
use crate::load::checkpoint::Type;
use crate::load::mmap::Mapped;
use kernels::linear_quantized::Blocks;
use kernels::stored::Stored;
use std::collections::HashMap;
use std::path::Path;

const MAGIC: &[u8; 4] = b"GGUF";

/// Where tensors begin, as a multiple, unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

/// Dimensions of a tensor at most, as the format has it.
const DIMENSIONS_MAX: u32 = 4;

/// Items of a list that are read at most, for each becomes some hundred bytes. The largest vocabularies have 260,000 tokens and 600,000
/// merges.
pub(super) const ITEMS_MAX: usize = 1 << 21;

/// A file that was opened, with its other parts where it has some.
#[derive(Debug)]
pub struct Gguf {
    /// The first has the metadata.
    parts: Vec<Part>,
    metadata: HashMap<String, Value>,
    /// Each with the part that it lies in.
    tensors: HashMap<String, (usize, Info)>,
}

#[derive(Debug)]
struct Part {
    path: String,
    bytes: Mapped,
    data_start: usize,
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned whole number.
    Unsigned(u64),
    /// Any signed whole number.
    Signed(i64),
    /// Any floating-point number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text; what is not UTF-8 stands as replacements.
    Text(String),
    /// Values of one type, which [`Gguf::items`] reads where they lie: a vocabulary is a hundred thousand of them.
    List(List),
}

impl Value {
    /// A whole number from 0 on.
    pub fn whole(&self) -> Option<u64> {
        match self {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }
}

/// Where the values of a list lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    kind: u32,
    count: usize,
    start: usize,
}

/// How a tensor's numbers are stored: number in files, name, numbers that are stored together, their bytes, and what reads them.
type Kind = (u32, &'static str, usize, usize, Type);

/// The kinds that are computed with.
const KINDS: &[Kind] = &[
    (0, "F32", 1, 4, Type::Plain(Stored::F32)),
    (1, "F16", 1, 2, Type::Plain(Stored::F16)),
    (2, "Q4_0", 32, 18, Type::Blocks(Blocks::Q4_0)),
    (3, "Q4_1", 32, 20, Type::Blocks(Blocks::Q4_1)),
    (6, "Q5_0", 32, 22, Type::Blocks(Blocks::Q5_0)),
    (7, "Q5_1", 32, 24, Type::Blocks(Blocks::Q5_1)),
    (8, "Q8_0", 32, 34, Type::Blocks(Blocks::Q8_0)),
    (12, "Q4_K", 256, 144, Type::Blocks(Blocks::Q4_K)),
    (13, "Q5_K", 256, 176, Type::Blocks(Blocks::Q5_K)),
    (14, "Q6_K", 256, 210, Type::Blocks(Blocks::Q6_K)),
    (20, "IQ4_NL", 32, 18, Type::Blocks(Blocks::IQ4_NL)),
    (30, "BF16", 1, 2, Type::Plain(Stored::Bf16)),
];

/// The names of others, for who meets them.
const OTHER_KINDS: &[(u32, &str)] = &[
    (10, "Q2_K"),
    (11, "Q3_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

#[derive(Debug)]
struct Info {
    stored: Type,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A tensor as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// How.
    pub stored: Type,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its bytes. They fit kind and shape.
    pub data: &'a [u8],
}

impl Gguf {
    /// Opens a file, or all parts of one in any order.
    ///
    /// # Errors
    /// When a file cannot be read, is broken, or holds a tensor of a kind that is not computed with here; when a part is missing, is
    /// there twice, or is one of another model.
    pub fn open(folder: &Path, paths: &[&str]) -> Result<Self, Error> {
        let paths = parts::in_order(paths)?;
        let mut all = Self { parts: Vec::new(), metadata: HashMap::new(), tensors: HashMap::new() };
        for (index, path) in paths.iter().enumerate() {
            let wrong = |detail: String| Error::Gguf { path: (*path).into(), detail };
            let bytes = Mapped::open(&folder.join(path)).map_err(|e| Error::io(path, &e))?;
            let (metadata, tensors, data_start) = read(&bytes).map_err(wrong)?;
            parts::check_place(&metadata, index, paths.len()).map_err(wrong)?;
            for (name, info) in tensors {
                if let Some((first, _)) = all.tensors.get(&name) {
                    let first = &all.parts[*first].path;
                    return Err(wrong(format!("tensor {name} is also in {first}; fetch the parts again")));
                }
                all.tensors.insert(name, (index, info));
            }
            if index == 0 {
                all.metadata = metadata;
            }
            all.parts.push(Part { path: (*path).into(), bytes, data_start });
        }
        let (stated, count) = (all.whole(parts::SPLIT_TENSORS)?, all.tensors.len());
        match stated.filter(|stated| *stated != count as u64) {
            Some(stated) => {
                let key = parts::SPLIT_TENSORS;
                Err(all.wrong(format!("its parts hold {count} tensors, and {key} is {stated}")))
            }
            None => Ok(all),
        }
    }

    /// An error of this file.
    pub fn wrong(&self, detail: impl Into<String>) -> Error {
        let path = self.parts.first().map(|part| part.path.clone()).unwrap_or_default();
        Error::Gguf { path, detail: detail.into() }
    }

    /// A value of the metadata.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The values of a list of this file, which were looked at when it was opened.
    pub fn items(&self, list: List) -> impl Iterator<Item = Value> + '_ {
        let bytes = self.parts.first().map_or(&[][..], |part| &part.bytes);
        let mut reader = Reader { bytes, at: list.start };
        (0..list.count).map_while(move |_| reader.value(list.kind).ok())
    }

    /// Whether there is a value of this name.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// A whole number from 0 on; nothing where there is none.
    ///
    /// # Errors
    /// When it is something else.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, Error> {
        self.get(key, "a whole number", Value::whole)
    }

    /// A number.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.get(key, "a number", Value::number)
    }

    /// A text.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.get(key, "a text", Value::text)
    }

    /// True or false.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.get(key, "true or false", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    /// What is made of the items of a list; nothing where there is none.
    ///
    /// # Errors
    /// When it is no list, one of something else than `wanted`, or longer than any model needs.
    pub fn list<T>(&self, key: &str, wanted: &str, of: impl Fn(Value) -> Option<T>) -> Result<Option<Vec<T>>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = if let Value::List(list) = value { *list } else { return Err(self.other_than(key, wanted)) };
        if list.count > ITEMS_MAX {
            return Err(self.wrong(format!("{key} has {} entries; {ITEMS_MAX} are possible", list.count)));
        }
        let items: Option<Vec<T>> = self.items(list).map(of).collect();
        items.map(Some).ok_or_else(|| self.other_than(key, wanted))
    }

    fn get<'a, T>(&'a self, key: &str, wanted: &str, of: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        of(value).map(Some).ok_or_else(|| self.other_than(key, wanted))
    }

    fn other_than(&self, key: &str, wanted: &str) -> Error {
        let shown = match self.value(key) {
            None => "missing".into(),
            Some(Value::List(list)) => format!("a list of {}", list.count),
            Some(Value::Text(text)) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Some(other) => format!("{other:?}"),
        };
        self.wrong(format!("{key} is {shown}; {wanted} is needed"))
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<View<'_>> {
        let (part, info) = self.tensors.get(name)?;
        let Part { bytes, data_start, .. } = &self.parts[*part];
        let data = &bytes[data_start + info.start..data_start + info.end];
        Some(View { stored: info.stored, shape: &info.shape, data })
    }

    /// Every tensor's name, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

type Contents = (HashMap<String, Value>, HashMap<String, Info>, usize);

fn read(bytes: &[u8]) -> Result<Contents, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(MAGIC.len())? != MAGIC {
        return Err("it does not begin as a GGUF file does".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} is not supported; 2 and 3, little-endian, are"));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let mut metadata = HashMap::new();
    for _ in 0..value_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => *alignment,
        Some(other) => return Err(format!("general.alignment is {other:?}; a power of two is needed")),
    };
    let mut tensors = HashMap::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let info = reader.tensor(&name, alignment)?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    let data = (bytes.len() as u64).saturating_sub(data_start) as usize;
    match tensors.iter().find(|(_, info)| info.end > data) {
        Some((name, info)) => Err(format!("tensor {name} ends at byte {} of {data}; the file is cut off", info.end)),
        None => Ok((metadata, tensors, data_start as usize)),
    }
}

/// The number of texts among the types of values.
const TEXT: u32 = 8;

/// Bytes of a value that has always as many.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it ends within its header, at byte {}", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N).map(|bytes| bytes.try_into().expect("as many were taken"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, String> {
        let size = self.u64()?;
        usize::try_from(size).map_err(|_| format!("{size} is more than this machine can address"))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.size()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            TEXT => Value::Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.size()?);
                let start = self.at;
                match (kind, width(kind)) {
                    (TEXT, _) => {
                        (0..count).try_for_each(|_| self.size().and_then(|length| self.take(length)).map(drop))?
                    }
                    (_, Some(width)) => drop(self.take(count.saturating_mul(width))?),
                    (9, None) => return Err("a list of lists is in its header, which no model needs".into()),
                    (other, None) => return Err(format!("a list of the unknown type {other} is in its header")),
                }
                Value::List(List { kind, count, start })
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of the unknown type {other} is in its header")),
        })
    }

    fn tensor(&mut self, name: &str, alignment: u64) -> Result<Info, String> {
        let wrong = |detail: String| format!("tensor {name}: {detail}");
        let count = self.u32()?;
        if !(1..=DIMENSIONS_MAX).contains(&count) {
            return Err(wrong(format!("{count} dimensions; 1 to {DIMENSIONS_MAX} are possible")));
        }
        // Innermost first.
        let mut shape = (0..count).map(|_| self.size()).collect::<Result<Vec<usize>, _>>()?;
        let number = self.u32()?;
        let offset = self.u64()?;
        let (_, label, block, block_bytes, stored) = *KINDS.iter().find(|kind| kind.0 == number).ok_or_else(|| {
            let known: Vec<_> = KINDS.iter().map(|kind| kind.1).collect();
            let name = OTHER_KINDS.iter().find(|kind| kind.0 == number);
            let name = name.map_or_else(|| format!("type {number}"), |(_, name)| (*name).into());
            wrong(format!("is stored as {name}; {} are supported", known.join(", ")))
        })?;
        if !shape[0].is_multiple_of(block) {
            return Err(wrong(format!("rows of {} numbers are not whole blocks of {block} of {label}", shape[0])));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("begins at byte {offset}, not at a multiple of {alignment}")));
        }
        let numbers = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let bytes = numbers.and_then(|numbers| (numbers / block).checked_mul(block_bytes));
        let start = usize::try_from(offset).ok();
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
        let (start, end) = start.zip(end).ok_or_else(|| wrong("is larger than memory can be".into()))?;
        if start == end {
            return Err(wrong("has no numbers".into()));
        }
        shape.reverse();
        Ok(Info { stored, shape, start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes a file: metadata as type and bytes, tensors as dimensions (innermost first), type, offset.
    fn file(values: &[(&str, u32, Vec<u8>)], tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        for (key, kind, value) in values {
            bytes.extend(text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for (name, shape, kind, offset) in tensors {
            bytes.extend(text(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        bytes.extend((0..data).map(|at| at as u8));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Gguf, Error> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.gguf"), bytes).unwrap();
        Gguf::open(folder.path(), &["m.gguf"])
    }

    fn good() -> Vec<u8> {
        let list =
            [&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &1_u64.to_le_bytes(), b"a", &0_u64.to_le_bytes()].concat();
        let values = [
            ("general.architecture", 8, [&5_u64.to_le_bytes()[..], b"llama"].concat()),
            ("llama.block_count", 4, 2_u32.to_le_bytes().to_vec()),
            ("llama.eps", 6, 0.5_f32.to_le_bytes().to_vec()),
            ("tokenizer.ggml.tokens", 9, list),
            ("yes", 7, vec![1]),
            ("less", 11, (-3_i64).to_le_bytes().to_vec()),
        ];
        file(&values, &[("a.weight", &[3, 2], 0, 0), ("b.weight", &[64, 1], 8, 32)], 32 + 2 * 34)
    }

    #[test]
    fn what_was_written_is_read() {
        let file = open(&good()).unwrap();
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(file.value("general.architecture"), Some(&text("llama")));
        assert_eq!(file.value("llama.block_count"), Some(&Value::Unsigned(2)));
        assert_eq!(file.value("llama.eps"), Some(&Value::Float(0.5)));
        let texts = |value: Value| value.text().map(str::to_owned);
        assert_eq!(file.list("tokenizer.ggml.tokens", "texts", texts), Ok(Some(vec!["a".to_owned(), String::new()])));
        assert_eq!((file.value("yes"), file.value("less")), (Some(&Value::Bool(true)), Some(&Value::Signed(-3))));
        let view = file.tensor("a.weight").unwrap();
        assert_eq!((view.shape, view.data.len(), view.data[5]), (&[2, 3][..], 24, 5));
        assert_eq!(view.stored, Type::Plain(Stored::F32));
        let view = file.tensor("b.weight").unwrap();
        assert_eq!((view.shape, view.data.len(), view.data[0]), (&[1, 64][..], 68, 32));
        assert_eq!(view.stored, Type::Blocks(Blocks::Q8_0));
        let mut names: Vec<&str> = file.names().collect();
        names.sort_unstable();
        assert_eq!(names, ["a.weight", "b.weight"]);
    }

    #[test]
    fn what_is_broken_is_refused_and_named() {
        let check = |bytes: &[u8], words: &str| {
            let error = open(bytes).err().unwrap().to_string();
            assert!(error.contains(words) && error.contains("m.gguf"), "{error}");
        };
        check(b"GGML\x03\0\0\0", "begin");
        check(&[&MAGIC[..], &1_u32.to_le_bytes(), &[0; 16]].concat(), "version 1");
        check(&file(&[], &[("t", &[33], 8, 0)], 99), "whole blocks of 32");
        check(&file(&[], &[("t", &[256], 10, 0)], 99), "tensor t: is stored as Q2_K");
        check(&file(&[], &[("t", &[32], 99, 0)], 99), "type 99");
        check(&file(&[], &[("t", &[32], 0, 3)], 999), "multiple of 32");
        check(&file(&[], &[("t", &[32], 0, 32)], 128), "cut off");
        check(&file(&[], &[("t", &[], 0, 0)], 0), "0 dimensions");
        check(&file(&[], &[("t", &[32, 0], 0, 0)], 0), "no numbers");
        check(&file(&[], &[("t", &[1 << 62, 1 << 62], 0, 0)], 0), "larger than memory");
        check(&file(&[], &[("t", &[1], 0, 0), ("t", &[1], 0, 0)], 9), "twice");
        check(&file(&[("general.alignment", 4, 12_u32.to_le_bytes().to_vec())], &[], 0), "power of two");
        check(&file(&[("k", 9, [&4_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())], &[], 0), "ends within");
        check(&file(&[("k", 9, [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat())], &[], 0), "list of lists");
        check(
            &file(&[("k", 9, [&13_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat())], &[], 0),
            "unknown type 13",
        );
        check(&file(&[("k", 9, [&8_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())], &[], 0), "ends within");
        check(&file(&[("k", 13, vec![])], &[], 0), "unknown type 13");
    }

    #[test]
    fn types_have_the_bytes_that_their_readers_suppose() {
        for (number, name, elements, bytes, stored) in KINDS {
            match stored {
                Type::Blocks(blocks) => {
                    assert_eq!((*elements, *bytes), (blocks.elements(), blocks.bytes()), "{name}");
                    assert_eq!(format!("{blocks:?}"), *name, "{number}");
                }
                Type::Plain(stored) => assert_eq!((*elements, *bytes), (1, stored.bytes()), "{name}"),
                other => panic!("{name} is {other}"),
            }
        }
        let are_read = |blocks| KINDS.iter().any(|kind| kind.4 == Type::Blocks(blocks));
        assert!(Blocks::ALL.iter().all(|blocks| are_read(*blocks)));
        assert!(OTHER_KINDS.iter().all(|(number, _)| KINDS.iter().all(|kind| kind.0 != *number)));
    }

    #[test]
    fn a_file_that_ends_early_is_refused_wherever() {
        let whole = good();
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        /// Whatever is in a file, it is read or refused, and what is read lies within it.
        #[test]
        fn no_file_is_believed(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut bytes = good();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok((_, tensors, start)) = read(&bytes) {
                for info in tensors.values() {
                    prop_assert!(info.start <= info.end && start + info.end <= bytes.len());
                }
            }
        }
    }
}
