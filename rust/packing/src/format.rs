//! Token shard, version 2. All integers are little-endian; `d` documents, `t` tokens, `m` masked runs, `s` spans.
//!
//! | section | bytes | content |
//! | --- | --- | --- |
//! | header | 4,096 | see below, zero-filled, CRC-32 of the first 4,092 bytes last |
//! | tokens | `t` × 2 or 4 | u16 if the vocabulary has at most 65,536 ids, else u32 |
//! | masked runs | `m` × 8 | u32, u32: `[start, end)` within the document: tokens excluded from the loss; ascending, disjoint |
//! | spans | `s` × 12 | u32, u32, u32: `[start, end)` within the document and the index of a label; by start |
//! | page checksums | pages × 4 | u32: CRC-32 of every 4,096 bytes of the three sections above |
//! | document ends | `d` × 8 | u64: where document i ends, in tokens |
//! | run ends | `d` × 8 | u64: where the masked runs of document i end, in runs |
//! | span ends | `d` × 8 | u64: where the spans of document i end, in spans |
//! | document sources | `d` × 4 | u32: index into the names of sources |
//! | names of sources, then labels | | u32 length and that many bytes of UTF-8, each |
//!
//! Tokens, masked runs and spans are zero-filled to 4,096 bytes each. Header: magic (8 bytes), version u32, zero u32,
//! then u64 each: vocabulary size, `d`, `t`, `m`, `s`, bytes of names, bytes of labels; then u32: CRC-32 of all that
//! follows the spans, u32 zero, and u64: fingerprint of the vocabulary, 0 if it is not known (as in files written
//! before fingerprints were added). A checksum covers every byte of the file, the header's checksum depends on every
//! byte, and a reader checks only the pages that it touches.

use std::ops::Range;

/// The line ending detects transfers that convert line endings.
pub const MAGIC: [u8; 8] = *b"cwmtok\r\n";
pub const VERSION: u32 = 2;
pub const EXTENSION: &str = "cwmtok";
/// Bytes covered by one checksum. The size equals that of a memory page, so that checking reads no further pages.
pub const PAGE: usize = 4096;
/// Ids are returned as int32.
pub const MAX_VOCAB_SIZE: u64 = 1 << 31;
pub const RUN: usize = 8;
pub const SPAN: usize = 12;

const CHECKED: usize = PAGE - 4;
const COUNTS: Range<usize> = 16..72;
const INDEX_CRC: usize = COUNTS.end;
const FINGERPRINT: usize = INDEX_CRC + 8;

#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub vocab_size: u64,
    pub documents: u64,
    pub tokens: u64,
    pub runs: u64,
    pub spans: u64,
    pub name_bytes: u64,
    pub label_bytes: u64,
    pub index_crc: u32,
    /// Fingerprint of the vocabulary; 0 if it is not known.
    pub fingerprint: u64,
}

/// Byte ranges of the sections in the file.
#[derive(Clone, Debug)]
pub struct Layout {
    pub tokens: Range<usize>,
    pub runs: Range<usize>,
    pub spans: Range<usize>,
    pub page_crcs: Range<usize>,
    pub document_ends: Range<usize>,
    pub run_ends: Range<usize>,
    pub span_ends: Range<usize>,
    pub document_sources: Range<usize>,
    pub names: Range<usize>,
    pub labels: Range<usize>,
}

/// Bytes of one token on disk.
pub fn token_width(vocab_size: u64) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

impl Header {
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let counts = [
            self.vocab_size,
            self.documents,
            self.tokens,
            self.runs,
            self.spans,
            self.name_bytes,
            self.label_bytes,
        ];
        for (field, count) in page[COUNTS].chunks_exact_mut(8).zip(counts) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        page[INDEX_CRC..INDEX_CRC + 4].copy_from_slice(&self.index_crc.to_le_bytes());
        page[FINGERPRINT..FINGERPRINT + 8].copy_from_slice(&self.fingerprint.to_le_bytes());
        let crc = crc32fast::hash(&page[..CHECKED]);
        page[CHECKED..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads the header at the beginning of a file. The error says what is wrong with it.
    pub fn decode(file: &[u8]) -> Result<Header, String> {
        if !file.starts_with(&MAGIC) {
            return Err("not a token shard (wrong magic)".into());
        }
        // The version is checked before the length and the checksum: another version may have another header.
        let Some(version) = file.get(8..12).map(|_| u32_at(file, 8)) else {
            return Err(format!("truncated: {} bytes, shorter than a header", file.len()));
        };
        if version != VERSION {
            return Err(format!(
                "token shard version {version}; this build reads version {VERSION}"
            ));
        }
        let Some(page) = file.get(..PAGE) else {
            return Err(format!("truncated: {} bytes, shorter than a header", file.len()));
        };
        if crc32fast::hash(&page[..CHECKED]) != u32_at(page, CHECKED) {
            return Err("damaged header (checksum mismatch)".into());
        }
        let count = |number: usize| u64_at(page, COUNTS.start + number * 8);
        Ok(Header {
            vocab_size: count(0),
            documents: count(1),
            tokens: count(2),
            runs: count(3),
            spans: count(4),
            name_bytes: count(5),
            label_bytes: count(6),
            index_crc: u32_at(page, INDEX_CRC),
            fingerprint: u64_at(page, FINGERPRINT),
        })
    }

    /// Returns the positions of the sections, or `None` if the counts overflow.
    pub fn layout(&self) -> Option<Layout> {
        let mut end = PAGE;
        let mut section = |count: u64, width: usize| -> Option<Range<usize>> {
            let start = end;
            end = start.checked_add(usize::try_from(count).ok()?.checked_mul(width)?)?;
            Some(start..end)
        };
        let pages = |count: u64, width: usize| Some(count.checked_mul(width as u64)?.div_ceil(PAGE as u64));
        let token_pages = pages(self.tokens, token_width(self.vocab_size))?;
        let (run_pages, span_pages) = (pages(self.runs, RUN)?, pages(self.spans, SPAN)?);
        Some(Layout {
            tokens: section(token_pages, PAGE)?,
            runs: section(run_pages, PAGE)?,
            spans: section(span_pages, PAGE)?,
            page_crcs: section(token_pages + run_pages + span_pages, 4)?,
            document_ends: section(self.documents, 8)?,
            run_ends: section(self.documents, 8)?,
            span_ends: section(self.documents, 8)?,
            document_sources: section(self.documents, 4)?,
            names: section(self.name_bytes, 1)?,
            labels: section(self.label_bytes, 1)?,
        })
    }
}

/// Panics past the end of `bytes`, like indexing.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

/// Panics past the end of `bytes`, like indexing.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
