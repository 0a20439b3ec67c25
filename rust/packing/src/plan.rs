//! Which documents lie in which row, from their lengths alone.
//!
//! Best fit works by windows: the next `lookahead` documents are packed into rows together, then as many more as fit
//! into what room is left, and the rows are given out in a seeded order. Where a window begins and how many of its rows
//! were given out is all that is needed to go on: the window is planned anew. A stream lays documents end to end and
//! cuts them where a row is full; what is needed to go on is the next document and the rest of the one that was cut.

use std::ops::RangeInclusive;

use crate::bins::Bins;
use crate::error::{Error, Result};
use crate::mix::{Cursor, Drawn, Mixture, Walk};
use crate::permute::{Permutation, mix64};

/// A window ends when so many times the look-ahead were drawn, however few of them have the lengths of the bucket, ...
const SCAN: u64 = 8;
/// ... and, with a small look-ahead, so many documents.
const MIN_SCAN: u64 = 4096;
/// Documents between two checks that the shards are as long as they were.
const CHECK_EVERY: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packing {
    /// No document is cut unless it is longer than a row.
    BestFit { lookahead: u64 },
    /// Documents are laid end to end and cut where a row is full.
    Stream,
}

/// Documents of some lengths, and the batches they go into.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    pub lengths: RangeInclusive<u32>,
    /// Tokens a row.
    pub seq_len: usize,
    /// Rows a step, all ranks together.
    pub batch_size: usize,
}

/// Consecutive tokens of one document that lie in one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    pub source: u32,
    /// Number of the document in the shards of its source.
    pub document: u64,
    /// First token within the document.
    pub start: u32,
    pub len: u32,
    /// Whether the document ends here.
    pub is_last: bool,
}

/// Rows of pieces, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub pieces: Vec<Piece>,
    /// Where each row ends, in pieces.
    pub ends: Vec<usize>,
}

impl Rows {
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.ends.clear();
    }

    pub fn row(&self, row: usize) -> &[Piece] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.pieces[start..self.ends[row]]
    }
}

/// Where a planner stands; all that another one over the same data needs to go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// A source each: documents drawn and their tokens, before the window or the next row.
    pub cursors: Vec<[u64; 2]>,
    /// Rows of the window that were given out.
    pub taken: u64,
    /// Of a stream: source, document and first token of the rest of the document that was cut.
    pub rest: Option<[u64; 3]>,
}

/// Plans the rows of one bucket.
pub struct Planner {
    bucket: Bucket,
    seed: u64,
    mode: Mode,
}

enum Mode {
    Windows {
        lookahead: u64,
        start: Vec<Cursor>,
        taken: usize,
        window: Option<Window>,
    },
    Stream {
        walk: Walk,
        rest: Option<Piece>,
        until_check: u64,
    },
}

struct Window {
    rows: Rows,
    order: Permutation,
    /// Documents drawn before and after.
    draws: (u64, u64),
    end: Vec<Cursor>,
}

impl Planner {
    pub fn new(mixture: &Mixture, bucket: Bucket, packing: Packing, seed: u64) -> Result<Planner> {
        let start = vec![Cursor::default(); mixture.sources.len()];
        let mode = match packing {
            Packing::BestFit { lookahead } => {
                Bins::new(bucket.seq_len)?;
                // Several epochs packed together would be shuffled together.
                let documents = mixture.sources.iter().map(|source| source.shards.documents());
                Mode::Windows {
                    lookahead: lookahead.min(documents.sum()),
                    start,
                    taken: 0,
                    window: None,
                }
            }
            Packing::Stream => Mode::Stream {
                walk: Walk::at(start),
                rest: None,
                until_check: 0,
            },
        };
        Ok(Planner { bucket, seed, mode })
    }

    /// Whether another row can be given out; plans it if need be.
    pub fn is_ready(&mut self, mixture: &Mixture) -> Result<bool> {
        match &mut self.mode {
            Mode::Windows {
                lookahead,
                start,
                taken,
                window,
            } => loop {
                let planned = match window {
                    Some(planned) => planned,
                    None => window.insert(plan_window(mixture, &self.bucket, *lookahead, self.seed, start)?),
                };
                if *taken < planned.rows.ends.len() {
                    return Ok(true);
                }
                if planned.draws.0 == planned.draws.1 {
                    return Ok(false);
                }
                (*start, *taken) = (std::mem::take(&mut planned.end), 0);
                *window = None;
            },
            Mode::Stream {
                walk,
                rest,
                until_check,
            } => {
                while rest.is_none() {
                    if *until_check == 0 {
                        mixture.check_present()?;
                        *until_check = CHECK_EVERY;
                    }
                    *until_check -= 1;
                    let Some(drawn) = mixture.draw(walk) else {
                        return Ok(false);
                    };
                    if self.bucket.lengths.contains(&drawn.len) {
                        *rest = Some(whole(drawn));
                    }
                }
                Ok(true)
            }
        }
    }

