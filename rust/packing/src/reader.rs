use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::format::{EXTENSION, Header, Layout, MAX_VOCAB_SIZE, PAGE, token_width, u32_at, u64_at};

/// One shard file, memory-mapped. Opening checks the header and the whole index; every read checks the token pages it
/// touches, so a damaged file is an error and never a wrong token.
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Header,
    layout: Layout,
    names: Vec<String>,
}

impl Shard {
    /// The file must not change while it is open; one cut short under a reader ends the process (SIGBUS). The writer
    /// never changes a published shard.
    pub fn open(path: &Path) -> Result<Shard> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is private to this value and read-only; that nobody changes the file meanwhile is the
        // contract stated above, which no memory-mapped reader can do without.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let damaged = |what: String| Error::damaged(path, what);
        let header = Header::decode(&map).map_err(damaged)?;
        if !(1..=MAX_VOCAB_SIZE).contains(&header.vocab_size) || header.documents == 0 {
            return Err(damaged("impossible counts in the header".into()));
        }
        let layout = header
            .layout()
            .ok_or_else(|| damaged("impossible counts in the header".into()))?;
        let (length, expected) = (map.len(), layout.names.end);
        if length != expected {
            let what = if length < expected { "truncated" } else { "overlong" };
            return Err(damaged(format!(
                "{what}: {length} bytes, the header describes {expected}"
            )));
        }
        if crc32fast::hash(&map[layout.tokens.end..]) != header.index_crc {
            return Err(damaged("damaged index (checksum differs)".into()));
        }
        let names = parse_names(&map[layout.names.clone()]).map_err(damaged)?;
        let shard = Shard {
            path: path.to_owned(),
            map,
            header,
            layout,
            names,
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

    /// The header's checksum, which depends on every byte of the file.
    pub fn checksum(&self) -> u32 {
        u32_at(&self.map, PAGE - 4)
    }

    /// Tokens of a document. Panics if there is no such document, as do the other methods that take one.
    pub fn document_len(&self, document: u64) -> u32 {
        let (start, end) = self.bounds(document);
        (end - start) as u32
    }

    pub fn source(&self, document: u64) -> &str {
        &self.names[self.source_index(document)]
    }

    pub fn sources(&self) -> &[String] {
        &self.names
    }

    pub fn source_index(&self, document: u64) -> usize {
        u32_at(&self.map[self.layout.document_sources.clone()], document as usize * 4) as usize
    }

    /// Loss spans of a document that end after token `from`: `(start, end)` in tokens of the document, ascending.
    pub fn spans(&self, document: u64, from: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let (start, end) = range_between(&self.map[self.layout.span_ends.clone()], document);
        let spans = &self.map[self.layout.spans.clone()][start as usize * 8..end as usize * 8];
        let spans = spans.as_chunks::<8>().0;
        let first = spans.partition_point(|span| u32_at(span, 4) as usize <= from);
        spans[first..]
            .iter()
            .map(|span| (u32_at(span, 0) as usize, u32_at(span, 4) as usize))
    }

    /// Reads `out.len()` tokens of a document from token `start` on. Panics if the document has fewer.
    pub fn read(&self, document: u64, start: usize, out: &mut [i32]) -> Result<()> {
        let (begin, end) = self.bounds(document);
        assert!(
            start + out.len() <= (end - begin) as usize,
            "read past the end of a document"
        );
        if out.is_empty() {
            return Ok(());
        }
        let width = token_width(self.header.vocab_size);
        let from = (begin as usize + start) * width;
        let to = from + out.len() * width;
        self.check_pages(from / PAGE, to.div_ceil(PAGE))?;
        let bytes = &self.map[self.layout.tokens.clone()][from..to];
        let largest = if width == 2 {
            decode::<2>(bytes, out)
        } else {
            decode::<4>(bytes, out)
        };
        self.check_id(largest)
    }

    /// Checks every token page and id. Opening has checked the rest.
    pub fn verify(&self) -> Result<()> {
        let mut tokens = vec![0; 1 << 16];
        for document in 0..self.documents() {
            let len = self.document_len(document) as usize;
            for start in (0..len).step_by(tokens.len()) {
                let count = tokens.len().min(len - start);
                self.read(document, start, &mut tokens[..count])?;
            }
        }
        Ok(())
    }

    fn bounds(&self, document: u64) -> (u64, u64) {
        range_between(&self.map[self.layout.document_ends.clone()], document)
    }

    fn check_pages(&self, from: usize, to: usize) -> Result<()> {
        let pages = self.map[self.layout.tokens.clone()][from * PAGE..to * PAGE].chunks_exact(PAGE);
        let crcs = self.map[self.layout.page_crcs.clone()][from * 4..to * 4].chunks_exact(4);
        for (number, (page, crc)) in (from..).zip(pages.zip(crcs)) {
            if crc32fast::hash(page) != u32_at(crc, 0) {
                let at = self.layout.tokens.start + number * PAGE;
                return Err(Error::damaged(
                    &self.path,
                    format!("damaged tokens at byte {at} (checksum differs)"),
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

    /// A checksum shows that the bytes are as written, not that they make sense.
    fn check_index(&self) -> std::result::Result<(), String> {
        let document_ends = &self.map[self.layout.document_ends.clone()];
        let span_ends = &self.map[self.layout.span_ends.clone()];
        let spans = &self.map[self.layout.spans.clone()];
        let (mut tokens, mut span) = (0, 0);
        for document in 0..self.header.documents as usize {
            let end = u64_at(document_ends, document * 8);
            if end <= tokens || end > self.header.tokens || end - tokens > u64::from(u32::MAX) {
                return Err(format!(
                    "document {document} ends at token {end}, after one that ends at {tokens}"
                ));
            }
            let span_end = u64_at(span_ends, document * 8);
            if span_end < span || span_end > self.header.spans {
                return Err(format!("document {document} has impossible loss spans"));
            }
            let mut last = 0;
            for at in span..span_end {
                let (start, stop) = (u32_at(spans, at as usize * 8), u32_at(spans, at as usize * 8 + 4));
                if start < last || stop <= start || u64::from(stop) > end - tokens {
                    return Err(format!(
                        "document {document} has an impossible loss span {start}..{stop}"
                    ));
                }
                last = stop;
            }
            if self.source_index(document as u64) >= self.names.len() {
                return Err(format!("document {document} has an unknown source"));
            }
            (tokens, span) = (end, span_end);
        }
        if (tokens, span) != (self.header.tokens, self.header.spans) {
            return Err("the documents do not cover the tokens and spans".into());
        }
        Ok(())
    }
}

/// `(ends[i - 1], ends[i])`, or `(0, ends[0])`.
fn range_between(ends: &[u8], i: u64) -> (u64, u64) {
    let at = i as usize * 8;
    (if at == 0 { 0 } else { u64_at(ends, at - 8) }, u64_at(ends, at))
}

/// Decodes the ids and returns the largest.
fn decode<const WIDTH: usize>(bytes: &[u8], out: &mut [i32]) -> u32 {
    let mut largest = 0;
    for (token, bytes) in out.iter_mut().zip(bytes.as_chunks::<WIDTH>().0) {
        let mut id = [0; 4];
        id[..WIDTH].copy_from_slice(bytes);
        let id = u32::from_le_bytes(id);
        largest = largest.max(id);
        *token = id as i32;
    }
    largest
}

fn parse_names(mut bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
    let mut names = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        let (name, rest) = rest
            .split_at_checked(len)
            .ok_or("a source name runs past the end of the file")?;
        names.push(String::from_utf8(name.to_vec()).map_err(|_| "a source name is not UTF-8")?);
        bytes = rest;
    }
    if bytes.is_empty() {
        Ok(names)
    } else {
        Err("stray bytes after the source names".into())
    }
}

/// The shards of a folder as one sequence of documents.
pub struct Shards {
    shards: Vec<Shard>,
    /// Documents before each shard.
    first: Vec<u64>,
    documents: u64,
    tokens: u64,
}

impl Shards {
    pub fn open(folder: &Path) -> Result<Shards> {
        let files = shard_files(folder)?;
        if files.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: no token shards (*.{EXTENSION}) here",
                folder.display()
            )));
        }
        let mut all = Shards {
            shards: Vec::new(),
            first: Vec::new(),
            documents: 0,
            tokens: 0,
        };
        for (expected, (number, path)) in files.into_iter().enumerate() {
            if number != expected {
                let what = format!("shard {expected:05}.{EXTENSION} is missing before this one");
                return Err(Error::damaged(&path, what));
            }
            let shard = Shard::open(&path)?;
            if shard.vocab_size() != all.shards.first().unwrap_or(&shard).vocab_size() {
                return Err(Error::damaged(
                    &path,
                    "its vocabulary size differs from that of the first shard",
                ));
            }
            all.first.push(all.documents);
            all.documents += shard.documents();
            all.tokens += shard.tokens();
            all.shards.push(shard);
        }
        Ok(all)
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    pub fn vocab_size(&self) -> u64 {
        self.shards[0].vocab_size()
    }

    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The shard that holds a document, and the document's number there. Panics if there is no such document.
    pub fn locate(&self, document: u64) -> (&Shard, u64) {
        let shard = self.first.partition_point(|&first| first <= document) - 1;
        (&self.shards[shard], document - self.first[shard])
    }

    pub fn document_len(&self, document: u64) -> u32 {
        let (shard, document) = self.locate(document);
        shard.document_len(document)
    }

    /// Source names, each once, in order of first appearance, and for each shard the place of its names among them.
    pub fn sources(&self) -> (Vec<String>, Vec<Vec<usize>>) {
        let mut names: Vec<String> = Vec::new();
        let mut places = Vec::new();
        for shard in &self.shards {
            let place = |name: &String| {
                names.iter().position(|known| known == name).unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                })
            };
            places.push(shard.sources().iter().map(place).collect());
        }
        (names, places)
    }

    pub fn verify(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::verify)
    }
}

/// Number and path of every shard file in a folder, by number. Other files, such as unfinished shards, are passed over.
pub(crate) fn shard_files(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        let number = number.ok_or_else(|| Error::damaged(&path, "a shard is named by its number"))?;
        files.push((number, path));
    }
    files.sort();
    Ok(files)
}
