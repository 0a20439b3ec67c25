//! Text to token ids and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result, invalid};
use crate::json::{parse_json, write_json};
use crate::ranks::{parse_ranks, write_ranks};
use crate::special::{Matcher, SpecialTokens};
use crate::split::Splitter;
use crate::vocab::{MAX_IDS, MergeOrder, Vocabulary};

/// A vocabulary, its split pattern and its special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocab: Vocabulary,
    splitter: Splitter,
    special: SpecialTokens,
}

impl Tokenizer {
    pub fn new(vocab: Vocabulary, splitter: Splitter, special: SpecialTokens) -> Result<Self> {
        for (name, id) in special.iter() {
            if vocab.token(id).is_some() {
                return invalid(format!("special token {name:?} has the id {id} of an ordinary token"));
            }
            if id >= MAX_IDS {
                return invalid(format!(
                    "special token {name:?} has an id above the limit of {}",
                    MAX_IDS - 1
                ));
            }
        }
        Ok(Self {
            vocab,
            splitter,
            special,
        })
    }

    /// Special tokens named in order follow the ordinary tokens.
    pub fn with_special_names(vocab: Vocabulary, splitter: Splitter, names: Vec<String>) -> Result<Self> {
        let special = SpecialTokens::new(names.into_iter().zip(vocab.id_end()..))?;
        Self::new(vocab, splitter, special)
    }

    /// From a `tokenizer.json`.
    pub fn from_json(file: &[u8]) -> Result<Self> {
        parse_json(file)
    }

    /// The vocabulary of a rank file, which holds neither pattern nor special tokens.
    pub fn vocabulary_from_ranks(file: &[u8]) -> Result<Vocabulary> {
        parse_ranks(file)
    }

    /// A `tokenizer.json` that gives the same ids. Fails where a special token has the name of an ordinary one.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        write_json(self)
    }

    /// A rank file of the ordinary tokens, if one can express how they merge.
    pub fn to_ranks(&self) -> Result<Vec<u8>> {
        write_ranks(&self.vocab)
    }

    /// Whether a rank file, the pattern and the special tokens say all there is.
    pub fn is_ranked(&self) -> bool {
        self.vocab.order() == &MergeOrder::ById
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocab
    }

    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        let special_end = self.special.iter().map(|(_, id)| id + 1).max().unwrap_or(0);
        self.vocab.id_end().max(special_end) as usize
    }

    /// Appends the tokens of `text`, in which special tokens' names are ordinary text.
    pub fn encode_ordinary(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        if text.len() >= u32::MAX as usize {
            return Err(Error::TooLong { bytes: text.len() });
        }
        self.splitter
            .for_each(text, |piece| self.vocab.encode_piece(piece.as_bytes(), out))
    }

    /// The tokens of `text`, in which the names that `special` finds are special tokens.
    pub fn encode(&self, text: &str, special: Option<&Matcher>) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut ordinary = 0;
        for (range, id) in special.into_iter().flat_map(|matcher| matcher.find_iter(text)) {
            self.encode_ordinary(&text[ordinary..range.start], &mut out)?;
            out.push(id);
            ordinary = range.end;
        }
        self.encode_ordinary(&text[ordinary..], &mut out)?;
        Ok(out)
    }

    /// The tokens of bytes that need not be UTF-8, as tiktoken's `_encode_bytes` gives them: valid UTF-8 as text; else
    /// the text before the first invalid byte is split, and its last piece, with the tokens of white space before a
    /// piece of white space, is one piece with all that follows.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        if bytes.len() >= u32::MAX as usize {
            return Err(Error::TooLong { bytes: bytes.len() });
        }
        let valid = match std::str::from_utf8(bytes) {
            Ok(text) => return self.encode(text, None),
            Err(error) => error.valid_up_to(),
        };
        let text = std::str::from_utf8(&bytes[..valid]).unwrap_or_default();
        let mut out = Vec::new();
        let mut last_piece = 0;
        self.splitter.for_each(text, |piece| {
            last_piece = out.len();
            self.vocab.encode_piece(piece.as_bytes(), &mut out);
        })?;
        let is_space = |id: u32| {
            self.vocab
                .token(id)
                .is_some_and(|token| token.iter().all(|byte| b" \n\t".contains(byte)))
        };
        if out.get(last_piece).is_some_and(|&id| is_space(id)) {
            while last_piece > 0 && is_space(out[last_piece - 1]) {
                last_piece -= 1;
            }
        }
        let mut unstable: Vec<u8> = out
            .drain(last_piece..)
            .filter_map(|id| self.vocab.token(id))
            .flatten()
            .copied()
            .collect();
        unstable.extend_from_slice(&bytes[valid..]);
        self.vocab.encode_piece(&unstable, &mut out);
        Ok(out)
    }

    /// The tokens of each text, special names ordinary, by `threads` threads.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], threads: usize) -> Result<Vec<Vec<u32>>> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, Result<Vec<u32>>)>> = Mutex::new(Vec::with_capacity(texts.len()));
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, texts.len().max(1)) {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while let at = next.fetch_add(1, Ordering::Relaxed)
                        && let Some(text) = texts.get(at)
                    {
                        mine.push((at, self.encode(text.as_ref(), None)));
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|&(at, _)| at);
        done.into_iter().map(|(_, ids)| ids).collect()
    }

    /// How many tokens `text` has, special names ordinary.
    pub fn count(&self, text: &str) -> Result<usize> {
        let (mut count, mut tokens) = (0, Vec::new());
        if text.len() >= u32::MAX as usize {
            return Err(Error::TooLong { bytes: text.len() });
        }
        self.splitter.for_each(text, |piece| {
            self.vocab.encode_piece(piece.as_bytes(), &mut tokens);
            count += tokens.len();
            tokens.clear();
        })?;
        Ok(count)
    }

    /// The bytes of a token; of a special token, its name.
    pub fn token_bytes(&self, id: i64) -> Result<&[u8]> {
        let token = u32::try_from(id).ok().and_then(|id| {
            self.vocab
                .token(id)
                .or_else(|| self.special.name(id).map(str::as_bytes))
        });
        token.ok_or_else(|| Error::UnknownId {
            id,
            vocab_size: self.vocab_size(),
        })
    }

    /// The bytes of all `ids`, joined.
    pub fn decode_bytes(&self, ids: &[i32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(i64::from(id))?);
        }
        Ok(bytes)
    }
}
