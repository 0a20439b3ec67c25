use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::Result;
use super::file::StoreFile;
use super::format::{DataHead, HEAD, Head, LEVEL, Section, crc};
use crate::stored::{self, StoredError};
use crate::trace::Trace;

/// Traces that were compressed together. Keys and metadata are at hand, traces are unpacked when asked for.
pub struct Block {
    at: u64,
    head: DataHead,
    directory: Vec<u8>,
    entries: Vec<Entry>,
    /// The beginning of the payloads, as far as it was needed.
    payloads: Mutex<Arc<Vec<u8>>>,
}

struct Entry {
    payload: Range<usize>,
    /// Within the directory, as is the metadata.
    key: Option<Range<usize>>,
    metadata: Range<usize>,
}

impl Block {
    /// Reads the block whose head is at `at`, but for its traces.
    pub(super) fn read(file: &StoreFile, at: u64, head: DataHead) -> Result<Block> {
        let packed = read_section(file, at + HEAD as u64, head.directory)?;
        let entries = unpack(&packed, head.directory.raw).and_then(|directory| {
            let entries = read_directory(&directory, &head)?;
            Ok((directory, entries))
        });
        match entries {
            Ok((directory, entries)) => Ok(Block {
                at,
                head,
                directory,
                entries,
                payloads: Mutex::default(),
            }),
            Err(error) => file.damaged(at, format!("the directory of a block: {error}")),
        }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The index of the first trace.
    pub fn first(&self) -> u64 {
        self.head.first
    }

    /// Number of traces.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The key of the trace at `place` in this block; like the other methods, panics if there is none.
    pub fn key(&self, place: usize) -> Option<&str> {
        let key = self.entries[place].key.clone()?;
        // `read` has checked that it is UTF-8.
        std::str::from_utf8(&self.directory[key]).ok()
    }

    pub fn metadata(&self, place: usize) -> &str {
        let metadata = self.entries[place].metadata.clone();
        std::str::from_utf8(&self.directory[metadata]).unwrap_or_default()
    }

    pub(super) fn trace(&self, file: &StoreFile, place: usize) -> Result<Trace> {
        let range = self.entries[place].payload.clone();
        let payloads = self.payloads_up_to(file, range.end)?;
        stored::read_payload(&payloads[range]).or_else(|error| {
            let index = self.head.first + place as u64;
            file.damaged(self.at, format!("trace {index}: {error}"))
        })
    }

    /// The first time, nothing is unpacked beyond what is asked for; who comes again wants more of it.
    fn payloads_up_to(&self, file: &StoreFile, end: usize) -> Result<Arc<Vec<u8>>> {
        // A lock that a thread held when the process forked is never freed: do without.
        let known = self
            .payloads
            .try_lock()
            .map(|payloads| payloads.clone())
            .unwrap_or_default();
        if known.len() >= end {
            return Ok(known);
        }
        let Section { raw, .. } = self.head.payloads;
        let wanted = if known.is_empty() { end } else { raw as usize };
        let packed = read_section(
            file,
            self.at + HEAD as u64 + self.head.directory.packed,
            self.head.payloads,
        )?;
        let unpacked = match wanted as u64 == raw {
            true => unpack(&packed, raw),
            false => unpack_beginning(&packed, wanted),
        };
        let unpacked = match unpacked {
            Ok(bytes) => Arc::new(bytes),
            Err(error) => return file.damaged(self.at, format!("the traces of a block: {error}")),
        };
        if let Ok(mut payloads) = self.payloads.try_lock() {
            *payloads = unpacked.clone();
        }
        Ok(unpacked)
    }
}

fn read_section(file: &StoreFile, at: u64, section: Section) -> Result<Vec<u8>> {
    let packed = file.read(at, section.packed)?;
    match crc(file.id, &packed) == section.crc {
        true => Ok(packed),
        false => file.damaged(at, "the checksum differs"),
    }
}

/// Whether both sections are as they were written, whatever they hold.
pub(super) fn has_right_checksums(file: &StoreFile, at: u64, head: &DataHead) -> Result<bool> {
    let directory = file.read(at + HEAD as u64, head.directory.packed)?;
    let payloads = file.read(at + HEAD as u64 + head.directory.packed, head.payloads.packed)?;
    Ok(crc(file.id, &directory) == head.directory.crc && crc(file.id, &payloads) == head.payloads.crc)
}

/// Up to this much is allocated because a head says so, and unpacked in one go.
const TRUSTED: u64 = 1 << 24;

fn unpack(packed: &[u8], raw: u64) -> std::result::Result<Vec<u8>, StoredError> {
    if raw > TRUSTED {
        return stored::unpack(packed, raw);
    }
    match zstd::bulk::decompress(packed, raw as usize) {
        Ok(bytes) if bytes.len() as u64 == raw => Ok(bytes),
        Ok(bytes) => Err(StoredError(format!(
            "{raw} bytes were announced, {} are there",
            bytes.len()
        ))),
        Err(error) => Err(StoredError(format!("zstd: {error}"))),
    }
}

fn unpack_beginning(packed: &[u8], length: usize) -> std::result::Result<Vec<u8>, StoredError> {
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(packed);
    let read = decoder.and_then(|decoder| decoder.take(length as u64).read_to_end(&mut out));
    match read {
        Ok(read) if read == length => Ok(out),
        Ok(read) => Err(StoredError(format!("more than {read} bytes were announced"))),
        Err(error) => Err(StoredError(format!("zstd: {error}"))),
    }
}

fn read_directory(directory: &[u8], head: &DataHead) -> std::result::Result<Vec<Entry>, StoredError> {
    let mut input = stored::Reader(directory);
    let mut payload_lengths = stored::Reader(input.bytes("payload lengths")?);
    let mut key_lengths = stored::Reader(input.bytes("key lengths")?);
    let keys = input.bytes("keys")?;
    let mut metadata_lengths = stored::Reader(input.bytes("metadata lengths")?);
    let metadata = input.0;
    let keys_at = keys.as_ptr() as usize - directory.as_ptr() as usize;
    let (mut payload_end, mut key_end, mut metadata_end) = (0, 0, 0);
    // The head was checked: there is a byte for each trace.
    let mut entries = Vec::with_capacity(head.traces as usize);
    for _ in 0..head.traces {
        let room = head.payloads.raw - payload_end;
        let payload_start = payload_end;
        payload_end += payload_lengths.below(room + 1, "payload lengths")?;
        let key_start = key_end;
        let has_key = match key_lengths.below((keys.len() - key_end) as u64 + 2, "key lengths")? {
            0 => false,
            length => {
                key_end += length as usize - 1;
                true
            }
        };
        let metadata_start = metadata_end;
        let room = (metadata.len() - metadata_end) as u64;
        metadata_end += metadata_lengths.below(room + 1, "metadata lengths")? as usize;
        let texts = [&keys[key_start..key_end], &metadata[metadata_start..metadata_end]];
        if texts.iter().any(|text| std::str::from_utf8(text).is_err()) {
            return Err(StoredError("a key or metadata is not UTF-8".into()));
        }
        let metadata_at = directory.len() - metadata.len();
        entries.push(Entry {
            payload: payload_start as usize..payload_end as usize,
            key: has_key.then_some(keys_at + key_start..keys_at + key_end),
            metadata: metadata_at + metadata_start..metadata_at + metadata_end,
        });
    }
    let rest = [payload_lengths.0, key_lengths.0, metadata_lengths.0];
    let all = payload_end == head.payloads.raw && key_end == keys.len() && metadata_end == metadata.len();
    match all && rest.iter().all(|rest| rest.is_empty()) {
        true => Ok(entries),
        false => Err(StoredError("its columns do not add up".into())),
    }
}

/// Traces on their way into a block.
#[derive(Default)]
pub(super) struct Pending {
    payloads: Vec<u8>,
    payload_lengths: Vec<u64>,
    pub keys: Vec<Option<String>>,
    metadata: Vec<String>,
    /// Bytes of keys and metadata.
    texts: usize,
}

impl Pending {
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// What the block would be with this trace: the larger of its two parts.
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

