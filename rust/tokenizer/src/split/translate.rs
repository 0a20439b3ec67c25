//! Translation of patterns from tiktoken's dialect (the `fancy-regex` crate) to that of Hugging Face's `tokenizers`
//! (Oniguruma).
//!
//! The dialects share most of their syntax but differ in the meaning of `^`, `$`, `\w`, `\b`, `{1,3}+`, and
//! case-insensitive letters. The translation writes every character class as ranges and every anchor as look-around,
//! and rejects parts without a counterpart by name.

use std::fmt::Write;

use fancy_regex::{Assertion, Expr, LookAround};
use regex_syntax::hir::{Class, Hir, HirKind};

use super::oniguruma::Oniguruma;
use crate::error::{Error, Result};

/// Returns a pattern that Oniguruma matches exactly where `fancy-regex` matches `pattern`.
pub fn to_oniguruma(pattern: &str) -> Result<String> {
    let tree = Expr::parse_tree(pattern).map_err(|why| Error::Pattern(format!("{pattern:?}: {why}")))?;
    let mut translated = String::new();
    write(&tree.expr, &mut translated).map_err(|what| {
        Error::Pattern(format!(
            "tokenizer.json cannot express {what}, which {pattern:?} uses. Load the rank file with a pattern that does not use it"
        ))
    })?;
    Oniguruma::new(&translated)?;
    Ok(translated)
}

/// Name of a part that cannot be translated, as a noun phrase.
type Refused = &'static str;

fn write(expr: &Expr, out: &mut String) -> std::result::Result<(), Refused> {
    match expr {
        Expr::Empty => {}
        Expr::Any { newline: true, .. } => out.push_str(r"[\x{0}-\x{10ffff}]"),
        Expr::Any { crlf: false, .. } => out.push_str(r"[^\x{a}]"),
        Expr::Any { crlf: true, .. } => out.push_str(r"[^\x{a}\x{d}]"),
        Expr::Assertion(assertion) => out.push_str(&anchor(assertion)?),
        Expr::Literal { val, casei } => {
            for character in val.chars() {
                let escaped = format!(r"\x{{{:x}}}", u32::from(character));
                write_class(&escaped, *casei, out)?;
            }
        }
        Expr::Delegate { inner, casei } => write_class(inner, *casei, out)?,
        Expr::Concat(parts) => parts.iter().try_for_each(|part| write(part, out))?,
        Expr::Alt(choices) => {
            out.push_str("(?:");
            for (number, choice) in choices.iter().enumerate() {
                if number > 0 {
                    out.push('|');
                }
                write(choice, out)?;
            }
            out.push(')');
        }
        Expr::Group(child) => write_group("(?:", child, out)?,
        Expr::AtomicGroup(child) => write_group("(?>", child, out)?,
        Expr::LookAround(child, kind) => {
            let open = match kind {
                LookAround::LookAhead => "(?=",
                LookAround::LookAheadNeg => "(?!",
                LookAround::LookBehind => "(?<=",
                LookAround::LookBehindNeg => "(?<!",
            };
            write_group(open, child, out)?;
        }
        Expr::Repeat { child, lo, hi, greedy } => {
            if may_be_empty(child) {
                return Err("the repetition of a part that may match the empty string");
            }
            write_group("(?:", child, out)?;
            let _ = match *hi {
                usize::MAX => write!(out, "{{{lo},}}"),
                hi => write!(out, "{{{lo},{hi}}}"),
            };
            // In Oniguruma, `{n}?` is not a lazy repetition, and `{n,n}?` may not be one.
            if !greedy && lo != hi {
                out.push('?');
            }
        }
        other => return Err(name(other)),
    }
    Ok(())
}

fn write_group(open: &str, child: &Expr, out: &mut String) -> std::result::Result<(), Refused> {
    out.push_str(open);
    write(child, out)?;
    out.push(')');
    Ok(())
}

