use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use cwm_interrupt::check;

use super::block::{Block, has_right_checksums};
use super::file::StoreFile;
use super::format::{DataHead, Footer, HEAD, HEADER, Head, IndexHead, crc, key_hash};
use super::index::{Pair, SEGMENT, Segment};
use super::{Error, Result};
use crate::trace::Trace;

/// Reader of a store, as of the time it was opened. Traces that a writer appends later are not visible and do no harm.
pub struct Reader {
    pub(super) file: Arc<StoreFile>,
    /// End of the last complete block.
    pub(super) end: u64,
    pub(super) traces: u64,
    pub(super) segments: Vec<Segment>,
    /// (first trace, offset) of the blocks that the segments do not cover.
    pub(super) tail: Vec<Pair>,
    /// Whether the last block is a footer.
    pub(super) is_closed: bool,
    /// (hash, trace) of the keys in the tail, sorted; read on the first lookup of a key.
    tail_keys: OnceLock<Vec<Pair>>,
    torn: u64,
    damaged: Vec<Range<u64>>,
    /// Most recently read block.
    recent: Mutex<Option<Arc<Block>>>,
}

impl Reader {
    /// Opens a store. If the store was closed, reads only the footer and the index, regardless of the size. Otherwise,
    /// reads the head of every block.
    pub fn open(path: &Path) -> Result<Reader> {
        let io_error = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        Reader::of_file(File::open(path).map_err(io_error)?, path.to_owned())
    }

    pub(super) fn of_file(file: File, path: PathBuf) -> Result<Reader> {
        let mut file = StoreFile { file, path, id: 0 };
        let size = file.size()?;
        let id = file.read_id(size)?;
        file.id = id.unwrap_or_default();
        let mut reader = Reader {
            file: Arc::new(file),
            end: HEADER as u64,
            traces: 0,
            segments: Vec::new(),
            tail: Vec::new(),
            is_closed: false,
            tail_keys: OnceLock::new(),
            torn: 0,
            damaged: Vec::new(),
            recent: Mutex::default(),
        };
        if id.is_none() {
            // The writer was killed before it completed the header.
            (reader.end, reader.torn) = (0, size);
        } else if !reader.open_closed(size)? {
            reader.scan(size)?;
        }
        Ok(reader)
    }

    /// Opens the store by its footer. Returns false if the file does not end with a footer and a valid index.
    fn open_closed(&mut self, size: u64) -> Result<bool> {
        let Some(at) = size.checked_sub(HEAD as u64).filter(|&at| at >= HEADER as u64) else {
            return Ok(false);
        };
        let Some((Head::Footer(footer), _)) = self.file.head(at, size)? else {
            return Ok(false);
        };
        self.take_footer(footer, at)
    }

    /// Loads the index of the footer at `at`. Returns false, and changes nothing, if that index is invalid.
    fn take_footer(&mut self, footer: Footer, at: u64) -> Result<bool> {
        let Some((Head::Index(head), index_end)) = self.file.head(footer.index_at, at)? else {
            return Ok(false);
        };
        let Some(segments) = self
            .segments_of(&head, index_end)?
            .filter(|_| head.traces == footer.traces)
        else {
            return Ok(false);
        };
        (self.segments, self.traces, self.end, self.is_closed) = (segments, footer.traces, at + HEAD as u64, true);
        self.tail.clear();
        self.damaged.clear(); // the index covers the traces in the damaged parts
        Ok(true)
    }

    /// Reads the segments of the index block that ends at `end`. Returns `None` if they are invalid.
    fn segments_of(&self, head: &IndexHead, end: u64) -> Result<Option<Vec<Segment>>> {
        let bytes = head.segments.checked_mul(SEGMENT).filter(|&bytes| bytes <= head.bytes);
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let list = self.file.read(end - bytes, bytes)?;
        let segments: Vec<Segment> = list.chunks_exact(SEGMENT as usize).map(Segment::decode).collect();
        let mut traces = 0;
        for segment in &segments {
            if !segment.is_possible(traces, end) {
                return Ok(None);
            }
            traces = segment.end();
        }
        let is_right = crc(self.file.id, &list) == head.crc && traces == head.traces;
        Ok(is_right.then_some(segments))
    }

