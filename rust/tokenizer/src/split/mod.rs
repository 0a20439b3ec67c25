//! Splitting text into pieces that are merged separately.

mod class;
mod masks;
mod oniguruma;
mod rules;
mod translate;
mod window;

use std::borrow::Cow;

use cwm_interrupt::Pace;

use crate::error::{Error, Result};
use crate::merge::MERGE_WORK;
use masks::{Classifier, WIDTH};
use oniguruma::Oniguruma;
use rules::{Cl100k, Gpt2, Llama3, O200k, Qwen2, Rules, first_piece};
use translate::to_oniguruma;
use window::beginnings;

/// The split pattern of Llama-3 and of the Code World Model.
pub const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pattern of GPT-2, which is that of `ByteLevel` with `use_regex` in `tokenizer.json`.
pub const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pattern of tiktoken's `cl100k_base`, without the two parts that have another meaning in `tokenizers`.
pub const CL100K_PATTERN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s";

/// The pattern of tiktoken's `o200k_base`.
pub const O200K_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pattern of Qwen2 and its successors.
pub const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `CL100K_PATTERN` as tiktoken writes it.
const TIKTOKEN_CL100K_PATTERN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";

/// GPT-2's pattern as tiktoken writes it.
const R50K_PATTERN: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";

/// Limit of backtracking steps for one match. A catastrophic pattern exceeds any limit; a reasonable one stays far
/// below.
const BACKTRACK_LIMIT: usize = 1_000_000;

/// A compiled split pattern.
///
/// A pattern has the meaning that the library of its vocabulary gives it. The two libraries use different engines with
/// similar syntax that differ in `^`, `$`, `\w`, `\b`, and more.
#[derive(Debug, Clone)]
pub struct Splitter {
    pattern: String,
    engine: Engine,
}

#[derive(Debug, Clone)]
enum Engine {
    Known(Known, Classifier),
    /// The engine of `tokenizers`.
    Oniguruma(Oniguruma),
    /// The engine of tiktoken.
    FancyRegex(Box<fancy_regex::Regex>),
}

#[derive(Debug, Clone, Copy)]
enum Known {
    Llama3,
    Gpt2,
    Cl100k,
    O200k,
    Qwen2,
}

impl Known {
    /// The known patterns mean the same in both dialects.
    fn find(pattern: &str) -> Option<Self> {
        match pattern {
            LLAMA3_PATTERN => Some(Known::Llama3),
            GPT2_PATTERN => Some(Known::Gpt2),
            CL100K_PATTERN => Some(Known::Cl100k),
            O200K_PATTERN => Some(Known::O200k),
            QWEN2_PATTERN => Some(Known::Qwen2),
            _ => None,
        }
    }

    fn pattern(self) -> &'static str {
        match self {
            Known::Llama3 => LLAMA3_PATTERN,
            Known::Gpt2 => GPT2_PATTERN,
            Known::Cl100k => CL100K_PATTERN,
            Known::O200k => O200K_PATTERN,
            Known::Qwen2 => QWEN2_PATTERN,
        }
    }
}

impl Splitter {
    /// Compiles a pattern as `tokenizers` does, for a `tokenizer.json` and for training.
    ///
    /// The patterns of this module have fast implementations. Any other pattern runs on a regex engine.
    pub fn new(pattern: &str) -> Result<Self> {
        Self::compile(pattern, Known::find(pattern), || {
            Oniguruma::new(pattern).map(Engine::Oniguruma)
        })
    }

    /// Compiles a pattern as tiktoken does, for a rank file.
    pub fn for_ranks(pattern: &str) -> Result<Self> {
        let known = match pattern {
            R50K_PATTERN => Some(Known::Gpt2),
            TIKTOKEN_CL100K_PATTERN => Some(Known::Cl100k),
            _ => Known::find(pattern),
        };
        Self::compile(pattern, known, || {
            compile(pattern).map(Box::new).map(Engine::FancyRegex)
        })
    }

    fn compile(pattern: &str, known: Option<Known>, other: impl FnOnce() -> Result<Engine>) -> Result<Self> {
        let engine = match known {
            Some(known) => Engine::Known(known, Classifier::detect()),
            None => other()?,
        };
        Ok(Self {
            pattern: pattern.to_owned(),
            engine,
        })
    }

