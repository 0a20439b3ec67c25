//! Counts of the pieces of a corpus, from which a vocabulary is trained.

use std::sync::atomic::{AtomicUsize, Ordering};

use cwm_interrupt::on_threads;
use rustc_hash::FxHashMap;

use crate::error::Result;
use crate::hash::{SHORT, short_key};
use crate::split::Splitter;

/// The distinct pieces of a corpus and their counts.
#[derive(Debug)]
pub struct PieceCounts {
    pub(crate) splitter: Splitter,
    /// Counts of each thread.
    counts: Vec<Counts>,
}

impl PieceCounts {
    pub fn new(splitter: Splitter) -> Self {
        Self {
            splitter,
            counts: vec![Counts::default()],
        }
    }

    pub fn add(&mut self, text: &str) -> Result<()> {
        self.add_batch(&[text], 1)
    }

    /// Counts the pieces of each text on `threads` threads.
    pub fn add_batch<T: AsRef<str> + Sync>(&mut self, texts: &[T], threads: usize) -> Result<()> {
        let threads = threads.clamp(1, texts.len().max(1));
        if self.counts.len() < threads {
            self.counts.resize_with(threads, Counts::default);
        }
        let next = AtomicUsize::new(0);
        let (next, splitter) = (&next, &self.splitter);
        let work = move |counts: &mut Counts| {
            while let Some(text) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                splitter.for_each(text.as_ref(), |piece| counts.add(piece.as_bytes(), 1))?;
            }
            Ok(())
        };
        on_threads(&mut self.counts[..threads], work).into_iter().collect()
    }

    /// Returns the sum of the counts of all threads.
    pub(crate) fn into_total(self) -> Counts {
        self.counts
            .into_iter()
            .reduce(|mut total, part| {
                part.for_each(|piece, count| total.add(piece, count));
                total
            })
            .unwrap_or_default()
    }
}

/// Counts by piece. Nearly all pieces are short, and a short piece is its own key, which needs no allocation.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    short: FxHashMap<u128, u64>,
    long: FxHashMap<Box<[u8]>, u64>,
}

impl Counts {
    pub fn add(&mut self, piece: &[u8], count: u64) {
        if piece.len() <= SHORT {
            *self.short.entry(short_key(piece)).or_default() += count;
        } else if let Some(known) = self.long.get_mut(piece) {
            *known += count;
        } else {
            self.long.insert(piece.into(), count);
        }
    }

    /// Returns the number of distinct pieces.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Calls `each` with the distinct pieces and their counts, in no particular order.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        for (key, &count) in &self.short {
            let key = key.to_le_bytes();
            each(&key[..usize::from(key[SHORT])], count);
        }
        for (piece, &count) in &self.long {
            each(piece, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Includes pieces that differ only in zeros, short pieces, and pieces just above the limit of short ones.
        #[test]
        fn every_piece_is_counted_by_any_number_of_threads(
            texts in prop::collection::vec(r"([\x00a]{1,18}[|]){0,20}", 0..20),
            threads in 0usize..6,
        ) {
            let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for piece in texts.iter().flat_map(|text| text.split_inclusive('|')) {
                *expected.entry(piece.into()).or_default() += 2;
            }
            let mut pieces = PieceCounts::new(Splitter::new(r"[^|]*[|]").unwrap());
            pieces.add_batch(&texts, threads).unwrap();
            texts.iter().for_each(|text| pieces.add(text).unwrap());
            let total = pieces.into_total();
            let mut counted = BTreeMap::new();
            total.for_each(|piece, count| assert_eq!(counted.insert(piece.to_vec(), count), None));
            prop_assert_eq!(total.len(), counted.len());
            prop_assert_eq!(counted, expected);
        }
    }
}
