use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memchr::memmem;

use super::format::{HEAD, HEADER, Head, KINDS, read_header};
use super::{Error, Result};

/// File of a store. Reads and writes take an offset, so that threads and forked processes do not share a position.
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

    /// Reads the ID of a file of this size. Returns `None` if the file ends within its header.
    pub fn read_id(&self, size: u64) -> Result<Option<u64>> {
        let start = self.read(0, size.min(HEADER as u64))?;
        read_header(&start).map_err(|what| Error::Invalid(format!("{}: {what}", self.path.display())))
    }

    /// Reads `length` bytes at offset `at`. The caller ensures that the file is long enough, because this allocates
    /// `length` bytes.
    pub fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut out = vec![0; length as usize];
        self.read_into(at, &mut out)?;
        Ok(out)
    }

    pub fn read_into(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(out, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.damaged(at, "the file ends within the data that begins here")
            }
            result => result.map_err(|error| self.io_error(error)),
        }
    }

    /// Reads the head at `at`, and returns it with the end of its block. Returns `None` if there is no valid head, or if
    /// its block extends past `end`.
    pub fn head(&self, at: u64, end: u64) -> Result<Option<(Head, u64)>> {
        if end.saturating_sub(at) < HEAD as u64 {
            return Ok(None);
        }
        let mut bytes = [0; HEAD];
        self.read_into(at, &mut bytes)?;
        let block = Head::decode(self.id, &bytes).and_then(|head| Some((head, at.checked_add(head.bytes()?)?)));
        Ok(block.filter(|&(_, block_end)| block_end <= end))
    }

    /// Returns the offset of the first complete block at or after `from`, if any.
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
            // Chunks overlap by three bytes, so that a kind at the boundary is found.
            at += (bytes.len() as u64).saturating_sub(3).max(1);
        }
        Ok(None)
    }
}
