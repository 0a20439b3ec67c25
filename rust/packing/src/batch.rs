//! Fills the arrays of a batch from rows of pieces.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::mix::Mixture;
use crate::part::Part;
use crate::permute::mix64;
use crate::rows::{Piece, Rows};
use crate::shard::Span;
use crate::shards::Shards;

/// The large arrays of a batch, `rows` × `seq_len` each.
#[derive(Default)]
pub struct Arrays {
    pub tokens: Vec<i32>,
    /// The next token of the document; 0 if there is none.
    pub targets: Vec<i32>,
    /// True where the target is in the loss.
    pub loss_mask: Vec<bool>,
    /// Position in the segment.
    pub position_ids: Vec<i32>,
}

impl Arrays {
    fn resize(&mut self, positions: usize) {
        self.tokens.resize(positions, 0);
        self.targets.resize(positions, 0);
        self.loss_mask.resize(positions, false);
        self.position_ids.resize(positions, 0);
    }
}

/// Arrays of dropped batches, for reuse. New memory costs more than filling it: the system clears every page.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Arrays>>);

/// Arrays to keep. Only a caller that keeps many batches and then drops them all would use more.
const POOLED: usize = 4;

impl Pool {
    // Neither method waits for the lock: in a forked process, the thread that holds it may not exist.

    fn take(&self) -> Arrays {
        let pooled = self.0.try_lock().ok().and_then(|mut arrays| arrays.pop());
        pooled.unwrap_or_default()
    }

    fn give_back(&self, used: Arrays) {
        if let Ok(mut arrays) = self.0.try_lock()
            && arrays.len() < POOLED
        {
            arrays.push(used);
        }
    }
}

/// One rank's part of a step: `rows` rows of `seq_len` positions, row after row.
pub struct Batch {
    pub bucket: usize,
    pub rows: usize,
    pub seq_len: usize,
    pub arrays: Arrays,
    /// Starts of segments, and the end of the last. A segment is a piece of a document or the padding of a row.
    pub cu_seqlens: Vec<i32>,
    pub max_seqlen: usize,
    /// Source of each segment; -1 for padding.
    pub source_ids: Vec<i32>,
    /// Index of each segment's document in the shards of its source; -1 for padding.
    pub document_ids: Vec<i64>,
    /// Number of positions without a token.
    pub padding: usize,
    pool: Arc<Pool>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.arrays));
    }
}

/// Fractions of labeled spans to exclude from the loss.
pub struct MaskPolicy {
    /// Fraction by source, shard, and label.
    excluded: Vec<Vec<Vec<f64>>>,
    /// Seed by source.
    seeds: Vec<u64>,
}

/// Makes these decisions independent of the order of documents.
const MASK_SEED: u64 = 0x6d61_736b;

impl MaskPolicy {
    pub fn new(mixture: &Mixture, policy: &[(String, f64)], seed: u64) -> Result<MaskPolicy> {
        for (label, fraction) in policy {
            if !(0.0..=1.0).contains(fraction) {
                return Err(Error::Invalid(format!(
                    "mask {label:?}: the fraction to exclude must be 0 to 1, not {fraction}"
                )));
            }
            let mut shards = mixture.sources.iter().flat_map(|source| source.shards.parts());
            if !shards.any(|shard| shard.labels().contains(label)) {
                return Err(Error::Invalid(format!(
                    "mask {label:?}: no shard has spans with this label"
                )));
            }
        }
        let fraction = |label: &String| {
            policy
                .iter()
                .find(|(name, _)| name == label)
                .map_or(0.0, |known| known.1)
        };
        let sources = mixture.sources.iter();
        Ok(MaskPolicy {
            excluded: sources
                .clone()
                .map(|source| {
                    let parts = source.shards.parts().iter();
                    parts.map(|part| part.labels().iter().map(fraction).collect()).collect()
                })
                .collect(),
            seeds: sources
                .map(|source| mix64(mix64(seed ^ MASK_SEED) ^ u64::from(crc32fast::hash(source.name.as_bytes()))))
                .collect(),
        })
    }

    fn concerns(&self, source: usize, part: usize) -> bool {
        self.excluded[source][part].iter().any(|&fraction| fraction > 0.0)
    }

    /// Decides by the seed, the document, and the index of the span, so that every epoch excludes the same spans.
    fn excludes(&self, piece: &Piece, part: usize, number: usize, span: &Span) -> bool {
        let source = piece.source as usize;
        let random = mix64(mix64(self.seeds[source] ^ piece.document) ^ number as u64);
        let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
        uniform < self.excluded[source][part][span.label as usize]
    }
}

/// Tokens above which a corpus is released now and then. A smaller one stays mapped: touching a released page again
/// costs as much as reading it.
const MAPPED: u64 = 1 << 28;
/// Positions filled between two releases: 64 MB of tokens, and what the system maps around them.
const RELEASE_EVERY: usize = 1 << 24;

