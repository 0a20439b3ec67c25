//! Training merges on text: the most frequent pair first, and the pair of lower ids among equals. The result equals
//! that of Hugging Face's `BpeTrainer` with the 256 bytes as its initial alphabet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::Entry;

use cwm_interrupt::Pace;
use rustc_hash::FxHashMap;

use crate::error::{Error, Result, invalid};
use crate::json::byte_order;
use crate::pieces::{Counts, PieceCounts};
use crate::split::Splitter;
use crate::vocab::{MAX_IDS, MergeOrder, Vocabulary};

impl PieceCounts {
    /// Trains a vocabulary of `vocab_size` tokens: the 256 bytes and the results of the merges. The vocabulary is
    /// smaller if no pairs are left to merge. `progress` receives the number of merges so far, and stops training by
    /// returning false.
    pub fn train(self, vocab_size: usize, progress: impl FnMut(usize) -> bool) -> Result<(Vocabulary, Splitter)> {
        if !(256..=MAX_IDS as usize).contains(&vocab_size) {
            return invalid(format!(
                "vocabulary size {vocab_size}: expected 256 to {MAX_IDS} tokens"
            ));
        }
        let splitter = self.splitter.clone();
        let corpus = Corpus::new(self.into_total())?;
        let merges = learn(corpus, vocab_size - 256, progress)?;
        let mut tokens: Vec<Vec<u8>> = byte_order().map(|byte| vec![byte]).collect();
        for &(left, right) in &merges {
            tokens.push([&*tokens[left as usize], &*tokens[right as usize]].concat());
        }
        let vocab = Vocabulary::new(tokens.into_iter().zip(0..), MergeOrder::Listed(merges), true)?;
        Ok((vocab, splitter))
    }
}

type Pair = (u32, u32);

/// Work units of one position of a pair, for [`Pace`].
const PLACE_WORK: u64 = 16;

/// Id that no token has.
const NONE: u32 = u32::MAX;

/// Positions of a pair, and its count, weighted by the counts of the pieces. Some positions may be outdated because
/// another merge changed them. The count is exact.
struct Occurrences {
    count: u64,
    /// Positions of the first token's first byte, from left to right within a piece.
    places: Vec<u32>,
}

fn learn(mut corpus: Corpus, wanted: usize, mut progress: impl FnMut(usize) -> bool) -> Result<Vec<Pair>> {
    let mut pairs = corpus.pairs()?;
    // Counts only decrease after a pair is first seen, so an outdated entry is corrected when it is popped.
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> = pairs
        .iter()
        .map(|(&pair, occurrences)| (occurrences.count, Reverse(pair)))
        .collect();
    let (mut before, mut after) = (Neighbours::default(), Neighbours::default());
    let mut merges = Vec::new();
    while merges.len() < wanted
        && let Some((count, Reverse(pair))) = queue.pop()
    {
        let Some(now) = pairs.get(&pair).map(|occurrences| occurrences.count) else {
            continue;
        };
        if now < count {
            queue.push((now, Reverse(pair)));
            continue;
        }
        let places = pairs.remove(&pair).map_or(Vec::new(), |occurrences| occurrences.places);
        let new = corpus.merge(pair, &places, &mut before, &mut after)?;
        merges.push(pair);

        // Where merges are adjacent, as in `abab`, a pair first appears and then disappears: it is added, then reduced.
        let mut lost = Vec::new();
        for (id, occurrences) in before.drain() {
            lost.push(((id, pair.0), occurrences.count));
            queue.push((occurrences.count, Reverse((id, new))));
            pairs.insert((id, new), occurrences);
        }
        for (id, occurrences) in after.drain() {
            lost.push(((pair.1, id), occurrences.count));
            queue.push((occurrences.count, Reverse((new, id))));
            pairs.insert((new, id), occurrences);
        }
        for (pair, count) in lost {
            reduce(&mut pairs, pair, count);
        }
        if !progress(merges.len()) {
            return Err(Error::Interrupted);
        }
    }
    Ok(merges)
}

fn reduce(pairs: &mut FxHashMap<Pair, Occurrences>, pair: Pair, by: u64) {
    // The merged pair is gone, but it overlaps itself in `aaa`.
    if let Entry::Occupied(mut entry) = pairs.entry(pair) {
        entry.get_mut().count -= by;
        if entry.get().count == 0 {
            entry.remove();
        }
    }
}

/// Neighbors of the tokens that one merge created, with the positions of the pairs.
#[derive(Default)]
struct Neighbours {
    /// Index in `found` of each token id, or `NONE`.
    index: Vec<u32>,
    found: Vec<(u32, Occurrences)>,
}

impl Neighbours {
    fn add(&mut self, id: u32, place: usize, count: u64) {
        if self.index.len() <= id as usize {
            self.index.resize(id as usize + 1, NONE);
        }
        let index = &mut self.index[id as usize];
        if *index == NONE {
            *index = self.found.len() as u32;
            self.found.push((
                id,
                Occurrences {
                    count: 0,
                    places: Vec::new(),
                },
            ));
        }
        let (_, occurrences) = &mut self.found[*index as usize];
        occurrences.count += count;
        occurrences.places.push(place as u32);
    }

    fn drain(&mut self) -> impl Iterator<Item = (u32, Occurrences)> {
        for (id, _) in &self.found {
            self.index[*id as usize] = NONE;
        }
        self.found.drain(..)
    }
}

