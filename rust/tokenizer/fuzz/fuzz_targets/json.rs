//! A `tokenizer.json` is rejected, or is usable and yields the same ids after it is written and read again.
#![no_main]

use std::sync::LazyLock;

use cwm_tokenizer::{LLAMA3_PATTERN, Splitter, Tokenizer};
use cwm_tokenizer_fuzz::{TEXT, ids, trained};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

#[derive(Arbitrary, Debug)]
struct File {
    edits: Vec<(Place, Edit)>,
    /// Bytes that replace as many bytes at a position in the file.
    damage: Option<(u16, Vec<u8>)>,
    text: Vec<u8>,
}

/// Index of the child to take at each level from the top, modulo the number of children.
type Place = [u16; 4];

#[derive(Arbitrary, Debug)]
enum Edit {
    Remove,
    Null,
    Bool(bool),
    Number(i32),
    Text(String),
    /// Byte-level characters, with a space where a merge has one.
    ByteLevel(u8, bool, u8),
    Empty(bool),
    CopyOf(Place),
    Key(String),
}

static VALID: LazyLock<Value> = LazyLock::new(|| {
    let file = trained(LLAMA3_PATTERN).to_json().expect("names of no ordinary token");
    let mut file: Value = serde_json::from_slice(&file).expect("JSON");
    // With all special tokens, an edit would rarely hit anything else.
    file["added_tokens"].as_array_mut().expect("a list").truncate(3);
    file
});

/// Returns the value at `place`, or its deepest existing ancestor.
fn at<'v>(file: &'v mut Value, place: &[u16]) -> &'v mut Value {
    let length = match file {
        Value::Array(items) => items.len(),
        Value::Object(items) => items.len(),
        _ => 0,
    };
    let Some((&step, rest)) = place.split_first().filter(|_| length > 0) else {
        return file;
    };
    let index = usize::from(step) % length;
    let child = match file {
        Value::Array(items) => items.get_mut(index),
        Value::Object(items) => items.values_mut().nth(index),
        _ => None,
    };
    at(child.expect("an index below the length"), rest)
}

fn apply(edit: &Edit, place: &[u16], file: &mut Value) {
    let char = |byte: &u8| char::from(b'!' + byte % 94);
    let value = match edit {
        Edit::Remove | Edit::Key(_) => {
            let (last, parents) = place.split_last().expect("a place has a length");
            match at(file, parents) {
                Value::Array(items) if !items.is_empty() => {
                    items.remove(usize::from(*last) % items.len());
                }
                Value::Object(items) if !items.is_empty() => {
                    let key = items.keys().nth(usize::from(*last) % items.len()).cloned();
                    let removed = key.and_then(|key| items.remove(&key));
                    if let (Edit::Key(key), Some(value)) = (edit, removed) {
                        items.insert(key.clone(), value);
                    }
                }
                _ => (),
            }
            return;
        }
        Edit::Null => Value::Null,
        Edit::Bool(value) => json!(value),
        Edit::Number(value) => json!(value),
        Edit::Text(text) => json!(text),
        Edit::ByteLevel(left, true, right) => json!(format!("{} {}", char(left), char(right))),
        Edit::ByteLevel(left, false, right) => json!(format!("{}{}", char(left), char(right))),
        Edit::Empty(true) => json!([]),
        Edit::Empty(false) => json!({}),
        Edit::CopyOf(other) => at(file, other).clone(),
    };
    *at(file, place) = value;
}

fn write(file: &File) -> Vec<u8> {
    let mut edited = VALID.clone();
    for (place, edit) in file.edits.iter().take(8) {
        // Most places are as deep as possible; a zero ends a place earlier.
        let depth = place.iter().position(|&step| step == 0).unwrap_or(place.len()).max(1);
        apply(edit, &place[..depth], &mut edited);
    }
    let mut written = serde_json::to_vec(&edited).expect("JSON");
    if let Some((at, bytes)) = &file.damage {
        let at = usize::from(*at) % written.len();
        let end = written.len().min(at + bytes.len());
        written.splice(at..end, bytes.iter().copied());
    }
    written
}

fuzz_target!(|file: File| {
    let Ok(tokenizer) = Tokenizer::from_json(&write(&file)) else {
        return;
    };
    let again = tokenizer.to_json().expect("a vocabulary that was read can be written");
    let again = Tokenizer::from_json(&again).expect("what was written can be read");
    let ranked = tokenizer.to_ranks().map(|ranks| {
        let vocab = Tokenizer::vocabulary_from_ranks(&ranks).expect("ranks that were written can be read");
        let splitter = Splitter::new(tokenizer.pattern()).expect("a pattern that compiled");
        Tokenizer::with_special_names(vocab, splitter, Vec::new()).expect("no special tokens, no conflict")
    });
    for bytes in [TEXT.as_bytes(), &file.text] {
        let expected = ids(&tokenizer, bytes);
        assert_eq!(ids(&again, bytes), expected);
        ranked
            .iter()
            .for_each(|ranked| assert_eq!(ids(ranked, bytes), expected));
    }
});
