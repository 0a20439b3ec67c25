//! Merging the bytes of one piece into tokens, lowest rank first, leftmost among equals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// What two adjacent tokens become, and how early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub rank: u32,
    pub id: u32,
}

const NEVER: Merge = Merge {
    rank: u32::MAX,
    id: u32::MAX,
};

/// Merges by the pair of tokens that they join.
pub type MergeTable = FxHashMap<(u32, u32), Merge>;

/// Up to here the scan of every pair at every step beats the heap.
const SHORT: usize = 128;

fn lookup(table: &MergeTable, left: u32, right: u32) -> Merge {
    table.get(&(left, right)).copied().unwrap_or(NEVER)
}

/// Appends to `out` the tokens that `bytes`, given as one token each, merge into. At most `u32::MAX` of them.
pub fn merge(table: &MergeTable, bytes: impl ExactSizeIterator<Item = u32>, out: &mut Vec<u32>) {
    if bytes.len() <= SHORT {
        merge_short(table, bytes, out);
    } else {
        merge_long(table, bytes, out);
    }
}

/// Quadratic, without allocation.
fn merge_short(table: &MergeTable, bytes: impl ExactSizeIterator<Item = u32>, out: &mut Vec<u32>) {
    let mut ids = [0; SHORT];
    let mut merges = [NEVER; SHORT]; // of each token with the one after it
    let mut len = bytes.len();
    for (slot, id) in ids.iter_mut().zip(bytes) {
        *slot = id;
    }
    for i in 1..len {
        merges[i - 1] = lookup(table, ids[i - 1], ids[i]);
    }
    while let Some((at, best)) = merges[..len.saturating_sub(1)]
        .iter()
        .copied()
        .enumerate()
        .min_by_key(|(_, m)| m.rank)
        && best.rank != NEVER.rank
    {
        ids[at] = best.id;
        ids.copy_within(at + 2..len, at + 1);
        merges.copy_within(at + 2..len, at + 1);
        len -= 1;
        merges[at] = if at + 1 < len {
            lookup(table, ids[at], ids[at + 1])
        } else {
            NEVER
        };
        if at > 0 {
            merges[at - 1] = lookup(table, ids[at - 1], ids[at]);
        }
    }
    out.extend_from_slice(&ids[..len]);
}

/// A linked list of tokens and a heap of candidate merges: n log n.
fn merge_long(table: &MergeTable, bytes: impl ExactSizeIterator<Item = u32>, out: &mut Vec<u32>) {
    const END: u32 = u32::MAX;
    #[derive(Clone, Copy)]
    struct Node {
        id: u32,
        previous: u32,
        next: u32,
        /// Rank and result of merging this token with the next one; `NEVER` once the token itself is merged away.
        merge: Merge,
    }

    let len = bytes.len() as u32;
    let mut nodes: Vec<Node> = bytes
        .zip(0u32..)
        .map(|(id, i)| Node {
            id,
            previous: i.wrapping_sub(1), // END before the first
            next: if i + 1 < len { i + 1 } else { END },
            merge: NEVER,
        })
        .collect();
    // The heap orders by rank, then from left to right. An entry is stale when its node has another rank by now.
    let mut heap = BinaryHeap::with_capacity(nodes.len());
    for i in 1..nodes.len() {
        let merge = lookup(table, nodes[i - 1].id, nodes[i].id);
        nodes[i - 1].merge = merge;
        if merge != NEVER {
            heap.push(Reverse((merge.rank, i as u32 - 1)));
        }
    }

    while let Some(Reverse((rank, at))) = heap.pop() {
        let node = nodes[at as usize];
        if node.merge.rank != rank {
            continue;
        }
        let removed = nodes[node.next as usize];
        nodes[node.next as usize].merge = NEVER;
        nodes[at as usize].id = node.merge.id;
        nodes[at as usize].next = removed.next;
        if removed.next != END {
            nodes[removed.next as usize].previous = at;
        }
        for left in [node.previous, at] {
            if left == END {
                continue;
            }
            let right = nodes[left as usize].next;
            let merge = if right == END {
                NEVER
            } else {
                lookup(table, nodes[left as usize].id, nodes[right as usize].id)
            };
            nodes[left as usize].merge = merge;
            if merge != NEVER {
                heap.push(Reverse((merge.rank, left)));
            }
        }
    }

    let mut at = 0;
    while at != END {
        out.push(nodes[at as usize].id);
        at = nodes[at as usize].next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: merge the leftmost pair of lowest rank until there is none.
    fn merge_naively(table: &MergeTable, mut ids: Vec<u32>) -> Vec<u32> {
        while let Some((at, merge)) = ids
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| Some((at, *table.get(&(pair[0], pair[1]))?)))
            .min_by_key(|(at, merge)| (merge.rank, *at))
        {
            ids.splice(at..at + 2, [merge.id]);
        }
        ids
    }

    /// Any table in which a rank decides the result, as in both kinds of vocabulary; not only well-ordered ones.
    /// A result is larger than both parts, so that merging ends.
    fn tables() -> impl Strategy<Value = MergeTable> {
        prop::collection::vec((0u32..40, 0u32..40, 1u32..5, 0u32..30), 0..200).prop_map(|merges| {
            let results: FxHashMap<u32, u32> = merges
                .iter()
                .map(|&(l, r, more, rank)| (rank, l.max(r) + more))
                .collect();
            merges
                .into_iter()
                .map(|(l, r, _, rank)| {
                    (
                        (l, r),
                        Merge {
                            rank,
                            id: results[&rank],
                        },
                    )
                })
                .filter(|((l, r), merge)| merge.id > *l.max(r))
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_ways_equal_the_definition(table in tables(), ids in prop::collection::vec(0u32..6, 1..SHORT)) {
            let expected = merge_naively(&table, ids.clone());
            let (mut short, mut long) = (Vec::new(), Vec::new());
            merge_short(&table, ids.iter().copied(), &mut short);
            merge_long(&table, ids.iter().copied(), &mut long);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }
}
