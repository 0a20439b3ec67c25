//! Encoding text to token ids, and decoding it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use cwm_interrupt::{check, on_threads};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result, invalid};
use crate::json::{parse_json, write_json};
use crate::pool::{Lent, Pool, Tools};
use crate::ranks::{parse_ranks, write_ranks};
use crate::special::{Matcher, SpecialTokens};
use crate::split::Splitter;
use crate::vocab::{MAX_IDS, Vocabulary};

/// A vocabulary with its split pattern and special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocab: Vocabulary,
    splitter: Splitter,
    special: SpecialTokens,
    caches: Pool,
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
            caches: Pool::default(),
        })
    }

    /// Creates a tokenizer whose special tokens have the ids after the ordinary tokens, in order.
    pub fn with_special_names(vocab: Vocabulary, splitter: Splitter, names: Vec<String>) -> Result<Self> {
        let special = SpecialTokens::new(names.into_iter().zip(vocab.id_end()..))?;
        Self::new(vocab, splitter, special)
    }

    /// Parses a `tokenizer.json`.
    pub fn from_json(file: &[u8]) -> Result<Self> {
        parse_json(file).map(|(tokenizer, _)| tokenizer)
    }

    /// Parses a `tokenizer.json`. Also returns a warning for each added token whose id differs from the file.
    pub fn from_json_with_warnings(file: &[u8]) -> Result<(Self, Vec<String>)> {
        parse_json(file)
    }

    /// Parses a rank file, which contains neither a pattern nor special tokens.
    pub fn vocabulary_from_ranks(file: &[u8]) -> Result<Vocabulary> {
        parse_ranks(file)
    }

    /// Returns a `tokenizer.json` with the same ids. Fails if a special token has the name of an ordinary token.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        write_json(self)
    }

    /// Returns a rank file of the ordinary tokens. Fails if a rank file cannot express their merges.
    pub fn to_ranks(&self) -> Result<Vec<u8>> {
        write_ranks(&self.vocab)
    }

    /// Returns whether a rank file, the pattern, and the special tokens express the whole tokenizer.
    pub fn is_ranked(&self) -> bool {
        self.vocab.is_by_id() && self.vocab.whole_pieces()
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocab
    }

    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// Returns one more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        let special_end = self.special.iter().map(|(_, id)| id + 1).max().unwrap_or(0);
        self.vocab.id_end().max(special_end) as usize
    }

    /// Returns a hash of the tokenizer, never 0. Tokenizers that differ in the tokens of a text or in the meaning of a
    /// token have different hashes, except for collisions. The format of the vocabulary file does not matter.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = Xxh3::new();
        let mut text = |id: u32, bytes: &[u8]| {
            hasher.update(&id.to_le_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        self.vocab.iter().for_each(|(token, id)| text(id, token));
        text(u32::MAX, self.splitter.known_pattern().as_bytes());
        let mut special: Vec<_> = self.special.iter().collect();
        special.sort_unstable_by_key(|&(_, id)| id);
        special.into_iter().for_each(|(name, id)| text(id, name.as_bytes()));
        for merge in self.vocab.merges() {
            hasher.update(&merge.left.to_le_bytes());
            hasher.update(&merge.right.to_le_bytes());
        }
        hasher.update(&[u8::from(self.vocab.takes_all_whole())]);
        hasher.digest().max(1)
    }

    /// Encodes `text`. Names that `special` finds become special tokens.
    pub fn encode(&self, text: &str, special: Option<&Matcher>) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut ordinary = 0;
        let mut encoder = self.encoder();
        for (range, id) in special.into_iter().flat_map(|matcher| matcher.find_iter(text)) {
            encoder.encode(&text[ordinary..range.start], &mut out)?;
            out.push(id);
            ordinary = range.end;
        }
        encoder.encode(&text[ordinary..], &mut out)?;
        Ok(out)
    }

    /// Returns an encoder for consecutive texts.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder {
            tokenizer: self,
            tools: self.caches.take(),
        }
    }

    /// Encodes bytes that may not be UTF-8, as tiktoken's `_encode_bytes` does. Valid UTF-8 is encoded as text.
    /// Otherwise, the text before the first invalid byte is split. Its last piece and all bytes after it are one piece;
    /// if that piece is white space, the white-space tokens before it belong to it too.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        check_length(bytes.len())?;
        let valid = match std::str::from_utf8(bytes) {
            Ok(text) => return self.encode(text, None),
            Err(error) => error.valid_up_to(),
        };
        let text = std::str::from_utf8(&bytes[..valid]).unwrap_or_default();
        let cache = &mut self.caches.take().cache;
        let mut out = Vec::new();
        let mut last_piece = 0;
        self.splitter.for_each(text, |piece| {
            last_piece = out.len();
            cache.encode_piece(&self.vocab, piece.as_bytes(), &mut out);
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
        cache.encode_piece(&self.vocab, &unstable, &mut out);
        check()?; // merging may have been interrupted
        Ok(out)
    }

    /// Encodes each text on `threads` threads, with the names of special tokens as ordinary text. Cuts long texts where
    /// that does not change the tokens, so that one long text keeps all threads busy.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], threads: usize) -> Result<Vec<Vec<u32>>> {
        let parts = self.parts(texts, threads);
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, Result<Vec<u32>>)>> = Mutex::new(Vec::with_capacity(parts.len()));
        let work = |_| {
            let mut encoder = self.encoder();
            let mut mine = Vec::new();
            while let at = next.fetch_add(1, Ordering::Relaxed)
                && let Some((text, part)) = parts.get(at)
            {
                let mut ids = Vec::with_capacity(part.len() / 3);
                let text = &texts[*text].as_ref()[part.clone()];
                let encoded = encoder.encode(text, &mut ids).map(|()| ids);
                let is_interrupted = encoded == Err(Error::Interrupted);
                mine.push((at, encoded));
                if is_interrupted {
                    break;
                }
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
        };
        on_threads(0..threads.clamp(1, parts.len().max(1)), work);
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|&(at, _)| at);
        let mut batch: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
        for ((_, ids), (text, _)) in done.into_iter().zip(&parts) {
            match batch.get_mut(*text) {
                Some(before) => before.extend_from_slice(&ids?),
                None => batch.push(ids?),
            }
        }
        Ok(batch)
    }

    /// Cuts the texts into parts: the index of a text and a range in it, in order.
    fn parts<T: AsRef<str>>(&self, texts: &[T], threads: usize) -> Vec<(usize, Range<usize>)> {
        /// Smaller parts are not worth the overhead.
        const PART: usize = 1 << 18;
        let mut parts = Vec::with_capacity(texts.len());
        for (number, text) in texts.iter().map(AsRef::as_ref).enumerate() {
            let mut start = 0;
            while threads > 1
                && text.len() - start > 2 * PART
                && let Some(cut) = self.splitter.safe_cut(text, start + PART)
            {
                parts.push((number, start..cut));
                start = cut;
            }
            parts.push((number, start..text.len()));
        }
        parts
    }

    /// Encodes `text`, with the names of special tokens as ordinary text, and passes the tokens to `show`. Saves an
    /// allocation, which matters for short texts.
    pub fn with_tokens<T>(&self, text: &str, show: impl FnOnce(&[u32]) -> T) -> Result<T> {
        let mut encoder = self.encoder();
        let mut tokens = std::mem::take(&mut encoder.tools.tokens);
        tokens.clear();
        let encoded = encoder.encode(text, &mut tokens);
        let shown = encoded.map(|()| show(&tokens));
        if tokens.capacity() <= KEPT_TOKENS {
            encoder.tools.tokens = tokens;
        }
        shown
    }

    /// Returns the number of tokens of `text`, with the names of special tokens as ordinary text.
    pub fn count(&self, text: &str) -> Result<usize> {
        check_length(text.len())?;
        let mut tools = self.caches.take();
        let Tools { cache, ends, tokens } = &mut *tools;
        let (mut count, mut start) = (0, 0);
        tokens.clear();
        self.splitter.for_each_batch(text, ends, |ends| {
            cache.encode(&self.vocab, text.as_bytes(), start, ends, tokens);
            start = ends.last().map_or(start, |&end| end as usize);
            count += tokens.len();
            tokens.clear();
        })?;
        Ok(count)
    }

    /// Returns the bytes of a token; for a special token, its name.
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

    /// Returns the joined bytes of all `ids`.
    pub fn decode_bytes(&self, ids: &[i32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            match self.vocab.token(id as u32) {
                Some(token) => bytes.extend_from_slice(token),
                None => bytes.extend_from_slice(self.token_bytes(i64::from(id))?),
            }
        }
        Ok(bytes)
    }
}

/// Capacity of the largest token buffer that is kept between calls.
const KEPT_TOKENS: usize = 1 << 16;

/// Checks that positions in a text fit in 32 bits.
fn check_length(bytes: usize) -> Result<()> {
    if bytes >= u32::MAX as usize {
        return Err(Error::TooLong { bytes });
    }
    Ok(())
}

/// Encodes texts with one cache and reused buffers.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    tools: Lent<'t>,
}

impl Encoder<'_> {
    /// Returns whether a piece always ends between a letter or digit and a quote.
    pub(crate) fn ends_words_at_quotes(&self) -> bool {
        self.tokenizer.splitter.is_known()
    }

    /// Appends the tokens of `text`, with the names of special tokens as ordinary text.
    pub fn encode(&mut self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        check_length(text.len())?;
        let Tokenizer { vocab, splitter, .. } = self.tokenizer;
        let Tools { cache, ends, .. } = &mut *self.tools;
        let mut start = 0;
        splitter.for_each_batch(text, ends, |ends| {
            cache.encode(vocab, text.as_bytes(), start, ends, out);
            start = ends.last().map_or(start, |&end| end as usize);
        })
    }
}