    /// The whole block.
    pub fn pack(&self, id: u64, first: u64, zstd: &mut zstd::bulk::Compressor<'_>) -> std::io::Result<Vec<u8>> {
        let directory = self.directory();
        let packed_directory = zstd.compress(&directory)?;
        let packed_payloads = zstd.compress(&self.payloads)?;
        let section = |raw: &[u8], packed: &[u8]| Section {
            raw: raw.len() as u64,
            packed: packed.len() as u64,
            crc: crc(id, packed),
        };
        let head = Head::Data(DataHead {
            first,
            traces: self.len() as u64,
            directory: section(&directory, &packed_directory),
            payloads: section(&self.payloads, &packed_payloads),
        });
        Ok([&head.encode(id), &packed_directory[..], &packed_payloads].concat())
    }

    fn directory(&self) -> Vec<u8> {
        let mut out = stored::Writer(Vec::new());
        out.column(self.payload_lengths.iter().copied());
        let key_length = |key: &Option<String>| key.as_ref().map_or(0, |key| key.len() as u64 + 1);
        out.column(self.keys.iter().map(key_length));
        out.bytes(self.keys.iter().flatten().cloned().collect::<String>().as_bytes());
        out.column(self.metadata.iter().map(|metadata| metadata.len() as u64));
        out.0.extend_from_slice(self.metadata.concat().as_bytes());
        out.0
    }
}

/// What packs blocks; it keeps its memory from one to the next.
pub(super) fn compressor() -> std::io::Result<zstd::bulk::Compressor<'static>> {
    zstd::bulk::Compressor::new(LEVEL)
}
