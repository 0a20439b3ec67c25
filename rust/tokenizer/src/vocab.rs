//! The ordinary tokens of a vocabulary and how bytes merge into them.

use rustc_hash::FxHashMap;

use crate::error::{Result, invalid};
use crate::merge::{Merge, MergeTable, merge};

/// Ids are below this, so that a hostile file cannot ask for a table of billions of entries. The largest published
/// vocabularies have a few hundred thousand tokens.
pub const MAX_IDS: u32 = 1 << 22;

/// Longest token of a vocabulary whose merges follow from its ranks: every way to cut each token in two is tried.
const MAX_RANKED_TOKEN_BYTES: usize = 1024;

/// What decides which pairs of tokens merge, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeOrder {
    /// A pair merges when the joined bytes are a token; the lower id first. The rule of rank files.
    ById,
    /// Exactly these pairs of ids merge; the earlier first. The rule of `tokenizer.json`.
    Listed(Vec<(u32, u32)>),
}

/// The ordinary tokens: special ones are in [`SpecialTokens`](crate::SpecialTokens).
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// Bytes of the token with each id; empty where no token has the id.
    tokens: Vec<Box<[u8]>>,
    ids: FxHashMap<Box<[u8]>, u32>,
    byte_ids: [u32; 256],
    longest: usize,
    merges: MergeTable,
    order: MergeOrder,
    whole_pieces: bool,
}

impl Vocabulary {
    /// `whole_pieces`: a piece that is itself a token is that token, even where merging would not reach it.
    pub fn new(
        entries: impl IntoIterator<Item = (Vec<u8>, u32)>,
        order: MergeOrder,
        whole_pieces: bool,
    ) -> Result<Self> {
        let (tokens, ids) = index(entries)?;
        let mut byte_ids = [0; 256];
        for byte in 0..=255 {
            match ids.get([byte].as_slice()) {
                Some(&id) => byte_ids[usize::from(byte)] = id,
                None => return invalid(format!("no token for the byte 0x{byte:02x}")),
            }
        }
        let longest = tokens.iter().map(|token| token.len()).max().unwrap_or(0);
        let merges = match &order {
            MergeOrder::ById => merges_by_id(&tokens, &ids)?,
            MergeOrder::Listed(pairs) => merges_listed(&tokens, &ids, pairs)?,
        };
        Ok(Self {
            tokens,
            ids,
            byte_ids,
            longest,
            merges,
            order,
            whole_pieces,
        })
    }

    /// One more than the largest id.
    pub fn id_end(&self) -> u32 {
        self.tokens.len() as u32
    }

    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.ids.get(bytes).copied()
    }

    pub fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens
            .get(id as usize)
            .map(|token| &**token)
            .filter(|token| !token.is_empty())
    }

    /// Bytes and id of each token, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.tokens
            .iter()
            .zip(0..)
            .map(|(token, id)| (&**token, id))
            .filter(|(token, _)| !token.is_empty())
    }

    pub fn order(&self) -> &MergeOrder {
        &self.order
    }

    pub fn whole_pieces(&self) -> bool {
        self.whole_pieces
    }

    /// The pairs that merge, the earliest first. Pairs that become the same token of a rank file are of equal rank, of
    /// which the leftmost in the text merges first; here they are in the order of their parts' ids.
    pub fn merge_list(&self) -> Vec<(u32, u32)> {
        match &self.order {
            MergeOrder::Listed(pairs) => pairs.clone(),
            MergeOrder::ById => {
                let mut pairs: Vec<_> = self.merges.iter().map(|(&pair, merge)| (merge.rank, pair)).collect();
                pairs.sort_unstable();
                pairs.into_iter().map(|(_, pair)| pair).collect()
            }
        }
    }

    /// Appends the tokens of one piece, which is shorter than 4 GiB.
    pub fn encode_piece(&self, piece: &[u8], out: &mut Vec<u32>) {
        match piece {
            [] => (),
            [byte] => out.push(self.byte_ids[usize::from(*byte)]),
            _ => match self.whole_piece(piece) {
                Some(id) => out.push(id),
                None => self.merge_bytes(piece, out),
            },
        }
    }

    fn whole_piece(&self, piece: &[u8]) -> Option<u32> {
        if self.whole_pieces && piece.len() <= self.longest {
            self.id(piece)
        } else {
            None
        }
    }

    fn merge_bytes(&self, piece: &[u8], out: &mut Vec<u32>) {
        merge(
            &self.merges,
            piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]),
            out,
        );
    }

    /// Fails unless a rank file, where merges follow from the ids, would give every text the same tokens.
    pub fn check_order_by_id(&self) -> Result<()> {
        let MergeOrder::Listed(pairs) = &self.order else {
            return Ok(());
        };
        if !pairs.is_sorted_by_key(|pair| self.merges[pair].id) {
            return invalid("its merges are not in the order of the ids, which a rank file cannot express");
        }
        if self.longest > MAX_RANKED_TOKEN_BYTES {
            return invalid(format!(
                "its longest token has {} bytes; a rank file may hold tokens of up to {MAX_RANKED_TOKEN_BYTES}",
                self.longest
            ));
        }
        // The pairs that a rank file adds never stand side by side: the token that they would become has merged from
        // other parts before. That needs every token to be the result of merging its own bytes.
        match self
            .iter()
            .find(|(token, id)| !self.whole_pieces && self.merged(token) != [*id])
        {
            Some((_, id)) => invalid(format!("no merge leads to token {id}, which a rank file would use")),
            None => Ok(()),
        }
    }

    fn merged(&self, bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        self.merge_bytes(bytes, &mut ids);
        ids
    }
}

