//! Special tokens, which ordinary text does not produce. The names of all special tokens are here and, for traces, in
//! [`cwm_trace::Special`].

use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, MatchKind};
use cwm_trace::Special;
use rustc_hash::FxHashMap;

use crate::error::{Error, Result, invalid};

/// Returns the 256 special tokens of the Code World Model, in the order of their ids, which follow the ordinary tokens.
/// Source: the tokenizer released with the model (arXiv 2510.02387).
pub fn cwm_special_tokens() -> Vec<String> {
    const NAMED: [(usize, &str); 17] = [
        (0, Special::BeginOfText.name()),
        (1, Special::EndOfText.name()),
        (4, "<|pad|>"),
        (6, "<|start_header_id|>"),
        (7, "<|end_header_id|>"),
        (8, "<|eom_id|>"),
        (9, "<|eot_id|>"),
        (100, Special::FrameSep.name()),
        (101, Special::ActionSep.name()),
        (102, Special::ReturnSep.name()),
        (103, Special::CallSep.name()),
        (104, Special::LineSep.name()),
        (105, Special::ExceptionSep.name()),
        (106, Special::ArgSep.name()),
        (107, Special::ContextStart.name()),
        (120, "<|reasoning_thinking_start|>"),
        (121, "<|reasoning_thinking_end|>"),
    ];
    let mut names: Vec<String> = (0..256).map(|n| format!("<|reserved_special_token_{n}|>")).collect();
    for (offset, name) in NAMED {
        names[offset] = name.to_owned();
    }
    names
}

/// The special tokens of a vocabulary, by name and by id.
#[derive(Debug, Clone)]
pub struct SpecialTokens {
    names: BTreeMap<u32, String>,
    ids: FxHashMap<String, u32>,
    all: Matcher,
}

impl SpecialTokens {
    pub fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> Result<Self> {
        let (mut names, mut ids) = (BTreeMap::new(), FxHashMap::default());
        for (name, id) in tokens {
            if name.is_empty() {
                return invalid(format!("the special token with id {id} has an empty name"));
            }
            if let Some(other) = names.insert(id, name.clone()) {
                return invalid(format!("special tokens {other:?} and {name:?} have the same id {id}"));
            }
            if ids.insert(name.clone(), id).is_some() {
                return invalid(format!("duplicate special token {name:?}"));
            }
        }
        let all = Matcher::new(names.iter().map(|(&id, name)| (name.as_str(), id)))?;
        Ok(Self { names, ids, all })
    }

    pub fn id(&self, name: &str) -> Result<u32> {
        self.ids
            .get(name)
            .copied()
            .ok_or_else(|| Error::UnknownSpecial(name.to_owned()))
    }

    pub fn name(&self, id: u32) -> Option<&str> {
        self.names.get(&id).map(String::as_str)
    }

    /// Iterates over names and ids, in the order of the ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        self.names.iter().map(|(&id, name)| (name.as_str(), id))
    }

    /// Returns a matcher for all special tokens.
    pub fn all(&self) -> &Matcher {
        &self.all
    }

    /// Returns a matcher for the special tokens with these names.
    pub fn matcher<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Matcher> {
        let tokens: Result<Vec<_>> = names.into_iter().map(|name| Ok((name, self.id(name)?))).collect();
        Matcher::new(tokens?)
    }
}

/// Finds special tokens in text. If one name is a prefix of another, the longer one wins.
#[derive(Debug, Clone)]
pub struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Matcher {
    fn new<'n>(tokens: impl IntoIterator<Item = (&'n str, u32)>) -> Result<Self> {
        let (names, ids): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        match AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(names)
        {
            Ok(automaton) => Ok(Self { automaton, ids }),
            Err(why) => invalid(format!("special tokens: {why}")),
        }
    }

    /// Iterates over the ranges and ids of the special tokens in `text`, from left to right.
    pub fn find_iter<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (std::ops::Range<usize>, u32)> + 'a {
        self.automaton
            .find_iter(text)
            .map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cwm_has_256_different_names_at_their_offsets() {
        let tokens = SpecialTokens::new(cwm_special_tokens().into_iter().zip(128_000..)).unwrap();
        assert_eq!(tokens.iter().len(), 256);
        assert_eq!(tokens.id("<|begin_of_text|>"), Ok(128_000));
        assert_eq!(tokens.id("<|trace_context_start|>"), Ok(128_107));
        assert_eq!(tokens.name(128_121), Some("<|reasoning_thinking_end|>"));
        assert_eq!(tokens.name(128_255), Some("<|reserved_special_token_255|>"));
    }

    #[test]
    fn ambiguous_tokens_are_refused() {
        for tokens in [vec![("a", 1), ("b", 1)], vec![("a", 1), ("a", 2)], vec![("", 1)]] {
            let tokens = tokens.into_iter().map(|(name, id)| (name.to_owned(), id));
            assert!(SpecialTokens::new(tokens).is_err());
        }
    }

    #[test]
    fn the_longest_name_is_found() {
        let tokens = SpecialTokens::new([("<a>".to_owned(), 1), ("<a><b>".to_owned(), 2)]).unwrap();
        let found: Vec<_> = tokens.all().find_iter("x<a><b><a>").collect();
        assert_eq!(found, [(1..7, 2), (7..10, 1)]);
    }
}
