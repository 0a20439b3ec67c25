//! Where pieces of ASCII text begin, 63 bytes at a time, by arithmetic on bit masks.
//!
//! A window begins where a piece begins. What lies behind its end, or behind its first byte that is not ASCII, is
//! unknown, unless the text ends there; so a piece's beginning is only told where nothing unknown could change it or one
//! before it.

use super::masks::Masks;
use super::rules::{Contractions, Rules};

/// Bytes of a window that are looked at: one less than its masks have bits, so that no carry is lost.
pub const USED: u32 = 63;

fn below(bit: u32) -> u64 {
    (1 << bit) - 1
}

/// The beginnings of pieces among the first `len` bytes of a window, bit 0 one of them. With `len` at most `USED`, the
/// text ends behind these bytes; then also whether all of them were looked at, so that no beginning is missing.
pub fn beginnings<R: Rules>(masks: &Masks, window: &[u8], len: u32) -> (u64, bool) {
    let mut seen = len.min(USED).min(masks.not_ascii.trailing_zeros());
    if R::CASED {
        // Slashes may go with the newlines before them.
        seen = seen.min((masks.newline << 1 & masks.slash).trailing_zeros());
    }
    let all = seen == len;
    if R::CASED && !all && seen > 0 && masks.apostrophe >> (seen - 1) & 1 != 0 {
        seen -= 1; // perhaps a contraction
    }
    let len = seen;
    let known = below(len);
    let [letter, digit, space] = [masks.letter, masks.digit, masks.space].map(|mask| mask & known);
    let newline = masks.newline & known;
    let after_blank = masks.blank << 1;
    let symbol = known & !(letter | digit | space);

    let symbols = symbol & !(symbol << 1) & !after_blank;
    let mut begin = symbols | spaces::<R>(space, newline, symbol, known, all) | digits::<R>(digit, after_blank);

    // A run of symbols that a letter follows and that is its own beginning is one character: the word's first.
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

/// Beginnings within white space.
fn spaces<R: Rules>(space: u64, newline: u64, symbol: u64, known: u64, all: bool) -> u64 {
    let before_other = (known & !space) >> 1;
    if !R::NEWLINES {
        return space & (!(space << 1) | before_other);
    }
    // Newlines right behind symbols belong to these: a carry runs through each of their runs.
    let first = symbol << 1 & newline;
    let taken = newline & !newline.wrapping_add(first);
    let space = space & !taken;
    let newline = newline & !taken;
    let plain = space & !newline;
    // What follows the last newline of a run is a piece, if it is known to end before something else or with the text.
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

/// Length of the contraction that `window` has at `apostrophe`, 0 if none, `None` if that is not known.
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

/// After a contraction that is a piece, another begins.
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

/// A contraction behind a word belongs to it, but not behind another contraction.
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
