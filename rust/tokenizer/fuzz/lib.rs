//! Shared code of the targets: a small vocabulary, and the properties of every vocabulary.

use cwm_tokenizer::{Error, LLAMA3_PATTERN, PieceCounts, Splitter, Tokenizer, cwm_special_tokens};

pub const TEXT: &str = "def f(n):\n    while n:\n\n\tn -= 1\n    return n * 2\r\n{\"n\": \"1\", \"s\": \"..\"}\n aaaaaaaa <|frame_sep|> \
                        don't don'T é日本 12345 x  y";

/// Returns a vocabulary of 400 ordinary tokens, trained on [`TEXT`].
pub fn trained(pattern: &str) -> Tokenizer {
    let mut pieces = PieceCounts::new(Splitter::new(LLAMA3_PATTERN).expect("a pattern"));
    pieces.add(TEXT).expect("the pattern does not give up");
    let (vocab, _) = pieces.train(400, |_| true).expect("a possible size");
    let splitter = Splitter::new(pattern).expect("a pattern");
    Tokenizer::with_special_names(vocab, splitter, cwm_special_tokens()).expect("names of no ordinary token")
}

/// Returns the ids of `bytes`, after checking that `count` agrees and that they decode to `bytes`.
/// Returns `None` if the pattern gave up.
pub fn ids(tokenizer: &Tokenizer, bytes: &[u8]) -> Option<Vec<u32>> {
    let ids = gave_up_or(tokenizer.encode_bytes(bytes))?;
    assert_eq!(decode(tokenizer, &ids), bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert_eq!(tokenizer.encode(text, None).as_ref(), Ok(&ids));
        assert_eq!(tokenizer.count(text), Ok(ids.len()));
        let special = gave_up_or(tokenizer.encode(text, Some(tokenizer.special_tokens().all())))?;
        assert_eq!(decode(tokenizer, &special), bytes);
    }
    Some(ids)
}

fn gave_up_or(ids: cwm_tokenizer::Result<Vec<u32>>) -> Option<Vec<u32>> {
    match ids {
        Ok(ids) => Some(ids),
        Err(Error::Pattern(_)) => None,
        Err(other) => panic!("{other}"),
    }
}

fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    tokenizer.decode_bytes(&ids).expect("ids of tokens")
}
