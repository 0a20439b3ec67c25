use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use cwm_interrupt::Pace;
use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};
use crate::format::{Header, Layout, MAX_VOCAB_SIZE, PAGE, RUN, SPAN, token_width, u32_at, u64_at};

/// Pages checked at a time, few enough to be in the cache still when they are decoded.
const READ_PAGES: usize = 4;

/// One shard file, memory-mapped. Opening checks the index, and every read checks the pages that it touches, so a
/// damaged file is an error and never yields a wrong token. Callers call [`Shard::check_present`] before they read:
/// touching a page past the end of a truncated file would kill the process.
pub struct Shard {
    path: PathBuf,
    file: File,
    map: Mmap,
    header: Header,
    layout: Layout,
    names: Vec<String>,
    labels: Vec<String>,
}

/// A labeled part of a document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
    /// Index into [`Shard::labels`].
    pub label: u32,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Shard> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only and private to this value. `check_present` detects truncated files. Like every
        // reader of a map, this one relies on files not being rewritten in place; the writer never does that.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let damaged = |what: String| Error::damaged(path, what);
        let header = Header::decode(&map).map_err(damaged)?;
        let layout = header
            .layout()
            .filter(|_| (1..=MAX_VOCAB_SIZE).contains(&header.vocab_size) && header.documents > 0);
        let layout = layout.ok_or_else(|| damaged("invalid counts in the header".into()))?;
        let (length, expected) = (map.len(), layout.labels.end);
        if length != expected {
            let what = if length < expected { "truncated" } else { "overlong" };
            return Err(damaged(format!(
                "{what}: {length} bytes, the header describes {expected}"
            )));
        }
        if crc32fast::hash(&map[layout.spans.end..]) != header.index_crc {
            return Err(damaged("damaged index (checksum mismatch)".into()));
        }
        let names = parse_names(&map[layout.names.clone()]).map_err(damaged)?;
        let labels = parse_names(&map[layout.labels.clone()]).map_err(damaged)?;
        let shard = Shard {
            path: path.to_owned(),
            file,
            map,
            header,
            layout,
            names,
            labels,
        };
        shard.check_index().map_err(damaged)?;
        Ok(shard)
    }

    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    pub fn vocab_size(&self) -> u64 {
        self.header.vocab_size
    }

    /// Returns the fingerprint of the vocabulary, or `None` if it is not known.
    pub fn fingerprint(&self) -> Option<u64> {
        Some(self.header.fingerprint).filter(|&fingerprint| fingerprint != 0)
    }

    /// Returns the header's checksum, which depends on every byte of the file.
    pub fn checksum(&self) -> u32 {
        u32_at(&self.map, PAGE - 4)
    }

    /// Returns the number of tokens of a document. Like the other methods that take a document, panics if there is
    /// none.
    #[inline]
    pub fn document_len(&self, document: u64) -> u32 {
        let (start, end) = self.bounds(&self.layout.document_ends, document);
        (end - start) as u32
    }

    /// Returns the names of sources. [`Shard::source_index`] is an index into them.
    pub fn sources(&self) -> &[String] {
        &self.names
    }

    pub fn source_index(&self, document: u64) -> usize {
        u32_at(self.section(&self.layout.document_sources), document as usize * 4) as usize
    }

    /// Returns the labels of spans.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Fails if the file was truncated since it was opened. (It can still be truncated between this check and a read.)
    pub fn check_present(&self) -> Result<()> {
        let length = self.file.metadata().map_err(Error::io(&self.path))?.len();
        if length < self.layout.labels.end as u64 {
            return Err(Error::damaged(
                &self.path,
                format!("truncated to {length} bytes while open"),
            ));
        }
        Ok(())
    }

    /// Reads `tokens.len()` tokens of a document from token `start` on, and into `targets` the tokens from `start + 1`
    /// on: as many, or one less at the end of the document. Writes both in one pass, while the bytes are in the cache.
    /// Panics if the document has fewer tokens, or `targets` has another length.
    pub fn read(&self, document: u64, start: usize, tokens: &mut [i32], targets: &mut [i32]) -> Result<()> {
        assert!(targets.len() == tokens.len() || targets.len() + 1 == tokens.len());
        let (begin, end) = self.bounds(&self.layout.document_ends, document);
        let count = targets.len() + 1;
        assert!(
            start + count <= (end - begin) as usize,
            "read past the end of a document"
        );
        let width = token_width(self.header.vocab_size);
        let from = (begin as usize + start) * width;
        let (mut at, mut largest) = (0, 0);
        self.read_pages(&self.layout.tokens, from..from + count * width, |bytes| {
            largest = largest.max(match width {
                2 => decode(bytes, at, tokens, targets, |id| u32::from(u16::from_le_bytes(*id))),
                _ => decode(bytes, at, tokens, targets, |id| u32::from_le_bytes(*id)),
            });
            at += bytes.len() / width;
        })?;
        self.check_id(largest)
    }

    /// Reads the runs of a document's tokens that are excluded from the loss, ascending and disjoint.
    pub fn masked_runs(&self, document: u64, out: &mut Vec<[u32; 2]>) -> Result<()> {
        out.clear();
        let (start, end) = self.bounds(&self.layout.run_ends, document);
        let range = start as usize * RUN..end as usize * RUN;
        self.read_records::<RUN>(&self.layout.runs, range, |run| {
            out.push([u32_at(run, 0), u32_at(run, 4)]);
        })?;
        let (length, mut last) = (self.document_len(document), 0);
        for (number, &[start, end]) in out.iter().enumerate() {
            if (number > 0 && start <= last) || end <= start || end > length {
                return Err(self.invalid(document, "masked run", start, end));
            }
            last = end;
        }
        Ok(())
    }

    /// Reads the labeled spans of a document, sorted by start.
    pub fn spans(&self, document: u64, out: &mut Vec<Span>) -> Result<()> {
        out.clear();
        let (start, end) = self.bounds(&self.layout.span_ends, document);
        let range = start as usize * SPAN..end as usize * SPAN;
        self.read_records::<SPAN>(&self.layout.spans, range, |span| {
            let (start, end, label) = (u32_at(span, 0), u32_at(span, 4), u32_at(span, 8));
            out.push(Span { start, end, label });
        })?;
        let length = self.document_len(document);
        let wrong = |span: &&Span| span.end <= span.start || span.end > length;
        match out.iter().find(wrong) {
            Some(span) => Err(self.invalid(document, "span", span.start, span.end)),
            None if out.iter().any(|span| span.label as usize >= self.labels.len()) => Err(Error::damaged(
                &self.path,
                format!("document {document} has a span of an unknown label"),
            )),
            None => Ok(()),
        }
    }

    /// Releases the pages that were read, which otherwise count as this process's memory, up to the whole file.
    pub fn release(&self) {
        // SAFETY: the map is of a file and read-only, so pages that are touched again are read again. An error is
        // harmless: the pages stay.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }

    /// Checks every page, id, run, and span. Opening checked the rest.
    pub fn verify(&self) -> Result<()> {
        let (mut runs, mut spans) = (Vec::new(), Vec::new());
        let (mut tokens, mut targets) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut pace = Pace::default();
        for document in 0..self.documents() {
            let len = self.document_len(document) as usize;
            for start in (0..len).step_by(tokens.len()) {
                let count = tokens.len().min(len - start);
                let (tokens, targets) = (&mut tokens[..count], &mut targets[..count - 1]);
                self.read(document, start, tokens, targets)?;
                pace.did(count as u64)?;
            }
            self.masked_runs(document, &mut runs)?;
            self.spans(document, &mut spans)?;
        }
        Ok(())
    }

    fn invalid(&self, document: u64, what: &str, start: u32, end: u32) -> Error {
        Error::damaged(
            &self.path,
            format!("document {document} has an invalid {what} {start}..{end}"),
        )
    }

    fn section(&self, range: &Range<usize>) -> &[u8] {
        &self.map[range.clone()]
    }

    /// Returns the start and end of a document's records, from a section of ends.
    #[inline]
    fn bounds(&self, ends: &Range<usize>, document: u64) -> (u64, u64) {
        let (ends, at) = (self.section(ends), document as usize * 8);
        (if at == 0 { 0 } else { u64_at(ends, at - 8) }, u64_at(ends, at))
    }

    fn read_records<const BYTES: usize>(
        &self,
        section: &Range<usize>,
        range: Range<usize>,
        mut take: impl FnMut(&[u8; BYTES]),
    ) -> Result<()> {
        // A record may cross the boundary between two reads.
        let mut cut = Vec::new();
        self.read_pages(section, range, |mut bytes| {
            if !cut.is_empty() {
                let missing = bytes.len().min(BYTES - cut.len());
                cut.extend(&bytes[..missing]);
                bytes = &bytes[missing..];
            }
            if let Ok(record) = <&[u8; BYTES]>::try_from(cut.as_slice()) {
                take(record);
                cut.clear();
            }
            let (records, rest) = bytes.as_chunks::<BYTES>();
            records.iter().for_each(&mut take);
            cut.extend(rest);
        })
    }

    /// Passes the bytes of a range of a section to `take`, in order and in parts, after checking their pages.
    fn read_pages(&self, section: &Range<usize>, range: Range<usize>, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut from = range.start;
        while from < range.end {
            let first = from / PAGE;
            let to = range.end.min((first + READ_PAGES) * PAGE);
            let at = section.start + first * PAGE;
            let pages = &self.map[at..section.start + to.div_ceil(PAGE) * PAGE];
            self.check_pages(pages, at)?;
            take(&pages[from - first * PAGE..to - first * PAGE]);
            from = to;
        }
        Ok(())
    }

    /// Checks pages, the first of which is at byte `at` of the file, against their checksums.
    fn check_pages(&self, pages: &[u8], at: usize) -> Result<()> {
        let first = (at - PAGE) / PAGE;
        let crcs = &self.section(&self.layout.page_crcs)[first * 4..];
        for (number, page) in pages.chunks_exact(PAGE).enumerate() {
            if crc32fast::hash(page) != u32_at(crcs, number * 4) {
                let at = at + number * PAGE;
                return Err(Error::damaged(
                    &self.path,
                    format!("damaged page at byte {at} (checksum mismatch)"),
                ));
            }
        }
        Ok(())
    }

    fn check_id(&self, id: u32) -> Result<()> {
        let size = self.header.vocab_size;
        if u64::from(id) < size {
            return Ok(());
        }
        Err(Error::damaged(
            &self.path,
            format!("token id {id} outside the vocabulary of {size}"),
        ))
    }

    /// Checks that the index is consistent. The checksum only shows that its bytes are the ones written.
    fn check_index(&self) -> std::result::Result<(), String> {
        let ascending = |section: &Range<usize>, total: u64| {
            let mut last = 0;
            let fits = self.section(section).as_chunks::<8>().0.iter().all(|end| {
                let end = u64::from_le_bytes(*end);
                let fits = end >= last;
                last = end;
                fits
            });
            fits && last == total
        };
        let Header {
            tokens, runs, spans, ..
        } = self.header;
        let layout = &self.layout;
        if !ascending(&layout.document_ends, tokens)
            || !ascending(&layout.run_ends, runs)
            || !ascending(&layout.span_ends, spans)
        {
            return Err("the documents do not cover the tokens, masked runs, and spans".into());
        }
        for document in 0..self.header.documents {
            let (start, end) = self.bounds(&layout.document_ends, document);
            if start == end || end - start > u64::from(u32::MAX) {
                return Err(format!("document {document} has {} tokens", end - start));
            }
        }
        let sources = self.section(&layout.document_sources).as_chunks::<4>().0;
        let known = |source: &[u8; 4]| (u32::from_le_bytes(*source) as usize) < self.names.len();
        match sources.iter().position(|source| !known(source)) {
            Some(document) => Err(format!("document {document} has an unknown source")),
            None => Ok(()),
        }
    }
}

