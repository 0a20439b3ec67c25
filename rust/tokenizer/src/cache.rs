//! Cache of the tokens of pieces.

use crate::hash::{SHORT, hash, hash_key, short_key, short_key_of};
use crate::merge::Queue;
use crate::vocab::Vocabulary;

/// Caches the tokens of pieces for one vocabulary. Grows with use, up to about 30 MB.
#[derive(Debug)]
pub struct Cache {
    short: ShortPieces,
    other: OtherPieces,
    queue: Queue,
    /// Keys and buckets of the pieces in the current chunk.
    keys: [(u128, usize); CHUNK],
    /// Tokens found. Has space for `INLINE` tokens per piece, because copies of a fixed size are the fastest.
    found: [u32; CHUNK * INLINE],
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            short: ShortPieces::default(),
            other: OtherPieces::default(),
            queue: Queue::default(),
            keys: [(LONG, 0); CHUNK],
            found: [0; CHUNK * INLINE],
        }
    }
}

/// Pieces looked up at a time.
const CHUNK: usize = 64;

/// Key of all pieces that are not short. No short piece has it.
const LONG: u128 = 1;

impl Cache {
    /// Appends the tokens of the pieces of `text` that begin at `start` and end at `ends`.
    ///
    /// Computes all keys of a chunk and prefetches their buckets before it reads any bucket, so that the processor
    /// waits for many cache lines at once.
    pub fn encode(&mut self, vocab: &Vocabulary, text: &[u8], mut start: usize, ends: &[u32], out: &mut Vec<u32>) {
        for ends in ends.chunks(CHUNK) {
            let mut begin = start;
            for (place, &end) in self.keys.iter_mut().zip(ends) {
                let key = key_at(text, begin, end as usize);
                *place = (key, self.short.home(key));
                begin = end as usize;
                prefetch(&self.short.buckets[place.1]);
            }
            self.look_up(vocab, text, start, ends, out);
            start = begin;
        }
    }

    /// Appends the tokens of the pieces whose keys are in `keys`.
    fn look_up(&mut self, vocab: &Vocabulary, text: &[u8], mut start: usize, ends: &[u32], out: &mut Vec<u32>) {
        let mut len = 0;
        for (number, &end) in ends.iter().enumerate() {
            let end = end as usize;
            let (key, home) = self.keys[number];
            match self.short.at(home, key) {
                Some(Tokens::Few(tokens, count)) => {
                    self.found[len..len + INLINE].copy_from_slice(&tokens);
                    len += count;
                }
                Some(Tokens::Many(tokens)) => {
                    out.extend_from_slice(&self.found[..len]);
                    len = 0;
                    out.extend_from_slice(tokens);
                }
                None => {
                    out.extend_from_slice(&self.found[..len]);
                    len = 0;
                    self.miss(vocab, &text[start..end], key, out);
                }
            }
            start = end;
        }
        out.extend_from_slice(&self.found[..len]);
    }

    /// Appends the tokens of one piece, which is not empty.
    pub fn encode_piece(&mut self, vocab: &Vocabulary, piece: &[u8], out: &mut Vec<u32>) {
        self.encode(vocab, piece, 0, &[piece.len() as u32], out);
    }

    #[cold]
    #[inline(never)]
    fn miss(&mut self, vocab: &Vocabulary, piece: &[u8], key: u128, out: &mut Vec<u32>) {
        match self.short.at(self.short.home(key) ^ 1, key) {
            Some(Tokens::Few(tokens, count)) => return out.extend_from_slice(&tokens[..count]),
            Some(Tokens::Many(tokens)) => return out.extend_from_slice(tokens),
            None => (),
        }
        let hash = hash(piece);
        if key == LONG
            && let Some(tokens) = self.other.get(piece, hash)
        {
            return out.extend_from_slice(tokens);
        }
        let start = out.len();
        vocab.encode_piece(piece, hash, &mut self.queue, out);
        let tokens = &out[start..];
        if key != LONG {
            self.short.insert(key, tokens);
        } else if piece.len() <= LONGEST {
            self.other.insert(piece, hash, tokens);
        }
    }
}

fn key_at(text: &[u8], start: usize, end: usize) -> u128 {
    let len = end - start;
    if len > SHORT {
        return LONG;
    }
    match text[start..].first_chunk() {
        Some(bytes) => short_key_of(bytes, len),
        None => short_key(&text[start..end]),
    }
}

/// Prefetches a cache line.
fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch affects only the processor's caches, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Tokens that an entry of a short piece stores inline.
const INLINE: usize = 4;

/// Bits of a token in a word. The high bits of the last word of an entry store the number of tokens.
const TOKEN_BITS: u32 = 24;

/// A short piece and its tokens, or their position and number in `many`. Key 0 marks an empty entry.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    key: u128,
    words: [u32; INLINE],
}

/// Two entries in one cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket([Entry; 2]);

/// The tokens of a short piece.
enum Tokens<'m> {
    /// Array whose first elements are the tokens, and their number.
    Few([u32; INLINE], usize),
    Many(&'m [u32]),
}

/// Short pieces, which are nearly all pieces in practice.
#[derive(Debug)]
struct ShortPieces {
    buckets: Box<[Bucket]>,
    inserted: usize,
    many: Vec<u32>,
}

/// Capacity of `many` in tokens. When it is full, the cache is cleared.
const MANY: usize = 1 << 20;

const FIRST_BUCKETS: usize = 1 << 10;
const LAST_BUCKETS: usize = 1 << 17; // 8 MiB