/// The bytes of all distinct pieces, with a separator before, between, and after them.
struct Corpus {
    bytes: Vec<Byte>,
    /// Count of each piece.
    counts: Vec<u64>,
    /// Number of bytes of each token.
    lengths: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Byte {
    /// Id of the token, at its first and last byte. Other bytes have the id of an earlier token. `NONE` at a separator.
    id: u32,
    piece: u32,
}

impl Corpus {
    fn new(pieces: Counts) -> Result<Self> {
        let mut bytes = pieces.len() + 1;
        pieces.for_each(|piece, _| bytes += piece.len());
        if bytes >= NONE as usize {
            return Err(Error::TooLong { bytes });
        }
        let mut byte_ids = [0; 256];
        for (byte, id) in byte_order().zip(0..) {
            byte_ids[usize::from(byte)] = id;
        }
        let separator = Byte { id: NONE, piece: NONE };
        let mut corpus = Self {
            bytes: Vec::with_capacity(bytes),
            counts: Vec::with_capacity(pieces.len()),
            lengths: vec![1; 256],
        };
        corpus.bytes.push(separator);
        pieces.for_each(|piece, count| {
            let number = corpus.counts.len() as u32;
            corpus.counts.push(count);
            let id = |&byte: &u8| byte_ids[usize::from(byte)];
            corpus.bytes.extend(piece.iter().map(|byte| Byte {
                id: id(byte),
                piece: number,
            }));
            corpus.bytes.push(separator);
        });
        Ok(corpus)
    }

    /// Returns the pairs of bytes.
    fn pairs(&self) -> Result<FxHashMap<Pair, Occurrences>> {
        let mut pairs: FxHashMap<Pair, Occurrences> = FxHashMap::default();
        let mut pace = Pace::default();
        for (window, at) in self.bytes.windows(2).zip(0..) {
            pace.did(PLACE_WORK)?;
            let pair = (window[0].id, window[1].id);
            if pair.0 != NONE && pair.1 != NONE {
                let occurrences = pairs.entry(pair).or_insert(Occurrences {
                    count: 0,
                    places: Vec::new(),
                });
                occurrences.count += self.counts[window[0].piece as usize];
                occurrences.places.push(at);
            }
        }
        Ok(pairs)
    }

    /// Merges `pair` at those `places` where it still occurs, records the neighbors of each new token at the time of
    /// its creation, and returns the id of the new tokens.
    fn merge(&mut self, pair: Pair, places: &[u32], before: &mut Neighbours, after: &mut Neighbours) -> Result<u32> {
        let mut pace = Pace::default();
        let new = self.lengths.len() as u32;
        let (left, right) = (self.lengths[pair.0 as usize], self.lengths[pair.1 as usize]);
        self.lengths.push(left + right);
        for &at in places {
            pace.did(PLACE_WORK)?;
            let at = at as usize;
            let middle = at + left as usize;
            let Byte { id, piece } = self.bytes[at];
            if id != pair.0 || self.bytes[middle].id != pair.1 {
                continue; // changed by another merge, or overlaps the previous position as in `aaa`
            }
            let end = middle + right as usize;
            self.bytes[at].id = new;
            self.bytes[middle].id = NONE;
            self.bytes[end - 1].id = new;

            let count = self.counts[piece as usize];
            let previous = self.bytes[at - 1].id;
            if previous != NONE {
                before.add(previous, at - self.lengths[previous as usize] as usize, count);
            }
            let next = self.bytes[end].id;
            if next != NONE {
                after.add(next, at, count);
            }
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: recount all pairs before each merge.
    fn learn_naively(pieces: &[(Vec<u8>, u64)], wanted: usize) -> Vec<Pair> {
        let order: Vec<u8> = byte_order().collect();
        let id = |byte: &u8| order.iter().position(|other| other == byte).unwrap() as u32;
        let mut words: Vec<(Vec<u32>, u64)> = pieces
            .iter()
            .map(|(piece, count)| (piece.iter().map(id).collect(), *count))
            .collect();
        let mut merges = Vec::new();
        while merges.len() < wanted {
            let mut counts: FxHashMap<Pair, u64> = FxHashMap::default();
            for (word, count) in &words {
                for pair in word.windows(2) {
                    *counts.entry((pair[0], pair[1])).or_default() += count;
                }
            }
            let Some((_, Reverse(pair))) = counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).max() else {
                break;
            };
            for (word, _) in &mut words {
                let mut at = 0;
                while at + 1 < word.len() {
                    if (word[at], word[at + 1]) == pair {
                        word.splice(at..at + 2, [256 + merges.len() as u32]);
                    }
                    at += 1;
                }
            }
            merges.push(pair);
        }
        merges
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn merges_follow_the_definition(
            pieces in prop::collection::btree_map("[ab]{1,30}|[a-d]{1,20}|[a-z]{1,8}|\\PC{1,4}", 1u64..5, 0..20),
            wanted in 0usize..60,
        ) {
            let pieces: Vec<_> = pieces.into_iter().map(|(piece, count)| (piece.into_bytes(), count)).collect();
            let mut counts = Counts::default();
            pieces.iter().for_each(|(piece, count)| counts.add(piece, *count));
            let merges = learn(Corpus::new(counts).unwrap(), wanted, |_| true).unwrap();
            prop_assert_eq!(merges, learn_naively(&pieces, wanted));
        }
    }
}
