//! Automaton that reads UTF-8 byte by byte.

/// State within a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Utf8 {
    /// Bytes missing.
    left: u8,
    /// Bounds of the next byte.
    low: u8,
    high: u8,
}

impl Utf8 {
    /// The state between two characters.
    pub(crate) const WHOLE: Utf8 = Utf8::tail(0);

    const fn tail(left: u8) -> Utf8 {
        Utf8 {
            left,
            low: 0x80,
            high: 0xbf,
        }
    }

    pub(crate) fn is_whole(self) -> bool {
        self.left == 0
    }

    /// Returns the state after a byte, or `None` if the byte is invalid here. Source: Unicode 16, table 3-7.
    pub(crate) fn step(self, byte: u8) -> Option<Utf8> {
        if self.left > 0 {
            return (self.low..=self.high)
                .contains(&byte)
                .then_some(Utf8::tail(self.left - 1));
        }
        Some(match byte {
            0..=0x7f => Utf8::WHOLE,
            0xc2..=0xdf => Utf8::tail(1),
            0xe0 => Utf8 {
                low: 0xa0,
                ..Utf8::tail(2)
            },
            0xed => Utf8 {
                high: 0x9f,
                ..Utf8::tail(2)
            },
            0xe1..=0xef => Utf8::tail(2),
            0xf0 => Utf8 {
                low: 0x90,
                ..Utf8::tail(3)
            },
            0xf1..=0xf3 => Utf8::tail(3),
            0xf4 => Utf8 {
                high: 0x8f,
                ..Utf8::tail(3)
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Option<Utf8> {
        bytes.iter().try_fold(Utf8::WHOLE, |state, &byte| state.step(byte))
    }

    #[test]
    fn takes_what_the_standard_library_takes() {
        // All sequences of up to four representative bytes.
        let kinds = [
            0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef,
            0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff,
        ];
        let mut sequences: Vec<Vec<u8>> = vec![vec![]];
        for _ in 0..4 {
            sequences = sequences
                .iter()
                .flat_map(|start| kinds.iter().map(|&byte| [start.as_slice(), &[byte]].concat()))
                .collect();
            for bytes in &sequences {
                let (ours, theirs) = (read(bytes), std::str::from_utf8(bytes));
                assert_eq!(ours.is_some_and(Utf8::is_whole), theirs.is_ok(), "{bytes:x?}");
                let begins = theirs.map_or_else(|error| error.error_len().is_none(), |_| true);
                assert_eq!(ours.is_some(), begins, "{bytes:x?}");
            }
        }
    }
}