/// Decodes ids and returns the largest. `at` is the number of ids decoded before them.
#[inline]
pub(crate) fn decode<const WIDTH: usize>(
    bytes: &[u8],
    at: usize,
    tokens: &mut [i32],
    targets: &mut [i32],
    id: impl Fn(&[u8; WIDTH]) -> u32,
) -> u32 {
    let mut ids = bytes.as_chunks::<WIDTH>().0;
    let (mut at, mut largest) = (at, 0);
    if at == 0 {
        // The first token is not a target.
        largest = id(&ids[0]);
        tokens[0] = largest as i32;
        (at, ids) = (1, &ids[1..]);
    }
    let end = (at + ids.len()).min(tokens.len());
    let (inside, beyond) = ids.split_at(end - at);
    let out = tokens[at..end].iter_mut().zip(&mut targets[at - 1..]);
    for (bytes, (token, target)) in inside.iter().zip(out) {
        let id = id(bytes);
        largest = largest.max(id);
        (*token, *target) = (id as i32, id as i32);
    }
    if let Some(bytes) = beyond.first() {
        largest = largest.max(id(bytes));
        targets[end - 1] = id(bytes) as i32;
    }
    largest
}

fn parse_names(mut bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
    let mut names = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        let (name, rest) = rest.split_at_checked(len).ok_or("a name extends past its section")?;
        names.push(String::from_utf8(name.to_vec()).map_err(|_| "a name is not UTF-8")?);
        bytes = rest;
    }
    if bytes.is_empty() {
        Ok(names)
    } else {
        Err("unexpected bytes after the names".into())
    }
}
