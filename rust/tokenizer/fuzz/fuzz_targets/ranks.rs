//! A rank file is rejected, or is usable and equal after it is written and read again.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cwm_tokenizer::{LLAMA3_PATTERN, Splitter, Tokenizer};
use cwm_tokenizer_fuzz::{TEXT, ids};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct File {
    /// Number added to each byte, modulo 256, for the id of its token.
    shift: u8,
    tokens: Vec<(Token, u8)>,
    /// Bytes that replace as many bytes at a position in the file.
    damage: Option<(u16, Vec<u8>)>,
    text: Vec<u8>,
}

/// A token, and the number of ids skipped before it.
#[derive(Arbitrary, Debug)]
enum Token {
    Bytes(Vec<u8>),
    /// Two earlier tokens, joined.
    Joined(u16, u16),
}

fn write(file: &File) -> Vec<u8> {
    let mut tokens: Vec<(Vec<u8>, u32)> = (0..=255u8)
        .map(|byte| (vec![byte], byte.wrapping_add(file.shift).into()))
        .collect();
    let mut id = 256;
    for (token, gap) in &file.tokens {
        let earlier = |index: u16| tokens[usize::from(index) % tokens.len()].0.as_slice();
        let bytes = match token {
            Token::Bytes(bytes) => bytes.clone(),
            Token::Joined(left, right) => [earlier(*left), earlier(*right)].concat(),
        };
        id += u32::from(*gap);
        // Repeated joining doubles the length, and a rank file rejects longer tokens.
        if bytes.len() <= 2048 && !tokens.iter().any(|(other, _)| *other == bytes) {
            tokens.push((bytes, id));
            id += 1;
        }
    }
    let line = |(token, id): &(Vec<u8>, u32)| format!("{} {id}\n", STANDARD.encode(token));
    let mut written: Vec<u8> = tokens.iter().map(line).collect::<String>().into_bytes();
    if let Some((at, bytes)) = &file.damage {
        let at = usize::from(*at) % written.len();
        let end = written.len().min(at + bytes.len());
        written.splice(at..end, bytes.iter().copied());
    }
    written
}

fn load(file: &[u8]) -> cwm_tokenizer::Result<Tokenizer> {
    let names = ["<|begin_of_text|>", "<|frame_sep|>", "aa"].map(String::from).to_vec();
    Tokenizer::with_special_names(
        Tokenizer::vocabulary_from_ranks(file)?,
        Splitter::new(LLAMA3_PATTERN)?,
        names,
    )
}

fuzz_target!(|file: File| {
    let Ok(tokenizer) = load(&write(&file)) else { return };
    let ranks = tokenizer.to_ranks().expect("ranks that were read can be written");
    let again = load(&ranks).expect("ranks that were written can be read");
    assert_eq!(again.to_ranks().as_ref(), Ok(&ranks));
    // A special token may have the name of an ordinary token, which the other format cannot express.
    let as_json = tokenizer
        .to_json()
        .map(|json| Tokenizer::from_json(&json).expect("what was written can be read"));
    for bytes in [TEXT.as_bytes(), &file.text] {
        assert_eq!(ids(&again, bytes), ids(&tokenizer, bytes));
        // The ids may differ, because the other format orders pairs of one rank.
        as_json.iter().for_each(|tokenizer| drop(ids(tokenizer, bytes)));
    }
});
