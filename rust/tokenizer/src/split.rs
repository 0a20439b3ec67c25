//! Cutting text into the pieces that are merged one by one.

use std::sync::LazyLock;

use crate::error::{Error, Result};

/// The split pattern of Llama-3 and of the Code World Model.
pub const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pattern built into GPT-2's tokenizer, which `tokenizer.json` calls `ByteLevel` with `use_regex`.
pub const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Backtracking steps one match may take. A catastrophic pattern exceeds any limit; an honest one stays far below.
const BACKTRACK_LIMIT: usize = 1_000_000;

/// A compiled split pattern.
#[derive(Debug, Clone)]
pub struct Splitter {
    pattern: String,
    engine: Engine,
}

#[derive(Debug, Clone)]
enum Engine {
    Llama3,
    Regex(Box<fancy_regex::Regex>),
}

impl Splitter {
    pub fn new(pattern: &str) -> Result<Self> {
        let engine = if pattern == LLAMA3_PATTERN {
            Engine::Llama3
        } else {
            Engine::Regex(Box::new(compile(pattern)?))
        };
        Ok(Self {
            pattern: pattern.to_owned(),
            engine,
        })
    }

    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Calls `piece` with the consecutive pieces of `text`. They are never empty and join to `text`: what no match
    /// covers is a piece of its own.
    pub fn for_each<'t>(&self, text: &'t str, mut piece: impl FnMut(&'t str)) -> Result<()> {
        match &self.engine {
            Engine::Llama3 => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (first, after) = rest.split_at(llama3_piece(rest));
                    piece(first);
                    rest = after;
                }
            }
            Engine::Regex(regex) => {
                let mut end = 0;
                for found in regex.find_iter(text) {
                    let found = found.map_err(|why| Error::Pattern(format!("gave up after byte {end}: {why}")))?;
                    for range in [end..found.start(), found.range()] {
                        if !range.is_empty() {
                            piece(&text[range]);
                        }
                    }
                    end = found.end();
                }
                if end < text.len() {
                    piece(&text[end..]);
                }
            }
        }
        Ok(())
    }
}

fn compile(pattern: &str) -> Result<fancy_regex::Regex> {
    fancy_regex::RegexBuilder::new(pattern)
        .backtrack_limit(BACKTRACK_LIMIT)
        .build()
        .map_err(|why| Error::Pattern(format!("{pattern:?} does not compile: {why}")))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Other,
    Letter,
    Number,
    Space,
}