    /// Documents drawn before the next row, those of a window in proportion to its rows.
    pub fn progress(&self) -> f64 {
        match &self.mode {
            Mode::Windows {
                start, taken, window, ..
            } => match window {
                Some(Window { rows, draws, .. }) => {
                    let part = *taken as f64 / rows.ends.len().max(1) as f64;
                    draws.0 as f64 + part * (draws.1 - draws.0) as f64
                }
                None => start.iter().map(|cursor| cursor.draws).sum::<u64>() as f64,
            },
            Mode::Stream { walk, .. } => walk.draws() as f64,
        }
    }

    /// Adds the next row to `out`; an empty one if there are no more documents.
    pub fn next_row(&mut self, mixture: &Mixture, out: &mut Rows) -> Result<()> {
        let mut room = self.bucket.seq_len as u32;
        while room > 0 && self.is_ready(mixture)? {
            match &mut self.mode {
                Mode::Windows { taken, window, .. } => {
                    if let Some(Window { rows, order, .. }) = window {
                        out.pieces.extend(rows.row(order.get(*taken as u64) as usize));
                        *taken += 1;
                    }
                    room = 0;
                }
                Mode::Stream { rest, .. } => {
                    if let Some(piece) = rest.take() {
                        let (first, second) = cut(piece, room);
                        room -= first.len;
                        out.pieces.push(first);
                        *rest = second;
                    }
                }
            }
        }
        out.ends.push(out.pieces.len());
        Ok(())
    }

    pub fn place(&self) -> Place {
        let numbers = |cursors: &[Cursor]| cursors.iter().map(|cursor| [cursor.draws, cursor.tokens]).collect();
        match &self.mode {
            Mode::Windows {
                start, taken, window, ..
            } => {
                // The end of one window is the beginning of the next: every place has one name.
                let (cursors, taken) = match window {
                    Some(planned) if *taken == planned.rows.ends.len() => (&planned.end, 0),
                    _ => (start, *taken as u64),
                };
                Place {
                    cursors: numbers(cursors),
                    taken,
                    rest: None,
                }
            }
            Mode::Stream { walk, rest, .. } => Place {
                cursors: numbers(walk.cursors()),
                taken: 0,
                rest: rest.map(|piece| [u64::from(piece.source), piece.document, u64::from(piece.start)]),
            },
        }
    }

    /// Goes to a place, at the cost of planning one window. Fails if there is no such place; the planner must then not
    /// be used any more.
    pub fn go_to(&mut self, mixture: &Mixture, place: &Place) -> Result<()> {
        let cursors = cursors_of(mixture, place)?;
        match &mut self.mode {
            Mode::Windows {
                lookahead,
                start,
                taken,
                window,
            } => {
                let planned = plan_window(mixture, &self.bucket, *lookahead, self.seed, &cursors)?;
                let rows = planned.rows.ends.len();
                if place.taken > rows as u64 || place.rest.is_some() {
                    return Err(impossible(format!("row {} of a window of {rows}", place.taken)));
                }
                (*start, *taken) = (cursors, place.taken as usize);
                *window = Some(planned);
            }
            Mode::Stream { walk, rest, .. } => {
                *rest = match place.rest {
                    Some(rest) => Some(rest_of(mixture, &self.bucket, rest)?),
                    None => None,
                };
                *walk = Walk::at(cursors);
            }
        }
        Ok(())
    }
}

fn impossible(what: String) -> Error {
    Error::Invalid(format!("loader state: there is no {what}"))
}

/// Counts are compared as f64, which is exact up to here.
pub const MAX_COUNT: u64 = 1 << 53;

fn cursors_of(mixture: &Mixture, place: &Place) -> Result<Vec<Cursor>> {
    if place.cursors.len() != mixture.sources.len() {
        let (cursors, sources) = (place.cursors.len(), mixture.sources.len());
        return Err(Error::Invalid(format!(
            "loader state: {cursors} cursors for {sources} sources"
        )));
    }
    let cursor = |(source, &[draws, tokens]): (usize, &[u64; 2])| {
        let (known, most) = (mixture.draws(source).min(MAX_COUNT), MAX_COUNT);
        if draws > known || tokens > most || tokens < draws {
            return Err(impossible(format!(
                "document {draws} after {tokens} tokens of source {source}"
            )));
        }
        Ok(Cursor { draws, tokens })
    };
    place.cursors.iter().enumerate().map(cursor).collect()
}