    /// Returns a pattern with which `tokenizers` splits every text as this splitter does, or an error that names the
    /// part without a counterpart.
    pub fn for_tokenizers(&self) -> Result<Cow<'_, str>> {
        match &self.engine {
            Engine::Known(known, _) => Ok(known.pattern().into()),
            Engine::Oniguruma(_) => Ok(self.pattern.as_str().into()),
            Engine::FancyRegex(_) => to_oniguruma(&self.pattern).map(Cow::from),
        }
    }

    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Returns the pattern. Of equivalent known patterns, always returns the same one.
    pub(crate) fn known_pattern(&self) -> &str {
        match self.engine {
            Engine::Known(Known::Gpt2, _) => GPT2_PATTERN,
            _ => &self.pattern,
        }
    }

    /// Returns whether the pattern is one of this module.
    pub fn is_known(&self) -> bool {
        matches!(self.engine, Engine::Known(..))
    }

    /// Calls `piece` with the consecutive pieces of `text`. Pieces are not empty and join to `text`: text between
    /// matches is a piece too.
    pub fn for_each<'t>(&self, text: &'t str, mut piece: impl FnMut(&'t str)) -> Result<()> {
        let mut start = 0;
        self.for_each_batch(text, &mut Ends::default(), |ends| {
            for &end in ends {
                piece(&text[start..end as usize]);
                start = end as usize;
            }
        })
    }

    /// Calls `batch` with the ends of consecutive pieces of `text`, which must be shorter than 4 GiB. Uses `ends` as
    /// the buffer.
    pub fn for_each_batch(&self, text: &str, ends: &mut Ends, batch: impl FnMut(&[u32])) -> Result<()> {
        match &self.engine {
            Engine::Known(known, classifier) => match known {
                Known::Llama3 => split::<Llama3>(text, *classifier, ends, batch),
                Known::Gpt2 => split::<Gpt2>(text, *classifier, ends, batch),
                Known::Cl100k => split::<Cl100k>(text, *classifier, ends, batch),
                Known::O200k => split::<O200k>(text, *classifier, ends, batch),
                Known::Qwen2 => split::<Qwen2>(text, *classifier, ends, batch),
            },
            Engine::Oniguruma(regex) => split_at(regex.find_iter(text), text, ends, batch),
            Engine::FancyRegex(regex) => split_at(matches(regex, text), text, ends, batch),
        }
    }

    /// Returns a position at or after `at` where a piece ends whatever the surrounding text, so that cutting the text
    /// there does not change the pieces. All known patterns end a piece between a letter and a newline.
    pub fn safe_cut(&self, text: &str, at: usize) -> Option<usize> {
        if !self.is_known() {
            return None;
        }
        let bytes = &text.as_bytes()[at..];
        let found = bytes
            .windows(2)
            .position(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b'\n')?;
        Some(at + found + 1)
    }
}

/// Number of ends of pieces in a batch.
const BATCH: usize = 256;

/// Work units of a byte, for [`Pace`]. Not fewer than those of a merge, so that a check follows a piece whose merging
/// was interrupted, and fails.
const BYTE_WORK: u64 = MERGE_WORK;
/// Work units of a match, which may backtrack for milliseconds.
const MATCH_WORK: u64 = 1 << 10;

/// Buffer for the ends of pieces.
#[derive(Debug)]
pub struct Ends {
    ends: [u32; BATCH],
    len: usize,
    /// Start of the first piece.
    start: u32,
    pace: Pace,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            ends: [0; BATCH],
            len: 0,
            start: 0,
            pace: Pace::default(),
        }
    }
}

impl Ends {
    /// Makes space for the ends in one window.
    fn reserve(&mut self, batch: &mut impl FnMut(&[u32])) -> Result<()> {
        if self.len > BATCH - WIDTH {
            self.flush(batch)?;
        }
        Ok(())
    }

    fn push(&mut self, end: usize) {
        self.ends[self.len] = end as u32;
        self.len += 1;
    }

