//! Batches: the arrays that a model is trained on, filled from rows of pieces.

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
    /// The next token of the document; 0 where there is none.
    pub targets: Vec<i32>,
    /// Whether the loss counts at a position, that is, whether its target is to be learned.
    pub loss_mask: Vec<bool>,
    /// Place within the segment.
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

/// Arrays of batches that nobody uses any more. Fresh memory costs more than filling it: the system clears every page.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Arrays>>);

/// More would only be used by one who keeps many batches and then drops them all.
const POOLED: usize = 4;

impl Pool {
    // Neither waits for the lock: in a forked process nobody may be left to open it.

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
    /// Where segments begin, and the end of the last. A segment is a piece of a document or the padding of a row.
    pub cu_seqlens: Vec<i32>,
    pub max_seqlen: usize,
    /// Source of each segment, -1 for padding.
    pub source_ids: Vec<i32>,
    /// Number of each segment's document in the shards of its source, -1 for padding.
    pub document_ids: Vec<i64>,
    /// Positions that hold no token.
    pub padding: usize,
    pool: Arc<Pool>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.arrays));
    }
}

/// Labelled spans that are not to be learned: the part of a label's spans that is left out of the loss.
pub struct MaskPolicy {
    /// By source, shard and label.
    left_out: Vec<Vec<Vec<f64>>>,
    /// By source.
    seeds: Vec<u64>,
}

/// Keeps these decisions apart from those on the order of documents.
const MASK_SEED: u64 = 0x6d61_736b;

impl MaskPolicy {
    pub fn new(mixture: &Mixture, policy: &[(String, f64)], seed: u64) -> Result<MaskPolicy> {
        for (label, fraction) in policy {
            if !(0.0..=1.0).contains(fraction) {
                return Err(Error::Invalid(format!(
                    "mask {label:?}: the part left out must be 0 to 1, not {fraction}"
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
            left_out: sources
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
        self.left_out[source][part].iter().any(|&fraction| fraction > 0.0)
    }

    /// Decided by the seed, the document and the number of the span in it: the same in every epoch, whatever the order.
    fn leaves_out(&self, piece: &Piece, part: usize, number: usize, span: &Span) -> bool {
        let source = piece.source as usize;
        let random = mix64(mix64(self.seeds[source] ^ piece.document) ^ number as u64);
        let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
        uniform < self.left_out[source][part][span.label as usize]
    }
}

/// A corpus of more tokens is let go of now and then. A smaller one stays mapped: touching a page again costs as much as
/// reading it.
const MAPPED: u64 = 1 << 28;
/// Positions filled between two times that it is let go of: 64 MB of tokens, and what the system maps around them.
const RELEASE_EVERY: usize = 1 << 24;

/// Fills batches; keeps the memory that this takes.
pub struct Filler {
    masks: MaskPolicy,
    pool: Arc<Pool>,
    /// Positions filled since the memory of the shards was released.
    filled: usize,
    /// The shard last seen to be as long as it was, by source and number; forgotten with each batch.
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

    /// The given rows, and empty ones up to `count`.
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
        // The next token of a document that was cut here is known.
        let known = if piece.is_last { end - 1 } else { end };
        let (tokens, targets) = (&mut out.tokens[at..end], &mut out.targets[at..known]);
        shard.read(document, piece.start as usize, tokens, targets)?;
        out.targets[known..end].fill(0);
        let mask = &mut out.loss_mask[at..end];
        mask.fill(true);
        mask[mask.len() - 1] = !piece.is_last;
        shard.masked_runs(document, &mut self.runs)?;
        for &[from, to] in &self.runs {
            unlearn(mask, piece, from, to);
        }
        if self.masks.concerns(piece.source as usize, part) {
            shard.spans(document, &mut self.spans)?;
            for (number, span) in self.spans.iter().enumerate() {
                if self.masks.leaves_out(piece, part, number, span) {
                    unlearn(mask, piece, span.start, span.end);
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

/// Takes the tokens `from..to` of a document out of the loss. Position t predicts token `start + t + 1`.
fn unlearn(mask: &mut [bool], piece: &Piece, from: u32, to: u32) {
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