type Ids = FxHashMap<Box<[u8]>, u32>;

fn index(entries: impl IntoIterator<Item = (Vec<u8>, u32)>) -> Result<(Vec<Box<[u8]>>, Ids)> {
    let mut tokens: Vec<Box<[u8]>> = Vec::new();
    let mut ids = Ids::default();
    for (token, id) in entries {
        let token = token.into_boxed_slice();
        if token.is_empty() {
            return invalid(format!("token {id} is empty"));
        }
        if id >= MAX_IDS {
            return invalid(format!("token id {id} is above the limit of {}", MAX_IDS - 1));
        }
        if id as usize >= tokens.len() {
            tokens.resize(id as usize + 1, Box::default());
        }
        if !tokens[id as usize].is_empty() {
            return invalid(format!("two tokens have the id {id}"));
        }
        tokens[id as usize] = token.clone();
        if let Some(other) = ids.insert(token, id) {
            return invalid(format!("tokens {other} and {id} are the same bytes"));
        }
    }
    Ok((tokens, ids))
}

fn merges_by_id(tokens: &[Box<[u8]>], ids: &Ids) -> Result<MergeTable> {
    let mut merges = MergeTable::default();
    for (token, id) in tokens.iter().zip(0..) {
        if token.len() > MAX_RANKED_TOKEN_BYTES {
            return invalid(format!(
                "token {id} has {} bytes; a rank file may hold tokens of up to {MAX_RANKED_TOKEN_BYTES}",
                token.len()
            ));
        }
        for cut in 1..token.len() {
            let (left, right) = token.split_at(cut);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                merges.insert((left, right), Merge { rank: id, id });
            }
        }
    }
    Ok(merges)
}

fn merges_listed(tokens: &[Box<[u8]>], ids: &Ids, pairs: &[(u32, u32)]) -> Result<MergeTable> {
    let mut merges = MergeTable::default();
    let token = |id: u32| tokens.get(id as usize).map_or(&[][..], |token| token);
    let mut joined = Vec::new();
    for (&(left, right), rank) in pairs.iter().zip(0..) {
        joined.clear();
        joined.extend_from_slice(token(left));
        joined.extend_from_slice(token(right));
        let Some(&id) = ids
            .get(joined.as_slice())
            .filter(|_| !token(left).is_empty() && !token(right).is_empty())
        else {
            return invalid(format!(
                "merge {rank} joins {left} and {right} to something that is not a token"
            ));
        };
        if merges.insert((left, right), Merge { rank, id }).is_some() {
            return invalid(format!("merge {rank} of {left} and {right} is listed twice"));
        }
    }
    Ok(merges)
}
