//! Starts of pieces in ASCII text, 63 bytes at a time, by arithmetic on bit masks.
//!
//! A window begins at the start of a piece. The text after its end, or after its first byte that is not ASCII, is
//! unknown unless the text ends there. So only those starts are reported that unknown text cannot change.

use super::masks::Masks;
use super::rules::{Contractions, Rules};

/// Number of bytes of a window that are used: one less than the bits of a mask, so that no carry is lost.
pub const USED: u32 = 63;

fn below(bit: u32) -> u64 {
    (1 << bit) - 1
}

/// Returns the starts of pieces in the first `len` bytes of a window, including bit 0. If `len` is at most `USED`, the
/// text ends after these bytes, and the function also returns whether it read all of them, so that no start is missing.
pub fn beginnings<R: Rules>(masks: &Masks, window: &[u8], len: u32) -> (u64, bool) {
    let mut seen = len.min(USED).min(masks.not_ascii.trailing_zeros());
    if R::CASED {
        // Slashes can belong to the newlines before them.
        seen = seen.min((masks.newline << 1 & masks.slash).trailing_zeros());
    }
    let all = seen == len;
    if R::CASED && !all && seen > 0 && masks.apostrophe >> (seen - 1) & 1 != 0 {
        seen -= 1; // may be a contraction
    }
    let len = seen;
    let known = below(len);
    let [letter, digit, space] = [masks.letter, masks.digit, masks.space].map(|mask| mask & known);
    let newline = masks.newline & known;
    let after_blank = masks.blank << 1;
    let symbol = known & !(letter | digit | space);

    let symbols = symbol & !(symbol << 1) & !after_blank;
    let mut begin = symbols | spaces::<R>(space, newline, symbol, known, all) | digits::<R>(digit, after_blank);

    // A run of a single symbol before a letter is the first character of the word.
    let prefix = if R::ANY_PREFIX {
        (space & !newline) << 1 | symbols << 1
    } else {
        after_blank
    };
    begin |= letter & !(letter << 1) & !prefix;
    if R::CASED {
        begin |= masks.upper & (letter & !masks.upper) << 1;
    }
    begin &= known;
    let apostrophe = masks.apostrophe & letter >> 1;
    if R::CONTRACTIONS == Contractions::Suffix {
        begin = suffixes(begin, apostrophe & letter << 1, window, len, all);
    } else {
        begin = contractions::<R>(begin, apostrophe & symbols, window, len, all);
    }
    (begin | 1, all)
}

/// Returns the starts within white space.
fn spaces<R: Rules>(space: u64, newline: u64, symbol: u64, known: u64, all: bool) -> u64 {
    let before_other = (known & !space) >> 1;
    if !R::NEWLINES {
        return space & (!(space << 1) | before_other);
    }
    // Newlines directly after symbols belong to the symbols: a carry runs through each run of newlines.
    let first = symbol << 1 & newline;
    let taken = newline & !newline.wrapping_add(first);
    let space = space & !taken;
    let newline = newline & !taken;
    let plain = space & !newline;
    // White space after the last newline of a run is a piece if its end is known.
    let mut indent = plain & newline << 1;
    let unknown = if all && !R::TRAILING { 0 } else { !known };
    let mut ends = plain.wrapping_add(indent) & !plain & (newline | unknown);
    while ends != 0 {
        let before = indent & below(ends.trailing_zeros());
        indent ^= 1 << (63 - before.leading_zeros());
        ends &= ends - 1;
    }
    space & !(space << 1) | plain & before_other | indent
}

fn digits<R: Rules>(digit: u64, after_blank: u64) -> u64 {
    let first = digit & !(digit << 1);
    match R::DIGITS {
        0 => first & !after_blank,
        1 => digit,
        group => {
            let inside = (1..=group).fold(digit, |inside, i| inside & digit << i);
            let (mut all, mut next) = (first, first);
            while next != 0 {
                next = next << group & inside;
                all |= next;
            }
            all
        }
    }
}

/// Returns the length of the contraction at `apostrophe`, 0 if there is none, or `None` if that is unknown.
fn contraction(window: &[u8], apostrophe: u32, len: u32, all: bool, only_lower: bool) -> Option<u32> {
    let letter = |i: u32| {
        let byte = window[(apostrophe + i) as usize];
        (apostrophe + i < len).then_some(if only_lower { byte } else { byte.to_ascii_lowercase() })
    };
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        (b'r' | b'v' | b'l', None) if !all => None,
        _ => Some(0),
    }
}

/// Marks the start of a piece after a contraction that is a piece.
fn contractions<R: Rules>(mut begin: u64, mut apostrophes: u64, window: &[u8], len: u32, all: bool) -> u64 {
    while apostrophes != 0 {
        let at = apostrophes.trailing_zeros();
        apostrophes &= apostrophes - 1;
        match contraction(window, at, len, all, R::CONTRACTIONS == Contractions::AloneLower) {
            None => return begin & below(at + 1),
            Some(0) => (),
            Some(length) => {
                begin &= below(at + 1) | !below(at + length);
                if at + length < len {
                    begin |= 1 << (at + length);
                }
            }
        }
    }
    begin
}

/// Handles contractions at the end of words. A contraction after a word belongs to it, but not after another
/// contraction.
fn suffixes(mut begin: u64, mut apostrophes: u64, window: &[u8], len: u32, all: bool) -> u64 {
    let mut end = 0;
    while apostrophes != 0 {
        let at = apostrophes.trailing_zeros();
        apostrophes &= apostrophes - 1;
        if at == end {
            continue;
        }
        match contraction(window, at, len, all, false) {
            None => return begin & below(at),
            Some(0) => (),
            Some(length) => {
                end = at + length;
                begin &= below(at) | !below(end);
                if end < len {
                    begin |= 1 << end;
                }
            }
        }
    }
    begin
}
