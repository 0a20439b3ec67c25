//! Which document comes next: each source in its own shuffled order, the sources in turn so that their shares of the
//! tokens hold at every moment to within a sequence.

use crate::error::{Error, Result};
use crate::permute::{Permutation, mix64};
use crate::reader::Shards;

/// A folder of shards and its part in the mixture.
pub struct Source {
    pub name: String,
    pub shards: Shards,
    /// Weight relative to the other sources.
    pub share: f64,
}

/// At most `seq_len` consecutive tokens of one document: the whole of it unless it is longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    pub source: usize,
    /// Number of the document in the order of its source, all epochs counted through.
    pub draw: u64,
    /// Number of the piece within the document.
    pub index: u64,
    /// Number of the document in the shards.
    pub document: u64,
    /// First token within the document.
    pub start: usize,
    pub len: usize,
}

/// How far a source has been drawn: the next piece, and the tokens before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cursor {
    pub draw: u64,
    pub index: u64,
    pub tokens: u64,
}

pub struct Mixture {
    pub sources: Vec<Source>,
    seq_len: usize,
    seed: u64,
    epochs: Option<u64>,
}

impl Mixture {
    pub fn new(sources: Vec<Source>, seq_len: usize, seed: u64, epochs: Option<u64>) -> Result<Mixture> {
        let Some(first) = sources.first() else {
            return Err(Error::Invalid("no sources".into()));
        };
        for source in &sources {
            let (name, share) = (&source.name, source.share);
            if !(share.is_finite() && share > 0.0) {
                return Err(Error::Invalid(format!(
                    "source {name:?}: a share must be positive, not {share}"
                )));
            }
            let (size, expected) = (source.shards.vocab_size(), first.shards.vocab_size());
            if size != expected {
                let what = format!(
                    "source {name:?} has a vocabulary of {size}, {:?} one of {expected}",
                    first.name
                );
                return Err(Error::Invalid(what));
            }
        }
        Ok(Mixture {
            sources,
            seq_len,
            seed,
            epochs,
        })
    }

    /// The next piece: of the source furthest behind its share, passing over sources whose epochs are done.
    pub fn draw(&self, cursors: &mut [Cursor]) -> Option<Piece> {
        let behind = |source: usize| cursors[source].tokens as f64 / self.sources[source].share;
        let source = (0..self.sources.len())
            .filter(|&source| cursors[source].draw < self.draws(source))
            .min_by(|&a, &b| behind(a).total_cmp(&behind(b)))?;
        let cursor = &mut cursors[source];
        let (piece, last) = self.piece(source, cursor.draw, cursor.index)?;
        cursor.tokens += piece.len as u64;
        (cursor.draw, cursor.index) = if last {
            (cursor.draw + 1, 0)
        } else {
            (cursor.draw, cursor.index + 1)
        };
        Some(piece)
    }

    /// Documents a source gives in all its epochs.
    pub fn draws(&self, source: usize) -> u64 {
        self.epochs.map_or(u64::MAX, |epochs| {
            epochs.saturating_mul(self.sources[source].shards.documents())
        })
    }

    /// A piece by its place in the order, and whether it is the document's last; `None` if there is no such piece.
    pub fn piece(&self, source: usize, draw: u64, index: u64) -> Option<(Piece, bool)> {
        let shards = &self.sources.get(source)?.shards;
        let (epoch, place) = (draw / shards.documents(), draw % shards.documents());
        let seed = mix64(mix64(mix64(self.seed) ^ source as u64) ^ epoch);
        let document = Permutation::new(shards.documents(), seed).get(place);
        let total = shards.document_len(document) as usize;
        let start = usize::try_from(index)
            .ok()?
            .checked_mul(self.seq_len)
            .filter(|&start| start < total)?;
        let len = self.seq_len.min(total - start);
        Some((
            Piece {
                source,
                draw,
                index,
                document,
                start,
                len,
            },
            start + len == total,
        ))
    }

    /// A number that differs, all but surely, when any byte of any shard, a name or a share does.
    pub fn fingerprint(&self) -> u64 {
        let mut state = 0;
        let mut take = |value: u64| state = mix64(state ^ value);
        for source in &self.sources {
            take(u64::from(crc32fast::hash(source.name.as_bytes())));
            take(source.share.to_bits());
            source
                .shards
                .shards()
                .iter()
                .for_each(|shard| take(u64::from(shard.checksum())));
        }
        state
    }
}
