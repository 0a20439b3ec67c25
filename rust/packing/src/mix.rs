//! Chooses the next document: each source in its own shuffled order, and the sources in turn so that at any time, their
//! tokens are within one document of their shares.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::permute::{Permutation, mix64};
use crate::shards::Shards;

/// Shards and their share of the mixture.
pub struct Source {
    pub name: String,
    pub shards: Shards,
    /// Weight relative to the other sources.
    pub share: f64,
    /// Passes over the source; `None` repeats forever.
    pub epochs: Option<u64>,
}

/// A document that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    pub source: u32,
    /// Index of the document in the shards.
    pub document: u64,
    pub len: u32,
}

/// Documents drawn from a source since the first epoch, and their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cursor {
    pub draws: u64,
    pub tokens: u64,
}

/// A position in the endless sequence of documents.
pub struct Walk {
    cursors: Vec<Cursor>,
    orders: Vec<Option<Order>>,
}

/// Documents looked up at a time.
const AHEAD: usize = 32;

/// The order of the documents of a source in one epoch, looked up in chunks. Lengths of shuffled documents are
/// scattered over memory, and loading many of them at once takes hardly longer than loading one.
struct Order {
    epoch: u64,
    permutation: Permutation,
    /// The positions looked up.
    known: Range<u64>,
    documents: [(u64, u32); AHEAD],
}

impl Order {
    fn new(epoch: u64, permutation: Permutation) -> Order {
        Order {
            epoch,
            permutation,
            known: 0..0,
            documents: [(0, 0); AHEAD],
        }
    }

    /// Returns index and length of the document at a position.
    #[inline]
    fn get(&mut self, place: u64, shards: &Shards) -> (u64, u32) {
        if !self.known.contains(&place) {
            self.look_up(place, shards);
        }
        self.documents[(place - self.known.start) as usize]
    }

    fn look_up(&mut self, place: u64, shards: &Shards) {
        let mut numbers = [0; AHEAD];
        let left = shards.documents() - place;
        if left >= AHEAD as u64 {
            self.permutation.fill(place, &mut numbers);
        } else {
            let places = (place..).zip(&mut numbers).take(left as usize);
            places.for_each(|(place, number)| *number = self.permutation.get(place));
        }
        self.known = place..place + left.min(AHEAD as u64);
        let found = self
            .documents
            .iter_mut()
            .zip(numbers)
            .take(left.min(AHEAD as u64) as usize);
        found.for_each(|(document, number)| *document = (number, shards.document_len(number)));
    }
}

impl Walk {
    pub fn at(cursors: Vec<Cursor>) -> Walk {
        let orders = cursors.iter().map(|_| None).collect();
        Walk { cursors, orders }
    }

    pub fn cursors(&self) -> &[Cursor] {
        &self.cursors
    }

    pub fn into_cursors(self) -> Vec<Cursor> {
        self.cursors
    }

    /// Undoes the draw of the last document.
    pub fn undo(&mut self, drawn: Drawn) {
        let cursor = &mut self.cursors[drawn.source as usize];
        cursor.draws -= 1;
        cursor.tokens -= u64::from(drawn.len);
    }

    /// Returns the number of documents drawn from all sources.
    pub fn draws(&self) -> u64 {
        self.cursors.iter().map(|cursor| cursor.draws).sum()
    }
}

pub struct Mixture {
    pub sources: Vec<Source>,
    seed: u64,
}

