//! Merging the bytes of one piece into tokens: the first merge of the list first, and its leftmost pair first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use cwm_interrupt::Pace;

use crate::hash::{Table, hash_key};

/// Two adjacent tokens and the token that they become. The index in the list of merges is the priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub left: u32,
    pub right: u32,
    pub id: u32,
}

/// Number that no merge has.
const NEVER: u32 = u32::MAX;

/// The merges of a vocabulary in order, fewer than 2^22, and the tokens of the single bytes.
#[derive(Debug, Clone)]
pub struct Merges {
    list: Vec<Merge>,
    numbers: Table,
    /// Numbers of the merges of two bytes, by the bytes.
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

    /// Returns the same bytes with other merges.
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

    /// Appends the tokens of `piece`, which must be shorter than 4 GiB, and returns the number of the last merge.
    pub fn merge(&self, piece: &[u8], queue: &mut Queue, out: &mut Vec<u32>) -> Option<u32> {
        if piece.len() <= SHORT {
            self.merge_short(piece, out)
        } else {
            self.merge_long(piece, queue, out)
        }
    }

    /// Scans all pairs for every merge, which is fastest for a short piece.
    fn merge_short(&self, piece: &[u8], out: &mut Vec<u32>) -> Option<u32> {
        /// Returns a sort key of a merge and the position of its left token: the merge first, then the position.
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

    /// Merges a piece of any length. Takes linear time if merges create only pairs of later merges, as nearly all do:
    /// then all positions of a merge are known before the first of them is merged. An interrupt stops the function
    /// early. The tokens are then incomplete, and the caller's next check fails.
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

/// Length of the longest piece of `merge_short`, which is the number of bits of a mask.
const SHORT: usize = 64;
/// Work units of one merge, for [`Pace`].
pub(crate) const MERGE_WORK: u64 = 8;

const END: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    id: u32,
    previous: u32,
    next: u32,
    /// Number of the merge of this token with the next one, or `NEVER`.
    merge: u32,
    /// Neighbors in the list of the same merge.
    before: u32,
    after: u32,
}

/// Pairs of a long piece by the number of their merge: a list for each merge, and a bit for each list that is not
/// empty. Empty between pieces, so that its memory can be reused.
#[derive(Debug, Default)]
pub struct Queue {
    nodes: Vec<Node>,
    heads: Vec<u32>,
    filled: Vec<u64>,
    /// Index of the first word of `filled` that may have a bit.
    lowest: usize,
    /// Positions of the current merge, from left to right, and the number of positions done.
    taken: Vec<u32>,
    behind: usize,
    /// Positions that the current merge created itself.
    late: BinaryHeap<Reverse<u32>>,
}

impl Queue {
    fn fill(&mut self, piece: &[u8], merges: &Merges) {
        self.heads.resize(merges.list.len(), END);
        self.filled.resize(merges.list.len().div_ceil(64), 0);
        self.lowest = self.filled.len();
        self.link(piece, merges);
        // Backward, because a list grows at its head.
        for (at, pair) in piece.windows(2).enumerate().rev() {
            self.set(at as u32, merges.find_bytes(pair[0], pair[1]));
        }
    }

    /// Fills the nodes with the bytes of the piece, in no list.
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

    /// Moves a node, unless it is `END`, from its list to that of `merge`.
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

    /// Returns the first merge that has a pair.
    fn first(&mut self) -> Option<u32> {
        while *self.filled.get(self.lowest)? == 0 {
            self.lowest += 1;
        }
        Some(self.lowest as u32 * 64 + self.filled[self.lowest].trailing_zeros())
    }

    /// Starts a merge.
    fn take(&mut self, merge: u32) {
        self.taken.clear();
        self.behind = 0;
        let mut at = self.heads[merge as usize];
        while at != END {
            self.taken.push(at);
            at = self.nodes[at as usize].after;
        }
        // The positions consist of few sorted runs, which this sort exploits.
        self.taken.sort();
    }

    /// Returns the next position to merge and the number of its merge: of a merge before `merge` if the last merge
    /// created such a pair, else the leftmost position of `merge` that is left.
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
            // The pair is gone if the previous merge consumed its left token, as in `aaa`.
            if self.nodes[at as usize].merge == merge {
                return Some((at, merge));
            }
        }
    }

    /// Joins a token and the next one to the token `id`.
    fn join(&mut self, at: u32, id: u32) {
        let gone = self.nodes[at as usize].next;
        let next = self.nodes[gone as usize].next;
        let node = &mut self.nodes[at as usize];
        (node.id, node.next) = (id, next);
        if next != END {
            self.nodes[next as usize].previous = at;
        }
    }

    /// Returns the number of the merge of a token with the next one.
    fn find(&self, at: u32, merges: &Merges) -> u32 {
        match self.nodes.get(at as usize) {
            Some(node) if node.next != END => merges.find(node.id, self.nodes[node.next as usize].id),
            _ => NEVER,
        }
    }

    /// Releases the memory of a very long piece.
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

    /// The definition: merge the leftmost pair of the first merge until none is left.
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

    /// Lists of merges in any order, or sorted by their results, as in training. A result is larger than both parts, so
    /// that merging ends.
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
