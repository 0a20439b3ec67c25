//! Merging the bytes of one piece into tokens, the first merge of the list first, leftmost among equals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use cwm_interrupt::Pace;

use crate::hash::{Table, hash_key};

/// Two adjacent tokens and what they become. Its number in the list is when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub left: u32,
    pub right: u32,
    pub id: u32,
}

/// No merge has this number.
const NEVER: u32 = u32::MAX;

/// The merges of a vocabulary, fewer than 2^22, in their order, and the tokens of the single bytes.
#[derive(Debug, Clone)]
pub struct Merges {
    list: Vec<Merge>,
    numbers: Table,
    /// The number of the merge of two bytes, by the bytes.
    of_bytes: Box<[u32]>,
    byte_ids: [u32; 256],
}

fn pair_hash(left: u32, right: u32) -> u64 {
    hash_key(u128::from(left) << 64 | u128::from(right))
}

impl Merges {
    pub fn new(byte_ids: [u32; 256], list: Vec<Merge>) -> Self {
        let mut numbers = Table::with_capacity(list.len());
        for (merge, number) in list.iter().zip(0..) {
            numbers.insert(pair_hash(merge.left, merge.right), number);
        }
        let mut merges = Self {
            list,
            numbers,
            of_bytes: Box::default(),
            byte_ids,
        };
        merges.of_bytes = (0..1 << 16)
            .map(|bytes| merges.find(byte_ids[bytes >> 8], byte_ids[bytes & 255]))
            .collect();
        merges
    }

    /// The same bytes with other merges.
    pub fn with_list(&self, list: Vec<Merge>) -> Self {
        Self::new(self.byte_ids, list)
    }

    pub fn list(&self) -> &[Merge] {
        &self.list
    }

    pub fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    fn find(&self, left: u32, right: u32) -> u32 {
        let is = |number: u32| {
            let merge = &self.list[number as usize];
            merge.left == left && merge.right == right
        };
        self.numbers.find(pair_hash(left, right), is).unwrap_or(NEVER)
    }

    fn find_bytes(&self, left: u8, right: u8) -> u32 {
        self.of_bytes[usize::from(left) << 8 | usize::from(right)]
    }

    /// Appends to `out` the tokens that `piece` merges into, and returns the number of the merge that was done last.
    /// The piece is shorter than 4 GiB.
    pub fn merge(&self, piece: &[u8], queue: &mut Queue, out: &mut Vec<u32>) -> Option<u32> {
        if piece.len() <= SHORT {
            self.merge_short(piece, out)
        } else {
            self.merge_long(piece, queue, out)
        }
    }

    /// Looks at every pair for every merge, which is the fastest for so few of them.
    fn merge_short(&self, piece: &[u8], out: &mut Vec<u32>) -> Option<u32> {
        /// A merge and the place of its left token, ordered by the first, then the second.
        fn key(number: u32, at: usize) -> u32 {
            if number == NEVER {
                NEVER
            } else {
                number << 6 | at as u32
            }
        }
        let len = piece.len();
        let mut ids = [0; SHORT];
        let mut keys = [NEVER; SHORT];
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte_id(byte);
        }
        for (at, pair) in piece.windows(2).enumerate() {
            keys[at] = key(self.find_bytes(pair[0], pair[1]), at);
        }
        let mut alive = u64::MAX >> (64 - len);
        let mut last = None;
        loop {
            let first = keys[..len].iter().copied().fold(NEVER, u32::min);
            if first == NEVER {
                break;
            }
            let (number, at) = (first >> 6, (first & 63) as usize);
            last = Some(number);
            let after = alive & (u64::MAX << at << 1);
            let gone = after.trailing_zeros() as usize;
            alive ^= 1 << gone;
            keys[gone] = NEVER;
            ids[at] = self.list[number as usize].id;
            let next = after & (after - 1);
            keys[at] = match next {
                0 => NEVER,
                _ => key(self.find(ids[at], ids[next.trailing_zeros() as usize]), at),
            };
            let before = alive & ((1 << at) - 1);
            if before != 0 {
                let previous = 63 - before.leading_zeros() as usize;
                keys[previous] = key(self.find(ids[previous], ids[at]), previous);
            }
        }
        while alive != 0 {
            out.push(ids[alive.trailing_zeros() as usize]);
            alive &= alive - 1;
        }
        last
    }

    /// Takes time linear in the piece where merges make pairs of later merges only, as nearly all do: then all places of
    /// a merge are known before the first of them is merged. An interrupt ends it early: the tokens are then not those of
    /// the piece, and the caller's next check fails.
    fn merge_long(&self, piece: &[u8], queue: &mut Queue, out: &mut Vec<u32>) -> Option<u32> {
        queue.fill(piece, self);
        let (mut last, mut pace) = (None, Pace::default());
        while let Some(number) = queue.first() {
            queue.take(number);
            while let Some((at, merge)) = queue.next(number) {
                if pace.did(MERGE_WORK).is_err() {
                    *queue = Queue::default();
                    return last;
                }
                last = Some(merge);
                let node = queue.nodes[at as usize];
                queue.set(node.next, NEVER);
                queue.join(at, self.list[merge as usize].id);
                for left in [node.previous, at] {
                    let made = queue.find(left, self);
                    queue.set(left, made);
                    if made == number {
                        queue.late.push(Reverse(left));
                    }
                }
            }
        }
        queue.tokens(out);
        queue.shrink();
        last
    }
}

