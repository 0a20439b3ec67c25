use crate::error::Result;
use crate::megatron::Megatron;
use crate::shard::{Shard, Span};

/// A file of documents, in either format.
pub enum Part {
    Shard(Shard),
    Megatron(Megatron),
}

macro_rules! either {
    ($part:expr, $known:ident => $value:expr) => {
        match $part {
            Part::Shard($known) => $value,
            Part::Megatron($known) => $value,
        }
    };
}

impl Part {
    pub fn documents(&self) -> u64 {
        either!(self, part => part.documents())
    }

    pub fn tokens(&self) -> u64 {
        either!(self, part => part.tokens())
    }

    /// Returns the size of the vocabulary, or `None` if it is not known.
    pub fn vocab_size(&self) -> Option<u64> {
        match self {
            Part::Shard(shard) => Some(shard.vocab_size()),
            Part::Megatron(megatron) => megatron.vocab_size(),
        }
    }

    /// Returns the fingerprint of the vocabulary, or `None` if it is not known.
    pub fn fingerprint(&self) -> Option<u64> {
        match self {
            Part::Shard(shard) => shard.fingerprint(),
            Part::Megatron(_) => None,
        }
    }

    /// See [`crate::Shards::set_vocab_size`].
    pub(crate) fn set_vocab_size(&mut self, size: u64) {
        if let Part::Megatron(megatron) = self {
            megatron.set_vocab_size(size);
        }
    }

    /// Returns a number that almost certainly differs between two files; see [`Shard::checksum`] and
    /// [`Megatron::checksum`].
    pub fn checksum(&self) -> u32 {
        either!(self, part => part.checksum())
    }

    /// See [`Shard::document_len`].
    #[inline]
    pub fn document_len(&self, document: u64) -> u32 {
        either!(self, part => part.document_len(document))
    }

    /// Returns the names of sources. [`Part::source_index`] is an index into them.
    pub fn sources(&self) -> &[String] {
        either!(self, part => part.sources())
    }

    pub fn source_index(&self, document: u64) -> usize {
        match self {
            Part::Shard(shard) => shard.source_index(document),
            Part::Megatron(_) => 0,
        }
    }

    /// Returns the labels of spans.
    pub fn labels(&self) -> &[String] {
        match self {
            Part::Shard(shard) => shard.labels(),
            Part::Megatron(_) => &[],
        }
    }

    /// See [`Shard::check_present`].
    pub fn check_present(&self) -> Result<()> {
        either!(self, part => part.check_present())
    }

    /// See [`Shard::read`].
    #[inline]
    pub fn read(&self, document: u64, start: usize, tokens: &mut [i32], targets: &mut [i32]) -> Result<()> {
        either!(self, part => part.read(document, start, tokens, targets))
    }

    /// See [`Shard::masked_runs`].
    #[inline]
    pub fn masked_runs(&self, document: u64, out: &mut Vec<[u32; 2]>) -> Result<()> {
        out.clear();
        match self {
            Part::Shard(shard) => shard.masked_runs(document, out),
            Part::Megatron(_) => Ok(()),
        }
    }

    /// See [`Shard::spans`].
    pub fn spans(&self, document: u64, out: &mut Vec<Span>) -> Result<()> {
        out.clear();
        match self {
            Part::Shard(shard) => shard.spans(document, out),
            Part::Megatron(_) => Ok(()),
        }
    }

    /// See [`Shard::release`].
    pub fn release(&self) {
        either!(self, part => part.release());
    }

    /// Checks every byte that has a checksum, and every id.
    pub fn verify(&self) -> Result<()> {
        either!(self, part => part.verify())
    }
}
