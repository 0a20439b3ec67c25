//! A window: the next documents of a bucket, packed together by best fit.

use cwm_interrupt::Pace;

use crate::bins::Bins;
use crate::error::Result;
use crate::mix::{Cursor, Mixture, Walk};
use crate::permute::{Permutation, mix64};
use crate::rows::{Bucket, Piece, Rows, cut, whole};

/// A window ends after this many times `lookahead` draws, however few of the documents belong to the bucket, ...
const SCAN: u64 = 8;
/// ... but not before this many draws.
const MIN_SCAN: u64 = 4096;
/// Units of work to draw and pack a document.
pub(crate) const DRAW: u64 = 16;

/// Rows packed together, and the order in which they are taken.
pub struct Window {
    rows: Rows,
    order: Permutation,
    /// Documents drawn before and after planning.
    draws: (u64, u64),
    end: Vec<Cursor>,
}

impl Window {
    /// Packs the next `lookahead` documents of a bucket, and as many more as fit into the remaining space. `sources`
    /// are those that have documents of the bucket. When they are exhausted, nothing is drawn.
    pub fn plan(
        mixture: &Mixture,
        bucket: &Bucket,
        sources: &[usize],
        lookahead: u64,
        seed: u64,
        start: &[Cursor],
    ) -> Result<Window> {
        mixture.check_present()?;
        let mut walk = Walk::at(start.to_vec());
        let first = walk.draws();
        let mut bins = Bins::new(bucket.seq_len)?;
        let limit = match mixture.are_exhausted(sources, start) {
            true => first,
            false => first + lookahead.saturating_mul(SCAN).max(MIN_SCAN),
        };
        let mut pieces = draw_pieces(mixture, bucket, lookahead, limit, &mut walk)?;
        let lengths: Vec<u32> = pieces.iter().map(|piece| piece.len).collect();
        let mut bin_of = bins.pack(&lengths);
        fill_up(mixture, bucket, limit, &mut walk, &mut bins, &mut pieces, &mut bin_of)?;
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

    /// Returns the number of rows in the window.
    pub fn count(&self) -> usize {
        self.rows.ends.len()
    }

    /// Returns the row that comes after `taken` others.
    pub fn row(&self, taken: usize) -> &[Piece] {
        self.rows.row(self.order.get(taken as u64) as usize)
    }

    /// Returns the number of documents drawn before the row that comes after `taken` others, those of the window in
    /// proportion to its rows.
    pub fn progress(&self, taken: usize) -> f64 {
        let part = taken as f64 / self.count().max(1) as f64;
        self.draws.0 as f64 + part * (self.draws.1 - self.draws.0) as f64
    }

    /// Returns whether there were no documents left to draw.
    pub fn is_last(&self) -> bool {
        self.draws.0 == self.draws.1
    }

    /// Returns the start of the next window.
    pub fn end(&self) -> &[Cursor] {
        &self.end
    }
}

/// Draws the next `lookahead` documents of the bucket, cut into pieces that fit a row. Stops at `limit` draws.
fn draw_pieces(mixture: &Mixture, bucket: &Bucket, lookahead: u64, limit: u64, walk: &mut Walk) -> Result<Vec<Piece>> {
    let (mut pieces, mut documents, mut pace) = (Vec::new(), 0, Pace::default());
    while documents < lookahead && walk.draws() < limit {
        let Some(drawn) = mixture.draw(walk) else { break };
        pace.did(DRAW)?;
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
    Ok(pieces)
}

/// Draws further documents as long as they fit into the remaining space, so that a window leaves little of it.
fn fill_up(
    mixture: &Mixture,
    bucket: &Bucket,
    limit: u64,
    walk: &mut Walk,
    bins: &mut Bins,
    pieces: &mut Vec<Piece>,
    bin_of: &mut Vec<u32>,
) -> Result<()> {
    let mut pace = Pace::default();
    while walk.draws() < limit
        && let Some(drawn) = mixture.draw(walk)
    {
        pace.did(DRAW)?;
        if !bucket.lengths.contains(&drawn.len) {
            continue;
        }
        let fitting = usize::try_from(drawn.len).ok().filter(|&len| len <= bucket.seq_len);
        let Some(bin) = fitting.and_then(|_| bins.place(drawn.len)) else {
            walk.undo(drawn);
            return Ok(());
        };
        pieces.push(whole(drawn));
        bin_of.push(bin);
    }
    Ok(())
}

/// Sorts the pieces by bin. Pieces of one bin keep their order.
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