/// Longest piece of `merge_short`: as many as a mask has bits.
const SHORT: usize = 64;
/// Units of work of one merge, for [`Pace`].
pub(crate) const MERGE_WORK: u64 = 8;

const END: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    id: u32,
    previous: u32,
    next: u32,
    /// The number of the merge of this token with the next, `NEVER` if there is none.
    merge: u32,
    /// The neighbours in the list of the same merge.
    before: u32,
    after: u32,
}

/// The pairs of a long piece by the number of their merge: a list for each, and a bit for each list that is not empty.
/// Empty between pieces, so that its memory can be used again.
#[derive(Debug, Default)]
pub struct Queue {
    nodes: Vec<Node>,
    heads: Vec<u32>,
    filled: Vec<u64>,
    /// No word of `filled` before this has a bit.
    lowest: usize,
    /// The places of the merge that is being done, from left to right, and how many are behind.
    taken: Vec<u32>,
    behind: usize,
    /// Further ones, made meanwhile.
    late: BinaryHeap<Reverse<u32>>,
}

impl Queue {
    fn fill(&mut self, piece: &[u8], merges: &Merges) {
        self.heads.resize(merges.list.len(), END);
        self.filled.resize(merges.list.len().div_ceil(64), 0);
        self.lowest = self.filled.len();
        self.link(piece, merges);
        // Backwards, since a list grows at its head.
        for (at, pair) in piece.windows(2).enumerate().rev() {
            self.set(at as u32, merges.find_bytes(pair[0], pair[1]));
        }
    }

    /// The bytes of the piece as tokens, in no list.
    fn link(&mut self, piece: &[u8], merges: &Merges) {
        let last = piece.len() as u32 - 1;
        self.nodes.clear();
        self.nodes.extend(piece.iter().zip(0..).map(|(&byte, at)| Node {
            id: merges.byte_id(byte),
            previous: if at == 0 { END } else { at - 1 },
            next: if at == last { END } else { at + 1 },
            merge: NEVER,
            before: END,
            after: END,
        }));
    }

    /// Moves a node, if it is one, from the list that it is in to that of `merge`.
    fn set(&mut self, at: u32, merge: u32) {
        if at == END {
            return;
        }
        let Node {
            merge: old,
            before,
            after,
            ..
        } = self.nodes[at as usize];
        if old != NEVER {
            match before {
                END => {
                    self.heads[old as usize] = after;
                    if after == END {
                        self.filled[old as usize / 64] &= !(1 << (old % 64));
                    }
                }
                _ => self.nodes[before as usize].after = after,
            }
            if after != END {
                self.nodes[after as usize].before = before;
            }
        }
        let mut head = END;
        if merge != NEVER {
            head = std::mem::replace(&mut self.heads[merge as usize], at);
            if head != END {
                self.nodes[head as usize].before = at;
            }
            self.filled[merge as usize / 64] |= 1 << (merge % 64);
            self.lowest = self.lowest.min(merge as usize / 64);
        }
        let node = &mut self.nodes[at as usize];
        (node.merge, node.before, node.after) = (merge, END, head);
    }

    /// The first merge that a pair waits for.
    fn first(&mut self) -> Option<u32> {
        while *self.filled.get(self.lowest)? == 0 {
            self.lowest += 1;
        }
        Some(self.lowest as u32 * 64 + self.filled[self.lowest].trailing_zeros())
    }