    /// Walks all blocks. Skips damaged parts that are followed by more blocks.
    fn scan(&mut self, size: u64) -> Result<()> {
        let mut last_data = None;
        while self.end < size {
            check()?;
            let at = self.end;
            let Some((head, block_end)) = self.file.head(at, size)? else {
                match self.file.next_block(at + 1, size)? {
                    Some(next) => {
                        self.damaged.push(at..next);
                        self.end = next;
                        continue;
                    }
                    None => break,
                }
            };
            self.is_closed = false;
            match head {
                Head::Data(data) => {
                    self.take_block(at, &data)?;
                    last_data = Some((at, data));
                }
                Head::Index(_) => {}
                Head::Footer(footer) => {
                    self.take_footer(footer, at)?;
                    last_data = None;
                }
            }
            self.end = block_end;
        }
        // After a power failure, the last block may have its full length but incomplete content.
        if let Some((at, data)) = last_data
            && self.tail.last() == Some(&(data.first, at))
            && !has_right_checksums(&self.file, at, &data)?
        {
            self.tail.pop();
            (self.end, self.traces) = (at, data.first);
        }
        self.torn = size - self.end;
        Ok(())
    }

    fn take_block(&mut self, at: u64, data: &DataHead) -> Result<()> {
        // Traces may be missing after a damaged block.
        let follows = data.first == self.traces || (data.first > self.traces && !self.damaged.is_empty());
        if !follows {
            let (first, expected) = (data.first, self.traces);
            return self.file.damaged(
                at,
                format!("expected a block that begins with trace {expected}, got trace {first}"),
            );
        }
        self.tail.push((data.first, at));
        self.traces = data.first + data.traces;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Returns the number of traces.
    pub fn len(&self) -> u64 {
        self.traces
    }

    pub fn is_empty(&self) -> bool {
        self.traces == 0
    }

    /// Returns the number of bytes after the last complete block, left by an interrupted write.
    pub fn torn_bytes(&self) -> u64 {
        self.torn
    }

    /// Returns an error if opening the store skipped a damaged part.
    pub(super) fn first_damage(&self) -> Result<()> {
        match self.damaged.first() {
            Some(range) => self.file.damaged(
                range.start,
                format!(
                    "expected a block, got other bytes; the next complete block begins at byte {}",
                    range.end
                ),
            ),
            None => Ok(()),
        }
    }

    pub fn trace(&self, index: u64) -> Result<Trace> {
        let block = self.block(index)?;
        block.trace((index - block.first()) as usize)
    }

    /// Returns the block that contains a trace. The index must be less than [`Reader::len`].
    pub fn block(&self, index: u64) -> Result<Arc<Block>> {
        let holds = |block: &Arc<Block>| index >= block.first() && index - block.first() < block.len() as u64;
        // Do not wait for the lock: if a thread held it when the process forked, it is never released in the child.
        if let Ok(recent) = self.recent.try_lock()
            && let Some(block) = recent.as_ref().filter(|block| holds(block))
        {
            return Ok(block.clone());
        }
        let block = Arc::new(self.read_block(index)?);
        if !holds(&block) {
            let (first, last) = (block.first(), block.first() + block.len() as u64 - 1);
            let at = self.place(index)?;
            let what = format!("expected the block of trace {index}, got the block of traces {first} to {last}");
            return self.file.damaged(at, what);
        }
        if let Ok(mut recent) = self.recent.try_lock() {
            *recent = Some(block.clone());
        }
        Ok(block)
    }

    fn read_block(&self, index: u64) -> Result<Block> {
        let at = self.place(index)?;
        match self.file.head(at, self.end)? {
            Some((Head::Data(head), _)) => Ok(Block::new(self.file.clone(), at, head)),
            _ => self
                .file
                .damaged(at, format!("expected the block of trace {index}, got other bytes")),
        }
    }

    /// Returns the offset of the block that contains a trace.
    fn place(&self, index: u64) -> Result<u64> {
        let segment = self.segments.partition_point(|segment| segment.first <= index);
        let found = match self.segments[..segment].last().filter(|segment| index < segment.end()) {
            Some(segment) => {
                let bounds = (segment.first, segment.end());
                match segment.blocks.rank(&self.file, index + 1, bounds)?.checked_sub(1) {
                    Some(place) => segment.blocks.iter(&self.file, place).next().transpose()?,
                    None => None,
                }
            }
            None => {
                let after = self.tail.partition_point(|&(first, _)| first <= index);
                self.tail[..after].last().copied()
            }
        };
        match found {
            Some((_, at)) => Ok(at),
            None => self
                .file
                .damaged(HEADER as u64, format!("no block contains trace {index}")),
        }
    }

    /// Returns the index of the trace with this key.
    pub fn find(&self, key: &str) -> Result<Option<u64>> {
        if let Some(index) = self.find_indexed(key)? {
            return Ok(Some(index));
        }
        let hash = key_hash(key);
        let tail_keys = self.tail_keys()?;
        let from = tail_keys.partition_point(|&(found, _)| found < hash);
        for &(_, index) in tail_keys[from..].iter().take_while(|&&(found, _)| found == hash) {
            if self.has_key(index, key)? {
                return Ok(Some(index));
            }
        }
        // The key may have been in a damaged part.
        self.first_damage().map(|()| None)
    }

    /// Returns the index of the trace with this key, if a segment covers that trace.
    pub(super) fn find_indexed(&self, key: &str) -> Result<Option<u64>> {
        let hash = key_hash(key);
        for segment in &self.segments {
            let rank = segment.keys.rank(&self.file, hash, (0, u64::MAX))?;
            for pair in segment.keys.iter(&self.file, rank) {
                let (found, index) = pair?;
                if found != hash {
                    break;
                }
                if self.has_key(index, key)? {
                    return Ok(Some(index));
                }
            }
        }
        Ok(None)
    }

    pub(super) fn has_key(&self, index: u64, key: &str) -> Result<bool> {
        if index >= self.traces {
            let what = format!(
                "the index has a key of trace {index}, but there are {} traces",
                self.traces
            );
            return self.file.damaged(HEADER as u64, what);
        }
        let block = self.block(index)?;
        Ok(block.key((index - block.first()) as usize)? == Some(key))
    }

    pub(super) fn tail_keys(&self) -> Result<&[Pair]> {
        if let Some(keys) = self.tail_keys.get() {
            return Ok(keys);
        }
        let mut keys = Vec::new();
        for &(first, _) in &self.tail {
            check()?;
            let block = self.read_block(first)?;
            for place in 0..block.len() {
                keys.extend(block.key(place)?.map(|key| (key_hash(key), first + place as u64)));
            }
        }
        keys.sort_unstable();
        // Read without holding the lock: if the process forked meanwhile, the lock would stay held in the child.
        Ok(self.tail_keys.get_or_init(|| keys))
    }

    /// Reads the whole file and checks all blocks and indexes. A torn tail is not an error.
    pub fn verify(&self) -> Result<()> {
        self.first_damage()?;
        let (mut at, mut traces, mut keys) = (if self.end == 0 { 0 } else { HEADER as u64 }, 0, 0);
        while at < self.end {
            check()?;
            let Some((head, block_end)) = self.file.head(at, self.end)? else {
                return self.file.damaged(at, "expected a block, got other bytes");
            };
            if let Head::Index(head) = head
                && self.segments_of(&head, block_end)?.is_none()
            {
                return self.file.damaged(at, "the index does not match the blocks before it");
            }
            if let Head::Data(data) = head {
                if data.first != traces || self.place(data.first)? != at {
                    return self.file.damaged(
                        at,
                        format!("expected the block of trace {traces}, got one that the index does not place here"),
                    );
                }
                let block = Block::new(self.file.clone(), at, data);
                keys += self.verify_block(&block)?;
                traces += data.traces;
            }
            at = block_end;
        }
        let indexed: u64 = self.segments.iter().map(|segment| segment.keys.pairs).sum();
        if traces != self.traces || keys != indexed + self.tail_keys()?.len() as u64 {
            let what = format!("the blocks have {traces} traces and {keys} keys, but the index has other numbers");
            return self.file.damaged(self.end, what);
        }
        Ok(())
    }

    /// Checks the traces of a block, and returns its number of keys.
    fn verify_block(&self, block: &Block) -> Result<u64> {
        let mut keys = 0;
        for place in 0..block.len() {
            check()?;
            block.metadata(place)?;
            block.trace(place)?;
            if let Some(key) = block.key(place)? {
                keys += 1;
                let index = block.first() + place as u64;
                if self.find(key)? != Some(index) {
                    let what = format!("the index does not lead from key {key:?} to trace {index}");
                    return self.file.damaged(block.at(), what);
                }
            }
        }
        Ok(keys)
    }
}
