use std::collections::HashMap;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Seek, Write};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::format::{EXTENSION, Header, MAX_VOCAB_SIZE, PAGE, token_width};
use crate::shards::{Shards, shard_files};

/// Bytes of tokens in one write.
const WRITE_BYTES: usize = 256 * PAGE;
const UNFINISHED: &str = ".unfinished-";

/// A document to write.
#[derive(Clone, Copy, Default)]
pub struct NewDocument<'a> {
    pub ids: &'a [u32],
    /// True where the token is in the loss. By default, every token is.
    pub loss_mask: Option<&'a [bool]>,
    /// Labels, and the ranges of tokens that have them.
    pub spans: &'a [(String, Vec<Range<u32>>)],
    pub source: &'a str,
}

/// Writes documents to `folder/00000.cwmtok`, `00001.cwmtok`, and so on. A shard gets its name only when it is complete
/// and on disk. Dropping the writer without [`ShardWriter::finish`] discards the unfinished shard.
pub struct ShardWriter {
    folder: PathBuf,
    vocab_size: u64,
    /// Fingerprint of the vocabulary; 0 if it is not known.
    fingerprint: u64,
    shard_tokens: u64,
    published: usize,
    documents: u64,
    tokens: u64,
    open: Option<ManuallyDrop<OpenShard>>,
    closed: bool,
    /// Held while the writer is open: two writers would remove each other's unfinished shards.
    lock: File,
    /// The process that opened the writer. A fork must not touch its parent's files.
    process: u32,
}

impl ShardWriter {
    /// Opens a folder, and creates it if needed. Fails if the folder already holds shards, because a second run of a
    /// job would write every document twice. With `append`, checks the shards in the folder, removes unfinished ones of
    /// a killed writer, and appends new shards.
    pub fn create(folder: &Path, vocab_size: u64, shard_tokens: u64, append: bool) -> Result<ShardWriter> {
        if !(1..=MAX_VOCAB_SIZE).contains(&vocab_size) {
            return Err(Error::Invalid(format!(
                "vocab_size must be 1 to {MAX_VOCAB_SIZE}, not {vocab_size}"
            )));
        }
        if shard_tokens == 0 {
            return Err(Error::Invalid("shard_tokens must be at least 1".into()));
        }
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let lock = lock(folder)?;
        let mut writer = ShardWriter {
            folder: folder.to_owned(),
            vocab_size,
            fingerprint: 0,
            shard_tokens,
            published: 0,
            documents: 0,
            tokens: 0,
            open: None,
            closed: false,
            lock,
            process: process::id(),
        };
        let files = shard_files(folder)?;
        if let Some((_, path)) = files.first() {
            if !append {
                let error = io::Error::new(io::ErrorKind::AlreadyExists, "the folder already holds token shards");
                return Err(Error::Io {
                    path: path.clone(),
                    error,
                });
            }
            writer.append_to(&Shards::open(folder)?)?;
        }
        remove_unfinished(folder)?;
        Ok(writer)
    }

    fn append_to(&mut self, shards: &Shards) -> Result<()> {
        if let Some(size) = shards.vocab_size().filter(|&size| size != self.vocab_size) {
            return Err(Error::Invalid(format!(
                "{}: its shards have a vocabulary of {size} ids, not {}",
                self.folder.display(),
                self.vocab_size
            )));
        }
        self.fingerprint = shards.fingerprint().unwrap_or(0);
        self.published = shards.parts().len();
        self.documents = shards.documents();
        self.tokens = shards.tokens();
        Ok(())
    }

    /// Sets the fingerprint of the documents' vocabulary, from the next shard on. Fails if the shards in the folder
    /// store another fingerprint.
    pub fn set_fingerprint(&mut self, fingerprint: u64) -> Result<()> {
        if self.fingerprint != 0 && self.fingerprint != fingerprint {
            return Err(Error::Invalid(format!(
                "{}: its shards were made with another vocabulary (fingerprint {:016x}) than the one given \
                 ({fingerprint:016x}); use the tokenizer that made them, or another folder",
                self.folder.display(),
                self.fingerprint
            )));
        }
        self.fingerprint = fingerprint;
        Ok(())
    }

    /// Returns the number of documents in the folder, including the unfinished shard.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Returns the number of tokens in the folder, including the unfinished shard.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds a document. A document is never split between shards; one that would grow the shard past `shard_tokens`
    /// starts the next shard. An invalid document is not added.
    pub fn add(&mut self, document: &NewDocument<'_>) -> Result<()> {
        self.check_open()?;
        self.check_document(document)?;
        let tokens = document.ids.len() as u64;
        if self
            .open
            .as_ref()
            .is_some_and(|shard| shard.tokens() + tokens > self.shard_tokens)
        {
            self.publish()?;
        }
        // If writing fails, half a document may be in the shard, so the shard is dropped and the writer closed.
        let mut shard = match self.open.take() {
            Some(shard) => ManuallyDrop::into_inner(shard),
            None => OpenShard::create(&self.folder, self.vocab_size, self.fingerprint)?,
        };
        self.closed = true;
        shard.push(document).map_err(Error::io(&self.folder))?;
        self.closed = false;
        self.open = Some(ManuallyDrop::new(shard));
        self.documents += 1;
        self.tokens += tokens;
        Ok(())
    }