    /// Begins a merge.
    fn take(&mut self, merge: u32) {
        self.taken.clear();
        self.behind = 0;
        let mut at = self.heads[merge as usize];
        while at != END {
            self.taken.push(at);
            at = self.nodes[at as usize].after;
        }
        // They come in few runs, which this sort finds.
        self.taken.sort();
    }

    /// The next place to merge and the number of its merge: that of a merge before `merge`, if the last one made such a
    /// pair, else the leftmost one of `merge`, if any is left.
    fn next(&mut self, merge: u32) -> Option<(u32, u32)> {
        if let Some(earlier) = self.first().filter(|&first| first < merge) {
            let head = self.heads[earlier as usize];
            let list = std::iter::successors(Some(head), |&at| match self.nodes[at as usize].after {
                END => None,
                after => Some(after),
            });
            return list.min().map(|at| (at, earlier));
        }
        loop {
            let taken = self.taken.get(self.behind).copied();
            let late = self.late.peek().map(|&Reverse(at)| at);
            let at = match (taken, late) {
                (Some(taken), Some(late)) => taken.min(late),
                (at, None) | (None, at) => at?,
            };
            if taken == Some(at) {
                self.behind += 1;
            }
            if late == Some(at) {
                self.late.pop();
            }
            // Not so where it was the right part of the same merge just before, as in `aaa`.
            if self.nodes[at as usize].merge == merge {
                return Some((at, merge));
            }
        }
    }

    /// Makes a token and the next one the token `id`.
    fn join(&mut self, at: u32, id: u32) {
        let gone = self.nodes[at as usize].next;
        let next = self.nodes[gone as usize].next;
        let node = &mut self.nodes[at as usize];
        (node.id, node.next) = (id, next);
        if next != END {
            self.nodes[next as usize].previous = at;
        }
    }

    /// The number of the merge of a token with the one after it.
    fn find(&self, at: u32, merges: &Merges) -> u32 {
        match self.nodes.get(at as usize) {
            Some(node) if node.next != END => merges.find(node.id, self.nodes[node.next as usize].id),
            _ => NEVER,
        }
    }

    /// Gives back what a very long piece took.
    fn shrink(&mut self) {
        const KEPT: usize = 1 << 16;
        if self.nodes.capacity() > KEPT {
            self.nodes = Vec::new();
            self.taken = Vec::new();
        }
    }

    fn tokens(&self, out: &mut Vec<u32>) {
        let mut at = 0;
        while at != END {
            let node = &self.nodes[at as usize];
            out.push(node.id);
            at = node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    use proptest::prelude::*;

    /// The definition: merge the leftmost pair of the first merge until there is none.
    fn merge_naively(merges: &Merges, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&byte| merges.byte_id(byte)).collect();
        let number = |pair: &[u32]| merges.list.iter().position(|m| [m.left, m.right] == pair);
        while let Some((at, number)) = ids
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| Some((at, number(pair)?)))
            .min_by_key(|&(at, number)| (number, at))
        {
            ids.splice(at..at + 2, [merges.list[number].id]);
        }
        ids
    }

    /// Lists of merges in any order, or sorted by what they make, as training gives them. A result is larger than both
    /// parts, so that merging ends.
    fn merges() -> impl Strategy<Value = Merges> {
        let merge = (0..12u32, 0..12u32, 1..6u32).prop_map(|(left, right, above)| Merge {
            left,
            right,
            id: left.max(right) + above,
        });
        (proptest::collection::vec(merge, 0..100), any::<bool>()).prop_map(|(list, sorted)| {
            let mut seen = HashSet::new();
            let mut list: Vec<_> = list.into_iter().filter(|m| seen.insert((m.left, m.right))).collect();
            if sorted {
                list.sort_by_key(|merge| merge.id);
            }
            Merges::new(std::array::from_fn(|byte| byte as u32), list)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_ways_give_the_definition(merges in merges(), bytes in proptest::collection::vec(0..4u8, 1..200)) {
            let mut queue = Queue::default();
            let expected = merge_naively(&merges, &bytes);
            for _ in 0..2 {
                let mut out = Vec::new();
                merges.merge_long(&bytes, &mut queue, &mut out);
                prop_assert_eq!(&out, &expected);
            }
            let short = &bytes[..bytes.len().min(SHORT)];
            let mut out = Vec::new();
            merges.merge_short(short, &mut out);
            prop_assert_eq!(out, merge_naively(&merges, short));
        }
    }
}
