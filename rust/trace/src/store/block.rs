use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Result;
use super::file::StoreFile;
use super::format::{DataHead, HEAD, Head, LEVEL, Section, crc};
use crate::stored::{self, StoredError};
use crate::trace::Trace;

/// Traces that are compressed together. The directory and the traces are each read on first access.
pub struct Block {
    file: Arc<StoreFile>,
    at: u64,
    head: DataHead,
    directory: OnceLock<Directory>,
    payloads: OnceLock<Payloads>,
}

/// Keys and metadata of a block.
struct Directory {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// Ranges of a trace's key and metadata in the bytes of the directory. Both are valid UTF-8.
struct Entry {
    key: Option<Range<usize>>,
    metadata: Range<usize>,
}

struct Payloads {
    bytes: Vec<u8>,
    /// End of each trace.
    ends: Vec<usize>,
    start: usize,
}

impl Block {
    pub(super) fn new(file: Arc<StoreFile>, at: u64, head: DataHead) -> Block {
        Block {
            file,
            at,
            head,
            directory: OnceLock::new(),
            payloads: OnceLock::new(),
        }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Returns the index of the first trace.
    pub fn first(&self) -> u64 {
        self.head.first
    }

    /// Returns the number of traces.
    #[allow(clippy::len_without_is_empty)] // a block is never empty
    pub fn len(&self) -> usize {
        self.head.traces as usize
    }

    /// Returns the key of the trace at `place` in this block. Panics if `place` is out of range.
    pub fn key(&self, place: usize) -> Result<Option<&str>> {
        let directory = self.directory()?;
        let key = directory.entries[place].key.clone();
        Ok(key.and_then(|key| std::str::from_utf8(&directory.bytes[key]).ok()))
    }

    /// Returns the metadata of the trace at `place` in this block. Panics if `place` is out of range.
    pub fn metadata(&self, place: usize) -> Result<&str> {
        let directory = self.directory()?;
        let metadata = directory.entries[place].metadata.clone();
        Ok(std::str::from_utf8(&directory.bytes[metadata]).unwrap_or_default())
    }

    /// Returns the trace at `place` in this block. Panics if `place` is out of range.
    pub fn trace(&self, place: usize) -> Result<Trace> {
        let payloads = self.payloads()?;
        let start = place
            .checked_sub(1)
            .map_or(payloads.start, |before| payloads.ends[before]);
        stored::read_payload(&payloads.bytes[start..payloads.ends[place]]).or_else(|error| {
            let index = self.head.first + place as u64;
            self.file.damaged(self.at, format!("trace {index}: {error}"))
        })
    }

    fn directory(&self) -> Result<&Directory> {
        if let Some(directory) = self.directory.get() {
            return Ok(directory);
        }
        let at = self.at + HEAD as u64;
        let read = |bytes| read_directory(bytes, self.len());
        let directory = self.section(at, self.head.directory, "keys and metadata", read)?;
        // Read without holding the lock: if the process forked meanwhile, the lock would stay held in the child.
        Ok(self.directory.get_or_init(|| directory))
    }

    fn payloads(&self) -> Result<&Payloads> {
        if let Some(payloads) = self.payloads.get() {
            return Ok(payloads);
        }
        let at = self.at + HEAD as u64 + self.head.directory.packed;
        let read = |bytes| read_payloads(bytes, self.len());
        let payloads = self.section(at, self.head.payloads, "traces", read)?;
        Ok(self.payloads.get_or_init(|| payloads))
    }

    fn section<T>(
        &self,
        at: u64,
        section: Section,
        what: &str,
        read: impl FnOnce(Vec<u8>) -> std::result::Result<T, StoredError>,
    ) -> Result<T> {
        let packed = self.file.read(at, section.packed)?;
        if crc(self.file.id, &packed) != section.crc {
            return self
                .file
                .damaged(at, format!("checksum mismatch in the {what} of a block"));
        }
        let parts = unpack(&packed, section.raw).and_then(read);
        parts.or_else(|error| self.file.damaged(at, format!("the {what} of a block: {error}")))
    }
}

/// Returns whether the checksums of both sections match. Does not check the contents.
pub(super) fn has_right_checksums(file: &StoreFile, at: u64, head: &DataHead) -> Result<bool> {
    let directory = file.read(at + HEAD as u64, head.directory.packed)?;
    let payloads = file.read(at + HEAD as u64 + head.directory.packed, head.payloads.packed)?;
    Ok(crc(file.id, &directory) == head.directory.crc && crc(file.id, &payloads) == head.payloads.crc)
}

/// Maximum size in bytes that is allocated and decompressed at once on the word of an untrusted head.
const TRUSTED: u64 = 1 << 24;

fn unpack(packed: &[u8], raw: u64) -> std::result::Result<Vec<u8>, StoredError> {
    if raw > TRUSTED {
        return stored::unpack(packed, raw);
    }
    match zstd::bulk::decompress(packed, raw as usize) {
        Ok(bytes) if bytes.len() as u64 == raw => Ok(bytes),
        Ok(bytes) => Err(StoredError(format!(
            "expected {raw} bytes of decompressed data, got {}",
            bytes.len()
        ))),
        Err(error) => Err(StoredError(format!("zstd: {error}"))),
    }
}

fn read_directory(bytes: Vec<u8>, traces: usize) -> std::result::Result<Directory, StoredError> {
    let mut input = stored::Reader(&bytes);
    let mut key_lengths = stored::Reader(input.bytes("key lengths")?);
    let mut metadata_lengths = stored::Reader(input.bytes("metadata lengths")?);
    let keys = input.bytes("keys")?;
    let metadata = input.0;
    let metadata_at = bytes.len() - metadata.len();
    let (mut key_end, mut metadata_end) = (metadata_at - keys.len(), metadata_at);
    let is_text = |range: &Range<usize>| std::str::from_utf8(&bytes[range.clone()]).is_ok();
    let mut entries = Vec::with_capacity(traces);
    for _ in 0..traces {
        let key_start = key_end;
        // 0 means no key.
        let length = key_lengths.below((metadata_at - key_end) as u64 + 2, "key lengths")? as usize;
        key_end += length.saturating_sub(1);
        let metadata_start = metadata_end;
        metadata_end += metadata_lengths.below((bytes.len() - metadata_end) as u64 + 1, "metadata lengths")? as usize;
        let (key, metadata) = (key_start..key_end, metadata_start..metadata_end);
        if !is_text(&key) || !is_text(&metadata) {
            return Err(StoredError("a key or metadata is not UTF-8".into()));
        }
        let key = (length > 0).then_some(key);
        entries.push(Entry { key, metadata });
    }
    let is_read = key_lengths.0.is_empty() && metadata_lengths.0.is_empty();
    if !is_read || key_end != metadata_at || metadata_end != bytes.len() {
        return Err(StoredError("the lengths of the columns do not match the data".into()));
    }
    Ok(Directory { bytes, entries })
}

fn read_payloads(bytes: Vec<u8>, traces: usize) -> std::result::Result<Payloads, StoredError> {
    let mut input = stored::Reader(&bytes);
    let mut lengths = stored::Reader(input.bytes("lengths")?);
    let start = bytes.len() - input.0.len();
    let mut end = start;
    let mut ends = Vec::with_capacity(traces);
    for _ in 0..traces {
        end += lengths.below((bytes.len() - end) as u64 + 1, "lengths")? as usize;
        ends.push(end);
    }
    match lengths.0.is_empty() && end == bytes.len() {
        true => Ok(Payloads { bytes, ends, start }),
        false => Err(StoredError("the lengths of the traces do not match the data".into())),
    }
}

/// Traces to be written as the next block.
#[derive(Default)]
pub(super) struct Pending {
    payloads: Vec<u8>,
    payload_lengths: Vec<u64>,
    pub keys: Vec<Option<String>>,
    metadata: Vec<String>,
    /// Size of the keys and metadata in bytes.
    texts: usize,
}

impl Pending {
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns the size in bytes of the larger part of the block if this trace were added.
    pub fn bytes_with(&self, payload: &[u8], key: Option<&str>, metadata: &str) -> usize {
        let texts = self.texts + key.map_or(0, str::len) + metadata.len();
        texts.max(self.payloads.len() + payload.len())
    }

