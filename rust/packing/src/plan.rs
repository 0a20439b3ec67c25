//! Plans which documents go into which row, from their lengths alone.
//!
//! Best fit plans windows ([`crate::window`]), whose rows come in a seeded order. To resume, it needs the start of the
//! window and the number of rows taken: it plans the window again. A stream lays documents end to end and cuts them at
//! the ends of rows. To resume, it needs the next document and the rest of the one that was cut.

use cwm_interrupt::Pace;

use crate::bins::Bins;
use crate::error::{Error, Result};
use crate::mix::{Cursor, Mixture, Walk};
use crate::rows::{Bucket, Piece, Rows, cut, whole};
use crate::window::{DRAW, Window};

/// Documents between two checks for truncated shards.
const CHECK_EVERY: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packing {
    /// No document is cut unless it is longer than a row.
    BestFit { lookahead: u64 },
    /// Documents are laid end to end and cut at the ends of rows.
    Stream,
}

/// Position of a planner: everything that another one over the same data needs to resume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// For each source, documents drawn before the window or the next row, and their tokens.
    pub cursors: Vec<[u64; 2]>,
    /// Rows of the window that were taken.
    pub taken: u64,
    /// In a stream, the rest of the document that was cut: source, document, and first token.
    pub rest: Option<[u64; 3]>,
}

/// Plans the rows of one bucket.
pub struct Planner {
    bucket: Bucket,
    /// The sources that have documents of the bucket.
    sources: Vec<usize>,
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

impl Planner {
    /// Starts at the first document. `sources` are those that have documents of the bucket. When they are exhausted,
    /// the planner ends, although other sources may continue forever.
    pub fn new(mixture: &Mixture, bucket: Bucket, sources: Vec<usize>, packing: Packing, seed: u64) -> Result<Planner> {
        let start = vec![Cursor::default(); mixture.sources.len()];
        let mode = match packing {
            Packing::BestFit { lookahead } => {
                Bins::new(bucket.seq_len)?;
                // A window of several epochs would shuffle them together.
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
        Ok(Planner {
            bucket,
            sources,
            seed,
            mode,
        })
    }

    /// Returns whether there is another row. Plans it if needed.
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
                    None => window.insert(Window::plan(
                        mixture,
                        &self.bucket,
                        &self.sources,
                        *lookahead,
                        self.seed,
                        start,
                    )?),
                };
                if *taken < planned.count() {
                    return Ok(true);
                }
                if planned.is_last() {
                    return Ok(false);
                }
                (*start, *taken) = (planned.end().to_vec(), 0);
                *window = None;
            },
            Mode::Stream {
                walk,
                rest,
                until_check,
            } => {
                let mut pace = Pace::default();
                while rest.is_none() {
                    if mixture.are_exhausted(&self.sources, walk.cursors()) {
                        return Ok(false);
                    }
                    pace.did(DRAW)?;
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

    /// Returns the number of documents drawn before the next row, those of a window in proportion to the rows taken.
    pub fn progress(&self) -> f64 {
        match &self.mode {
            Mode::Windows {
                start, taken, window, ..
            } => match window {
                Some(planned) => planned.progress(*taken),
                None => start.iter().map(|cursor| cursor.draws).sum::<u64>() as f64,
            },
            Mode::Stream { walk, .. } => walk.draws() as f64,
        }
    }

    /// Adds the next row to `out`, or an empty row if there are no more documents.
    pub fn next_row(&mut self, mixture: &Mixture, out: &mut Rows) -> Result<()> {
        let mut room = self.bucket.seq_len as u32;
        while room > 0 && self.is_ready(mixture)? {
            match &mut self.mode {
                Mode::Windows { taken, window, .. } => {
                    if let Some(planned) = window {
                        out.pieces.extend(planned.row(*taken));
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
                // The end of a window is the start of the next one. Use the latter, so that every position has one
                // representation.
                let (cursors, taken) = match window {
                    Some(planned) if *taken == planned.count() => (planned.end(), 0),
                    _ => (start.as_slice(), *taken as u64),
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

    /// Moves to a place, at the cost of planning one window. Fails if there is no such place; do not use
    /// the planner after that.
    pub fn go_to(&mut self, mixture: &Mixture, place: &Place) -> Result<()> {
        let cursors = cursors_of(mixture, place)?;
        match &mut self.mode {
            Mode::Windows {
                lookahead,
                start,
                taken,
                window,
            } => {
                let planned = Window::plan(mixture, &self.bucket, &self.sources, *lookahead, self.seed, &cursors)?;
                let rows = planned.count();
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

/// Largest count. Counts are compared as f64, which is exact up to this number.
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
