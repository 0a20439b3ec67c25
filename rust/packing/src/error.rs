use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system reported an error.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// A file is damaged or of an unsupported format.
    #[error("{path}: {what}")]
    Damaged { path: PathBuf, what: String },
    /// An argument is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The caller asked to stop.
    #[error(transparent)]
    Interrupted(#[from] cwm_interrupt::Interrupted),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::Io {
            path: path.to_owned(),
            error,
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Error {
        Error::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
