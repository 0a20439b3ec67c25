//! Handwritten implementation of the known patterns: a description of their differences, and the first match.

use super::class::{LETTER, LOWER, NUMBER, SPACE, UPPER, class, is_newline, run, run_of_others};

/// Positions where a pattern recognizes `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contractions {
    /// As a separate piece, in any case.
    Alone,
    /// As a separate piece, in lowercase.
    AloneLower,
    /// At the end of a word, in any case.
    Suffix,
}

/// Differences between the known patterns.
pub trait Rules {
    const CONTRACTIONS: Contractions;
    /// Whether a word includes any one character before it except newlines and numbers. Else it includes only a space.
    const ANY_PREFIX: bool;
    /// Length of the longest group of digits. 0 for any length; the group then includes a space before it.
    const DIGITS: usize;
    /// Whether newlines belong to the symbols before them, and white space ends at its last newline.
    const NEWLINES: bool;
    /// Whether words end where lowercase meets uppercase, and slashes belong to symbols like the newlines after them.
    const CASED: bool;
    /// Whether white space at the end of the text is one piece.
    const TRAILING: bool;
}

macro_rules! rules {
    ($name:ident, $contractions:ident, $any_prefix:literal, $digits:literal, $newlines:literal, $cased:literal, $trailing:literal) => {
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl Rules for $name {
            const CONTRACTIONS: Contractions = Contractions::$contractions;
            const ANY_PREFIX: bool = $any_prefix;
            const DIGITS: usize = $digits;
            const NEWLINES: bool = $newlines;
            const CASED: bool = $cased;
            const TRAILING: bool = $trailing;
        }
    };
}

rules!(Llama3, Alone, true, 3, true, false, false);
rules!(Cl100k, Alone, true, 3, true, false, true);
rules!(Qwen2, Alone, true, 1, true, false, false);
rules!(Gpt2, AloneLower, false, 0, false, false, false);
rules!(O200k, Suffix, true, 3, true, true, false);

/// Returns the length in bytes of the first match in `text`, which must not be empty. The match begins at 0 because the
/// alternatives of every known pattern cover every character. Reads only the piece and, for white space, the whole run.
pub fn first_piece<R: Rules>(text: &str) -> usize {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let rest = chars.as_str();
    if R::CONTRACTIONS != Contractions::Suffix && first == '\'' {
        let length = contraction(rest, R::CONTRACTIONS == Contractions::AloneLower);
        if length > 0 {
            return 1 + length;
        }
    }
    let word = if R::CASED {
        cased_word(text)
    } else {
        word::<R>(text, first, rest)
    };
    if word > 0 {
        return word;
    }
    let number = number::<R>(text);
    if number > 0 {
        return number;
    }
    let symbols = symbols::<R>(text);
    if symbols > 0 { symbols } else { spaces::<R>(text) }
}

fn word<R: Rules>(text: &str, first: char, rest: &str) -> usize {
    let of_first = class(first);
    if of_first & LETTER != 0 {
        return run(text, LETTER);
    }
    let is_prefix = if R::ANY_PREFIX {
        of_first & NUMBER == 0 && !is_newline(first)
    } else {
        first == ' '
    };
    match run(rest, LETTER) {
        letters if letters > 0 && is_prefix => first.len_utf8() + letters,
        _ => 0,
    }
}

/// Matches the two alternatives for words of o200k, each first with the optional character before the word, then
/// without.
fn cased_word(text: &str) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    let is_prefix = class(first) & (LETTER | NUMBER) == 0 && !is_newline(first);
    let prefix = if is_prefix { first.len_utf8() } else { 0 };
    for letters in [to_lower, to_upper] {
        for start in [prefix, 0] {
            let length = letters(&text[start..]);
            if length > 0 {
                let end = start + length;
                let suffix = text[end..]
                    .strip_prefix('\'')
                    .map_or(0, |rest| contraction(rest, false));
                return if suffix > 0 { end + 1 + suffix } else { end };
            }
        }
    }
    0
}

/// Matches `UPPER*LOWER+`. Without a lowercase character after it, the match ends at the last character of both
/// classes.
fn to_lower(text: &str) -> usize {
    let upper = run(text, UPPER);
    let lower = run(&text[upper..], LOWER);
    if lower > 0 {
        return upper + lower;
    }
    text[..upper]
        .char_indices()
        .rfind(|&(_, c)| class(c) & LOWER != 0)
        .map_or(0, |(at, c)| at + c.len_utf8())
}

/// Matches `UPPER+LOWER*` where `to_lower` found nothing.
fn to_upper(text: &str) -> usize {
    run(text, UPPER)
}

fn number<R: Rules>(text: &str) -> usize {
    if R::DIGITS == 0 {
        let blank = usize::from(text.starts_with(' '));
        return match run(&text[blank..], NUMBER) {
            0 => 0,
            digits => blank + digits,
        };
    }
    text.char_indices()
        .take(R::DIGITS)
        .take_while(|&(_, c)| class(c) & NUMBER != 0)
        .fold(0, |_, (at, c)| at + c.len_utf8())
}

fn symbols<R: Rules>(text: &str) -> usize {
    let blank = usize::from(text.starts_with(' '));
    let symbols = run_of_others(&text[blank..]);
    if symbols == 0 {
        return 0;
    }
    let end = blank + symbols;
    let goes_with = |c: char| R::NEWLINES && (is_newline(c) || R::CASED && c == '/');
    end + text[end..].find(|c| !goes_with(c)).unwrap_or(text.len() - end)
}

fn spaces<R: Rules>(text: &str) -> usize {
    let spaces = &text[..run(text, SPACE)];
    if R::TRAILING && spaces.len() == text.len() {
        return spaces.len();
    }
    if R::NEWLINES
        && let Some(last_newline) = spaces.rfind(is_newline)
    {
        return last_newline + 1;
    }
    // The last space of a run belongs to the word after it, unless the run is a single space.
    match spaces.char_indices().next_back() {
        Some((last, _)) if last > 0 && spaces.len() < text.len() => last,
        _ => spaces.len(),
    }
}

/// Returns the length of the contraction at the start of `text`, without its apostrophe. `ſ` is another case of `s`.
fn contraction(text: &str, only_lower: bool) -> usize {
    let mut chars = text.chars();
    let mut next = || {
        let c = chars.next()?;
        Some(if only_lower { c } else { c.to_ascii_lowercase() })
    };
    match (next(), next()) {
        (Some('s' | 't' | 'm' | 'd'), _) => 1,
        (Some('l'), Some('l')) | (Some('r' | 'v'), Some('e')) => 2,
        (Some('ſ'), _) if !only_lower => 'ſ'.len_utf8(),
        _ => 0,
    }
}
