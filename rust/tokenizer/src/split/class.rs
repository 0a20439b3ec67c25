//! Character classes of the split patterns.

use std::sync::LazyLock;

pub const LETTER: u8 = 1; // \p{L}
pub const NUMBER: u8 = 2; // \p{N}
pub const SPACE: u8 = 4; // \s
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, the start of a word of o200k.
pub const UPPER: u8 = 8;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`, the end of a word of o200k.
pub const LOWER: u8 = 16;

/// Classes of each code point, from the tables of the regex engine so that both use the same Unicode version.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![0; char::MAX as usize + 1].into_boxed_slice();
    for (pattern, class) in [
        (r"\p{L}", LETTER),
        (r"\p{N}", NUMBER),
        (r"\s", SPACE),
        (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", UPPER),
        (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", LOWER),
    ] {
        let hir = regex_syntax::parse(pattern).expect("a constant pattern");
        if let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = hir.kind() {
            for range in ranges.iter() {
                for c in &mut classes[range.start() as usize..=range.end() as usize] {
                    *c |= class;
                }
            }
        }
    }
    classes
});

pub fn class(c: char) -> u8 {
    CLASSES[c as usize]
}

/// Returns the length in bytes of the longest prefix of `text` whose characters all have a class in `wanted`.
pub fn run(text: &str, wanted: u8) -> usize {
    text.find(|c| class(c) & wanted == 0).unwrap_or(text.len())
}

/// Returns the same for characters that are not letters, numbers, or spaces.
pub fn run_of_others(text: &str) -> usize {
    text.find(|c| class(c) & (LETTER | NUMBER | SPACE) != 0)
        .unwrap_or(text.len())
}

pub fn is_newline(c: char) -> bool {
    c == '\r' || c == '\n'
}
