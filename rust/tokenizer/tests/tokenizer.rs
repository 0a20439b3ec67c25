//! Tests with small vocabularies: round trips, both file formats, hostile files, training.

use std::sync::LazyLock;

use cwm_tokenizer::*;
use proptest::prelude::*;

const CORPUS: &str =
    "def f(n):\n    while n:\n        n -= 1\n    return n * 2\n{\"n\": \"1\", \"s\": \"..\"}\n aaaaaaaa é日本";

fn train(corpus: &[&str], vocab_size: usize) -> Tokenizer {
    let mut pieces = PieceCounts::new(Splitter::new(LLAMA3_PATTERN).unwrap());
    corpus.iter().for_each(|text| pieces.add(text).unwrap());
    let (vocab, splitter) = pieces.train(vocab_size, |_| true).unwrap();
    Tokenizer::with_special_names(vocab, splitter, cwm_special_tokens()).unwrap()
}

static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| train(&[CORPUS; 2], 330));
static FROM_JSON: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_json(&SMALL.to_json().unwrap()).unwrap());
static FROM_RANKS: LazyLock<Tokenizer> = LazyLock::new(|| {
    let vocab = Tokenizer::vocabulary_from_ranks(&SMALL.to_ranks().unwrap()).unwrap();
    Tokenizer::with_special_names(vocab, Splitter::new(LLAMA3_PATTERN).unwrap(), cwm_special_tokens()).unwrap()
});

fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    tokenizer
        .decode_bytes(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>())
        .unwrap()
}

proptest! {
    #[test]
    fn text_survives_in_every_form(text in r"([ \n]|[a-fn]|\PC|while|return n|<\|frame_sep\|>){0,60}") {
        let ids = SMALL.encode(&text, None).unwrap();
        prop_assert_eq!(decode(&SMALL, &ids), text.as_bytes());
        prop_assert_eq!(SMALL.count(&text).unwrap(), ids.len());
        prop_assert_eq!(&FROM_JSON.encode(&text, None).unwrap(), &ids);
        prop_assert_eq!(&FROM_RANKS.encode(&text, None).unwrap(), &ids);
        let special = SMALL.encode(&text, Some(SMALL.special_tokens().all())).unwrap();
        prop_assert_eq!(decode(&SMALL, &special), text.as_bytes());
    }

    #[test]
    fn bytes_survive(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(decode(&SMALL, &SMALL.encode_bytes(&bytes).unwrap()), bytes);
    }

    #[test]
    fn batches_are_in_order(texts in prop::collection::vec(any::<String>(), 0..40), threads in 0usize..6) {
        let one_by_one: Vec<_> = texts.iter().map(|text| SMALL.encode(text, None).unwrap()).collect();
        prop_assert_eq!(SMALL.encode_batch(&texts, threads).unwrap(), one_by_one);
    }

    /// A truncated, changed, or random vocabulary file loads or fails with a message, and a loaded one does not panic.
    #[test]
    fn damaged_files_do_no_harm(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        for (mut file, is_json) in [(SMALL.to_json().unwrap(), true), (SMALL.to_ranks().unwrap(), false)] {
            let at = at.index(file.len());
            if cut { file.truncate(at) } else { file[at] = byte }
            let loaded = if is_json {
                Tokenizer::from_json(&file)
            } else {
                Tokenizer::vocabulary_from_ranks(&file)
                    .and_then(|vocab| Tokenizer::with_special_names(vocab, Splitter::new(LLAMA3_PATTERN)?, vec![]))
            };
            if let Ok(tokenizer) = loaded {
                let ids = tokenizer.encode(CORPUS, None).unwrap();
                prop_assert_eq!(decode(&tokenizer, &ids), CORPUS.as_bytes());
            }
        }
    }
}

#[test]
fn training_takes_the_most_frequent_pair_and_lower_ids_first() {
    let tokenizer = train(&["ab ab cd cd abe"], 261);
    let tokens: Vec<_> = (256..261).map(|id| tokenizer.token_bytes(id).unwrap()).collect();
    // `ab` occurs three times. Then `cd`, ` ab`, and ` c` occur twice, and letters have lower ids than the space. Then
    // ` ab` and ` cd` occur twice, as (space, 256) and (space, 257).
    assert_eq!(tokens, [&b"ab"[..], b"cd", b" ab", b" cd", b" abe"]);
}

#[test]
fn an_interrupted_training_is_an_error() {
    let mut pieces = PieceCounts::new(Splitter::new(LLAMA3_PATTERN).unwrap());
    pieces.add(CORPUS).unwrap();
    assert_eq!(pieces.train(300, |merges| merges < 3).unwrap_err(), Error::Interrupted);
}

#[test]
fn unknown_ids_are_named() {
    let unknown = |id| {
        Err(Error::UnknownId {
            id,
            vocab_size: SMALL.vocab_size(),
        })
    };
    for id in [-1, i32::MIN, SMALL.vocab_size() as i32, i32::MAX] {
        assert_eq!(SMALL.decode_bytes(&[5, id]), unknown(i64::from(id)));
    }
}
