//! The ordinary tokens of a vocabulary, and how bytes merge into them.

use cwm_interrupt::Pace;
use rustc_hash::FxHashMap;

use crate::error::{Result, invalid};
use crate::hash::{MAX_NUMBERS, Table, hash};
use crate::merge::{MERGE_WORK, Merge, Merges, Queue};

/// Bound of the ids, so that a hostile file cannot request a table of billions of entries. The largest published
/// vocabularies have a few hundred thousand tokens.
pub const MAX_IDS: u32 = MAX_NUMBERS;

/// Length of the longest token in a vocabulary whose merges follow from its ranks. Every way to cut each token in two
/// is tried.
const MAX_RANKED_TOKEN_BYTES: usize = 1024;

/// Rule for which pairs of tokens merge, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeOrder {
    /// A pair merges if the joined bytes are a token, the lower id first. The rule of rank files.
    ById,
    /// Exactly these pairs of ids merge, in this order. The rule of `tokenizer.json`.
    Listed(Vec<(u32, u32)>),
}

/// The ordinary tokens. Special tokens are in [`SpecialTokens`](crate::SpecialTokens).
#[derive(Debug, Clone)]
pub struct Vocabulary {
    tokens: Tokens,
    merges: Merges,
    /// Whether a piece with the bytes of a token becomes this token, by id.
    whole: Vec<bool>,
    /// Whether the bytes of every token merge into that token.
    is_reached: bool,
    by_id: bool,
    whole_pieces: bool,
}

impl Vocabulary {
    /// Creates a vocabulary. With `whole_pieces`, a piece with the bytes of a token becomes that token even if merging
    /// does not reach it.
    pub fn new(
        entries: impl IntoIterator<Item = (Vec<u8>, u32)>,
        order: MergeOrder,
        whole_pieces: bool,
    ) -> Result<Self> {
        let tokens = Tokens::new(entries.into_iter().collect())?;
        let mut byte_ids = [0; 256];
        for byte in 0..=255 {
            match tokens.id(&[byte]) {
                Some(id) => byte_ids[usize::from(byte)] = id,
                None => return invalid(format!("no token for the byte 0x{byte:02x}")),
            }
        }
        let by_id = order == MergeOrder::ById;
        let all = match order {
            MergeOrder::ById => merges_by_id(&tokens)?,
            MergeOrder::Listed(pairs) => merges_listed(&tokens, &pairs)?,
        };
        let (merges, reached) = used(&tokens, Merges::new(byte_ids, all))?;
        let is_reached = tokens.iter().all(|(_, id)| reached[id as usize]);
        Ok(Self {
            is_reached,
            whole: reached.into_iter().map(|reached| whole_pieces || reached).collect(),
            tokens,
            merges,
            by_id,
            whole_pieces,
        })
    }

    /// Returns one more than the largest id.
    pub fn id_end(&self) -> u32 {
        self.tokens.id_end()
    }

    pub fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id)
    }

    /// Iterates over bytes and ids of the tokens, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.tokens.iter()
    }

    /// Returns whether the vocabulary follows the rule of rank files.
    pub fn is_by_id(&self) -> bool {
        self.by_id
    }

    pub fn whole_pieces(&self) -> bool {
        self.whole_pieces
    }

    /// Returns whether each piece with the bytes of a token becomes that token, by its merges or by `whole_pieces`.
    pub fn takes_all_whole(&self) -> bool {
        self.iter().all(|(_, id)| self.whole[id as usize])
    }

    /// Returns whether the bytes of every token merge into that token, so that `whole_pieces` makes no difference.
    pub fn is_reached(&self) -> bool {
        self.is_reached
    }

    /// Returns the merges that occur in some text, in order. No two of them form the same token.
    pub fn merges(&self) -> &[Merge] {
        self.merges.list()
    }

    /// Appends the tokens of one piece, which must not be empty, must be shorter than 4 GiB, and must have this hash.
    pub fn encode_piece(&self, piece: &[u8], hash: u64, queue: &mut Queue, out: &mut Vec<u32>) {
        if let [byte] = piece {
            return out.push(self.merges.byte_id(*byte));
        }
        match self.tokens.id_by_hash(piece, hash) {
            Some(id) if self.whole[id as usize] => out.push(id),
            _ => {
                self.merges.merge(piece, queue, out);
            }
        }
    }

    /// Fails unless a rank file, whose merges follow from the ids, would yield the same tokens for every text.
    pub fn check_order_by_id(&self) -> Result<()> {
        if self.by_id && self.whole_pieces {
            return Ok(());
        }
        let entries = self.iter().map(|(token, id)| (token.to_vec(), id));
        let ranked = Self::new(entries, MergeOrder::ById, true)?;
        if ranked.merges() != self.merges() {
            return invalid("a rank file cannot express merges that do not follow from the ids");
        }
        match self.iter().find(|&(_, id)| !self.whole[id as usize]) {
            Some((_, id)) => invalid(format!("no merge leads to token {id}, which a rank file would use")),
            None => Ok(()),
        }
    }
}