impl Mixture {
    /// Creates a mixture. Sources that store no vocabulary size get that of the other sources.
    pub fn new(mut sources: Vec<Source>, seed: u64) -> Result<Mixture> {
        if sources.is_empty() {
            return Err(Error::Invalid("no sources".into()));
        }
        let known = |source: &Source| Some((source.name.clone(), source.shards.vocab_size()?));
        let known = sources.iter().find_map(known);
        for source in &sources {
            let (name, share) = (&source.name, source.share);
            if !(share.is_finite() && share > 0.0) {
                return Err(Error::Invalid(format!(
                    "source {name:?}: the share must be positive, not {share}"
                )));
            }
            if source.epochs == Some(0) {
                return Err(Error::Invalid(format!("source {name:?}: epochs must be at least 1")));
            }
        }
        if let Some((first, expected)) = known {
            for Source { name, shards, .. } in &mut sources {
                if let Some(size) = shards.vocab_size().filter(|&size| size != expected) {
                    return Err(Error::Invalid(format!(
                        "source {name:?} has a vocabulary of {size} ids, but source {first:?} has one of {expected}"
                    )));
                }
                shards.set_vocab_size(expected)?;
            }
        }
        let mut named = sources
            .iter()
            .filter_map(|source| Some((&source.name, source.shards.fingerprint()?)));
        if let Some((first, expected)) = named.next()
            && let Some((name, own)) = named.find(|&(_, own)| own != expected)
        {
            return Err(Error::Invalid(format!(
                "source {name:?} was made with another vocabulary (fingerprint {own:016x}) than source {first:?} \
                 ({expected:016x}); tokenize one of them again"
            )));
        }
        Ok(Mixture { sources, seed })
    }

    /// Draws the walk's next document, from the source that is furthest behind its share. Skips sources that are
    /// exhausted.
    #[inline]
    pub fn draw(&self, walk: &mut Walk) -> Option<Drawn> {
        let source = self.next_source(&walk.cursors)?;
        let cursor = &mut walk.cursors[source];
        let shards = &self.sources[source].shards;
        let (epoch, place) = (cursor.draws / shards.documents(), cursor.draws % shards.documents());
        let order = match &mut walk.orders[source] {
            Some(order) if order.epoch == epoch => order,
            order => {
                let seed = mix64(mix64(mix64(self.seed) ^ source as u64) ^ epoch);
                order.insert(Order::new(epoch, Permutation::new(shards.documents(), seed)))
            }
        };
        let (document, len) = order.get(place, shards);
        cursor.draws += 1;
        cursor.tokens += u64::from(len);
        Some(Drawn {
            source: source as u32,
            document,
            len,
        })
    }

    fn next_source(&self, cursors: &[Cursor]) -> Option<usize> {
        let behind = |source: usize| cursors[source].tokens as f64 / self.sources[source].share;
        (0..self.sources.len())
            .filter(|&source| cursors[source].draws < self.draws(source))
            .min_by(|&a, &b| behind(a).total_cmp(&behind(b)))
    }

    /// Returns whether all epochs of each of these sources are done.
    pub fn are_exhausted(&self, sources: &[usize], cursors: &[Cursor]) -> bool {
        sources
            .iter()
            .all(|&source| cursors[source].draws >= self.draws(source))
    }

    /// Returns the number of documents of a source in all its epochs.
    pub fn draws(&self, source: usize) -> u64 {
        let source = &self.sources[source];
        let documents = source.shards.documents();
        source
            .epochs
            .map_or(u64::MAX, |epochs| epochs.saturating_mul(documents))
    }

    /// See [`crate::Shard::check_present`].
    pub fn check_present(&self) -> Result<()> {
        self.sources.iter().try_for_each(|source| source.shards.check_present())
    }

    /// Returns the size of the vocabulary of all sources, or `None` if no source stores it.
    pub fn vocab_size(&self) -> Option<u64> {
        self.sources.first().and_then(|source| source.shards.vocab_size())
    }

    /// Returns the fingerprint of the sources' vocabulary, or `None` if no source stores it.
    pub fn vocabulary_fingerprint(&self) -> Option<u64> {
        self.sources.iter().find_map(|source| source.shards.fingerprint())
    }

    /// Returns a number that almost certainly changes when a name, a share, or any byte of a shard changes; for
    /// Megatron datasets, any byte that [`crate::Megatron::checksum`] covers.
    pub fn fingerprint(&self) -> u64 {
        let mut state = 0;
        let mut take = |value: u64| state = mix64(state ^ value);
        for source in &self.sources {
            take(u64::from(crc32fast::hash(source.name.as_bytes())));
            take(source.share.to_bits());
            take(source.epochs.map_or(0, |epochs| epochs));
            source
                .shards
                .parts()
                .iter()
                .for_each(|shard| take(u64::from(shard.checksum())));
        }
        state
    }
}