    pub fn push(&mut self, payload: &[u8], key: Option<&str>, metadata: &str) {
        self.texts += key.map_or(0, str::len) + metadata.len();
        self.payloads.extend_from_slice(payload);
        self.payload_lengths.push(payload.len() as u64);
        self.keys.push(key.map(str::to_owned));
        self.metadata.push(metadata.to_owned());
    }

    pub fn clear(&mut self) {
        self.payloads.clear();
        self.payload_lengths.clear();
        self.keys.clear();
        self.metadata.clear();
        self.texts = 0;
    }

    /// Encodes the block, including its head.
    pub fn pack(&self, id: u64, first: u64, zstd: &mut zstd::bulk::Compressor<'_>) -> std::io::Result<Vec<u8>> {
        let (directory, payloads) = (self.directory(), self.payloads());
        let packed_directory = zstd.compress(&directory)?;
        let packed_payloads = zstd.compress(&payloads)?;
        let section = |raw: &[u8], packed: &[u8]| Section {
            raw: raw.len() as u64,
            packed: packed.len() as u64,
            crc: crc(id, packed),
        };
        let head = Head::Data(DataHead {
            first,
            traces: self.len() as u64,
            directory: section(&directory, &packed_directory),
            payloads: section(&payloads, &packed_payloads),
        });
        Ok([&head.encode(id), &packed_directory[..], &packed_payloads].concat())
    }

    fn directory(&self) -> Vec<u8> {
        let mut out = stored::Writer(Vec::with_capacity(self.texts + 4 * self.len()));
        let key_length = |key: &Option<String>| key.as_ref().map_or(0, |key| key.len() as u64 + 1);
        out.column(self.keys.iter().map(key_length));
        out.column(self.metadata.iter().map(|metadata| metadata.len() as u64));
        out.bytes(self.keys.iter().flatten().cloned().collect::<String>().as_bytes());
        out.0.extend_from_slice(self.metadata.concat().as_bytes());
        out.0
    }

    fn payloads(&self) -> Vec<u8> {
        let mut out = stored::Writer(Vec::with_capacity(self.payloads.len() + 4 * self.len()));
        out.column(self.payload_lengths.iter().copied());
        out.0.extend_from_slice(&self.payloads);
        out.0
    }
}

/// Creates a compressor for blocks, which reuses its memory.
pub(super) fn compressor() -> std::io::Result<zstd::bulk::Compressor<'static>> {
    zstd::bulk::Compressor::new(LEVEL)
}
