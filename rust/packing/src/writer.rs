use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::format::{EXTENSION, Header, MAX_VOCAB_SIZE, PAGE, token_width};
use crate::reader::shard_files;

/// Tokens go to the file in writes of this many bytes.
const WRITE_BYTES: usize = 256 * PAGE;

/// Writes documents to `folder/00000.cwmtok`, `00001.cwmtok`, ...; a shard appears under its name only when it is
/// complete and on disk. Dropping the writer without [`ShardWriter::finish`] discards the shard under way.
pub struct ShardWriter {
    folder: PathBuf,
    vocab_size: u64,
    shard_tokens: u64,
    published: usize,
    open: Option<OpenShard>,
    closed: bool,
}

impl ShardWriter {
    /// Creates `folder` if need be. A folder that already holds shards is refused: a second run of the same job would
    /// put every document in twice.
    pub fn create(folder: &Path, vocab_size: u64, shard_tokens: u64) -> Result<ShardWriter> {
        if !(1..=MAX_VOCAB_SIZE).contains(&vocab_size) {
            return Err(Error::Invalid(format!(
                "vocab_size must be 1 to {MAX_VOCAB_SIZE}, not {vocab_size}"
            )));
        }
        if shard_tokens == 0 {
            return Err(Error::Invalid("shard_tokens must be at least 1".into()));
        }
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        if let Some((_, path)) = shard_files(folder)?.first() {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "the folder already holds token shards");
            return Err(Error::Io {
                path: path.clone(),
                error,
            });
        }
        Ok(ShardWriter {
            folder: folder.to_owned(),
            vocab_size,
            shard_tokens,
            published: 0,
            open: None,
            closed: false,
        })
    }

    /// Adds one document. Without `loss_mask` the loss is on for every token. A document is never split between
    /// shards; one that would take the shard past `shard_tokens` opens the next. An invalid document changes nothing.
    pub fn add(&mut self, ids: &[u32], loss_mask: Option<&[bool]>, source: &str) -> Result<()> {
        self.check_open()?;
        self.check_document(ids, loss_mask)?;
        if self
            .open
            .as_ref()
            .is_some_and(|shard| shard.tokens() + ids.len() as u64 > self.shard_tokens)
        {
            self.publish()?;
        }
        // A shard that failed to take a document is dropped, and the writer with it: half a document may be in it.
        let mut shard = match self.open.take() {
            Some(shard) => shard,
            None => OpenShard::create(&self.folder, self.vocab_size)?,
        };
        self.closed = true;
        shard.push(ids, loss_mask, source).map_err(Error::io(&self.folder))?;
        self.closed = false;
        self.open = Some(shard);
        Ok(())
    }

    /// Publishes the shard under way; the writer takes nothing more. Does nothing the second time.
    pub fn finish(&mut self) -> Result<()> {
        if self.open.is_some() {
            self.publish()?;
        }
        self.closed = true;
        Ok(())
    }

    /// Drops the shard under way; shards already published stay.
    pub fn discard(&mut self) {
        self.open = None;
        self.closed = true;
    }

    fn check_open(&self) -> Result<()> {
        if self.closed {
            Err(Error::Invalid("the shard writer is closed".into()))
        } else {
            Ok(())
        }
    }

    fn check_document(&self, ids: &[u32], loss_mask: Option<&[bool]>) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Invalid("a document needs at least one token".into()));
        }
        if u32::try_from(ids.len()).is_err() {
            return Err(Error::Invalid(format!(
                "a document of {} tokens; at most {} fit",
                ids.len(),
                u32::MAX
            )));
        }
        if let Some(at) = ids.iter().position(|&id| u64::from(id) >= self.vocab_size) {
            let (id, size) = (ids[at], self.vocab_size);
            return Err(Error::Invalid(format!(
                "token {at} has id {id}, outside the vocabulary of {size}"
            )));
        }
        match loss_mask {
            Some(mask) if mask.len() != ids.len() => Err(Error::Invalid(format!(
                "loss_mask has {} entries for {} tokens",
                mask.len(),
                ids.len()
            ))),
            _ => Ok(()),
        }
    }

    fn publish(&mut self) -> Result<()> {
        let path = self.folder.join(format!("{:05}.{EXTENSION}", self.published));
        if let Some(shard) = self.open.take() {
            self.closed = true;
            shard.publish(&path).map_err(Error::io(&path))?;
            self.closed = false;
            self.published += 1;
        }
        Ok(())
    }
}

