//! Best-fit-decreasing bin packing of integers, in time linear in their count and in the capacity.

use crate::error::{Error, Result};

/// Largest capacity of a bin: the tables by free space have one entry more.
pub const MAX_CAPACITY: usize = 1 << 24;

/// Bins, indexed by their free space.
pub struct Bins {
    room: Vec<u32>,
    /// For every amount of free space, the last bin that has it, or `NONE`.
    heads: Vec<u32>,
    /// For every bin, the previous bin with equal free space, or `NONE`.
    next: Vec<u32>,
    used: Levels,
}

const NONE: u32 = u32::MAX;

impl Bins {
    pub fn new(capacity: usize) -> Result<Bins> {
        if capacity > MAX_CAPACITY {
            return Err(Error::Invalid(format!(
                "best-fit packing needs rows of at most {MAX_CAPACITY} tokens, got {capacity}"
            )));
        }
        Ok(Bins {
            room: Vec::new(),
            heads: vec![NONE; capacity + 1],
            next: Vec::new(),
            used: Levels::new(capacity + 1),
        })
    }

    /// Returns the number of bins opened so far.
    pub fn count(&self) -> usize {
        self.room.len()
    }

    /// Puts every item, the largest first and equal ones in order, into the bin where it leaves the least free space,
    /// or into a new one. Returns the bin of every item. Panics if an item is larger than the capacity.
    pub fn pack(&mut self, items: &[u32]) -> Vec<u32> {
        let mut bins = vec![0; items.len()];
        for item in decreasing(items, self.heads.len()) {
            let size = items[item as usize];
            bins[item as usize] = self.place(size).unwrap_or_else(|| self.open(size));
        }
        bins
    }

    /// Puts an item into the bin where it leaves the least free space, if it fits into any.
    pub fn place(&mut self, size: u32) -> Option<u32> {
        let room = self.used.first_from(size as usize)?;
        let bin = self.heads[room];
        self.heads[room] = self.next[bin as usize];
        if self.heads[room] == NONE {
            self.used.remove(room);
        }
        self.insert(bin, room as u32 - size);
        Some(bin)
    }

    fn open(&mut self, size: u32) -> u32 {
        let bin = self.room.len() as u32;
        self.room.push(0);
        self.next.push(NONE);
        self.insert(bin, (self.heads.len() - 1) as u32 - size);
        bin
    }

    fn insert(&mut self, bin: u32, room: u32) {
        self.room[bin as usize] = room;
        let head = &mut self.heads[room as usize];
        self.next[bin as usize] = *head;
        if *head == NONE {
            self.used.add(room as usize);
        }
        *head = bin;
    }
}

/// Returns the indices of numbers below `bound`, sorted stably from the largest to the smallest, by a counting sort.
fn decreasing(items: &[u32], bound: usize) -> Vec<u32> {
    let mut starts = vec![0u32; bound + 1];
    items
        .iter()
        .for_each(|&size| starts[bound - 1 - size as usize + 1] += 1);
    let mut total = 0;
    for start in &mut starts {
        total += *start;
        *start = total;
    }
    let mut sorted = vec![0; items.len()];
    for (item, &size) in items.iter().enumerate() {
        let place = &mut starts[bound - 1 - size as usize];
        sorted[*place as usize] = item as u32;
        *place += 1;
    }
    sorted
}

/// A set of small numbers as a bitmap, with a hierarchy of bitmaps of the nonzero words above it.
struct Levels(Vec<Vec<u64>>);

impl Levels {
    fn new(bound: usize) -> Levels {
        let mut levels = Vec::new();
        let mut words = bound.div_ceil(64);
        loop {
            levels.push(vec![0; words]);
            if words == 1 {
                return Levels(levels);
            }
            words = words.div_ceil(64);
        }
    }

    fn add(&mut self, number: usize) {
        let mut at = number;
        for level in &mut self.0 {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
    }

    fn remove(&mut self, number: usize) {
        let mut at = number;
        for level in &mut self.0 {
            level[at / 64] &= !(1 << (at % 64));
            if level[at / 64] != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// Returns the least member that is at least `number`.
    fn first_from(&self, number: usize) -> Option<usize> {
        let mut at = number;
        for (height, level) in self.0.iter().enumerate() {
            let word = level.get(at / 64)? & (u64::MAX << (at % 64));
            if word != 0 {
                let found = at / 64 * 64 + word.trailing_zeros() as usize;
                return Some(self.least_under(height, found));
            }
            at = at / 64 + 1;
        }
        None
    }

    fn least_under(&self, height: usize, member: usize) -> usize {
        let descend = |at: usize, level: &Vec<u64>| at * 64 + level[at].trailing_zeros() as usize;
        self.0[..height].iter().rev().fold(member, descend)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Best fit decreasing by its definition: considers every bin for every item.
    fn plain(items: &[u32], capacity: u32) -> Vec<u32> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(items[item]));
        let (mut room, mut bins) = (Vec::<u32>::new(), vec![0; items.len()]);
        for item in order {
            let fits = (0..room.len()).filter(|&bin| room[bin] >= items[item]);
            let best = fits.min_by_key(|&bin| room[bin]).unwrap_or_else(|| {
                room.push(capacity);
                room.len() - 1
            });
            room[best] -= items[item];
            bins[item] = best as u32;
        }
        bins
    }

    fn rooms(items: &[u32], bins: &[u32], capacity: u32) -> Vec<u32> {
        let mut rooms = vec![capacity; bins.iter().max().map_or(0, |&bin| bin as usize + 1)];
        items
            .iter()
            .zip(bins)
            .for_each(|(size, &bin)| rooms[bin as usize] -= size);
        rooms.sort_unstable();
        rooms
    }

    proptest! {
        /// Bins with equal free space may be chosen in another order, which does not change how full the bins are.
        #[test]
        fn equals_the_definition(
            (capacity, items) in (1u32..600).prop_flat_map(|capacity|
                (Just(capacity), prop::collection::vec(1..=capacity, 0..300))),
        ) {
            let mut bins = Bins::new(capacity as usize).unwrap();
            let packed = bins.pack(&items);
            prop_assert_eq!(rooms(&items, &packed, capacity), rooms(&items, &plain(&items, capacity), capacity));
            prop_assert_eq!(bins.count(), rooms(&items, &packed, capacity).len());
        }

        #[test]
        fn the_least_member_is_found(bound in 1usize..10_000, members in prop::collection::vec(any::<u32>(), 0..50)) {
            let mut levels = Levels::new(bound);
            let mut set = std::collections::BTreeSet::new();
            for member in members {
                let number = member as usize % bound;
                if set.insert(number) {
                    levels.add(number);
                } else {
                    set.remove(&number);
                    levels.remove(number);
                }
                for from in [0, number, number + 1, bound / 2, bound] {
                    prop_assert_eq!(levels.first_from(from), set.range(from..).next().copied());
                }
            }
        }
    }

    #[test]
    fn sorts_stably() {
        assert_eq!(decreasing(&[3, 9, 3, 1, 9], 10), [1, 4, 0, 2, 3]);
    }
}
