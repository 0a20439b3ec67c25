//! Reads Megatron indexed datasets in place: `PREFIX.idx` locates the documents in `PREFIX.bin`.
//!
//! All integers of the index are little-endian; `n` sequences, `d` documents.
//!
//! | field | bytes | content |
//! | --- | --- | --- |
//! | magic, version | 9, 8 | `MMIDIDX` and two zeros; u64: 1 |
//! | type of ids | 1 | 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16 (6 and 7 are floats, which cannot be ids) |
//! | counts | 8, 8 | u64: `n`; u64: `d` + 1 |
//! | sequence lengths | `n` × 4 | i32: in tokens |
//! | sequence pointers | `n` × 8 | i64: start in the `.bin`, in bytes |
//! | document bounds | (`d` + 1) × 8 | i64: document i is the sequences from bound i to bound i + 1; 0 first, `n` last |
//! | modes | `n` × 1 or none | i8: 0 for text; other sequences are not read |
//!
//! The files have no checksums, so a changed id is detected only if it is outside the vocabulary, which they do not
//! store.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use cwm_interrupt::{Pace, check};
use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};
use crate::format::{MAX_VOCAB_SIZE, PAGE};
use crate::shard::decode;

pub const MAGIC: [u8; 9] = *b"MMIDIDX\0\0";
pub const VERSION: u64 = 1;

const HEADER: usize = 34;
/// Pages of the `.bin` included in the checksum.
const SAMPLES: usize = 64;
/// Bytes of the index hashed between two checks for an interrupt.
const HASHED: usize = 1 << 26;

