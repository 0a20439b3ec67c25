//! Trace store, version 1: a file that only grows. All integers are little-endian.
//!
//! ```text
//! header   32 bytes: magic (8), version u32, version of the traces' payload u32, id u64, zero u32, CRC-32 of the above
//! block*   each a head of 64 bytes: kind (4), CRC-32 of id and words u32, 7 words u64; then what the head announces
//! ```
//!
//! | kind | words | followed by |
//! | --- | --- | --- |
//! | `DATA` | first trace, traces, directory (raw, packed), payloads (raw, packed), both CRC-32 | the two, zstd |
//! | `INDX` | traces before it, bytes that follow, segments, CRC-32 of their list | runs, then the list of segments |
//! | `FOOT` | place of the last `INDX`, traces before it | nothing |
//!
//! A **data block** holds one trace, or several that together take at most 64 KiB: traces of a corpus share text, so
//! they are compressed together. The directory holds lengths of keys + 1 (0: no key), lengths of metadata, keys, metadata
//! (JSON); the other part lengths of payloads, payloads. Lengths are columns, each after its length in bytes, as are the
//! keys. A payload is that of a stored trace (`stored.rs`), not compressed by itself.
//!
//! An **index block** and a footer are written when a writer closes. They only save time: all that they say can be had
//! from the data blocks. A *run* is a sorted list of pairs of u64, in pages of 256 pairs and their CRC-32, so that a
//! reader searches it where it lies. A *segment* covers the traces of some consecutive blocks with two runs: (first
//! trace, place) of each block, and (XXH3 of the key, trace) of each key. The list of segments (first trace, traces,
//! place and pairs of the first run, and of the second) covers all traces before it. Runs may lie in earlier index
//! blocks. A writer merges its own segment with those before it that are less than twice as large: there are never
//! more than log2(traces), and what was written often is not written again each time.
//!
//! A reader begins with the footer at the end of the file. Where there is none, as a writer is at work or was killed, it
//! walks the blocks from the first one. What remains after the last whole block is the torn tail. A writer that goes on
//! with a file cuts it, and never changes any byte before it.
//!
//! The id is random, and part of the checksums of heads and pages: no program can make its trace look like a block.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::stored;

/// The line ending catches transfers that rewrite text.
const MAGIC: [u8; 8] = *b"cwmtrc\r\n";
const VERSION: u32 = 1;
pub(super) const HEADER: usize = 32;
pub(super) const HEAD: usize = 64;
/// Several traces share a block up to this many bytes. Larger blocks are smaller on disk and slower to read one trace
/// from. Of generated programs (412 bytes a trace), a trace takes 236 bytes in a block of its own, 109 where blocks
/// have 16 KiB, 94 at 64 KiB, 82 at 256 KiB and 76 at 1 MiB; unpacking one takes 0.04, 0.08, 0.28 and 0.9 ms.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// Of zstd: from 3 to 6 traces shrink by another 10 to 25 %, at a cost that is small beside that of recording them.
pub(super) const LEVEL: i32 = 6;
pub(super) const MAX_KEY: usize = 1 << 16;
pub(super) const MAX_METADATA: usize = 1 << 24;
/// A block that claims more is damaged or hostile. There is room for the largest metadata, and for larger blocks.
const MAX_SHARED: u64 = 1 << 26;
const MAX_TRACES: u64 = 1 << 20;

/// A number that a program recorded into a store cannot guess.
pub(super) fn random_id() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(super) fn key_hash(key: &str) -> u64 {
    let hash = xxhash_rust::xxh3::xxh3_64(key.as_bytes());
    // The tests of this crate have few hashes, so that keys share them.
    if cfg!(test) { hash >> 59 } else { hash }
}

