//! Learning merges from text: the most frequent pair first, the pair of lower ids among equals. The result is that of
//! Hugging Face's `BpeTrainer` with the 256 bytes as its initial alphabet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::error::{Error, Result, invalid};
use crate::json::byte_order;
use crate::split::Splitter;
use crate::vocab::{MAX_IDS, MergeOrder, Vocabulary};

/// The pieces of a corpus, each with how often it occurs.
#[derive(Debug)]
pub struct PieceCounts {
    splitter: Splitter,
    counts: FxHashMap<Box<[u8]>, u64>,
}

impl PieceCounts {
    pub fn new(splitter: Splitter) -> Self {
        Self {
            splitter,
            counts: FxHashMap::default(),
        }
    }

    pub fn add(&mut self, text: &str) -> Result<()> {
        let counts = &mut self.counts;
        self.splitter
            .for_each(text, |piece| match counts.get_mut(piece.as_bytes()) {
                Some(count) => *count += 1,
                None => drop(counts.insert(piece.as_bytes().into(), 1)),
            })
    }

    /// A vocabulary of `vocab_size` tokens: 256 bytes, then what the merges produce, with fewer tokens where no pair is
    /// left to merge. `progress` is called with the number of merges found so far and stops the training by `false`.
    pub fn train(self, vocab_size: usize, progress: impl FnMut(usize) -> bool) -> Result<(Vocabulary, Splitter)> {
        if !(256..=MAX_IDS as usize).contains(&vocab_size) {
            return invalid(format!(
                "a vocabulary of {vocab_size} tokens: from 256 to {MAX_IDS} are possible"
            ));
        }
        let merges = learn(&self.counts, vocab_size - 256, progress)?;
        let mut tokens: Vec<Vec<u8>> = byte_order().map(|byte| vec![byte]).collect();
        for &(left, right) in &merges {
            tokens.push([&*tokens[left as usize], &*tokens[right as usize]].concat());
        }
        let vocab = Vocabulary::new(tokens.into_iter().zip(0..), MergeOrder::Listed(merges), true)?;
        Ok((vocab, self.splitter))
    }
}

type Pair = (u32, u32);

const NONE: u32 = u32::MAX;

/// A token in a piece, linked to its neighbours there. A token merged into the one before it has the id `NONE`.
struct Node {
    id: u32,
    previous: u32,
    next: u32,
    piece: u32,
}

/// Where a pair occurs, from left to right, and how often, weighted by the pieces' counts. A place may have been
/// merged otherwise since; the count is exact.
#[derive(Default)]
struct Occurrences {
    count: u64,
    places: Vec<u32>,
}

fn learn(
    pieces: &FxHashMap<Box<[u8]>, u64>,
    wanted: usize,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Vec<Pair>> {
    let (mut nodes, counts) = link(pieces)?;
    let mut pairs: FxHashMap<Pair, Occurrences> = FxHashMap::default();
    for (node, at) in nodes.iter().zip(0..) {
        if node.next != NONE {
            let pair = pairs.entry((node.id, nodes[node.next as usize].id)).or_default();
            pair.count += counts[node.piece as usize];
            pair.places.push(at);
        }
    }
    // Counts only fall after a pair is first seen, so an entry that is out of date is corrected when it comes up.
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> = pairs
        .iter()
        .map(|(&pair, occurrences)| (occurrences.count, Reverse(pair)))
        .collect();
    let mut merges = Vec::new();
    while merges.len() < wanted
        && let Some((count, Reverse(pair))) = queue.pop()
    {
        let now = pairs[&pair].count;
        if now == 0 {
            pairs.remove(&pair);
        } else if now < count {
            queue.push((now, Reverse(pair)));
        } else {
            let new_id = 256 + merges.len() as u32;
            merges.push(pair);
            let places = pairs.remove(&pair).unwrap_or_default().places;
            for new_pair in merge_everywhere(pair, new_id, &places, &mut nodes, &counts, &mut pairs) {
                queue.push((pairs[&new_pair].count, Reverse(new_pair)));
            }
            if !progress(merges.len()) {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(merges)
}

/// All pieces as lists of single bytes, and the count of each piece.
fn link(pieces: &FxHashMap<Box<[u8]>, u64>) -> Result<(Vec<Node>, Vec<u64>)> {
    let bytes: usize = pieces.keys().map(|piece| piece.len()).sum();
    if bytes >= NONE as usize {
        return Err(Error::TooLong { bytes });
    }
    let mut byte_ids = [0; 256];
    for (byte, id) in byte_order().zip(0..) {
        byte_ids[usize::from(byte)] = id;
    }
    let mut nodes = Vec::with_capacity(bytes);
    let mut counts = Vec::with_capacity(pieces.len());
    for ((piece, &count), number) in pieces.iter().zip(0..) {
        counts.push(count);
        for (i, &byte) in piece.iter().enumerate() {
            let at = nodes.len() as u32;
            nodes.push(Node {
                id: byte_ids[usize::from(byte)],
                previous: if i > 0 { at - 1 } else { NONE },
                next: if i + 1 < piece.len() { at + 1 } else { NONE },
                piece: number,
            });
        }
    }
    Ok((nodes, counts))
}

/// Merges `pair` at its places and returns the pairs that this made, each of which contains `new_id`.
fn merge_everywhere(
    pair: Pair,
    new_id: u32,
    places: &[u32],
    nodes: &mut [Node],
    counts: &[u64],
    pairs: &mut FxHashMap<Pair, Occurrences>,
) -> Vec<Pair> {
    let mut made = Vec::new();
    for &at in places {
        let Node {
            id,
            previous,
            next,
            piece,
        } = nodes[at as usize];
        if id != pair.0 || next == NONE || nodes[next as usize].id != pair.1 {
            continue; // merged otherwise, or overlapping the place before as in `aaa`
        }
        let count = counts[piece as usize];
        let after = nodes[next as usize].next;
        let mut replace = |old: Pair, new: Pair, place: u32| {
            if let Some(occurrences) = pairs.get_mut(&old) {
                occurrences.count -= count;
            }
            let occurrences = pairs.entry(new).or_insert_with(|| {
                made.push(new);
                Occurrences::default()
            });
            occurrences.count += count;
            occurrences.places.push(place);
        };
        if previous != NONE {
            let before = nodes[previous as usize].id;
            replace((before, pair.0), (before, new_id), previous);
        }
        if after != NONE {
            let behind = nodes[after as usize].id;
            replace((pair.1, behind), (new_id, behind), at);
            nodes[after as usize].previous = at;
        }
        nodes[at as usize].id = new_id;
        nodes[at as usize].next = after;
        nodes[next as usize].id = NONE;
    }
    made
}
