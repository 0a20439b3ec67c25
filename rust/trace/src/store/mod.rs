//! Trace store: many traces in one file, read by index, by key, or in order.
//!
//! One process at a time writes with [`Writer`], and any number of processes read with [`Reader`]. [`format`] describes
//! the file format and the reasons for it.

mod block;
mod file;
mod format;
mod index;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;

pub use block::Block;
pub use reader::Reader;
pub use writer::Writer;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system reported an error.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// The file violates the format at this byte.
    #[error("{path}: damaged at byte {at}: {what}")]
    Damaged { path: PathBuf, at: u64, what: String },
    /// The file is not a store of this version, or an argument is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] cwm_interrupt::Interrupted),
}

pub type Result<T> = std::result::Result<T, Error>;