/// The class of each code point, taken from the regex engine's own tables so that both follow one Unicode version.
static CLASSES: LazyLock<Box<[Class]>> = LazyLock::new(|| {
    let mut classes = vec![Class::Other; char::MAX as usize + 1].into_boxed_slice();
    for (pattern, class) in [
        (r"\p{L}", Class::Letter),
        (r"\p{N}", Class::Number),
        (r"\s", Class::Space),
    ] {
        let hir = regex_syntax::parse(pattern).expect("a constant pattern");
        if let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = hir.kind() {
            for range in ranges.iter() {
                classes[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
    }
    classes
});

fn class(c: char) -> Class {
    CLASSES[c as usize]
}

/// Length in bytes of the longest prefix of `text` whose characters are all of class `wanted`.
fn run(text: &str, wanted: Class) -> usize {
    text.find(|c| class(c) != wanted).unwrap_or(text.len())
}

fn is_newline(c: char) -> bool {
    c == '\r' || c == '\n'
}

/// Length in bytes of the first match of [`LLAMA3_PATTERN`] in `text`, which is not empty; the match begins at 0
/// because the alternatives cover every character. Looks at no more than the piece and, for white space, its run.
fn llama3_piece(text: &str) -> usize {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let rest = chars.as_str();
    let width = first.len_utf8();

    if first == '\''
        && let Some(length) = contraction(rest)
    {
        return width + length;
    }
    match class(first) {
        Class::Letter => return width + run(rest, Class::Letter),
        Class::Number => {
            return text
                .char_indices()
                .take(3)
                .take_while(|&(_, c)| class(c) == Class::Number)
                .fold(0, |_, (at, c)| at + c.len_utf8());
        }
        Class::Other | Class::Space => {
            let letters = run(rest, Class::Letter);
            if letters > 0 && !is_newline(first) {
                return width + letters;
            }
        }
    }

    let space = usize::from(first == ' ');
    let symbols = run(&text[space..], Class::Other);
    if symbols > 0 {
        let after = &text[space + symbols..];
        return space + symbols + after.find(|c| !is_newline(c)).unwrap_or(after.len());
    }

    let spaces = &text[..run(text, Class::Space)];
    if let Some(last_newline) = spaces.rfind(is_newline) {
        return last_newline + 1;
    }
    // The last space of a run goes with the word after it, unless it is all there is.
    match spaces.char_indices().next_back() {
        Some((last, _)) if last > 0 && spaces.len() < text.len() => last,
        _ => spaces.len(),
    }
}

/// Length of the contraction, without its apostrophe, that `text` begins with. `ſ` is `s` in another case.
fn contraction(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    let first = chars.next()?;
    match first.to_ascii_lowercase() {
        's' | 'ſ' | 't' | 'm' | 'd' => Some(first.len_utf8()),
        'r' | 'v' => matches!(chars.next(), Some('e' | 'E')).then_some(2),
        'l' => matches!(chars.next(), Some('l' | 'L')).then_some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        splitter.for_each(text, |piece| pieces.push(piece.to_owned())).unwrap();
        pieces
    }

    static FAST: LazyLock<Splitter> = LazyLock::new(|| Splitter::new(LLAMA3_PATTERN).unwrap());
    static REGEX: LazyLock<Splitter> = LazyLock::new(|| Splitter {
        pattern: LLAMA3_PATTERN.into(),
        engine: Engine::Regex(Box::new(compile(LLAMA3_PATTERN).unwrap())),
    });

    #[test]
    fn every_character_alone_and_in_context_splits_as_the_regex_does() {
        let contexts = |c: char| format!("{c} a{c}1{c}!{c}\n{c}{c}  {c}'{c} {c}");
        for block in (0..=char::MAX as u32).step_by(512) {
            let text: String = (block..block + 512).filter_map(char::from_u32).map(contexts).collect();
            assert_eq!(pieces(&FAST, &text), pieces(&REGEX, &text), "block {block:x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]
        #[test]
        fn fast_splitter_equals_the_regex(
            text in r"([ \t\r\n\u{a0}\u{2028}]|[a-eA-E]|'(s|S|ſ|t|re|RE|vE|m|Ll|d)?|[0-9²Ⅷ٣]|[!(.é日\u{301}]|\PC){0,40}"
        ) {
            prop_assert_eq!(pieces(&FAST, &text), pieces(&REGEX, &text));
        }

        #[test]
        fn pieces_join_to_the_text(text in any::<String>(), pattern in r"[ab.]{1,3}|a\*|x\?") {
            let splitter = Splitter::new(&pattern).unwrap();
            prop_assert_eq!(pieces(&splitter, &text).concat(), text);
        }
    }

    #[test]
    fn a_catastrophic_pattern_is_an_error() {
        let splitter = Splitter::new(r"(?:a|a(?!x))*(?<!a)c").unwrap();
        let result = splitter.for_each(&("a".repeat(100) + "c"), |_| ());
        assert!(matches!(result, Err(Error::Pattern(_))), "{result:?}");
    }

    #[test]
    fn a_broken_pattern_is_an_error() {
        for pattern in ["(", "[a", r"\p{Nope}", &"(".repeat(100_000)] {
            assert!(matches!(Splitter::new(pattern), Err(Error::Pattern(_))));
        }
    }

    #[test]
    fn long_runs_take_linear_time() {
        for unit in ["a", " ", "\n", " \n", "1", "!", "'", "é"] {
            let text = unit.repeat(1 << 20);
            assert_eq!(pieces(&FAST, &text).concat().len(), text.len());
        }
    }
}