/// Fills batches and reuses their memory.
pub struct Filler {
    masks: MaskPolicy,
    pool: Arc<Pool>,
    /// Positions filled since the memory of the shards was released.
    filled: usize,
    /// The shard last checked for truncation in this batch, by source and index.
    present: Option<(u32, usize)>,
    runs: Vec<[u32; 2]>,
    spans: Vec<Span>,
}

impl Filler {
    pub fn new(masks: MaskPolicy) -> Filler {
        Filler {
            masks,
            pool: Arc::default(),
            filled: 0,
            present: None,
            runs: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// Fills a batch with the given rows, and empty rows up to `count`.
    pub fn fill(
        &mut self,
        mixture: &Mixture,
        rows: &Rows,
        count: usize,
        seq_len: usize,
        bucket: usize,
    ) -> Result<Batch> {
        let mut batch = Batch {
            bucket,
            rows: count,
            seq_len,
            arrays: self.pool.take(),
            cu_seqlens: vec![0],
            max_seqlen: 0,
            source_ids: Vec::new(),
            document_ids: Vec::new(),
            padding: 0,
            pool: self.pool.clone(),
        };
        batch.arrays.resize(count * seq_len);
        self.present = None;
        for row in 0..count {
            let mut at = row * seq_len;
            let pieces = if row < rows.ends.len() { rows.row(row) } else { &[] };
            for piece in pieces {
                self.fill_piece(mixture, piece, &mut batch.arrays, at)?;
                batch.push_segment(piece.len as usize, piece.source as i32, piece.document as i64);
                at += piece.len as usize;
            }
            batch.pad((row + 1) * seq_len - at);
        }
        self.filled += count * seq_len;
        if self.filled >= RELEASE_EVERY {
            self.filled = 0;
            release(mixture);
        }
        Ok(batch)
    }

    fn fill_piece(&mut self, mixture: &Mixture, piece: &Piece, out: &mut Arrays, at: usize) -> Result<()> {
        let shards = &mixture.sources[piece.source as usize].shards;
        let (part, document) = shards.locate(piece.document);
        let shard = &shards.parts()[part];
        if self.present != Some((piece.source, part)) {
            shard.check_present()?;
            self.present = Some((piece.source, part));
        }
        let end = at + piece.len as usize;
        // If the document was cut here, its next token is known.
        let known = if piece.is_last { end - 1 } else { end };
        let (tokens, targets) = (&mut out.tokens[at..end], &mut out.targets[at..known]);
        shard.read(document, piece.start as usize, tokens, targets)?;
        out.targets[known..end].fill(0);
        let mask = &mut out.loss_mask[at..end];
        mask.fill(true);
        mask[mask.len() - 1] = !piece.is_last;
        shard.masked_runs(document, &mut self.runs)?;
        for &[from, to] in &self.runs {
            exclude(mask, piece, from, to);
        }
        if self.masks.concerns(piece.source as usize, part) {
            shard.spans(document, &mut self.spans)?;
            for (number, span) in self.spans.iter().enumerate() {
                if self.masks.excludes(piece, part, number, span) {
                    exclude(mask, piece, span.start, span.end);
                }
            }
        }
        Ok(())
    }
}

fn release(mixture: &Mixture) {
    let shards = || mixture.sources.iter().map(|source| &source.shards);
    if shards().map(Shards::tokens).sum::<u64>() > MAPPED {
        shards().flat_map(Shards::parts).for_each(Part::release);
    }
}

/// Excludes the tokens `from..to` of a document from the loss. Position t predicts token `start + t + 1`.
fn exclude(mask: &mut [bool], piece: &Piece, from: u32, to: u32) {
    let (first, last) = (piece.start + 1, piece.start + piece.len + 1);
    let (from, to) = (from.max(first), to.min(last));
    if from < to {
        mask[(from - first) as usize..(to - first) as usize].fill(false);
    }
}

impl Batch {
    fn push_segment(&mut self, len: usize, source: i32, document: i64) {
        let start = self.cu_seqlens[self.cu_seqlens.len() - 1] as usize;
        for (place, id) in self.arrays.position_ids[start..start + len].iter_mut().enumerate() {
            *id = place as i32;
        }
        self.cu_seqlens.push((start + len) as i32);
        self.source_ids.push(source);
        self.document_ids.push(document);
        self.max_seqlen = self.max_seqlen.max(len);
    }

    fn pad(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        let start = self.cu_seqlens[self.cu_seqlens.len() - 1] as usize;
        self.arrays.tokens[start..start + len].fill(0);
        self.arrays.targets[start..start + len].fill(0);
        self.arrays.loss_mask[start..start + len].fill(false);
        self.push_segment(len, -1, -1);
        self.padding += len;
    }
}