/// Bytes of tokens by id, and ids by bytes.
#[derive(Debug, Clone)]
struct Tokens {
    bytes: Vec<u8>,
    /// Start in `bytes` of the token of each id, and the end of the last one. An id without a token has no bytes.
    starts: Vec<u32>,
    /// Id of the empty token, which Whisper's vocabulary has. No text produces it.
    empty: Option<u32>,
    ids: Table,
}

impl Tokens {
    fn new(mut entries: Vec<(Vec<u8>, u32)>) -> Result<Self> {
        entries.sort_by_key(|&(_, id)| id);
        if let Some((_, id)) = entries.last()
            && *id >= MAX_IDS
        {
            return invalid(format!("token id {id} is above the limit of {}", MAX_IDS - 1));
        }
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            return invalid(format!("duplicate token id {}", pair[0].1));
        }
        let bytes: usize = entries.iter().map(|(token, _)| token.len()).sum();
        if u32::try_from(bytes).is_err() {
            return invalid(format!("the tokens have {bytes} bytes in total; the limit is 4 GiB"));
        }
        let mut tokens = Self {
            bytes: Vec::with_capacity(bytes),
            starts: vec![0],
            empty: None,
            ids: Table::with_capacity(entries.len()),
        };
        for (token, id) in entries {
            if let Some(other) = tokens.id(&token) {
                return invalid(format!("tokens {other} and {id} have the same bytes"));
            }
            tokens.starts.resize(id as usize + 1, tokens.bytes.len() as u32);
            tokens.bytes.extend_from_slice(&token);
            tokens.starts.push(tokens.bytes.len() as u32);
            if token.is_empty() {
                tokens.empty = Some(id);
            }
            tokens.ids.insert(hash(&token), id);
        }
        Ok(tokens)
    }

    fn id_end(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    fn at(&self, id: u32) -> &[u8] {
        &self.bytes[self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize]
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        (id < self.id_end())
            .then(|| self.at(id))
            .filter(|token| !token.is_empty() || self.empty == Some(id))
    }

    fn id(&self, token: &[u8]) -> Option<u32> {
        self.id_by_hash(token, hash(token))
    }

    fn id_by_hash(&self, token: &[u8], hash: u64) -> Option<u32> {
        self.ids.find(hash, |id| self.at(id) == token)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        (0..self.id_end()).filter_map(|id| Some((self.get(id)?, id)))
    }
}

/// Returns all pairs of tokens that form a token. The order of pairs that form the same token has no meaning; see
/// `used`.
fn merges_by_id(tokens: &Tokens) -> Result<Vec<Merge>> {
    let mut merges = Vec::new();
    for (token, id) in tokens.iter() {
        if token.len() > MAX_RANKED_TOKEN_BYTES {
            return invalid(format!(
                "token {id} has {} bytes; the limit for rank files is {MAX_RANKED_TOKEN_BYTES}",
                token.len()
            ));
        }
        for (left, right) in (1..token.len()).map(|cut| token.split_at(cut)) {
            if let (Some(left), Some(right)) = (tokens.id(left), tokens.id(right)) {
                merges.push(Merge { left, right, id });
            }
        }
    }
    check_number(merges)
}

fn merges_listed(tokens: &Tokens, pairs: &[(u32, u32)]) -> Result<Vec<Merge>> {
    let mut merges = Vec::with_capacity(pairs.len());
    let mut seen = FxHashMap::default();
    let mut joined = Vec::new();
    for (&(left, right), number) in pairs.iter().zip(0..) {
        joined.clear();
        joined.extend_from_slice(tokens.get(left).unwrap_or_default());
        let cut = joined.len();
        joined.extend_from_slice(tokens.get(right).unwrap_or_default());
        match tokens.id(&joined).filter(|_| 0 < cut && cut < joined.len()) {
            Some(id) => merges.push(Merge { left, right, id }),
            None => {
                return invalid(format!(
                    "merge {number} joins tokens {left} and {right}, but the result is not a token"
                ));
            }
        }
        if let Some(first) = seen.insert((left, right), number) {
            return invalid(format!(
                "merge {number} of tokens {left} and {right} repeats merge {first}"
            ));
        }
    }
    check_number(merges)
}