/// Writes the characters of a class, or a single character, as ranges.
fn write_class(class: &str, case_insensitive: bool, out: &mut String) -> std::result::Result<(), Refused> {
    const REFUSED: Refused = "a class with members other than characters";
    let flags = if case_insensitive { "(?i)" } else { "" };
    let hir = regex_syntax::parse(&format!("{flags}{class}")).map_err(|_| REFUSED)?;
    let ranges = match hir.kind() {
        HirKind::Class(Class::Unicode(ranges)) => ranges.iter().map(|range| (range.start(), range.end())).collect(),
        HirKind::Class(Class::Bytes(none)) if none.ranges().is_empty() => Vec::new(),
        HirKind::Literal(_) => single_character(&hir).ok_or(REFUSED)?,
        _ => return Err(REFUSED),
    };
    if ranges.is_empty() {
        out.push_str("(?!)");
        return Ok(());
    }
    out.push('[');
    for (first, last) in ranges {
        let _ = match first == last {
            true => write!(out, r"\x{{{:x}}}", u32::from(first)),
            false => write!(out, r"\x{{{:x}}}-\x{{{:x}}}", u32::from(first), u32::from(last)),
        };
    }
    out.push(']');
    Ok(())
}

fn single_character(hir: &Hir) -> Option<Vec<(char, char)>> {
    let HirKind::Literal(literal) = hir.kind() else {
        return None;
    };
    let mut characters = std::str::from_utf8(&literal.0).ok()?.chars();
    let character = characters.next()?;
    characters.next().is_none().then(|| vec![(character, character)])
}

fn anchor(assertion: &Assertion) -> std::result::Result<String, Refused> {
    let word = || {
        let mut word = String::new();
        write_class(r"\w", false, &mut word).map(|()| word)
    };
    Ok(match assertion {
        Assertion::StartText => r"\A".into(),
        Assertion::EndText => r"\z".into(),
        Assertion::StartLine { crlf: false } => r"(?:\A|(?<=\x{a}))".into(),
        Assertion::EndLine { crlf: false } => r"(?=\x{a}|\z)".into(),
        Assertion::WordBoundary => word().map(|w| format!("(?:(?<={w})(?!{w})|(?<!{w})(?={w}))"))?,
        Assertion::NotWordBoundary => word().map(|w| format!("(?:(?<={w})(?={w})|(?<!{w})(?!{w}))"))?,
        Assertion::EndTextIgnoreTrailingNewlines { .. } => return Err(r"\Z"),
        Assertion::StartLine { .. } | Assertion::StartLineOniguruma { .. } | Assertion::EndLine { .. } => {
            return Err("line anchors in CRLF mode");
        }
        _ => return Err(r"the word boundaries \< and \> and \b{...}"),
    })
}

/// Returns whether an expression can match the empty string. Returns true if that is uncertain.
fn may_be_empty(expr: &Expr) -> bool {
    match expr {
        Expr::Any { .. } | Expr::Delegate { .. } => false,
        Expr::Literal { val, .. } => val.is_empty(),
        Expr::Concat(parts) => parts.iter().all(may_be_empty),
        Expr::Alt(choices) => choices.iter().any(may_be_empty),
        Expr::Group(child) => may_be_empty(child),
        Expr::AtomicGroup(child) => may_be_empty(child),
        Expr::Repeat { child, lo, .. } => *lo == 0 || may_be_empty(child),
        _ => true,
    }
}

