//! Many traces in one file: written by one process at a time, read by any number, by index, by key or in order.
//!
//! [`format`] says what the file looks like and why; [`Writer`] adds, [`Reader`] reads.

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
    /// The operating system refused.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// The file is not what a store of this version must be, from this byte on.
    #[error("{path}: damaged at byte {at}: {what}")]
    Damaged { path: PathBuf, at: u64, what: String },
    /// The file is none of this version, or an argument makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] cwm_interrupt::Interrupted),
}

pub type Result<T> = std::result::Result<T, Error>;
