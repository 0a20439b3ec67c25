use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustc_hash::FxHashMap;

use super::block::{Pending, compressor};
use super::file::StoreFile;
use super::format::{
    BLOCK_BYTES, Footer, HEAD, HEADER, Head, IndexHead, MAX_KEY, MAX_METADATA, crc, header, key_hash, random_id,
    read_header,
};
use super::index::{Merge, Pair, Run, Segment, write_run};
use super::reader::Reader;
use super::{Error, Result};
use crate::stored;
use crate::trace::Trace;

/// Number of keys in memory after which a writer writes an index and drops them, which bounds its memory.
const INDEX_EVERY: usize = 1 << 22;

/// Appends traces to a store. Locks the file, and never changes existing traces.
///
/// A trace survives a crash of the process once its block is written, and a crash of the machine after
/// [`Writer::flush`]. Dropping the writer closes it.
pub struct Writer {
    /// Content of the file.
    store: Reader,
    pending: Pending,
    /// Hash → trace of the keys that no segment covers. `more_keys` has further traces with the same hashes.
    keys: FxHashMap<u64, u64>,
    more_keys: Vec<Pair>,
    zstd: zstd::bulk::Compressor<'static>,
    cut: u64,
    /// Whether bytes of a failed write may follow the end.
    is_dirty: bool,
    is_done: bool,
    process: u32,
    pub(super) index_every: usize,
}