impl Default for ShortPieces {
    fn default() -> Self {
        Self::with_buckets(FIRST_BUCKETS)
    }
}

impl ShortPieces {
    fn with_buckets(number: usize) -> Self {
        Self {
            buckets: vec![Bucket::default(); number].into_boxed_slice(),
            inserted: 0,
            many: Vec::new(),
        }
    }

    /// Returns the first bucket to search for a piece. The neighboring bucket is the second.
    fn home(&self, key: u128) -> usize {
        hash_key(key) as usize & (self.buckets.len() - 1)
    }

    fn at(&self, bucket: usize, key: u128) -> Option<Tokens<'_>> {
        let [first, second] = &self.buckets[bucket].0;
        let entry = if first.key == key { first } else { second };
        if entry.key != key {
            return None;
        }
        let [a, b, c, d] = entry.words;
        Some(match d >> TOKEN_BITS {
            0 => Tokens::Many(&self.many[a as usize..(a + b) as usize]),
            count => Tokens::Few([a, b, c, d & ((1 << TOKEN_BITS) - 1)], count as usize),
        })
    }

    fn insert(&mut self, key: u128, tokens: &[u32]) {
        if self.many.len() > MANY {
            // The number of buckets must stay, because `keys` contains their indices.
            self.buckets.fill(Bucket::default());
            self.many.clear();
            self.inserted = 0;
        }
        if self.inserted >= self.buckets.len() && self.buckets.len() < LAST_BUCKETS {
            self.grow();
        }
        self.inserted += 1;
        let mut words = [0; INLINE];
        if tokens.len() <= INLINE {
            words[..tokens.len()].copy_from_slice(tokens);
            words[INLINE - 1] |= (tokens.len() as u32) << TOKEN_BITS;
        } else {
            words[0] = self.many.len() as u32;
            words[1] = tokens.len() as u32;
            self.many.extend_from_slice(tokens);
        }
        self.put(Entry { key, words });
    }

    /// Stores an entry in a free place of its bucket or of the neighboring one, else replaces the later entry of its
    /// bucket, because pieces that occur early are the most frequent.
    fn put(&mut self, entry: Entry) {
        let home = self.home(entry.key);
        let places = [(home, 0), (home, 1), (home ^ 1, 0), (home ^ 1, 1)];
        let free = |&(bucket, place): &(usize, usize)| self.buckets[bucket].0[place].key == 0;
        let (bucket, place) = places.into_iter().find(free).unwrap_or((home, 1));
        self.buckets[bucket].0[place] = entry;
    }

    /// Doubles the number of buckets.
    fn grow(&mut self) {
        let old = std::mem::replace(self, Self::with_buckets(self.buckets.len() * 2));
        for entry in old.buckets.iter().flat_map(|bucket| bucket.0) {
            if entry.key != 0 {
                self.put(entry);
            }
        }
        self.inserted = old.inserted;
        self.many = old.many;
    }
}

/// Length of the longest piece in the cache.
const LONGEST: usize = 2048;

/// Longer pieces.
#[derive(Debug, Default)]
struct OtherPieces {
    places: Vec<Place>,
    inserted: usize,
    bytes: Vec<u8>,
    tokens: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    hash: u64,
    piece: u32,
    tokens: u32,
    piece_len: u32,
    tokens_len: u32,
}

const FIRST_PLACES: usize = 1 << 8;
const LAST_PLACES: usize = 1 << 17; // 3 MiB

/// Capacity in bytes for pieces and tokens. When it is full, the cache is cleared.
const ARENA: usize = 1 << 23;

impl OtherPieces {
    fn get(&self, piece: &[u8], hash: u64) -> Option<&[u32]> {
        let range = |start: u32, len: u32| start as usize..(start + len) as usize;
        let home = self.home(hash)?;
        let is = |place: &&Place| place.hash == hash && self.bytes[range(place.piece, place.piece_len)] == *piece;
        let place = [&self.places[home], &self.places[home ^ 1]].into_iter().find(is)?;
        Some(&self.tokens[range(place.tokens, place.tokens_len)])
    }

    /// Returns the first place to search for a piece. The neighboring place is the second. `None` if there are no
    /// places.
    fn home(&self, hash: u64) -> Option<usize> {
        Some(hash as usize & self.places.len().checked_sub(1)?)
    }

    fn insert(&mut self, piece: &[u8], hash: u64, tokens: &[u32]) {
        if self.bytes.len() + size_of_val(&*self.tokens) > ARENA {
            *self = Self::default();
        }
        if self.inserted * 2 >= self.places.len() && self.places.len() < LAST_PLACES {
            self.grow();
        }
        self.inserted += 1;
        self.put(Place {
            hash,
            piece: self.bytes.len() as u32,
            tokens: self.tokens.len() as u32,
            piece_len: piece.len() as u32,
            tokens_len: tokens.len() as u32,
        });
        self.bytes.extend_from_slice(piece);
        self.tokens.extend_from_slice(tokens);
    }

    fn put(&mut self, place: Place) {
        let Some(home) = self.home(place.hash) else { return };
        let free = [home, home ^ 1].into_iter().find(|&at| self.places[at].piece_len == 0);
        self.places[free.unwrap_or(home ^ 1)] = place;
    }

    fn grow(&mut self) {
        let larger = vec![Place::default(); (self.places.len() * 2).max(FIRST_PLACES)];
        let old = std::mem::replace(&mut self.places, larger);
        for place in old {
            if place.piece_len > 0 {
                self.put(place);
            }
        }
    }
}