/// Returns the files of a dataset, if `path` is its prefix or one of them.
pub(crate) fn files(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let with = |prefix: &Path, extension: &str| {
        let mut name = prefix.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    let of = |prefix: &Path| (with(prefix, ".idx"), with(prefix, ".bin"));
    let (index, data) = of(path);
    if index.is_file() || data.is_file() {
        return Some((index, data));
    }
    let is_one = path.extension().is_some_and(|known| known == "idx" || known == "bin") && path.is_file();
    is_one.then(|| of(&path.with_extension("")))
}

/// The documents of an indexed dataset that have tokens, memory-mapped. Opening checks the whole index, and every read
/// checks its bounds and ids. Callers call [`Megatron::check_present`] before they read: touching a page past the end
/// of a truncated file would kill the process.
pub struct Megatron {
    index: Mapped,
    data: Mapped,
    layout: Layout,
    /// For each document without tokens, the number of documents with tokens before it.
    empty: Vec<u64>,
    documents: u64,
    tokens: u64,
    vocab_size: Option<u64>,
    checksum: u32,
    /// The only source, unnamed: the files store none.
    names: [String; 1],
}

struct Mapped {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl Mapped {
    fn open(path: PathBuf) -> Result<Mapped> {
        let file = File::open(&path).map_err(Error::io(&path))?;
        // SAFETY: the map is read-only and private to this value. `check_present` detects truncated files. Like every
        // reader of a map, this one relies on files not being rewritten in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        Ok(Mapped { path, file, map })
    }

    fn check_present(&self) -> Result<()> {
        let length = self.file.metadata().map_err(Error::io(&self.path))?.len();
        if length < self.map.len() as u64 {
            return Err(self.damaged(format!("truncated to {length} bytes while open")));
        }
        Ok(())
    }

    fn release(&self) {
        // SAFETY: the map is of a file and read-only, so pages that are touched again are read again. An error is
        // harmless: the pages stay.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::damaged(&self.path, what)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Ids {
    U8,
    I8,
    I16,
    I32,
    I64,
    U16,
}

impl Ids {
    fn of_code(code: u8) -> std::result::Result<Ids, String> {
        match code {
            1 => Ok(Ids::U8),
            2 => Ok(Ids::I8),
            3 => Ok(Ids::I16),
            4 => Ok(Ids::I32),
            5 => Ok(Ids::I64),
            8 => Ok(Ids::U16),
            6 | 7 => Err("expected integer ids, got floats".into()),
            _ => Err(format!("unknown type of ids: {code}")),
        }
    }

    fn width(self) -> usize {
        match self {
            Ids::U8 | Ids::I8 => 1,
            Ids::I16 | Ids::U16 => 2,
            Ids::I32 => 4,
            Ids::I64 => 8,
        }
    }

    /// Decodes `bytes` as [`decode`] does. Negative and too large ids become 2^31 or more.
    fn decode(self, bytes: &[u8], tokens: &mut [i32], targets: &mut [i32]) -> u32 {
        match self {
            Ids::U8 => decode(bytes, 0, tokens, targets, |[id]: &[u8; 1]| u32::from(*id)),
            Ids::I8 => decode(bytes, 0, tokens, targets, |[id]: &[u8; 1]| i32::from(*id as i8) as u32),
            Ids::I16 => decode(bytes, 0, tokens, targets, |id| {
                i32::from(i16::from_le_bytes(*id)) as u32
            }),
            Ids::I32 => decode(bytes, 0, tokens, targets, |id| u32::from_le_bytes(*id)),
            Ids::I64 => decode(bytes, 0, tokens, targets, |id| {
                u64::from_le_bytes(*id).min(u64::from(u32::MAX)) as u32
            }),
            Ids::U16 => decode(bytes, 0, tokens, targets, |id| u32::from(u16::from_le_bytes(*id))),
        }
    }

    /// Returns one id as stored in the file.
    fn number(self, bytes: &[u8]) -> i64 {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let (wide, shift) = (u64::from_le_bytes(wide), 64 - 8 * self.width());
        match self {
            Ids::U8 | Ids::U16 => wide as i64,
            _ => (wide << shift) as i64 >> shift,
        }
    }
}

/// Positions of the fields of the index.
struct Layout {
    ids: Ids,
    lengths: Range<usize>,
    pointers: Range<usize>,
    bounds: Range<usize>,
}

impl Layout {
    fn of(index: &[u8]) -> std::result::Result<Layout, String> {
        let header = index.get(..HEADER).and_then(|header| header.split_first_chunk::<9>());
        let Some((magic, fields)) = header else {
            return Err("not the index of an indexed dataset (shorter than its header)".into());
        };
        if *magic != MAGIC {
            return Err("not the index of an indexed dataset (wrong magic)".into());
        }
        let field = |at: usize| u64_of(fields, at).unwrap_or(0);
        let version = field(0);
        if version != VERSION {
            return Err(format!(
                "indexed dataset version {version}; this build reads version {VERSION}"
            ));
        }
        let ids = Ids::of_code(fields[8])?;
        let sections = Layout::sections(field(9), field(17));
        let [lengths, pointers, bounds, modes] = sections.ok_or("invalid counts in the header")?;
        let (length, expected) = (index.len(), bounds.end);
        if length != expected && length != modes.end {
            let what = if length < expected { "truncated" } else { "overlong" };
            return Err(format!("{what}: {length} bytes, the header describes {expected}"));
        }
        let mut modes = index[expected..].iter().enumerate();
        if let Some((sequence, mode)) = modes.find(|(_, mode)| **mode != 0) {
            return Err(format!(
                "sequence {sequence} has mode {mode}; only text (0) is supported"
            ));
        }
        Ok(Layout {
            ids,
            lengths,
            pointers,
            bounds,
        })
    }

    /// Returns the sections of lengths, pointers, bounds, and modes, or `None` if the counts overflow.
    fn sections(sequences: u64, bounds: u64) -> Option<[Range<usize>; 4]> {
        let mut end = HEADER;
        let mut section = |count: u64, width: usize| -> Option<Range<usize>> {
            let start = end;
            end = start.checked_add(usize::try_from(count).ok()?.checked_mul(width)?)?;
            Some(start..end)
        };
        Some([
            section(sequences, 4)?,
            section(sequences, 8)?,
            section(bounds, 8)?,
            section(sequences, 1)?,
        ])
    }
}

impl Megatron {
    pub fn open(index: &Path, data: &Path) -> Result<Megatron> {
        let (index, data) = (Mapped::open(index.to_owned())?, Mapped::open(data.to_owned())?);
        let layout = Layout::of(&index.map).map_err(|what| index.damaged(what))?;
        let mut all = Megatron {
            index,
            data,
            layout,
            empty: Vec::new(),
            documents: 0,
            tokens: 0,
            vocab_size: None,
            checksum: 0,
            names: [String::new()],
        };
        all.check_index()?;
        all.checksum = all.hash()?;
        Ok(all)
    }

    /// Checks the whole index and counts documents and tokens.
    fn check_index(&mut self) -> Result<()> {
        let sequences = self.layout.lengths.len() / 4;
        let last = self.layout.bounds.len() / 8;
        if self.bound(0) != Some(0) || self.bound(last as u64 - 1) != Some(sequences) {
            return Err(self.index.damaged("the documents do not cover the sequences"));
        }
        let (mut start, mut pace) = (0, Pace::default());
        for document in 0..last as u64 - 1 {
            let end = self.bound(document + 1).filter(|&end| end >= start && end <= sequences);
            let end = end.ok_or_else(|| {
                let what = format!("document {document} ends before it begins, or past the last sequence");
                self.index.damaged(what)
            })?;
            pace.did(1 + (end - start) as u64)?;
            let tokens = self.document_tokens(start..end);
            match tokens.map_err(|what| self.index.damaged(format!("document {document}: {what}")))? {
                0 => self.empty.push(self.documents),
                tokens => {
                    self.documents += 1;
                    self.tokens += tokens;
                }
            }
            start = end;
        }
        if self.documents == 0 {
            return Err(self.index.damaged("no document has tokens"));
        }
        Ok(())
    }

    /// Returns the number of tokens of sequences, which must be contiguous in the `.bin`.
    fn document_tokens(&self, sequences: Range<usize>) -> std::result::Result<u64, String> {
        let (mut tokens, mut next) = (0, None);
        for sequence in sequences {
            let (pointer, length) = self.sequence(sequence).ok_or("its sequences are outside the index")?;
            let Ok(length) = u32::try_from(length) else {
                return Err(format!("sequence {sequence} has {length} tokens"));
            };
            let end = u64::try_from(pointer)
                .ok()
                .and_then(|start| start.checked_add(u64::from(length) * self.layout.ids.width() as u64));
            let Some(end) = end.filter(|&end| end <= self.data.map.len() as u64) else {
                return Err(format!(
                    "sequence {sequence}, {length} tokens at byte {pointer}, is outside the {} bytes of the .bin",
                    self.data.map.len()
                ));
            };
            if next.is_some_and(|next| next != pointer) {
                return Err(format!(
                    "sequence {sequence} does not follow the previous one in the .bin"
                ));
            }
            tokens += u64::from(length);
            next = Some(end as i64);
        }
        if tokens > u64::from(u32::MAX) {
            return Err(format!("{tokens} tokens; the limit is {}", u32::MAX));
        }
        Ok(tokens)
    }

    fn bound(&self, number: u64) -> Option<usize> {
        let bounds = &self.index.map[self.layout.bounds.clone()];
        usize::try_from(u64_of(bounds, usize::try_from(number).ok()?.checked_mul(8)?)?).ok()
    }

    /// Pointer and length of a sequence.
    fn sequence(&self, number: usize) -> Option<(i64, i32)> {
        let map = &self.index.map;
        let pointer = u64_of(&map[self.layout.pointers.clone()], number.checked_mul(8)?)?;
        let length = map[self.layout.lengths.clone()].get(number * 4..)?.first_chunk()?;
        Some((pointer as i64, i32::from_le_bytes(*length)))
    }

    /// Returns the start of a document in the `.bin` and its number of tokens, or `None` if the index is inconsistent,
    /// which happens only if the open file changes.
    #[inline]
    fn extent(&self, document: u64) -> Option<(usize, u32)> {
        // Documents without tokens are not counted.
        let number = document + self.empty.partition_point(|&before| before <= document) as u64;
        let (first, end) = (self.bound(number)?, self.bound(number + 1)?);
        let (start, _) = self.sequence(first)?;
        let (pointer, length) = self.sequence(end.checked_sub(1)?)?;
        let tokens = (pointer.checked_sub(start)? / self.layout.ids.width() as i64).checked_add(length.into())?;
        Some((
            usize::try_from(start).ok()?,
            u32::try_from(tokens).ok().filter(|&tokens| tokens > 0)?,
        ))
    }

    /// Returns the number of documents that have tokens. The others are skipped.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    pub fn vocab_size(&self) -> Option<u64> {
        self.vocab_size
    }

    /// Sets the size of the vocabulary. Ids from `size` on are errors from now on.
    pub fn set_vocab_size(&mut self, size: u64) {
        self.vocab_size = Some(size);
    }

    /// Returns a checksum of the index, the length of the `.bin`, and some of its pages.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    fn hash(&self) -> Result<u32> {
        let data = &self.data.map;
        let mut hasher = crc32fast::Hasher::new();
        for part in self.index.map.chunks(HASHED) {
            check()?;
            hasher.update(part);
        }
        hasher.update(&(data.len() as u64).to_le_bytes());
        let pages = data.len().div_ceil(PAGE);
        let samples = pages.min(SAMPLES);
        for sample in 0..samples {
            // Evenly spaced, including the first and the last.
            let page = sample * (pages - 1) / (samples - 1).max(1);
            hasher.update(&data[page * PAGE..data.len().min((page + 1) * PAGE)]);
        }
        Ok(hasher.finalize())
    }

    /// Returns the number of tokens of a document.
    #[inline]
    pub fn document_len(&self, document: u64) -> u32 {
        // If the file changed, `read` reports it. A document has at least one token.
        self.extent(document).map_or(1, |(_, tokens)| tokens)
    }

    pub fn sources(&self) -> &[String] {
        &self.names
    }

    /// See [`crate::Shard::check_present`].
    pub fn check_present(&self) -> Result<()> {
        self.index.check_present()?;
        self.data.check_present()
    }

    /// See [`crate::Shard::read`].
    pub fn read(&self, document: u64, start: usize, tokens: &mut [i32], targets: &mut [i32]) -> Result<()> {
        assert!(targets.len() == tokens.len() || targets.len() + 1 == tokens.len());
        let (count, width) = (targets.len() + 1, self.layout.ids.width());
        let bytes = self
            .extent(document)
            .filter(|&(_, len)| start + count <= len as usize)
            .and_then(|(begin, _)| {
                self.data
                    .map
                    .get(begin.checked_add(start * width)?..)?
                    .get(..count * width)
            });
        let bytes = bytes.ok_or_else(|| {
            self.index
                .damaged(format!("document {document} changed while the file was open"))
        })?;
        let largest = self.layout.ids.decode(bytes, tokens, targets);
        let limit = self.vocab_size.unwrap_or(MAX_VOCAB_SIZE);
        if u64::from(largest) < limit {
            return Ok(());
        }
        let mut ids = bytes
            .chunks_exact(width)
            .map(|id| self.layout.ids.number(id))
            .enumerate();
        let wrong = ids.find(|&(_, id)| u64::try_from(id).map_or(true, |id| id >= limit));
        let (at, id) = wrong.unwrap_or((0, largest.into()));
        Err(self.data.damaged(format!(
            "token {} of document {document} has id {id}, outside {}",
            start + at,
            self.vocab_size
                .map_or("any vocabulary".into(), |size| format!("the vocabulary of {size}"))
        )))
    }

    /// Releases the pages that were read, which otherwise count as this process's memory, up to the whole files.
    pub fn release(&self) {
        self.index.release();
        self.data.release();
    }

    /// Checks every id. Opening checked the rest.
    pub fn verify(&self) -> Result<()> {
        let (mut tokens, mut targets) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut pace = Pace::default();
        for document in 0..self.documents {
            let len = self.document_len(document) as usize;
            for start in (0..len).step_by(tokens.len()) {
                let count = tokens.len().min(len - start);
                self.read(document, start, &mut tokens[..count], &mut targets[..count - 1])?;
                pace.did(count as u64)?;
            }
        }
        Ok(())
    }
}

/// Returns `None` past the end of `bytes`.
fn u64_of(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
