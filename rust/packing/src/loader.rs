//! The loader: one global order of packed rows, of which every rank takes its slice.

use crate::error::{Error, Result};
use crate::mix::{Cursor, Mixture, Piece, Source};
use crate::pack::next_row;

/// The look-ahead is part of the saved state, which is to stay within a few KB.
pub const MAX_LOOKAHEAD: usize = 256;
/// Counts of documents and tokens are compared as f64, which is exact up to here.
const MAX_COUNT: u64 = 1 << 53;

#[derive(Clone, Debug)]
pub struct Config {
    /// Tokens a row.
    pub seq_len: usize,
    /// Rows a step, all ranks together.
    pub batch_size: usize,
    pub rank: usize,
    pub world_size: usize,
    pub seed: u64,
    /// Passes over every source; `None` goes on forever.
    pub epochs: Option<u64>,
    /// Pieces of documents to choose from when filling a row.
    pub lookahead: usize,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Config {
            seq_len,
            batch_size,
            rank,
            world_size,
            lookahead,
            ..
        } = *self;
        let invalid = |what: String| Err(Error::Invalid(what));
        if seq_len == 0 || batch_size == 0 || world_size == 0 {
            return invalid("seq_len, batch_size and world_size must be at least 1".into());
        }
        if batch_size % world_size != 0 {
            return invalid(format!(
                "world_size {world_size} does not divide batch_size {batch_size}"
            ));
        }
        if rank >= world_size {
            return invalid(format!("rank {rank} is outside a world of {world_size}"));
        }
        if self.epochs == Some(0) {
            return invalid("epochs must be at least 1".into());
        }
        if !(1..=MAX_LOOKAHEAD).contains(&lookahead) {
            return invalid(format!("lookahead must be 1 to {MAX_LOOKAHEAD}, not {lookahead}"));
        }
        if (batch_size / world_size)
            .checked_mul(seq_len)
            .is_none_or(|tokens| tokens > i32::MAX as usize)
        {
            return invalid("a rank's batch must have fewer than 2^31 tokens".into());
        }
        Ok(())
    }
}

/// Where the loader stands: the same on every rank, and all that another loader over the same data needs to go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Batches given out.
    pub step: u64,
    /// A cursor a source: draw, index, tokens.
    pub cursors: Vec<[u64; 3]>,
    /// Pieces drawn and not yet placed, oldest first: source, draw, index.
    pub lookahead: Vec<[u64; 3]>,
}

/// One rank's part of a batch: `rows` rows of `seq_len` positions, row after row.
pub struct Batch {
    pub rows: usize,
    pub tokens: Vec<i32>,
    /// The next token of the document; 0 where there is none.
    pub targets: Vec<i32>,
    /// Whether the loss counts at a position, that is, whether the loss is on for its target.
    pub loss_mask: Vec<bool>,
    /// Place within the segment.
    pub position_ids: Vec<i32>,
    /// Where segments begin, and the end of the last. A segment is a piece of a document or the padding of a row.
    pub cu_seqlens: Vec<i32>,
    pub max_seqlen: usize,
    /// Source of each segment, -1 for padding.
    pub source_ids: Vec<i32>,
    /// Positions that hold no token.
    pub padding: usize,
}

/// Totals over all ranks since step 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    pub steps: u64,
    pub tokens: u64,
    /// Documents of which every token has been given out, counted once an epoch.
    pub documents: u64,
    /// Part of all positions that hold a token.
    pub efficiency: f64,
    pub source_tokens: Vec<u64>,
}

#[derive(Clone)]
struct Position {
    step: u64,
    cursors: Vec<Cursor>,
    buffer: Vec<Piece>,
}

pub struct Loader {
    mixture: Mixture,
    config: Config,
    position: Position,
}