impl Writer {
    /// Creates a store, or opens an existing one if `append` is set.
    ///
    /// Without `append`, returns an error if the file exists. With `append`, truncates the torn tail, if any, and
    /// appends after the existing traces.
    pub fn open(path: &Path, append: bool) -> Result<Writer> {
        let io_error = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match append {
            true => options.create(true),
            false => options.create_new(true),
        };
        // Check before opening the file, because opening a FIFO may block.
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let path = path.display();
            return Err(Error::Invalid(format!(
                "{path}: expected a regular file, because a store cannot be a device, FIFO, or folder"
            )));
        }
        let file = options.open(path).map_err(io_error)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => io_error(error),
            TryLockError::WouldBlock => io_error(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another writer has this file open",
            )),
        })?;
        let unbegun = begin(&file, path)?;
        let store = Reader::of_file(file, path.to_owned())?;
        store.first_damage()?;
        let known_keys = store.tail_keys()?.to_vec();
        let mut writer = Writer {
            pending: Pending::default(),
            keys: FxHashMap::default(),
            more_keys: Vec::new(),
            zstd: compressor().map_err(io_error)?,
            cut: unbegun + store.torn_bytes(),
            is_dirty: store.torn_bytes() > 0,
            is_done: true, // until the tail is truncated, so that dropping the writer on an error writes nothing
            process: std::process::id(),
            index_every: INDEX_EVERY,
            store,
        };
        for (hash, trace) in known_keys {
            writer.keep_key(hash, trace);
        }
        writer.cut_rest()?;
        writer.is_done = false;
        Ok(writer)
    }

    /// Returns the size in bytes of the torn tail that opening the store truncated.
    pub fn cut_bytes(&self) -> u64 {
        self.cut
    }

    /// Returns the number of traces, including those that were in the file.
    pub fn len(&self) -> u64 {
        self.store.traces + self.pending.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a trace and returns its index. The metadata is the text of a JSON object.
    ///
    /// Returns an error if the key exists. An error leaves the store unchanged.
    pub fn add(&mut self, trace: &Trace, key: Option<&str>, metadata: &str) -> Result<u64> {
        self.check()?;
        for (what, length, most) in [
            ("the key", key.map_or(0, str::len), MAX_KEY),
            ("the metadata", metadata.len(), MAX_METADATA),
        ] {
            if length > most {
                return Err(Error::Invalid(format!(
                    "{what} has {length} bytes; the limit is {most}"
                )));
            }
        }
        if let Some(key) = key
            && let Some(index) = self.find(key)?
        {
            return Err(Error::Invalid(format!("trace {index} already has the key {key:?}")));
        }
        let payload = stored::write_payload(trace).map_err(|error| Error::Invalid(error.to_string()))?;
        if self.pending.len() > 0 && self.pending.bytes_with(&payload, key, metadata) > BLOCK_BYTES {
            self.write_block()?;
        }
        let index = self.len();
        self.pending.push(&payload, key, metadata);
        if let Some(key) = key {
            self.keep_key(key_hash(key), index);
        }
        Ok(index)
    }

    /// Writes all added traces to the disk and syncs it.
    pub fn flush(&mut self) -> Result<()> {
        self.check()?;
        self.write_block()?;
        let synced = self.store.file.file.sync_data();
        synced.map_err(|error| self.store.file.io_error(error))
    }

    /// Flushes, writes the index, and unlocks the file. A closed writer accepts no more traces. Closing it again does
    /// nothing.
    pub fn close(&mut self) -> Result<()> {
        if self.is_done {
            return Ok(());
        }
        self.check()?;
        self.write_block()?;
        if !self.store.is_closed {
            self.write_index()?;
        }
        let file = &self.store.file.file;
        // Forked processes share the lock: without an explicit unlock, it would last until the last of them exits.
        let freed = file.sync_all().and_then(|()| file.unlock());
        freed.map_err(|error| self.store.file.io_error(error))?;
        self.is_done = true;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let path = self.store.file.path.display();
        if self.is_done {
            return Err(Error::Invalid(format!("{path}: the writer is closed")));
        }
        if self.process != std::process::id() {
            let process = self.process;
            return Err(Error::Invalid(format!(
                "{path}: the writer belongs to process {process}"
            )));
        }
        Ok(())
    }

    fn find(&self, key: &str) -> Result<Option<u64>> {
        let hash = key_hash(key);
        let more = self.more_keys.iter().filter(|pair| pair.0 == hash).map(|pair| pair.1);
        for index in self.keys.get(&hash).copied().into_iter().chain(more) {
            let is_it = match index.checked_sub(self.store.traces) {
                Some(place) => self.pending.keys[place as usize].as_deref() == Some(key),
                None => self.store.has_key(index, key)?,
            };
            if is_it {
                return Ok(Some(index));
            }
        }
        self.store.find_indexed(key)
    }

    fn keep_key(&mut self, hash: u64, index: u64) {
        if *self.keys.entry(hash).or_insert(index) != index {
            self.more_keys.push((hash, index));
        }
    }

    fn write_block(&mut self) -> Result<()> {
        if self.pending.len() > 0 {
            let (first, id) = (self.store.traces, self.store.file.id);
            let packed = self.pending.pack(id, first, &mut self.zstd);
            let packed = packed.map_err(|error| self.store.file.io_error(error))?;
            let at = self.store.end;
            self.append(&packed)?;
            self.store.tail.push((first, at));
            self.store.traces += self.pending.len() as u64;
            self.store.is_closed = false;
            self.pending.clear();
        }
        if self.keys.len() >= self.index_every {
            self.write_index()?;
        }
        Ok(())
    }

    /// Writes an index block that covers all traces in the file, and a footer.
    fn write_index(&mut self) -> Result<()> {
        let (at, traces) = (self.store.end, self.store.traces);
        let mut new = traces - self.store.segments.last().map_or(0, Segment::end);
        let mut kept = self.store.segments.len();
        while new > 0 && kept > 0 && self.store.segments[kept - 1].traces < 2 * new {
            kept -= 1;
            new += self.store.segments[kept].traces;
        }
        let mut keys: Vec<Pair> = self.keys.iter().map(|(&hash, &trace)| (hash, trace)).collect();
        keys.extend_from_slice(&self.more_keys);
        keys.sort_unstable();
        let (mut segments, merged) = (self.store.segments[..kept].to_vec(), &self.store.segments[kept..]);
        let mut runs_end = at + HEAD as u64;
        if new > 0 {
            let pairs = |run: fn(&Segment) -> Run| merged.iter().map(|segment| run(segment).pairs).sum::<u64>();
            let blocks = Run {
                at: runs_end,
                pairs: pairs(|segment| segment.blocks) + self.store.tail.len() as u64,
            };
            let keys = Run {
                at: runs_end + self.run_bytes(blocks)?,
                pairs: pairs(|segment| segment.keys) + keys.len() as u64,
            };
            runs_end = keys.at + self.run_bytes(keys)?;
            segments.push(Segment {
                first: traces - new,
                traces: new,
                blocks,
                keys,
            });
        }
        let list: Vec<u8> = segments.iter().flat_map(Segment::encode).collect();
        let head = IndexHead {
            traces,
            bytes: runs_end - at - HEAD as u64 + list.len() as u64,
            segments: segments.len() as u64,
            crc: crc(self.store.file.id, &list),
        };
        self.is_dirty = true;
        match write_index(&self.store, head, merged, &keys, &list) {
            Ok(end) => self.store.end = end,
            Err(error) => {
                let _ = self.cut_rest();
                return Err(error);
            }
        }
        self.is_dirty = false;
        self.store.is_closed = true;
        self.store.segments = segments;
        self.store.tail.clear();
        self.keys.clear();
        self.more_keys.clear();
        Ok(())
    }

    fn run_bytes(&self, run: Run) -> Result<u64> {
        match run.bytes() {
            Some(bytes) => Ok(bytes),
            None => self.store.file.damaged(run.at, "the size of the index is invalid"),
        }
    }

    /// Appends all bytes, or none on an error.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.cut_rest()?;
        self.is_dirty = true;
        if let Err(error) = self.store.file.file.write_all_at(bytes, self.store.end) {
            let _ = self.cut_rest();
            return Err(self.store.file.io_error(error));
        }
        self.is_dirty = false;
        self.store.end += bytes.len() as u64;
        Ok(())
    }

    /// Truncates the bytes after the last complete block, left by a failed write or a killed writer.
    fn cut_rest(&mut self) -> Result<()> {
        if self.is_dirty {
            let cut = self.store.file.file.set_len(self.store.end);
            cut.map_err(|error| self.store.file.io_error(error))?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The file belongs to the parent of a forked process.
        if self.process == std::process::id() {
            let _ = self.close();
        }
    }
}

