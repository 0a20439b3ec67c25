//! Pieces of documents, and rows of pieces.

use std::ops::RangeInclusive;

use crate::mix::Drawn;

/// A range of document lengths, and the shape of the batches for these documents.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    pub lengths: RangeInclusive<u32>,
    /// Tokens in a row.
    pub seq_len: usize,
    /// Rows in a step, over all ranks.
    pub batch_size: usize,
}

/// Consecutive tokens of one document in one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    pub source: u32,
    /// Index of the document in the shards of its source.
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
    /// End of each row, as an index into `pieces`.
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

/// Returns a document as one piece.
pub fn whole(drawn: Drawn) -> Piece {
    Piece {
        source: drawn.source,
        document: drawn.document,
        start: 0,
        len: drawn.len,
        is_last: true,
    }
}

/// Splits off the first `room` tokens of a piece. Returns them and the rest, if any.
pub fn cut(piece: Piece, room: u32) -> (Piece, Option<Piece>) {
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