impl Loader {
    pub fn new(sources: Vec<Source>, config: Config) -> Result<Loader> {
        config.check()?;
        let mixture = Mixture::new(sources, config.seq_len, config.seed, config.epochs)?;
        let cursors = vec![Cursor::default(); mixture.sources.len()];
        Ok(Loader {
            mixture,
            config,
            position: Position {
                step: 0,
                cursors,
                buffer: Vec::new(),
            },
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }

    /// This rank's rows of the next global batch; `None` after the last. A batch that the documents do not fill has
    /// empty rows at its end. After an error the loader stands where it stood before.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let mut position = self.position.clone();
        let rows = self.plan(&mut position);
        if rows.is_empty() {
            return Ok(None);
        }
        let local = self.config.batch_size / self.config.world_size;
        let batch = self.fill(&rows[self.config.rank * local..][..local])?;
        self.position = position;
        Ok(Some(batch))
    }

    /// The rows of the next global batch, `batch_size` of them, or none if there are no more documents. Every rank plans
    /// all of them, from document lengths alone, so that the order does not depend on how many ranks there are.
    fn plan(&self, position: &mut Position) -> Vec<Vec<Piece>> {
        let Config {
            seq_len,
            batch_size,
            lookahead,
            ..
        } = self.config;
        let Position { step, cursors, buffer } = position;
        *step += 1;
        let next = || next_row(buffer, lookahead, seq_len, || self.mixture.draw(cursors));
        let mut rows: Vec<_> = std::iter::repeat_with(next).take(batch_size).collect();
        if rows[0].is_empty() {
            rows.clear();
        }
        rows
    }

    fn fill(&self, rows: &[Vec<Piece>]) -> Result<Batch> {
        let seq_len = self.config.seq_len;
        let positions = rows.len() * seq_len;
        let mut batch = Batch {
            rows: rows.len(),
            tokens: vec![0; positions],
            targets: vec![0; positions],
            loss_mask: vec![false; positions],
            position_ids: vec![0; positions],
            cu_seqlens: vec![0],
            max_seqlen: 0,
            source_ids: Vec::new(),
            padding: 0,
        };
        for (row, pieces) in rows.iter().enumerate() {
            let mut at = row * seq_len;
            for piece in pieces {
                self.fill_piece(piece, &mut batch, at)?;
                batch.push_segment(piece.len, piece.source as i32);
                at += piece.len;
            }
            let rest = (row + 1) * seq_len - at;
            if rest > 0 {
                batch.push_segment(rest, -1);
                batch.padding += rest;
            }
        }
        Ok(batch)
    }

    fn fill_piece(&self, piece: &Piece, batch: &mut Batch, at: usize) -> Result<()> {
        let (shard, document) = self.mixture.sources[piece.source].shards.locate(piece.document);
        let end = at + piece.len;
        shard.read(document, piece.start, &mut batch.tokens[at..end])?;
        batch.targets[at..end - 1].copy_from_slice(&batch.tokens[at + 1..end]);
        let next = piece.start + piece.len;
        if next < shard.document_len(document) as usize {
            // The document was cut here, but its next token is known.
            shard.read(document, next, &mut batch.targets[end - 1..end])?;
        }
        // Position t predicts token start + t + 1, so a span of learned tokens shifts left by start + 1.
        let (first, last) = (piece.start + 1, piece.start + piece.len + 1);
        for (start, stop) in shard.spans(document, first) {
            if start >= last {
                break;
            }
            batch.loss_mask[at + start.max(first) - first..at + stop.min(last) - first].fill(true);
        }
        Ok(())
    }

    pub fn state(&self) -> State {
        let Position { step, cursors, buffer } = &self.position;
        State {
            step: *step,
            cursors: cursors
                .iter()
                .map(|cursor| [cursor.draw, cursor.index, cursor.tokens])
                .collect(),
            lookahead: buffer
                .iter()
                .map(|piece| [piece.source as u64, piece.draw, piece.index])
                .collect(),
        }
    }

    /// Goes to where `state` was taken, at a cost that does not depend on how far that is. An impossible state is
    /// refused and changes nothing.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let invalid = |what: String| Error::Invalid(format!("loader state: {what}"));
        let sources = self.mixture.sources.len();
        let counts = state
            .cursors
            .iter()
            .flat_map(|&[draw, _, tokens]| [draw, tokens])
            .chain([state.step]);
        if counts.max() > Some(MAX_COUNT) {
            return Err(invalid(format!("a count above {MAX_COUNT}")));
        }
        if state.cursors.len() != sources {
            return Err(invalid(format!(
                "{} cursors for {sources} sources",
                state.cursors.len()
            )));
        }
        let mut cursors = Vec::new();
        for (source, &[draw, index, tokens]) in state.cursors.iter().enumerate() {
            let draws = self.mixture.draws(source);
            let exists = draw < draws && self.mixture.piece(source, draw, index).is_some();
            if !exists && (draw, index) != (draws, 0) {
                return Err(invalid(format!(
                    "source {source} has no piece {index} of document {draw}"
                )));
            }
            cursors.push(Cursor { draw, index, tokens });
        }
        if state.lookahead.len() > self.config.lookahead {
            return Err(invalid(format!("{} pieces in the look-ahead", state.lookahead.len())));
        }
        let mut buffer: Vec<Piece> = Vec::new();
        for &[source, draw, index] in &state.lookahead {
            let piece = usize::try_from(source)
                .ok()
                .and_then(|source| self.mixture.piece(source, draw, index));
            let Some((piece, _)) = piece.filter(|(piece, _)| {
                let cursor = cursors[piece.source];
                (draw, index) < (cursor.draw, cursor.index) && !buffer.contains(piece)
            }) else {
                return Err(invalid(format!(
                    "piece {index} of document {draw} of source {source} cannot be waiting"
                )));
            };
            buffer.push(piece);
        }
        for (source, cursor) in cursors.iter().enumerate() {
            let waiting: usize = buffer
                .iter()
                .filter(|piece| piece.source == source)
                .map(|piece| piece.len)
                .sum();
            if (waiting as u64) > cursor.tokens {
                return Err(invalid(format!(
                    "source {source} has more tokens waiting than were drawn"
                )));
            }
        }
        self.position = Position {
            step: state.step,
            cursors,
            buffer,
        };
        Ok(())
    }