fn rest_of(mixture: &Mixture, bucket: &Bucket, [source, document, start]: [u64; 3]) -> Result<Piece> {
    let shards = usize::try_from(source)
        .ok()
        .and_then(|source| mixture.sources.get(source));
    let len = shards
        .map(|source| &source.shards)
        .filter(|shards| document < shards.documents())
        .map(|shards| shards.document_len(document))
        .filter(|len| bucket.lengths.contains(len) && start < u64::from(*len));
    let Some(len) = len else {
        return Err(impossible(format!(
            "token {start} of document {document} of source {source}"
        )));
    };
    Ok(Piece {
        source: source as u32,
        document,
        start: start as u32,
        len: len - start as u32,
        is_last: true,
    })
}

fn whole(drawn: Drawn) -> Piece {
    Piece {
        source: drawn.source,
        document: drawn.document,
        start: 0,
        len: drawn.len,
        is_last: true,
    }
}

/// The first `room` tokens of a piece, and the rest of it if there is any.
fn cut(piece: Piece, room: u32) -> (Piece, Option<Piece>) {
    if piece.len <= room {
        return (piece, None);
    }
    let first = Piece {
        len: room,
        is_last: false,
        ..piece
    };
    let rest = Piece {
        start: piece.start + room,
        len: piece.len - room,
        ..piece
    };
    (first, Some(rest))
}

fn plan_window(mixture: &Mixture, bucket: &Bucket, lookahead: u64, seed: u64, start: &[Cursor]) -> Result<Window> {
    mixture.check_present()?;
    let mut walk = Walk::at(start.to_vec());
    let first = walk.draws();
    let mut bins = Bins::new(bucket.seq_len)?;
    let limit = first + lookahead.saturating_mul(SCAN).max(MIN_SCAN);
    let mut pieces = draw_pieces(mixture, bucket, lookahead, limit, &mut walk);
    let lengths: Vec<u32> = pieces.iter().map(|piece| piece.len).collect();
    let mut bin_of = bins.pack(&lengths);
    fill_up(mixture, bucket, limit, &mut walk, &mut bins, &mut pieces, &mut bin_of);
    let draws = (first, walk.draws());
    let rows = rows_of(&pieces, &bin_of, bins.count());
    let order = Permutation::new(rows.ends.len() as u64, mix64(mix64(seed) ^ first));
    let end = walk.into_cursors();
    Ok(Window {
        rows,
        order,
        draws,
        end,
    })
}

/// The pieces of the next `lookahead` documents of the bucket, unless `limit` documents were drawn before.
fn draw_pieces(mixture: &Mixture, bucket: &Bucket, lookahead: u64, limit: u64, walk: &mut Walk) -> Vec<Piece> {
    let (mut pieces, mut documents) = (Vec::new(), 0);
    while documents < lookahead && walk.draws() < limit {
        let Some(drawn) = mixture.draw(walk) else { break };
        if !bucket.lengths.contains(&drawn.len) {
            continue;
        }
        documents += 1;
        let mut rest = Some(whole(drawn));
        while let Some(piece) = rest {
            let (first, second) = cut(piece, bucket.seq_len as u32);
            pieces.push(first);
            rest = second;
        }
    }
    pieces
}

/// Draws further documents for as long as they fit into the room that is left: so no window ends in an empty row.
fn fill_up(
    mixture: &Mixture,
    bucket: &Bucket,
    limit: u64,
    walk: &mut Walk,
    bins: &mut Bins,
    pieces: &mut Vec<Piece>,
    bin_of: &mut Vec<u32>,
) {
    while walk.draws() < limit
        && let Some(drawn) = mixture.draw(walk)
    {
        if !bucket.lengths.contains(&drawn.len) {
            continue;
        }
        let fitting = usize::try_from(drawn.len).ok().filter(|&len| len <= bucket.seq_len);
        let Some(bin) = fitting.and_then(|_| bins.place(drawn.len)) else {
            walk.undo(drawn);
            return;
        };
        pieces.push(whole(drawn));
        bin_of.push(bin);
    }
}

/// The pieces bin by bin, those of a bin in their order.
fn rows_of(pieces: &[Piece], bin_of: &[u32], bins: usize) -> Rows {
    let mut ends = vec![0; bins];
    bin_of.iter().for_each(|&bin| ends[bin as usize] += 1);
    let mut total = 0;
    for end in &mut ends {
        let count = *end;
        *end = total;
        total += count;
    }
    let Some(&piece) = pieces.first() else {
        return Rows::default();
    };
    let mut sorted = vec![piece; pieces.len()];
    for (piece, &bin) in pieces.iter().zip(bin_of) {
        let place: &mut usize = &mut ends[bin as usize];
        sorted[*place] = *piece;
        *place += 1;
    }
    Rows { pieces: sorted, ends }
}
