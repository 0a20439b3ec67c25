//! Checks that the parser accepts any text, and that the frames before an error are well formed.
#![no_main]

use cwm_trace::{parse_text, resolve};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let parsed = parse_text(text);
    resolve(&parsed.trace);
    if let Some(error) = parsed.error {
        let before = parse_text(&text[..error.offset]);
        assert_eq!(before.error, None);
        assert!(before.trace == parsed.trace);
    }
});