    pub fn stats(&self) -> Stats {
        let Position { step, cursors, buffer } = &self.position;
        let mut source_tokens: Vec<u64> = cursors.iter().map(|cursor| cursor.tokens).collect();
        let mut documents: u64 = cursors.iter().map(|cursor| cursor.draw).sum();
        for (at, piece) in buffer.iter().enumerate() {
            source_tokens[piece.source] -= piece.len as u64;
            let same = |other: &Piece| (other.source, other.draw) == (piece.source, piece.draw);
            // A document still being drawn is not among those counted.
            let counted = piece.draw < cursors[piece.source].draw;
            documents -= u64::from(counted && !buffer[..at].iter().any(same));
        }
        let tokens = source_tokens.iter().sum();
        let positions = *step as f64 * self.config.batch_size as f64 * self.config.seq_len as f64;
        let efficiency = if positions > 0.0 {
            tokens as f64 / positions
        } else {
            0.0
        };
        Stats {
            steps: *step,
            tokens,
            documents,
            efficiency,
            source_tokens,
        }
    }
}

impl Batch {
    fn push_segment(&mut self, len: usize, source: i32) {
        let start = self.cu_seqlens[self.cu_seqlens.len() - 1] as usize;
        for (place, id) in self.position_ids[start..start + len].iter_mut().enumerate() {
            *id = place as i32;
        }
        self.cu_seqlens.push((start + len) as i32);
        self.source_ids.push(source);
        self.max_seqlen = self.max_seqlen.max(len);
    }
}