fn name(expr: &Expr) -> Refused {
    match expr {
        Expr::GeneralNewline { .. } => r"\R",
        Expr::LiteralBytes { .. } => r"\x80 to \xff",
        Expr::Backref { .. } | Expr::BackrefWithRelativeRecursionLevel { .. } => "a back reference",
        Expr::KeepOut => r"\K",
        Expr::ContinueFromPreviousMatchEnd => r"\G",
        Expr::SubroutineCall(_) | Expr::DefineGroup { .. } => "a subroutine",
        Expr::BackrefExistsCondition { .. } | Expr::Conditional { .. } => "a condition",
        Expr::BacktrackingControlVerb(_) => "a backtracking verb",
        Expr::Absent(_) => "(?~...)",
        _ => "a part of it",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::split::Splitter;
    use proptest::prelude::*;

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        splitter.for_each(text, |piece| pieces.push(piece.to_owned())).unwrap();
        pieces
    }

    fn check(text: &str) {
        for (splitter, translated) in &*PAIRS {
            let pattern = splitter.pattern();
            assert_eq!(pieces(translated, text), pieces(splitter, text), "{pattern} {text:?}");
        }
    }

    /// Patterns before and after translation.
    static PAIRS: LazyLock<Vec<(Splitter, Splitter)>> = LazyLock::new(|| {
        let pair = |pattern| {
            let splitter = Splitter::for_ranks(pattern).unwrap();
            let translated = Splitter::new(&splitter.for_tokenizers().unwrap()).unwrap();
            (splitter, translated)
        };
        PATTERNS.into_iter().map(pair).collect()
    });

    const PATTERNS: [&str; 27] = [
        r"^",
        r"a$",
        r"(?m:^a)|(?m:b$)",
        r"\Aa|b\z",
        r"\w+|\W+",
        r"\b",
        r"\B\w",
        r"\d{1,3}+",
        r"a{2}?|b{1,2}?|\s??",
        r"(?i:ss|k|ſ)",
        r"(?i)[a-zß]+",
        r"[[:alpha:]]+|[[:punct:]]",
        r"[^\d\s]+",
        r"[a-z&&[^b]]+|[\w--\d]+",
        r".+|\n",
        r"(?s:.)+?b",
        r"(?<=a|bb).",
        r"(?<!\w)a(?!b)",
        r"(?>a|ab)c|(a|b)(?<x>1)",
        r"\h+|\N",
        r"\x{e9}|\u00e9",
        r"(?x) a b # comment",
        r"(?U:a+)|\.",
        r"[^\s\p{L}]?+\p{L}++|\p{Greek}|\p{Lu}",
        r"(?=b)",
        r"[^\x{0}-\x{10ffff}]|b",
        r"\xff",
    ];

    #[test]
    fn every_pattern_cuts_every_character_as_before() {
        let contexts = |c: char| format!("{c} a{c}b{c}1{c}\n{c}{c}_{c}");
        let text: String = (0..0x3000).filter_map(char::from_u32).map(contexts).collect();
        check(&text);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn every_pattern_cuts_every_text_as_before(text in r"(a|b|ab|bb|[sSßſkK]|ss|[12²]|[ \n\r_.é]|\u{200d}|\PC){0,30}") {
            check(&text);
        }

        #[test]
        fn random_patterns_cut_every_text_as_before(
            parts in prop::collection::vec(
                (r"a|b|\\w|\\W|\\s|\[\^a\]|\.|\(a\|ab\)|\(\?i:s\)|\(\?=b\)|\(\?<!a\)|\\b|\^|\$|\|", r"|\*|\+|\?|\*\?|\+\+|\{1,2\}|\{1,2\}\+|\{2\}\?"),
                1..6,
            ),
            text in r"(a|b|ab|[sS]|ss|[ \n_²]){0,20}",
        ) {
            let pattern: String = parts.iter().map(|(atom, repeat)| format!("{atom}{repeat}")).collect();
            // The regex crate is not leftmost-first everywhere: `(a|ab)*b*?(a|ab)*` matches all of "ab", not "a".
            prop_assume!(!(pattern.contains("(a|ab)") && pattern.contains("*?")));
            if let Ok(splitter) = Splitter::for_ranks(&pattern)
                && let Ok(translated) = splitter.for_tokenizers()
            {
                let translated = Splitter::new(&translated).unwrap();
                prop_assert_eq!(pieces(&translated, &text), pieces(&splitter, &text), "{}", pattern);
            }
        }
    }

    #[test]
    fn parts_without_a_counterpart_are_named() {
        for (pattern, name) in [
            (r"a\K|b", r"\K"),
            (r"\Ga", r"\G"),
            (r"\R", r"\R"),
            (r"(a)\1", "back reference"),
            (r"(?:a*)+b", "match the empty string"),
        ] {
            let refused = Splitter::for_ranks(pattern).unwrap().for_tokenizers().map(String::from);
            assert!(
                matches!(&refused, Err(Error::Pattern(why)) if why.contains(name)),
                "{refused:?}"
            );
        }
    }
}