    fn flush(&mut self, batch: &mut impl FnMut(&[u32])) -> Result<()> {
        batch(&self.ends[..self.len]);
        let end = self.ends[..self.len].last().copied().unwrap_or(self.start);
        let bytes = u64::from(end - self.start);
        (self.len, self.start) = (0, end);
        Ok(self.pace.did(BYTE_WORK * bytes)?)
    }
}

fn split<R: Rules>(text: &str, classifier: Classifier, ends: &mut Ends, mut batch: impl FnMut(&[u32])) -> Result<()> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut padded;
    (ends.len, ends.start) = (0, 0);
    while at < bytes.len() {
        ends.reserve(&mut batch)?;
        let rest = &bytes[at..];
        // Two bytes identify most pieces that are not ASCII.
        if rest[0].is_ascii() && rest.get(1).is_none_or(u8::is_ascii) {
            let window = match rest.first_chunk::<WIDTH>() {
                Some(window) => window,
                None => {
                    padded = [0; WIDTH];
                    padded[..rest.len()].copy_from_slice(rest);
                    &padded
                }
            };
            let (mut begin, all) = beginnings::<R>(&classifier.classify(window), window, rest.len() as u32);
            begin &= !1;
            let found = begin != 0 || all;
            while begin != 0 {
                ends.push(at + begin.trailing_zeros() as usize);
                begin &= begin - 1;
            }
            if all {
                ends.push(bytes.len());
            }
            if found {
                at = ends.ends[ends.len - 1] as usize;
                continue;
            }
        }
        at += first_piece::<R>(&text[at..]);
        ends.push(at);
    }
    ends.flush(&mut batch)
}

/// Splits `text` before and after each match.
fn split_at(
    matches: impl Iterator<Item = Result<(usize, usize)>>,
    text: &str,
    ends: &mut Ends,
    mut batch: impl FnMut(&[u32]),
) -> Result<()> {
    let mut end = 0;
    (ends.len, ends.start) = (0, 0);
    for found in matches {
        let (match_start, match_end) = found?;
        ends.pace.did(MATCH_WORK)?;
        ends.reserve(&mut batch)?;
        for place in [match_start, match_end] {
            if place > end {
                ends.push(place);
                end = place;
            }
        }
    }
    if end < text.len() {
        ends.push(text.len());
    }
    ends.flush(&mut batch)
}

fn matches(regex: &fancy_regex::Regex, text: &str) -> impl Iterator<Item = Result<(usize, usize)>> {
    let mut end = 0;
    regex.find_iter(text).map(move |found| {
        let found = found.map_err(|why| Error::Pattern(format!("gave up after byte {end}: {why}")))?;
        end = found.end();
        Ok((found.start(), found.end()))
    })
}

