use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::EXTENSION;
use crate::shard::Shard;

/// The shards of a folder as one sequence of documents.
pub struct Shards {
    parts: Vec<Shard>,
    /// Documents before each shard.
    first: Vec<u64>,
    documents: u64,
    tokens: u64,
}

impl Shards {
    pub fn open(folder: &Path) -> Result<Shards> {
        let files = shard_files(folder)?;
        if files.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: no token shards (*.{EXTENSION}) here",
                folder.display()
            )));
        }
        let mut all = Shards {
            parts: Vec::new(),
            first: Vec::new(),
            documents: 0,
            tokens: 0,
        };
        for (expected, (number, path)) in files.into_iter().enumerate() {
            if number != expected {
                let what = format!("shard {expected:05}.{EXTENSION} is missing before this one");
                return Err(Error::damaged(&path, what));
            }
            let shard = Shard::open(&path)?;
            if shard.vocab_size() != all.parts.first().unwrap_or(&shard).vocab_size() {
                return Err(Error::damaged(
                    &path,
                    "its vocabulary size differs from that of the first shard",
                ));
            }
            all.first.push(all.documents);
            all.documents += shard.documents();
            all.tokens += shard.tokens();
            all.parts.push(shard);
        }
        Ok(all)
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    pub fn vocab_size(&self) -> u64 {
        self.parts[0].vocab_size()
    }

    pub fn parts(&self) -> &[Shard] {
        &self.parts
    }

    /// Which shard holds a document, and the document's number there. Panics if there is no such document.
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

    /// Tokens of every document, in order.
    pub fn lengths(&self) -> impl Iterator<Item = u32> + '_ {
        let of_part = |part| (0..Shard::documents(part)).map(|document| part.document_len(document));
        self.parts.iter().flat_map(of_part)
    }

    /// Names that the shards have, each once, in order of first appearance, and for each shard the places of its own.
    pub fn union(&self, names: impl Fn(&Shard) -> &[String]) -> (Vec<String>, Vec<Vec<usize>>) {
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

    /// See [`Shard::check_present`].
    pub fn check_present(&self) -> Result<()> {
        self.parts.iter().try_for_each(Shard::check_present)
    }

    pub fn verify(&self) -> Result<()> {
        self.parts.iter().try_for_each(Shard::verify)
    }
}

/// Number and path of every shard file in a folder, by number. Other files, such as unfinished shards, are passed over.
pub(crate) fn shard_files(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        let number = number.ok_or_else(|| Error::damaged(&path, "a shard is named by its number"))?;
        files.push((number, path));
    }
    files.sort();
    Ok(files)
}