struct OpenShard {
    file: NamedTempFile,
    vocab_size: u64,
    /// Token bytes not yet in the file.
    pending: Vec<u8>,
    page_crcs: Vec<u32>,
    document_ends: Vec<u64>,
    span_ends: Vec<u64>,
    spans: Vec<[u32; 2]>,
    document_sources: Vec<u32>,
    names: Vec<u8>,
    name_index: HashMap<String, u32>,
}

impl OpenShard {
    fn create(folder: &Path, vocab_size: u64) -> Result<OpenShard> {
        let mut file = tempfile::Builder::new()
            .prefix(".unfinished-")
            // As any new file: the umask applies. The crate's default keeps other users out.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(Error::io(folder))?;
        file.write_all(&[0; PAGE]).map_err(Error::io(folder))?;
        Ok(OpenShard {
            file,
            vocab_size,
            pending: Vec::new(),
            page_crcs: Vec::new(),
            document_ends: Vec::new(),
            span_ends: Vec::new(),
            spans: Vec::new(),
            document_sources: Vec::new(),
            names: Vec::new(),
            name_index: HashMap::new(),
        })
    }

    fn tokens(&self) -> u64 {
        self.document_ends.last().copied().unwrap_or(0)
    }

    fn push(&mut self, ids: &[u32], loss_mask: Option<&[bool]>, source: &str) -> io::Result<()> {
        match token_width(self.vocab_size) {
            2 => self
                .pending
                .extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            _ => self.pending.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
        self.document_ends.push(self.tokens() + ids.len() as u64);
        match loss_mask {
            None => self.spans.push([0, ids.len() as u32]),
            Some(mask) => push_runs(mask, &mut self.spans),
        }
        self.span_ends.push(self.spans.len() as u64);
        let source = self.intern(source);
        self.document_sources.push(source);
        if self.pending.len() >= WRITE_BYTES {
            self.write_pages()
        } else {
            Ok(())
        }
    }

    fn intern(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.name_index.get(name) {
            return index;
        }
        let index = self.name_index.len() as u32;
        self.name_index.insert(name.to_owned(), index);
        self.names.extend((name.len() as u32).to_le_bytes());
        self.names.extend(name.as_bytes());
        index
    }

    /// Writes the pending bytes that fill whole pages.
    fn write_pages(&mut self) -> io::Result<()> {
        let whole = self.pending.len() / PAGE * PAGE;
        self.page_crcs
            .extend(self.pending[..whole].chunks_exact(PAGE).map(crc32fast::hash));
        self.file.write_all(&self.pending[..whole])?;
        self.pending.drain(..whole);
        Ok(())
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        self.pending.resize(self.pending.len().next_multiple_of(PAGE), 0);
        self.write_pages()?;
        let index = self.index();
        self.file.write_all(&index)?;
        let header = Header {
            vocab_size: self.vocab_size,
            documents: self.document_ends.len() as u64,
            tokens: self.tokens(),
            spans: self.spans.len() as u64,
            name_bytes: self.names.len() as u64,
            index_crc: crc32fast::hash(&index),
        };
        self.file.rewind()?;
        self.file.write_all(&header.encode())?;
        // The name must not reach the disk before the content does, nor be lost after we report success.
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    fn index(&self) -> Vec<u8> {
        let mut index = Vec::new();
        index.extend(self.page_crcs.iter().flat_map(|crc| crc.to_le_bytes()));
        index.extend(self.document_ends.iter().flat_map(|end| end.to_le_bytes()));
        index.extend(self.span_ends.iter().flat_map(|end| end.to_le_bytes()));
        index.extend(self.spans.as_flattened().iter().flat_map(|bound| bound.to_le_bytes()));
        index.extend(self.document_sources.iter().flat_map(|source| source.to_le_bytes()));
        index.extend(&self.names);
        index
    }
}

fn push_runs(mask: &[bool], spans: &mut Vec<[u32; 2]>) {
    let mut start = 0;
    for run in mask.chunk_by(|a, b| a == b) {
        let end = start + run.len() as u32;
        if run[0] {
            spans.push([start, end]);
        }
        start = end;
    }
}
