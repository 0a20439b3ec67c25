//! Token shard, version 1. All integers are little-endian; `d` documents, `t` tokens, `s` loss spans.
//!
//! | section | bytes | content |
//! | --- | --- | --- |
//! | header | 4,096 | see below, zero-filled, CRC-32 of the first 4,092 bytes last |
//! | tokens | `t` × 2 or 4, zero-filled to 4,096 | u16 if the vocabulary has at most 65,536 ids, else u32 |
//! | page checksums | pages × 4 | u32: CRC-32 of every 4,096 bytes of the token section |
//! | document ends | `d` × 8 | u64: where document i ends, in tokens |
//! | span ends | `d` × 8 | u64: where the loss spans of document i end, in spans |
//! | spans | `s` × 8 | u32, u32: `[start, end)` within the document; ascending, disjoint, not empty |
//! | document sources | `d` × 4 | u32: index into the names |
//! | names | | u32 length and that many bytes of UTF-8, each |
//!
//! Header: magic (8 bytes), version u32, zero u32, then u64 each: vocabulary size, `d`, `t`, `s`, bytes of names; then
//! u32: CRC-32 of all that follows the tokens. So every byte of the file is under a checksum, the header's checksum
//! depends on every byte, and a reader checks the token pages it touches and no others.

use std::ops::Range;

/// The line ending catches transfers that rewrite text.
pub const MAGIC: [u8; 8] = *b"cwmtok\r\n";
pub const VERSION: u32 = 1;
pub const EXTENSION: &str = "cwmtok";
/// A token page is the unit of checksums; equal to the memory page, so that checking reads nothing more from disk.
pub const PAGE: usize = 4096;
/// Ids are handed out as int32.
pub const MAX_VOCAB_SIZE: u64 = 1 << 31;

const CHECKED: usize = PAGE - 4;

#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub vocab_size: u64,
    pub documents: u64,
    pub tokens: u64,
    pub spans: u64,
    pub name_bytes: u64,
    pub index_crc: u32,
}

/// Byte ranges of the sections in the file.
#[derive(Clone, Debug)]
pub struct Layout {
    pub tokens: Range<usize>,
    pub page_crcs: Range<usize>,
    pub document_ends: Range<usize>,
    pub span_ends: Range<usize>,
    pub spans: Range<usize>,
    pub document_sources: Range<usize>,
    pub names: Range<usize>,
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
            self.spans,
            self.name_bytes,
        ];
        for (field, count) in page[16..56].chunks_exact_mut(8).zip(counts) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        page[56..60].copy_from_slice(&self.index_crc.to_le_bytes());
        let crc = crc32fast::hash(&page[..CHECKED]);
        page[CHECKED..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads the header from the beginning of a file, or says what is wrong with it.
    pub fn decode(file: &[u8]) -> Result<Header, String> {
        if !file.starts_with(&MAGIC) {
            return Err("not a token shard (wrong magic)".into());
        }
        // The version comes before the length and the checksum: another version may lay out its header otherwise.
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
            return Err("damaged header (checksum differs)".into());
        }
        Ok(Header {
            vocab_size: u64_at(page, 16),
            documents: u64_at(page, 24),
            tokens: u64_at(page, 32),
            spans: u64_at(page, 40),
            name_bytes: u64_at(page, 48),
            index_crc: u32_at(page, 56),
        })
    }

    /// Where the sections lie; `None` if the counts overflow.
    pub fn layout(&self) -> Option<Layout> {
        let mut end = PAGE;
        let mut section = |count: u64, width: usize| -> Option<Range<usize>> {
            let start = end;
            end = start.checked_add(usize::try_from(count).ok()?.checked_mul(width)?)?;
            Some(start..end)
        };
        let pages = self
            .tokens
            .checked_mul(token_width(self.vocab_size) as u64)?
            .div_ceil(PAGE as u64);
        Some(Layout {
            tokens: section(pages, PAGE)?,
            page_crcs: section(pages, 4)?,
            document_ends: section(self.documents, 8)?,
            span_ends: section(self.documents, 8)?,
            spans: section(self.spans, 8)?,
            document_sources: section(self.documents, 4)?,
            names: section(self.name_bytes, 1)?,
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
