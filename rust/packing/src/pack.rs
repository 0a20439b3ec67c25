use crate::mix::Piece;

/// Takes the pieces of the next row out of `buffer`, which is kept at up to `lookahead` pieces, oldest first.
///
/// The oldest piece opens the row, so none waits for longer than `lookahead` rows; then, as long as one fits, the
/// longest that does. Empty when there is nothing left.
pub fn next_row(
    buffer: &mut Vec<Piece>,
    lookahead: usize,
    seq_len: usize,
    mut draw: impl FnMut() -> Option<Piece>,
) -> Vec<Piece> {
    let mut row = Vec::new();
    let mut room = seq_len;
    loop {
        while buffer.len() < lookahead
            && let Some(piece) = draw()
        {
            buffer.push(piece);
        }
        let fitting = if row.is_empty() {
            (!buffer.is_empty()).then_some(0)
        } else {
            longest_within(buffer, room)
        };
        let Some(at) = fitting else { return row };
        let piece = buffer.remove(at);
        room -= piece.len;
        row.push(piece);
    }
}

/// The longest piece of at most `room` tokens; of several, the oldest.
fn longest_within(buffer: &[Piece], room: usize) -> Option<usize> {
    let fitting = buffer.iter().enumerate().filter(|(_, piece)| piece.len <= room);
    fitting
        .max_by_key(|&(at, piece)| (piece.len, std::cmp::Reverse(at)))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_piece_is_placed_once(
            lens in prop::collection::vec(1usize..=64, 0..200), seq_len in 64usize..100, lookahead in 1usize..40,
        ) {
            let piece = |(at, &len): (usize, &usize)|
                Piece { source: 0, draw: at as u64, index: 0, document: at as u64, start: 0, len };
            let mut pieces = lens.iter().enumerate().map(piece);
            let mut buffer = Vec::new();
            let mut placed = Vec::new();
            let mut rows = 0;
            loop {
                let row = next_row(&mut buffer, lookahead, seq_len, || pieces.next());
                if row.is_empty() {
                    break;
                }
                prop_assert!(row.iter().map(|piece| piece.len).sum::<usize>() <= seq_len);
                prop_assert!(buffer.len() <= lookahead);
                // A piece drawn `lookahead` rows ago has been at the head of the buffer since.
                for piece in &row {
                    let drawn_before = placed.iter().filter(|&&draw| draw < piece.draw).count() as u64;
                    prop_assert!(piece.draw - drawn_before < lookahead as u64 + row.len() as u64);
                }
                placed.extend(row.iter().map(|piece| piece.draw));
                rows += 1;
            }
            placed.sort_unstable();
            prop_assert!(placed.into_iter().eq(0..lens.len() as u64));
            prop_assert!(rows <= lens.len());
        }
    }
}
