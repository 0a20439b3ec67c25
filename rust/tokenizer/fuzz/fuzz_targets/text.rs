//! The ids of any bytes decode to these bytes, and a known pattern splits text as its regular expression does.
#![no_main]

use std::sync::LazyLock;

use cwm_tokenizer::{GPT2_PATTERN, LLAMA3_PATTERN, Tokenizer};
use cwm_tokenizer_fuzz::{ids, trained};
use libfuzzer_sys::fuzz_target;

/// Each pattern as its known text, and in a group, which makes it an ordinary regular expression.
static TOKENIZERS: LazyLock<[[Tokenizer; 2]; 2]> = LazyLock::new(|| {
    [LLAMA3_PATTERN, GPT2_PATTERN].map(|pattern| [trained(pattern), trained(&format!("(?:{pattern})"))])
});

fuzz_target!(|bytes: &[u8]| {
    for [known, expression] in &*TOKENIZERS {
        let expected = ids(expression, bytes).expect("these patterns never give up");
        assert_eq!(ids(known, bytes), Some(expected));
    }
});
