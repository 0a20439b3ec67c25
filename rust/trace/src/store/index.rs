use std::io::Write;

use super::Result;
use super::file::StoreFile;
use super::format::{crc, u32_at, u64_at};

const PAIR: u64 = 16;
const PAGE_PAIRS: u64 = 256;
pub(super) const SEGMENT: u64 = 48;

pub(super) type Pair = (u64, u64);

/// Sorted list of pairs in the file, searched page by page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    pub at: u64,
    pub pairs: u64,
}

impl Run {
    /// Returns the size in bytes, including checksums; `None` on overflow.
    pub fn bytes(self) -> Option<u64> {
        let checksums = self.pairs.div_ceil(PAGE_PAIRS) * 4;
        self.pairs.checked_mul(PAIR)?.checked_add(checksums)
    }

    fn page(self, file: &StoreFile, page: u64) -> Result<Vec<Pair>> {
        let at = self.at + page * (PAGE_PAIRS * PAIR + 4);
        let length = PAIR * PAGE_PAIRS.min(self.pairs - page * PAGE_PAIRS);
        let bytes = file.read(at, length + 4)?;
        let (pairs, sum) = bytes.split_at(length as usize);
        if crc(file.id, pairs) != u32_at(sum, 0) {
            return file.damaged(at, "checksum mismatch in a page of the index");
        }
        let pairs = pairs.chunks_exact(PAIR as usize);
        Ok(pairs.map(|pair| (u64_at(pair, 0), u64_at(pair, 8))).collect())
    }

    /// Returns the number of pairs whose first item is less than `key`. `least` and `most` are the estimated bounds of
    /// the first items.
    pub fn rank(self, file: &StoreFile, key: u64, (mut least, mut most): (u64, u64)) -> Result<u64> {
        let (mut low, mut high) = (0, self.pairs.div_ceil(PAGE_PAIRS));
        for probe in 0.. {
            if low >= high {
                break;
            }
            // Hashes are uniformly distributed, and blocks nearly so: interpolation usually finds the page within a few
            // probes. If not, bisection does.
            let share = match probe {
                0..4 => key.saturating_sub(least) as f64 / (most.saturating_sub(least) as f64 + 1.0),
                _ => 0.5,
            };
            let middle = (low + (share * (high - low) as f64) as u64).min(high - 1);
            let page = self.page(file, middle)?;
            let below = page.partition_point(|pair| pair.0 < key);
            if below == 0 {
                (high, most) = (middle, page[0].0);
            } else if below == page.len() {
                (low, least) = (middle + 1, page[below - 1].0);
            } else {
                return Ok(middle * PAGE_PAIRS + below as u64);
            }
        }
        Ok((low * PAGE_PAIRS).min(self.pairs))
    }

    /// Iterates over the pairs, starting at index `from`.
    pub fn iter(self, file: &StoreFile, from: u64) -> Pairs<'_> {
        Pairs {
            run: self,
            file,
            next: from,
            page: Vec::new(),
        }
    }
}

pub(super) struct Pairs<'a> {
    run: Run,
    file: &'a StoreFile,
    next: u64,
    page: Vec<Pair>,
}

impl Iterator for Pairs<'_> {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Result<Pair>> {
        if self.next >= self.run.pairs {
            return None;
        }
        if self.page.is_empty() || self.next.is_multiple_of(PAGE_PAIRS) {
            match self.run.page(self.file, self.next / PAGE_PAIRS) {
                Ok(page) => self.page = page,
                Err(error) => {
                    self.next = self.run.pairs;
                    return Some(Err(error));
                }
            }
        }
        let pair = self.page[(self.next % PAGE_PAIRS) as usize];
        self.next += 1;
        Some(Ok(pair))
    }
}

/// Index of the traces of consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Segment {
    pub first: u64,
    pub traces: u64,
    /// (first trace, offset) of each block.
    pub blocks: Run,
    /// (hash, trace) of each key.
    pub keys: Run,
}

impl Segment {
    pub fn encode(&self) -> [u8; SEGMENT as usize] {
        let words = [
            self.first,
            self.traces,
            self.blocks.at,
            self.blocks.pairs,
            self.keys.at,
            self.keys.pairs,
        ];
        let mut out = [0; SEGMENT as usize];
        for (field, word) in out.chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Segment {
        let word = |n: usize| u64_at(bytes, 8 * n);
        let run = |n| Run {
            at: word(n),
            pairs: word(n + 1),
        };
        Segment {
            first: word(0),
            traces: word(1),
            blocks: run(2),
            keys: run(4),
        }
    }

    /// Returns whether the segment begins with trace `first`, has plausible counts, and has both runs before `end`.
    pub fn is_possible(&self, first: u64, end: u64) -> bool {
        let lies_before = |run: Run| {
            let run_end = run.bytes().and_then(|bytes| run.at.checked_add(bytes));
            run_end.is_some_and(|run_end| run_end <= end)
        };
        self.first == first
            && self.first.checked_add(self.traces).is_some()
            && (1..=self.traces).contains(&self.blocks.pairs)
            && self.keys.pairs <= self.traces
            && lies_before(self.blocks)
            && lies_before(self.keys)
    }

    pub fn end(&self) -> u64 {
        self.first + self.traces
    }
}

/// Writes pairs as a run. The caller stores the number of pairs.
pub(super) fn write_run(
    out: &mut impl Write,
    file: &StoreFile,
    pairs: impl Iterator<Item = Result<Pair>>,
) -> Result<()> {
    let mut page = Vec::with_capacity((PAGE_PAIRS * PAIR + 4) as usize);
    let mut pairs = pairs.peekable();
    while let Some(pair) = pairs.next() {
        let (key, value) = pair?;
        page.extend_from_slice(&key.to_le_bytes());
        page.extend_from_slice(&value.to_le_bytes());
        if page.len() as u64 == PAGE_PAIRS * PAIR || pairs.peek().is_none() {
            page.extend_from_slice(&crc(file.id, &page).to_le_bytes());
            out.write_all(&page).map_err(|error| file.io_error(error))?;
            page.clear();
        }
    }
    Ok(())
}

/// Merges sorted lists. Compares all heads in each step, because there are few lists.
pub(super) struct Merge<I: Iterator>(pub Vec<std::iter::Peekable<I>>);

impl<I: Iterator<Item = Result<Pair>>> Iterator for Merge<I> {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Result<Pair>> {
        let heads = self.0.iter_mut().enumerate();
        let heads = heads.filter_map(|(list, pairs)| Some((list, pairs.peek()?)));
        // An error sorts first, so that it ends the merge.
        let least = heads.min_by_key(|(_, head)| head.as_ref().ok().copied())?.0;
        self.0[least].next()
    }
}
