use std::fmt;

/// Why a vocabulary could not be loaded or saved, or an input not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A vocabulary file, or what was to become one, is not valid or not supported; says where and why.
    Vocabulary(String),
    /// A split pattern does not compile, or gave up on a text.
    Pattern(String),
    /// No token has this id.
    UnknownId { id: i64, vocab_size: usize },
    /// A name is not that of a special token.
    UnknownSpecial(String),
    /// Positions inside one text are 32-bit numbers.
    TooLong { bytes: usize },
    /// The caller asked to stop.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Vocabulary(why) => write!(f, "invalid vocabulary: {why}"),
            Error::Pattern(why) => write!(f, "split pattern: {why}"),
            Error::UnknownId { id, vocab_size } => {
                write!(f, "token id {id} is not in the vocabulary (ids are below {vocab_size})")
            }
            Error::UnknownSpecial(name) => write!(f, "{name:?} is not a special token of this vocabulary"),
            Error::TooLong { bytes } => write!(f, "text of {bytes} bytes is too long: the limit is 4 GiB"),
            Error::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Error {}

impl From<cwm_interrupt::Interrupted> for Error {
    fn from(_: cwm_interrupt::Interrupted) -> Error {
        Error::Interrupted
    }
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Vocabulary(why.into()))
}