    /// Publishes the unfinished shard and closes the writer. A second call does nothing.
    pub fn finish(&mut self) -> Result<()> {
        self.check_process()?;
        if self.open.is_some() {
            self.publish()?;
        }
        self.close();
        Ok(())
    }

    /// Drops the unfinished shard and closes the writer. Published shards stay.
    pub fn discard(&mut self) {
        if self.process == process::id() {
            drop(self.open.take().map(ManuallyDrop::into_inner));
            self.close();
        }
    }

    fn close(&mut self) {
        self.closed = true;
        // Otherwise a fork that inherited the file would keep the lock. An error leaves the lock to the fork.
        let _ = self.lock.unlock();
    }

    fn check_process(&self) -> Result<()> {
        if self.process == process::id() {
            return Ok(());
        }
        Err(Error::Invalid(
            "a shard writer belongs to the process that opened it".into(),
        ))
    }

    fn check_open(&self) -> Result<()> {
        self.check_process()?;
        if self.closed {
            Err(Error::Invalid("the shard writer is closed".into()))
        } else {
            Ok(())
        }
    }

    fn check_document(&self, document: &NewDocument<'_>) -> Result<()> {
        let invalid = |what: String| Err(Error::Invalid(what));
        let ids = document.ids;
        let Ok(length) = u32::try_from(ids.len()) else {
            return invalid(format!(
                "the document has {} tokens; the limit is {}",
                ids.len(),
                u32::MAX
            ));
        };
        if length == 0 {
            return invalid("a document needs at least one token".into());
        }
        // Finding the maximum is much faster than finding the first id that is too large.
        if ids.iter().copied().max().is_some_and(|id| !self.has_id(id))
            && let Some(at) = ids.iter().position(|&id| !self.has_id(id))
        {
            let (id, size) = (ids[at], self.vocab_size);
            return invalid(format!("token {at} has id {id}, outside the vocabulary of {size}"));
        }
        if let Some(mask) = document.loss_mask.filter(|mask| mask.len() != ids.len()) {
            let entries = mask.len();
            return invalid(format!("loss_mask has {entries} entries for {length} tokens"));
        }
        for (label, ranges) in document.spans {
            if let Some(Range { start, end }) = ranges.iter().find(|span| span.start >= span.end || span.end > length) {
                return invalid(format!(
                    "span {start}..{end} labeled {label:?} is empty or outside a document of {length} tokens"
                ));
            }
        }
        Ok(())
    }

    fn has_id(&self, id: u32) -> bool {
        u64::from(id) < self.vocab_size
    }

    fn publish(&mut self) -> Result<()> {
        let path = self.folder.join(format!("{:05}.{EXTENSION}", self.published));
        if let Some(shard) = self.open.take() {
            self.closed = true;
            ManuallyDrop::into_inner(shard)
                .publish(&path)
                .map_err(Error::io(&path))?;
            self.closed = false;
            self.published += 1;
        }
        Ok(())
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Locks a folder. Fails if another writer holds the lock.
fn lock(folder: &Path) -> Result<File> {
    let file = File::open(folder).map_err(Error::io(folder))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let error = io::Error::new(io::ErrorKind::WouldBlock, "another shard writer is using this folder");
            Err(Error::io(folder)(error))
        }
        // Some network file systems do not support locks.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(Error::io(folder)(error)),
    }
}

