use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memchr::memmem;

use super::format::{HEAD, HEADER, Head, KINDS, read_header};
use super::{Error, Result};

/// The file of a store. Reads and writes name their place: threads and forked processes share no position.
pub(super) struct StoreFile {
    pub file: File,
    pub path: PathBuf,
    pub id: u64,
}

impl StoreFile {
    pub fn io_error(&self, error: io::Error) -> Error {
        let path = self.path.clone();
        Error::Io { path, error }
    }

    pub fn damaged<T>(&self, at: u64, what: impl Into<String>) -> Result<T> {
        let (path, what) = (self.path.clone(), what.into());
        Err(Error::Damaged { path, at, what })
    }

    pub fn size(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(|error| self.io_error(error))?;
        Ok(metadata.len())
    }

    /// The id of a file of this size; `None` where it ends within its header.
    pub fn read_id(&self, size: u64) -> Result<Option<u64>> {
        let start = self.read(0, size.min(HEADER as u64))?;
        read_header(&start).map_err(|what| Error::Invalid(format!("{}: {what}", self.path.display())))
    }

    /// The caller knows that the file is long enough to be asked for so many bytes.
    pub fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut out = vec![0; length as usize];
        self.read_into(at, &mut out)?;
        Ok(out)
    }

    pub fn read_into(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(out, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.damaged(at, "the file ends before"),
            result => result.map_err(|error| self.io_error(error)),
        }
    }

    /// The head at `at`, where a whole block before `end` has one.
    pub fn head(&self, at: u64, end: u64) -> Result<Option<(Head, u64)>> {
        if end.saturating_sub(at) < HEAD as u64 {
            return Ok(None);
        }
        let mut bytes = [0; HEAD];
        self.read_into(at, &mut bytes)?;
        let block = Head::decode(self.id, &bytes).and_then(|head| Some((head, at.checked_add(head.bytes()?)?)));
        Ok(block.filter(|&(_, block_end)| block_end <= end))
    }

    /// Where the next whole block after what is none at `from` begins, if there is one.
    pub fn next_block(&self, from: u64, end: u64) -> Result<Option<u64>> {
        const CHUNK: u64 = 1 << 20;
        let finders = KINDS.map(memmem::Finder::new);
        let mut at = from;
        while end.saturating_sub(at) >= HEAD as u64 {
            cwm_interrupt::check()?;
            let bytes = self.read(at, CHUNK.min(end - at))?;
            let mut found: Vec<usize> = finders.iter().flat_map(|kind| kind.find_iter(&bytes)).collect();
            found.sort_unstable();
            for place in found.into_iter().map(|offset| at + offset as u64) {
                if self.head(place, end)?.is_some() {
                    return Ok(Some(place));
                }
            }
            // The next chunk begins so that a kind that this one cuts is found.
            at += (bytes.len() as u64).saturating_sub(3).max(1);
        }
        Ok(None)
    }
}
