use std::fmt;

/// Reason for a failure to load or save a vocabulary, or to encode or decode an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A vocabulary file is damaged. Says where and why.
    Damaged(String),
    /// A vocabulary, or a file format for it, cannot express something. Says what.
    Vocabulary(String),
    /// A split pattern does not compile, or needs too many steps on a text.
    Pattern(String),
    /// No token has this id.
    UnknownId { id: i64, vocab_size: usize },
    /// No special token has this name.
    UnknownSpecial(String),
    /// A text is too long: positions in a text are 32-bit numbers.
    TooLong { bytes: usize },
    /// The caller interrupted the work.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Damaged(why) => write!(f, "damaged vocabulary file: {why}"),
            Error::Vocabulary(why) => write!(f, "invalid vocabulary: {why}"),
            Error::Pattern(why) => write!(f, "split pattern: {why}"),
            Error::UnknownId { id, vocab_size } => {
                write!(f, "token id {id} is not in the vocabulary (ids are below {vocab_size})")
            }
            Error::UnknownSpecial(name) => write!(f, "{name:?} is not a special token of this vocabulary"),
            Error::TooLong { bytes } => write!(f, "text of {bytes} bytes is too long; the limit is 4 GiB"),
            Error::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Blames the content of a vocabulary file for an invalid vocabulary.
    pub(crate) fn in_file(self) -> Error {
        match self {
            Error::Vocabulary(why) => Error::Damaged(why),
            other => other,
        }
    }
}

impl From<cwm_interrupt::Interrupted> for Error {
    fn from(_: cwm_interrupt::Interrupted) -> Error {
        Error::Interrupted
    }
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Vocabulary(why.into()))
}
