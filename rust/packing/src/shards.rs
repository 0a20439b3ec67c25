use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::{EXTENSION, MAX_VOCAB_SIZE};
use crate::megatron::{self, Megatron};
use crate::part::Part;
use crate::shard::Shard;

/// The shards of a folder, or one Megatron dataset, as one sequence of documents.
pub struct Shards {
    parts: Vec<Part>,
    /// Documents before each part.
    first: Vec<u64>,
    documents: u64,
    tokens: u64,
}

impl Shards {
    /// Opens a folder of shards, or an indexed dataset by its prefix or one of its files.
    pub fn open(path: &Path) -> Result<Shards> {
        let mut all = Shards {
            parts: Vec::new(),
            first: Vec::new(),
            documents: 0,
            tokens: 0,
        };
        match megatron::files(path).filter(|_| !path.is_dir()) {
            Some((index, data)) => all.push(Part::Megatron(Megatron::open(&index, &data)?)),
            None => all.push_shards(path)?,
        }
        Ok(all)
    }

    fn push_shards(&mut self, folder: &Path) -> Result<()> {
        let files = shard_files(folder)?;
        if files.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: no token shards (*.{EXTENSION}) in this folder",
                folder.display()
            )));
        }
        for (expected, (number, path)) in files.into_iter().enumerate() {
            if number != expected {
                let what = format!("shard {expected:05}.{EXTENSION} is missing before this one");
                return Err(Error::damaged(&path, what));
            }
            cwm_interrupt::check()?;
            let shard = Shard::open(&path)?;
            if self.vocab_size().is_some_and(|size| size != shard.vocab_size()) {
                return Err(Error::damaged(
                    &path,
                    "its vocabulary size differs from that of the first shard",
                ));
            }
            if let (Some(known), Some(own)) = (self.fingerprint(), shard.fingerprint())
                && known != own
            {
                let what = format!(
                    "made with another vocabulary ({own:016x}) than the shards before it ({known:016x}); \
                     tokenize the documents again, into another folder"
                );
                return Err(Error::damaged(&path, what));
            }
            self.push(Part::Shard(shard));
        }
        Ok(())
    }

    fn push(&mut self, part: Part) {
        self.first.push(self.documents);
        self.documents += part.documents();
        self.tokens += part.tokens();
        self.parts.push(part);
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the size of the vocabulary, or `None` if it is not known: Megatron datasets do not store it.
    pub fn vocab_size(&self) -> Option<u64> {
        self.parts.first().and_then(Part::vocab_size)
    }

    /// Sets the size of the vocabulary. Fails if the shards store another size. If they store none, ids outside the
    /// vocabulary are errors from now on.
    pub fn set_vocab_size(&mut self, size: u64) -> Result<()> {
        if !(1..=MAX_VOCAB_SIZE).contains(&size) {
            return Err(Error::Invalid(format!(
                "vocab_size must be 1 to {MAX_VOCAB_SIZE}, not {size}"
            )));
        }
        match self.vocab_size() {
            Some(known) if known != size => Err(Error::Invalid(format!(
                "the shards have a vocabulary of {known} ids, not {size}"
            ))),
            _ => {
                self.parts.iter_mut().for_each(|part| part.set_vocab_size(size));
                Ok(())
            }
        }
    }

    /// Returns the fingerprint of the vocabulary that the parts were made with, or `None` if no part stores it.
    pub fn fingerprint(&self) -> Option<u64> {
        self.parts.iter().find_map(Part::fingerprint)
    }

    /// Fails if the shards store the fingerprint of another vocabulary.
    pub fn check_fingerprint(&self, expected: u64) -> Result<()> {
        match self.fingerprint() {
            Some(own) if own != expected => Err(Error::Invalid(format!(
                "the documents were made with another vocabulary (fingerprint {own:016x}) than the one given \
                 ({expected:016x}); use the tokenizer that made them, or tokenize them again"
            ))),
            _ => Ok(()),
        }
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the part that holds a document, and the document's index in it. Panics if there is no such document.
    #[inline]
    pub fn locate(&self, document: u64) -> (usize, u64) {
        let part = self.first.partition_point(|&first| first <= document) - 1;
        (part, document - self.first[part])
    }

    #[inline]
    pub fn document_len(&self, document: u64) -> u32 {
        let (part, document) = self.locate(document);
        self.parts[part].document_len(document)
    }

    /// Iterates over the number of tokens of every document, in order.
    pub fn lengths(&self) -> impl Iterator<Item = u32> + '_ {
        let of_part = |part| (0..Part::documents(part)).map(|document| part.document_len(document));
        self.parts.iter().flat_map(of_part)
    }

    /// Returns the distinct names of all parts in order of first appearance, and for each part the indices of its
    /// names.
    pub fn union(&self, names: impl Fn(&Part) -> &[String]) -> (Vec<String>, Vec<Vec<usize>>) {
        let mut all: Vec<String> = Vec::new();
        let mut places = Vec::new();
        for part in &self.parts {
            let place = |name: &String| {
                all.iter().position(|known| known == name).unwrap_or_else(|| {
                    all.push(name.clone());
                    all.len() - 1
                })
            };
            places.push(names(part).iter().map(place).collect());
        }
        (all, places)
    }

    /// See [`Shard::check_present`](crate::Shard::check_present).
    pub fn check_present(&self) -> Result<()> {
        self.parts.iter().try_for_each(Part::check_present)
    }

    pub fn verify(&self) -> Result<()> {
        self.parts.iter().try_for_each(Part::verify)
    }
}

/// Returns number and path of every shard file in a folder, sorted by number. Ignores other files and hidden ones:
/// unfinished shards, and files that operating systems add, such as `._00000.cwmtok`.
pub(crate) fn shard_files(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden || path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        let number = number
            .ok_or_else(|| Error::damaged(&path, "expected a number as the name of a shard, such as 00000.cwmtok"))?;
        files.push((number, path));
    }
    files.sort();
    Ok(files)
}