pub(super) fn crc(id: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Panics past the end of `bytes`, like indexing.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

/// Panics past the end of `bytes`, like indexing.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(super) fn header(id: u64) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&stored::VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&id.to_le_bytes());
    let sum = crc32fast::hash(&out[..HEADER - 4]);
    out[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The id of a file that begins with these bytes; `None` where they are the beginning of a header. Else what is wrong.
pub(super) fn read_header(bytes: &[u8]) -> Result<Option<u64>, String> {
    // Up to the random id all headers are alike.
    let known = &header(0)[..16];
    let compared = bytes.len().min(8);
    if bytes[..compared] != known[..compared] {
        return Err("not a trace store (wrong magic)".into());
    }
    if bytes.len() < 16 {
        return Ok(None);
    }
    if bytes[8..16] != known[8..16] {
        let (store, payload) = (u32_at(bytes, 8), u32_at(bytes, 12));
        return Err(format!(
            "trace store version {store} of traces version {payload}; this build reads {VERSION} of {}",
            stored::VERSION
        ));
    }
    if bytes.len() < HEADER {
        return Ok(None);
    }
    if crc32fast::hash(&bytes[..HEADER - 4]) != u32_at(bytes, HEADER - 4) {
        return Err("damaged header (checksum differs)".into());
    }
    Ok(Some(u64_at(bytes, 16)))
}

/// One of the two compressed parts of a data block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Section {
    pub raw: u64,
    pub packed: u64,
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DataHead {
    pub first: u64,
    pub traces: u64,
    pub directory: Section,
    pub payloads: Section,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct IndexHead {
    pub traces: u64,
    pub bytes: u64,
    pub segments: u64,
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Footer {
    pub index_at: u64,
    pub traces: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Head {
    Data(DataHead),
    Index(IndexHead),
    Footer(Footer),
}

pub(super) const KINDS: [&[u8; 4]; 3] = [b"DATA", b"INDX", b"FOOT"];

impl Head {
    pub fn encode(&self, id: u64) -> [u8; HEAD] {
        let (kind, words) = match *self {
            Head::Data(head) => {
                let crcs = u64::from(head.directory.crc) | u64::from(head.payloads.crc) << 32;
                let (directory, payloads) = (head.directory, head.payloads);
                let sizes = [directory.raw, directory.packed, payloads.raw, payloads.packed];
                let [a, b, c, d] = sizes;
                (KINDS[0], [head.first, head.traces, a, b, c, d, crcs])
            }
            Head::Index(head) => {
                let words = [head.traces, head.bytes, head.segments, head.crc.into(), 0, 0, 0];
                (KINDS[1], words)
            }
            Head::Footer(head) => (KINDS[2], [head.index_at, head.traces, 0, 0, 0, 0, 0]),
        };
        let mut out = [0; HEAD];
        out[..4].copy_from_slice(kind);
        for (field, word) in out[8..].chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        let sum = head_crc(id, &out);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// `None` for bytes that are no head of this file, or announce what no writer writes.
    pub fn decode(id: u64, bytes: &[u8; HEAD]) -> Option<Head> {
        if u32_at(bytes, 4) != head_crc(id, bytes) {
            return None;
        }
        let word = |n: usize| u64_at(bytes, 8 + 8 * n);
        let head = match KINDS.iter().position(|kind| bytes.starts_with(*kind))? {
            0 => {
                let section = |n: usize, crc: u64| Section {
                    raw: word(n),
                    packed: word(n + 1),
                    crc: crc as u32,
                };
                Head::Data(DataHead {
                    first: word(0),
                    traces: word(1),
                    directory: section(2, word(6)),
                    payloads: section(4, word(6) >> 32),
                })
            }
            1 => Head::Index(IndexHead {
                traces: word(0),
                bytes: word(1),
                segments: word(2),
                crc: word(3) as u32,
            }),
            _ => Head::Footer(Footer {
                index_at: word(0),
                traces: word(1),
            }),
        };
        head.is_possible().then_some(head)
    }

    fn is_possible(&self) -> bool {
        let Head::Data(head) = self else {
            return self.bytes().is_some();
        };
        let most = if head.traces == 1 {
            stored::MAX_PAYLOAD
        } else {
            MAX_SHARED
        };
        self.bytes().is_some()
            && head.first.checked_add(head.traces).is_some()
            && (1..=MAX_TRACES).contains(&head.traces)
            && head.directory.raw <= MAX_SHARED
            && head.payloads.raw <= most
    }

    /// Bytes of the block, head included; `None` if they overflow.
    pub fn bytes(&self) -> Option<u64> {
        let rest = match self {
            Head::Data(head) => head.directory.packed.checked_add(head.payloads.packed)?,
            Head::Index(head) => head.bytes,
            Head::Footer(_) => 0,
        };
        rest.checked_add(HEAD as u64)
    }
}

fn head_crc(id: u64, head: &[u8; HEAD]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(&head[..4]);
    hasher.update(&head[8..]);
    hasher.finalize()
}