fn compile(pattern: &str) -> Result<fancy_regex::Regex> {
    fancy_regex::RegexBuilder::new(pattern)
        .backtrack_limit(BACKTRACK_LIMIT)
        .build()
        .map_err(|why| Error::Pattern(format!("{pattern:?} does not compile: {why}")))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use proptest::prelude::*;

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        splitter.for_each(text, |piece| pieces.push(piece.to_owned())).unwrap();
        pieces
    }

    /// Each known pattern with its fast implementation and with the regex engines that support it.
    static BOTH: LazyLock<Vec<(Splitter, Splitter)>> = LazyLock::new(|| {
        let patterns = [
            LLAMA3_PATTERN,
            GPT2_PATTERN,
            CL100K_PATTERN,
            O200K_PATTERN,
            QWEN2_PATTERN,
        ];
        let by = |engine: Engine, pattern: &str| {
            let regex = Splitter {
                pattern: pattern.into(),
                engine,
            };
            (Splitter::for_ranks(pattern).unwrap(), regex)
        };
        let fancy_regex = |pattern| by(Engine::FancyRegex(Box::new(compile(pattern).unwrap())), pattern);
        let oniguruma = |pattern| by(Engine::Oniguruma(Oniguruma::new(pattern).unwrap()), pattern);
        let tiktoken = [R50K_PATTERN, TIKTOKEN_CL100K_PATTERN];
        (patterns.iter().chain(&tiktoken).copied().map(fancy_regex))
            .chain(patterns.into_iter().map(oniguruma))
            .collect()
    });

    fn check(text: &str) {
        for (known, regex) in &*BOTH {
            assert!(matches!(known.engine, Engine::Known(..)));
            assert_eq!(pieces(known, text), pieces(regex, text), "{}", known.pattern);
        }
    }

    #[test]
    fn every_character_alone_and_in_context_splits_as_the_regex_does() {
        let contexts = |c: char| format!("{c} a{c}1{c}!{c}\n{c}{c}  {c}'{c} {c}A{c}b{c}C{c}'s{c}");
        // The code points in between are unassigned.
        let assigned = [0..0x33800, 0xe0000..0xe0200, 0x10fe00..0x110000];
        for block in assigned
            .into_iter()
            .flat_map(|range: std::ops::Range<u32>| range.step_by(512))
        {
            let text: String = (block..block + 512).filter_map(char::from_u32).map(contexts).collect();
            check(&text);
        }
    }

    #[test]
    fn every_short_text_of_a_few_characters_splits_as_the_regex_does() {
        let alphabet = ['a', 'S', '1', ' ', '\n', '\'', '(', '/'];
        for number in 0..8usize.pow(6) {
            let text: String = (0..6).map(|place| alphabet[number >> (3 * place) & 7]).collect();
            for (known, regex) in BOTH.iter().take(if number % 8 == 0 { BOTH.len() } else { 1 }) {
                assert_eq!(pieces(known, &text), pieces(regex, &text), "{}", known.pattern);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]
        #[test]
        fn known_patterns_equal_the_regex(
            text in r"([ \t\r\n\u{a0}\u{2028}]|[a-eA-E]|'(s|S|ſ|t|re|RE|vE|m|Ll|d)?|[0-9²Ⅷ٣]|[!(./é日ǅʰ\u{301}]|\PC){0,40}"
        ) {
            check(&text);
        }

        #[test]
        fn known_patterns_equal_the_regex_across_windows(
            text in r"([a-c]{1,9}|[A-C]{1,4}|'(s|re|LL)|[0-9]{1,9}|[(./]{1,3}| {1,9}|\r?\n[ \t]{0,9}|é| ){20,90}"
        ) {
            check(&text);
        }

        #[test]
        fn pieces_join_to_the_text(text in any::<String>(), pattern in r"[ab.]{1,3}|a\*|x\?") {
            let splitter = Splitter::new(&pattern).unwrap();
            prop_assert_eq!(pieces(&splitter, &text).concat(), text);
        }

        #[test]
        fn a_safe_cut_changes_no_piece(text in r"([a-cA-C' 1(/]|\n|é){0,60}", at in 0..20usize) {
            for (known, _) in &*BOTH {
                if text.is_char_boundary(at) && let Some(cut) = known.safe_cut(&text, at) {
                    let parts = [pieces(known, &text[..cut]), pieces(known, &text[cut..])].concat();
                    prop_assert_eq!(parts, pieces(known, &text));
                }
            }
        }
    }

    #[test]
    fn a_catastrophic_pattern_is_an_error() {
        for make in [Splitter::new, Splitter::for_ranks] {
            let splitter = make(r"(?:a|a(?!x))*(?<!a)c").unwrap();
            let result = splitter.for_each(&("a".repeat(100) + "c"), |_| ());
            assert!(matches!(result, Err(Error::Pattern(_))), "{result:?}");
        }
    }

    #[test]
    fn a_broken_pattern_is_an_error() {
        for pattern in ["(", "[a", r"\p{Nope}", &"(".repeat(100_000)] {
            for make in [Splitter::new, Splitter::for_ranks] {
                assert!(matches!(make(pattern), Err(Error::Pattern(_))));
            }
        }
    }

    #[test]
    fn long_runs_take_linear_time() {
        for unit in ["a", " ", "\n", " \n", "1", "!", "'", "é"] {
            let text = unit.repeat(1 << 20);
            for (known, _) in &*BOTH {
                assert_eq!(pieces(known, &text).concat().len(), text.len());
            }
        }
    }
}
