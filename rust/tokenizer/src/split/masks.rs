//! Bit masks of the classes of the bytes in a window.

/// Number of bytes in a window.
pub const WIDTH: usize = 64;

/// Bit i describes byte i of the window. A byte that is not ASCII has no other bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Masks {
    pub letter: u64,
    pub upper: u64,
    pub digit: u64,
    /// White space, newlines included.
    pub space: u64,
    /// `\r` and `\n`.
    pub newline: u64,
    /// `' '`.
    pub blank: u64,
    pub apostrophe: u64,
    pub slash: u64,
    pub not_ascii: u64,
}

/// Computes the masks of a window with the fastest code for this processor.
#[derive(Debug, Clone, Copy)]
pub struct Classifier(fn(&[u8; WIDTH]) -> Masks);

impl Classifier {
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has the features that the function was compiled for.
                return Self(|window| unsafe { x86::avx512(window) });
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above.
                return Self(|window| unsafe { x86::avx2(window) });
            }
        }
        Self(portable)
    }

    pub fn classify(self, window: &[u8; WIDTH]) -> Masks {
        (self.0)(window)
    }
}

/// Computes the masks of eight bytes at a time. Each comparison leaves its result in the highest bit of the byte, and a
/// product collects these bits.
fn portable(window: &[u8; WIDTH]) -> Masks {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    /// Returns whether each byte below 128 is at least `low`: the sum carries into the highest bit.
    fn at_least(bytes: u64, low: u8) -> u64 {
        (bytes + u64::from(128 - low) * ONES) & HIGH
    }
    let between = |bytes: u64, low: u8, high: u8| at_least(bytes, low) & !at_least(bytes, high + 1);
    let gather = |bits: u64| (bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;

    let mut masks = Masks::default();
    let (words, _) = window.as_chunks::<8>();
    for (word, shift) in words.iter().zip((0..).step_by(8)) {
        let word = u64::from_le_bytes(*word);
        let bytes = word & !HIGH;
        let put = |mask: &mut u64, found: u64| *mask |= gather(found & !word & HIGH) << shift;
        put(&mut masks.letter, between(bytes | (0x20 * ONES), b'a', b'z'));
        put(&mut masks.upper, between(bytes, b'A', b'Z'));
        put(&mut masks.digit, between(bytes, b'0', b'9'));
        let blank = between(bytes, b' ', b' ');
        put(&mut masks.space, between(bytes, b'\t', b'\r') | blank);
        put(
            &mut masks.newline,
            between(bytes, b'\n', b'\n') | between(bytes, b'\r', b'\r'),
        );
        put(&mut masks.blank, blank);
        put(&mut masks.apostrophe, between(bytes, b'\'', b'\''));
        put(&mut masks.slash, between(bytes, b'/', b'/'));
        masks.not_ascii |= gather(word & HIGH) << shift;
    }
    masks
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Masks, WIDTH};
    use std::arch::x86_64::*;

    fn word(window: &[u8; WIDTH], number: usize) -> i64 {
        let (words, _) = window.as_chunks::<8>();
        i64::from_le_bytes(words[number])
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2(window: &[u8; WIDTH]) -> Masks {
        let half = |first: usize| {
            _mm256_set_epi64x(
                word(window, first + 3),
                word(window, first + 2),
                word(window, first + 1),
                word(window, first),
            )
        };
        let halves = [half(0), half(4)];
        let mask = |test: &dyn Fn(__m256i) -> __m256i| {
            let [low, high] = halves.map(|bytes| u64::from(_mm256_movemask_epi8(test(bytes)) as u32));
            low | high << 32
        };
        let is = |bytes: __m256i, byte: u8| _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(byte as i8));
        let between = |bytes: __m256i, low: u8, high: u8| {
            let above = _mm256_sub_epi8(bytes, _mm256_set1_epi8(low as i8));
            _mm256_cmpeq_epi8(_mm256_min_epu8(above, _mm256_set1_epi8((high - low) as i8)), above)
        };
        let blank = mask(&|bytes| is(bytes, b' '));
        Masks {
            letter: mask(&|bytes| between(_mm256_or_si256(bytes, _mm256_set1_epi8(0x20)), b'a', b'z')),
            upper: mask(&|bytes| between(bytes, b'A', b'Z')),
            digit: mask(&|bytes| between(bytes, b'0', b'9')),
            space: mask(&|bytes| between(bytes, b'\t', b'\r')) | blank,
            newline: mask(&|bytes| _mm256_or_si256(is(bytes, b'\n'), is(bytes, b'\r'))),
            blank,
            apostrophe: mask(&|bytes| is(bytes, b'\'')),
            slash: mask(&|bytes| is(bytes, b'/')),
            not_ascii: mask(&|bytes| bytes),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn avx512(window: &[u8; WIDTH]) -> Masks {
        let w = |number| word(window, number);
        let bytes = _mm512_set_epi64(w(7), w(6), w(5), w(4), w(3), w(2), w(1), w(0));
        let is = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte as i8));
        let between = |bytes: __m512i, low: u8, high: u8| {
            let above = _mm512_sub_epi8(bytes, _mm512_set1_epi8(low as i8));
            _mm512_cmple_epu8_mask(above, _mm512_set1_epi8((high - low) as i8))
        };
        let blank = is(b' ');
        Masks {
            letter: between(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), b'a', b'z'),
            upper: between(bytes, b'A', b'Z'),
            digit: between(bytes, b'0', b'9'),
            space: between(bytes, b'\t', b'\r') | blank,
            newline: is(b'\n') | is(b'\r'),
            blank,
            apostrophe: is(b'\''),
            slash: is(b'/'),
            not_ascii: _mm512_movepi8_mask(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_definition(window: &[u8; WIDTH]) -> Masks {
        let mask = |test: fn(&u8) -> bool| {
            window
                .iter()
                .enumerate()
                .fold(0, |mask, (i, byte)| mask | u64::from(test(byte)) << i)
        };
        Masks {
            letter: mask(u8::is_ascii_alphabetic),
            upper: mask(u8::is_ascii_uppercase),
            digit: mask(u8::is_ascii_digit),
            space: mask(|byte| byte.is_ascii() && char::from(*byte).is_whitespace()),
            newline: mask(|byte| matches!(byte, b'\r' | b'\n')),
            blank: mask(|byte| *byte == b' '),
            apostrophe: mask(|byte| *byte == b'\''),
            slash: mask(|byte| *byte == b'/'),
            not_ascii: mask(|byte| !byte.is_ascii()),
        }
    }

    fn check(window: &[u8; WIDTH]) {
        let expected = by_definition(window);
        assert_eq!(portable(window), expected);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the feature.
                assert_eq!(unsafe { x86::avx2(window) }, expected);
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has the features.
                assert_eq!(unsafe { x86::avx512(window) }, expected);
            }
        }
    }

    #[test]
    fn every_byte_at_every_place() {
        for byte in 0..=255 {
            for rotation in 0..WIDTH {
                let mut window: [u8; WIDTH] = std::array::from_fn(|i| (i as u8).wrapping_mul(3).wrapping_add(byte));
                window.rotate_left(rotation);
                check(&window);
            }
        }
    }

    proptest! {
        #[test]
        fn every_way_gives_the_definition(bytes in proptest::collection::vec(any::<u8>(), WIDTH)) {
            check(bytes.as_slice().try_into().unwrap());
        }
    }
}
