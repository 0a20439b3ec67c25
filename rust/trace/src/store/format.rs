//! Format of trace stores, version 1: an append-only file. All integers are little-endian.
//!
//! ```text
//! header   32 bytes: magic (8), version u32, version of the traces' payload u32, id u64, zero u32, CRC-32 of the above
//! block*   head of 64 bytes: kind (4), CRC-32 of id, kind, and words u32, 7 words u64; then the data that follows it
//! ```
//!
//! | kind | words | followed by |
//! | --- | --- | --- |
//! | `DATA` | first trace, traces, directory (raw, packed), payloads (raw, packed), both CRC-32 | both parts, zstd |
//! | `INDX` | traces before it, bytes that follow, segments, CRC-32 of their list | runs, then the list of segments |
//! | `FOOT` | offset of the last `INDX`, traces before it | nothing |
//!
//! A **data block** contains one trace, or several that take at most 64 KiB together. Traces of a corpus share text, so
//! they are compressed together. The directory contains the lengths of keys plus 1 (0 means no key), the lengths of
//! metadata, the keys, and the metadata (JSON). The other part contains the lengths of the payloads, then the payloads.
//! Lengths are columns. Each column, and the keys, are preceded by their length in bytes. A payload is the uncompressed
//! payload of a stored trace (`stored.rs`).
//!
//! A writer appends an **index block** and a footer when it closes. They only save time, because a reader can derive
//! their content from the data blocks.
//!
//! - A *run* is a sorted list of pairs of u64, in pages of 256 pairs and their CRC-32, so that a reader can search it
//!   without loading it.
//! - A *segment* covers the traces of consecutive blocks with two runs: (first trace, offset) of each block, and (XXH3
//!   of the key, trace) of each key.
//! - The list of segments (first trace, traces, offset and pairs of the first run, and of the second) covers all traces
//!   before it. Runs may be in earlier index blocks.
//!
//! A writer merges its own segment with preceding segments that are less than twice as large. There are therefore never
//! more than log2(traces) segments, and closing does not rewrite the whole index each time.
//!
//! A reader begins with the footer at the end of the file. If there is none, because a writer is active or was killed,
//! the reader walks the blocks from the first one. The bytes after the last complete block are the torn tail. A writer
//! that appends to a file truncates the torn tail, and never changes any byte before it.
//!
//! The ID is random and part of the checksums of heads and pages, so that no recorded program can forge a block in its
//! trace.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::stored;

/// Magic bytes. The line ending detects transfers that convert line endings.
const MAGIC: [u8; 8] = *b"cwmtrc\r\n";
const VERSION: u32 = 1;
pub(super) const HEADER: usize = 32;
pub(super) const HEAD: usize = 64;
/// Maximum size in bytes of a block that several traces share.
///
/// Larger blocks take less disk space, but reading one trace takes longer. A trace of a generated program (412 bytes)
/// takes 236 bytes in a block of its own, 109 in blocks of 16 KiB, 94 in 64 KiB, 82 in 256 KiB, and 76 in 1 MiB.
/// Decompressing a block of these four sizes takes 0.04, 0.08, 0.28, and 0.9 ms.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// Compression level of zstd. Level 6 reduces the size by 10% to 25% compared with level 3, at a small cost compared
/// with recording.
pub(super) const LEVEL: i32 = 6;
pub(super) const MAX_KEY: usize = 1 << 16;
pub(super) const MAX_METADATA: usize = 1 << 24;
/// Maximum size in bytes of a part that several traces share. A block that claims more is damaged or malicious. The
/// limit leaves room for the largest metadata, and for a larger [`BLOCK_BYTES`].
const MAX_SHARED: u64 = 1 << 26;
const MAX_TRACES: u64 = 1 << 20;

/// Returns a random ID that a recorded program cannot guess.
pub(super) fn random_id() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(super) fn key_hash(key: &str) -> u64 {
    let hash = xxhash_rust::xxh3::xxh3_64(key.as_bytes());
    // Use few distinct hashes in the tests of this crate, so that keys collide.
    if cfg!(test) { hash >> 59 } else { hash }
}

pub(super) fn crc(id: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Reads the integer at offset `at`. Panics if it extends past the end of `bytes`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

/// Reads the integer at offset `at`. Panics if it extends past the end of `bytes`.
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

/// Returns the ID of a file that begins with these bytes, or `None` if they are an incomplete header. Returns an error
/// message if they are not a valid header.
pub(super) fn read_header(bytes: &[u8]) -> Result<Option<u64>, String> {
    // All headers have the same bytes before the random ID.
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
            "trace store version {store} with traces of version {payload}; this build reads version {VERSION} with traces of version {}",
            stored::VERSION
        ));
    }
    if bytes.len() < HEADER {
        return Ok(None);
    }
    if crc32fast::hash(&bytes[..HEADER - 4]) != u32_at(bytes, HEADER - 4) {
        return Err("damaged header (checksum mismatch)".into());
    }
    Ok(Some(u64_at(bytes, 16)))
}

/// Size and checksum of one of the two compressed parts of a data block.
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

    /// Decodes a head. Returns `None` if the bytes are not a head of this file, or describe a block that no writer
    /// writes.
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

    /// Returns the size of the block in bytes, including the head; `None` on overflow.
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