/// Removes unfinished shards of killed writers. The caller holds the folder's lock.
fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(UNFINISHED)) {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// Names in order of first appearance, encoded as in the file.
#[derive(Default)]
struct Names {
    stored: Vec<u8>,
    index: HashMap<String, u32>,
}

impl Names {
    fn intern(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.index.get(name) {
            return index;
        }
        let index = self.index.len() as u32;
        self.index.insert(name.to_owned(), index);
        self.stored.extend((name.len() as u32).to_le_bytes());
        self.stored.extend(name.as_bytes());
        index
    }
}

struct OpenShard {
    file: NamedTempFile,
    vocab_size: u64,
    fingerprint: u64,
    /// Token bytes not yet written.
    pending: Vec<u8>,
    page_crcs: Vec<u32>,
    document_ends: Vec<u64>,
    run_ends: Vec<u64>,
    span_ends: Vec<u64>,
    runs: Vec<[u32; 2]>,
    spans: Vec<[u32; 3]>,
    document_sources: Vec<u32>,
    names: Names,
    labels: Names,
}

impl OpenShard {
    fn create(folder: &Path, vocab_size: u64, fingerprint: u64) -> Result<OpenShard> {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            // The umask applies, as to any new file. The crate's default denies access to other users.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(bare)
            .map_err(Error::io(folder))?;
        file.as_file_mut().write_all(&[0; PAGE]).map_err(Error::io(folder))?;
        Ok(OpenShard {
            file,
            vocab_size,
            fingerprint,
            pending: Vec::new(),
            page_crcs: Vec::new(),
            document_ends: Vec::new(),
            run_ends: Vec::new(),
            span_ends: Vec::new(),
            runs: Vec::new(),
            spans: Vec::new(),
            document_sources: Vec::new(),
            names: Names::default(),
            labels: Names::default(),
        })
    }

    fn tokens(&self) -> u64 {
        self.document_ends.last().copied().unwrap_or(0)
    }

    fn push(&mut self, document: &NewDocument<'_>) -> io::Result<()> {
        let ids = document.ids;
        match token_width(self.vocab_size) {
            2 => append(&mut self.pending, ids, |id| (id as u16).to_le_bytes()),
            _ => append(&mut self.pending, ids, u32::to_le_bytes),
        }
        self.document_ends.push(self.tokens() + ids.len() as u64);
        if let Some(mask) = document.loss_mask {
            push_masked_runs(mask, &mut self.runs);
        }
        self.run_ends.push(self.runs.len() as u64);
        self.push_spans(document);
        self.document_sources.push(self.names.intern(document.source));
        if self.pending.len() >= WRITE_BYTES {
            self.write_pages()
        } else {
            Ok(())
        }
    }

    fn push_spans(&mut self, document: &NewDocument<'_>) {
        let first = self.spans.len();
        for (label, ranges) in document.spans {
            let label = self.labels.intern(label);
            self.spans
                .extend(ranges.iter().map(|range| [range.start, range.end, label]));
        }
        self.spans[first..].sort();
        self.span_ends.push(self.spans.len() as u64);
    }

    /// Writes the pending bytes, up to the last full page.
    fn write_pages(&mut self) -> io::Result<()> {
        let whole = self.pending.len() / PAGE * PAGE;
        self.page_crcs
            .extend(self.pending[..whole].chunks_exact(PAGE).map(crc32fast::hash));
        self.file.as_file_mut().write_all(&self.pending[..whole])?;
        self.pending.drain(..whole);
        Ok(())
    }

    fn end_section(&mut self) -> io::Result<()> {
        self.pending.resize(self.pending.len().next_multiple_of(PAGE), 0);
        self.write_pages()
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        self.end_section()?;
        let header = Header {
            vocab_size: self.vocab_size,
            documents: self.document_ends.len() as u64,
            tokens: self.tokens(),
            runs: self.runs.len() as u64,
            spans: self.spans.len() as u64,
            name_bytes: self.names.stored.len() as u64,
            label_bytes: self.labels.stored.len() as u64,
            index_crc: 0,
            fingerprint: self.fingerprint,
        };
        self.pending = little_endian(std::mem::take(&mut self.runs).as_flattened());
        self.end_section()?;
        self.pending = little_endian(std::mem::take(&mut self.spans).as_flattened());
        self.end_section()?;
        let index = self.index();
        self.file.as_file_mut().write_all(&index)?;
        let index_crc = crc32fast::hash(&index);
        self.file.as_file_mut().rewind()?;
        self.file
            .as_file_mut()
            .write_all(&Header { index_crc, ..header }.encode())?;
        // The content must be on disk before the name, and the name before we report success.
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    fn index(&self) -> Vec<u8> {
        let mut index = little_endian(&self.page_crcs);
        for ends in [&self.document_ends, &self.run_ends, &self.span_ends] {
            append(&mut index, ends, u64::to_le_bytes);
        }
        index.extend(little_endian(&self.document_sources));
        index.extend(&self.names.stored);
        index.extend(&self.labels.stored);
        index
    }
}

/// Extracts the operating system's error from an error that adds a path.
fn bare(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|wrapped| wrapped.source()?.downcast_ref());
    match inner.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error,
    }
}

/// Appends the bytes of values. Compiles to vector instructions, unlike extending by an iterator.
fn append<T: Copy, const BYTES: usize>(bytes: &mut Vec<u8>, values: &[T], encode: impl Fn(T) -> [u8; BYTES]) {
    let start = bytes.len();
    bytes.resize(start + values.len() * BYTES, 0);
    for (place, &value) in bytes[start..].as_chunks_mut().0.iter_mut().zip(values) {
        *place = encode(value);
    }
}

fn little_endian(values: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, values, u32::to_le_bytes);
    bytes
}

fn push_masked_runs(mask: &[bool], runs: &mut Vec<[u32; 2]>) {
    let mut start = 0;
    for run in mask.chunk_by(|a, b| a == b) {
        let end = start + run.len() as u32;
        if !run[0] {
            runs.push([start, end]);
        }
        start = end;
    }
}