fn check_number(merges: Vec<Merge>) -> Result<Vec<Merge>> {
    match merges.len() {
        number if number >= MAX_NUMBERS as usize => {
            invalid(format!("{number} merges: the limit is {}", MAX_NUMBERS - 1))
        }
        _ => Ok(merges),
    }
}

/// Returns the merges that occur in some text, and whether the bytes of each token merge into that token.
///
/// Adjacent tokens have merged from their own bytes independently of their neighbors. If two of them join, the bytes of
/// the joined token on their own also merge into these two, and then into it. So at most one of the merges that form a
/// token ever occurs: the last merge of the token's own bytes. The other merges are dropped, and there is never a
/// choice between two of them.
fn used(tokens: &Tokens, all: Merges) -> Result<(Merges, Vec<bool>)> {
    let mut reached = vec![false; tokens.id_end() as usize];
    let mut kept = vec![false; all.list().len()];
    let (mut queue, mut out, mut pace) = (Queue::default(), Vec::new(), Pace::default());
    for (token, id) in tokens.iter() {
        out.clear();
        if token.is_empty() {
            reached[id as usize] = true; // nothing merges, and no piece is empty
            continue;
        }
        let last = all.merge(token, &mut queue, &mut out);
        pace.did(MERGE_WORK * token.len() as u64)?; // merging may have been interrupted
        if out == [id] {
            reached[id as usize] = true;
            if let Some(number) = last {
                kept[number as usize] = true;
            }
        }
    }
    let list = all
        .list()
        .iter()
        .zip(kept)
        .filter_map(|(merge, kept)| kept.then_some(*merge));
    Ok((all.with_list(list.collect()), reached))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The rule of the file formats: merge the leftmost pair of the lowest rank until none is left.
    fn merge_naively(
        piece: &[u8],
        byte_id: impl Fn(u8) -> u32,
        joined: impl Fn(u32, u32) -> Option<(u32, u32)>,
    ) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&byte| byte_id(byte)).collect();
        while let Some(((_, id), at)) = ids
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| Some((joined(pair[0], pair[1])?, at)))
            .min_by_key(|&((rank, _), at)| (rank, at))
        {
            ids.splice(at..at + 2, [id]);
        }
        ids
    }

    /// All bytes and some words of few letters, with ids in any order.
    fn entries() -> impl Strategy<Value = Vec<(Vec<u8>, u32)>> {
        let words = proptest::collection::btree_set(proptest::collection::vec(b'a'..=b'c', 2..6), 0..40);
        words.prop_map(Vec::from_iter).prop_shuffle().prop_map(|words| {
            let bytes = (0..=255).map(|byte| vec![byte]);
            bytes.chain(words).zip(0..).collect()
        })
    }

    fn tokens(vocab: &Vocabulary, piece: &[u8]) -> Vec<u32> {
        let mut out = Vec::new();
        vocab.encode_piece(piece, hash(piece), &mut Queue::default(), &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn ranks_merge_as_they_mean(entries in entries(), pieces in proptest::collection::vec(proptest::collection::vec(b'a'..=b'c', 1..90), 1..9)) {
            let vocab = Vocabulary::new(entries, MergeOrder::ById, false).unwrap();
            for piece in pieces {
                let joined = |left, right| {
                    let id = vocab.tokens.id(&[vocab.token(left)?, vocab.token(right)?].concat())?;
                    Some((id, id))
                };
                prop_assert_eq!(tokens(&vocab, &piece), merge_naively(&piece, u32::from, joined));
            }
        }

        #[test]
        fn listed_merges_merge_as_they_mean(
            entries in entries(),
            numbers in proptest::collection::vec(any::<proptest::sample::Index>(), 0..200),
            pieces in proptest::collection::vec(proptest::collection::vec(b'a'..=b'c', 1..90), 1..9),
        ) {
            let index = Tokens::new(entries.clone()).unwrap();
            let all = merges_by_id(&index).unwrap();
            prop_assume!(!all.is_empty());
            let mut seen = BTreeSet::new();
            let list: Vec<Merge> = numbers
                .iter()
                .map(|number| *number.get(&all))
                .filter(|merge| seen.insert((merge.left, merge.right)))
                .collect();
            let pairs = list.iter().map(|merge| (merge.left, merge.right)).collect();
            let vocab = Vocabulary::new(entries, MergeOrder::Listed(pairs), false).unwrap();
            for piece in pieces {
                let joined = |left, right| {
                    let number = list.iter().position(|merge| (merge.left, merge.right) == (left, right))?;
                    Some((number as u32, list[number].id))
                };
                prop_assert_eq!(tokens(&vocab, &piece), merge_naively(&piece, u32::from, joined));
            }
        }
    }
}