/// Writes the header of a file without a complete one, and syncs its directory entry. Returns the number of bytes of an
/// incomplete header that were truncated.
fn begin(file: &File, path: &Path) -> Result<u64> {
    let io_error = |error| Error::Io {
        path: path.to_owned(),
        error,
    };
    let size = file.metadata().map_err(io_error)?.len();
    let mut start = vec![0; size.min(HEADER as u64) as usize];
    file.read_exact_at(&mut start, 0).map_err(io_error)?;
    match read_header(&start) {
        Ok(Some(_)) => return Ok(0),
        Ok(None) => {}
        Err(what) => return Err(Error::Invalid(format!("{}: {what}", path.display()))),
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let begun = file
        .set_len(0)
        .and_then(|()| file.write_all_at(&header(random_id()), 0))
        .and_then(|()| File::open(folder.unwrap_or(Path::new("."))))
        .and_then(|folder| folder.sync_all());
    begun.map_err(io_error).map(|()| size)
}

/// Writes an index block and a footer at the end of the file, and returns the new end.
fn write_index(store: &Reader, head: IndexHead, merged: &[Segment], keys: &[Pair], list: &[u8]) -> Result<u64> {
    let (file, at, traces) = (&store.file, store.end, head.traces);
    let io_error = |error| file.io_error(error);
    let mut out = BufWriter::with_capacity(1 << 20, Appending { file, at });
    let mut write = || {
        out.write_all(&Head::Index(head).encode(file.id)).map_err(io_error)?;
        let blocks = merged.iter().flat_map(|segment| segment.blocks.iter(file, 0));
        write_run(&mut out, file, blocks.chain(store.tail.iter().map(|&pair| Ok(pair))))?;
        let mut lists: Vec<Box<dyn Iterator<Item = Result<Pair>>>> = vec![Box::new(keys.iter().map(|&pair| Ok(pair)))];
        for segment in merged {
            lists.push(Box::new(segment.keys.iter(file, 0)));
        }
        write_run(
            &mut out,
            file,
            Merge(lists.into_iter().map(Iterator::peekable).collect()),
        )?;
        out.write_all(list).map_err(io_error)?;
        let footer = Head::Footer(Footer { index_at: at, traces });
        out.write_all(&footer.encode(file.id)).map_err(io_error)?;
        out.flush().map_err(io_error)
    };
    let written = write();
    // Discard the buffer: after an error, dropping a `BufWriter` would write its contents.
    let (appending, _) = out.into_parts();
    written.map(|()| appending.at)
}

/// Sequential writer to the file, starting at an offset.
struct Appending<'a> {
    file: &'a StoreFile,
    at: u64,
}

impl Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.file.write_at(bytes, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
