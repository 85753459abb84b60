//! Files that are one model together: their names, and what each states of its place, come in, their order goes out. No file is opened
//! here.
//!
//! # Source
//! The names that llama.cpp's `gguf-split` writes: `NAME-00001-of-00003.gguf`.

use super::Value;
use crate::load::Error;
use std::collections::HashMap;

/// What a file's name says of its place: what all parts are called, its number from 1 on, and how many there are.
fn place(path: &str) -> Option<(&str, usize, usize)> {
    let number = |digits: &str| {
        let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<usize>().ok().filter(|_| is_number)
    };
    let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (name, at) = rest.rsplit_once('-')?;
    let (at, count) = (number(at)?, number(count)?);
    (1..=count).contains(&at).then_some((name, at, count))
}

/// Whether two files belong to one model, by their names.
pub fn are_one(a: &str, b: &str) -> bool {
    let of = |path| place(path).map(|(name, _, count)| (name, count));
    a == b || (of(a).is_some() && of(a) == of(b))
}

/// The files of one model in their order.
///
/// # Errors
/// When a part is missing, or a file belongs to another model.
pub fn in_order<'p>(paths: &[&'p str]) -> Result<Vec<&'p str>, Error> {
    let refuse = |path: &str, detail: String| Err(Error::Gguf { path: path.into(), detail });
    let Some(first) = paths.first() else { return refuse("*.gguf", "there is none".into()) };
    if let Some(other) = paths.iter().find(|path| !are_one(first, path)) {
        return refuse(other, format!("it is no part of the model that {first} is of; keep one of the two"));
    }
    let Some((name, _, count)) = place(first) else { return Ok(vec![*first]) };
    let mut all = Vec::new();
    for at in 1..=count {
        match paths.iter().find(|path| place(path).is_some_and(|(_, found, _)| found == at)) {
            Some(path) => all.push(*path),
            None => {
                let missing = format!("{name}-{at:05}-of-{count:05}.gguf");
                return refuse(&missing, format!("it is missing; put all {count} parts of the model into one folder"));
            }
        }
    }
    Ok(all)
}

/// A part's number, from 0 on.
const SPLIT_NUMBER: &str = "split.no";
/// How many parts there are.
const SPLIT_COUNT: &str = "split.count";
/// How many tensors all of them hold.
pub(super) const SPLIT_TENSORS: &str = "split.tensors.count";

/// Whether a file is the part that its name says.
pub(super) fn check_place(metadata: &HashMap<String, Value>, index: usize, count: usize) -> Result<(), String> {
    let stated = |key: &str, default: u64| match metadata.get(key) {
        None => Ok(default),
        Some(value) => value.whole().ok_or_else(|| format!("{key} is {value:?}; a whole number is needed")),
    };
    // A whole file states nothing.
    let (no, of) = (stated(SPLIT_NUMBER, 0)?, stated(SPLIT_COUNT, 1)?);
    match (of, count) {
        (0 | 1, 1) => Ok(()),
        (of, _) if of != count as u64 => Err(format!(
            "it is one of {of} parts of a model ({SPLIT_COUNT}), and its name says {count}; put all parts into one folder under the names \
             that they were made with"
        )),
        _ if no != index as u64 => Err(format!(
            "it is part {} of {of} ({SPLIT_NUMBER} is {no}), and its name says {}; fetch the parts again",
            no.saturating_add(1),
            index + 1
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(paths: &[&str], want: Result<&[&str], &str>) {
        match (in_order(paths), want) {
            (Ok(found), Ok(want)) => assert_eq!(found, want),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, want) => panic!("{found:?} is not {want:?}"),
        }
    }

    #[test]
    fn parts_come_in_their_order_and_all_of_them() {
        let (one, two, three) = ("a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf");
        check(&[three, one, two], Ok(&[one, two, three]));
        check(&["a.gguf"], Ok(&["a.gguf"]));
        check(&["a-1-of-3.gguf"], Ok(&["a-1-of-3.gguf"]));
        check(&["a-00001-of-00001.gguf"], Ok(&["a-00001-of-00001.gguf"]));
        check(&[one, three], Err("a-00002-of-00003.gguf is not a GGUF file that can be used: it is missing"));
        check(&[two], Err("a-00001-of-00003.gguf"));
        check(&[one, two, three, "a-00001-of-00002.gguf"], Err("a-00001-of-00002.gguf"));
        check(&["a.gguf", "b.gguf"], Err("b.gguf"));
        check(&[], Err("there is none"));
    }

    #[test]
    fn a_place_is_five_digits_of_five() {
        assert_eq!(place("x-y-00002-of-00010.gguf"), Some(("x-y", 2, 10)));
        for path in
            ["x-00000-of-00003.gguf", "x-00004-of-00003.gguf", "x-0001-of-0003.gguf", "x-+0001-of-00003.gguf", "x.gguf"]
        {
            assert_eq!(place(path), None, "{path}");
        }
    }
}
