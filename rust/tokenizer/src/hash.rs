//! Hashes of pieces, and a compact hash table of numbers.

/// Length in bytes of the longest piece that fits in a 128-bit key.
pub const SHORT: usize = 15;

/// Returns the key of a short piece: its bytes, zeros, and the number of bytes. Different pieces have different keys,
/// and no key is 0. Two overlapping loads replace a copy.
pub fn short_key(piece: &[u8]) -> u128 {
    let length = piece.len();
    let bytes = if let (Some(&head), Some(&tail)) = (piece.first_chunk(), piece.last_chunk()) {
        u128::from(u64::from_le_bytes(head)) | u128::from(u64::from_le_bytes(tail)) << (8 * (length - 8))
    } else if let (Some(&head), Some(&tail)) = (piece.first_chunk(), piece.last_chunk()) {
        u128::from(u32::from_le_bytes(head)) | u128::from(u32::from_le_bytes(tail)) << (8 * (length - 4))
    } else {
        piece.iter().rfold(0, |bytes, &byte| bytes << 8 | u128::from(byte))
    };
    bytes | (length as u128) << (8 * SHORT)
}

/// Returns `short_key` of the first `len` bytes.
pub fn short_key_of(bytes: &[u8; 16], len: usize) -> u128 {
    u128::from_le_bytes(*bytes) & FIRST[len] | (len as u128) << 120
}

/// Masks of the first bytes, by their number.
static FIRST: [u128; SHORT + 1] = {
    let mut masks = [0; SHORT + 1];
    let mut len = 1;
    while len <= SHORT {
        masks[len] = masks[len - 1] << 8 | 0xff;
        len += 1;
    }
    masks
};

/// Hashes a key. The product of the two halves mixes every bit of the key into the high bits of the result.
pub fn hash_key(key: u128) -> u64 {
    let low = key as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let high = (key >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

pub fn hash(piece: &[u8]) -> u64 {
    if piece.len() <= SHORT {
        return hash_key(short_key(piece));
    }
    let (blocks, rest) = piece.as_chunks::<16>();
    let start = hash_key(short_key(rest)) ^ piece.len() as u64;
    blocks.iter().fold(start, |hash, block| {
        hash_key(u128::from_le_bytes(*block) ^ u128::from(hash) << 32)
    })
}

/// Hash table of numbers below 2^22, with open addressing. Each slot has 4 bytes: a number, and 10 bits of its hash,
/// which rule out nearly all other entries.
#[derive(Debug, Clone)]
pub struct Table {
    slots: Box<[u32]>,
}

const EMPTY: u32 = u32::MAX;
const NUMBER_BITS: u32 = 22;

/// Bound of the numbers in a [`Table`].
pub const MAX_NUMBERS: u32 = (1 << NUMBER_BITS) - 1;

impl Table {
    pub fn with_capacity(entries: usize) -> Self {
        Self {
            slots: vec![EMPTY; (entries * 2).next_power_of_two().max(4)].into_boxed_slice(),
        }
    }

    /// Inserts a number below `MAX_NUMBERS`. The table must have at most as many entries as its capacity.
    pub fn insert(&mut self, hash: u64, number: u32) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.slots[at] = (hash >> 54 << NUMBER_BITS) as u32 | number;
    }

    /// Returns the number with this hash that `is` accepts.
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        let tag = (hash >> 54) as u32;
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            let number = slot & MAX_NUMBERS;
            if slot >> NUMBER_BITS == tag && is(number) {
                return Some(number);
            }
            at = (at + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_are_of_the_piece_alone(piece in proptest::collection::vec(any::<u8>(), 0..=15), after in any::<[u8; 16]>()) {
            let mut bytes = after;
            bytes[..piece.len()].copy_from_slice(&piece);
            prop_assert_eq!(short_key_of(&bytes, piece.len()), short_key(&piece));
        }

        #[test]
        fn a_table_finds_what_was_put_in(pieces in proptest::collection::hash_set(proptest::collection::vec(any::<u8>(), 0..40), 0..200)) {
            let pieces: Vec<_> = pieces.into_iter().collect();
            let mut table = Table::with_capacity(pieces.len());
            for (piece, number) in pieces.iter().zip(0..) {
                table.insert(hash(piece), number);
            }
            for (piece, number) in pieces.iter().zip(0..) {
                prop_assert_eq!(table.find(hash(piece), |found| pieces[found as usize] == *piece), Some(number));
            }
            prop_assert_eq!(table.find(hash(b"\x01not there"), |found| pieces[found as usize] == b"\x01not there"), None);
        }
    }
}
