//! Meaning of a vocabulary's tokens in the grammar, computed once per vocabulary.

use cwm_tokenizer::{Error, Tokenizer};
use cwm_trace::{Event, Special};
use rustc_hash::FxHashMap;

use crate::part::{Locals, Part, Read, Value};
use crate::trie::Trie;
use crate::utf8::Utf8;

/// The grammar of traces over a vocabulary. All constraints share it.
#[derive(Debug)]
pub struct Grammar {
    pub(crate) trie: Trie,
    /// Text of each ordinary token, by id. Empty for other tokens.
    texts: Vec<Box<[u8]>>,
    specials: [u32; Special::ALL.len()],
    choices: FxHashMap<Part, Choices>,
}

/// The ordinary tokens that may follow in a state of a part.
#[derive(Debug)]
pub(crate) struct Choices {
    /// Bits of the tokens that may follow, whatever the names of the variables.
    pub(crate) always: Box<[u64]>,
    /// Tokens that may follow, depending on the names.
    pub(crate) sometimes: Box<[u32]>,
}

/// Meaning of a token id.
pub(crate) enum Token<'g> {
    Special(Special),
    Text(&'g [u8]),
    /// A token that does not occur in traces.
    Foreign,
}

impl Grammar {
    /// Creates the grammar. Fails if the vocabulary lacks a special token of the trace format.
    pub fn new(tokenizer: &Tokenizer) -> Result<Grammar, Error> {
        let mut specials = [0; Special::ALL.len()];
        for special in Special::ALL {
            specials[special as usize] = tokenizer.special_tokens().id(special.name())?;
        }
        let mut texts = vec![Box::default(); tokenizer.vocab_size()];
        for (text, id) in tokenizer.vocabulary().iter() {
            texts[id as usize] = text.into();
        }
        let mut grammar = Grammar {
            trie: Trie::new(tokenizer.vocabulary().iter()),
            texts,
            specials,
            choices: FxHashMap::default(),
        };
        grammar.explore();
        Ok(grammar)
    }

    /// Returns one more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// Returns the number of words of a mask with one bit per token id. The lowest bit of the first word is id 0.
    pub fn mask_words(&self) -> usize {
        self.texts.len().div_ceil(u64::BITS as usize)
    }

    pub(crate) fn special(&self, special: Special) -> u32 {
        self.specials[special as usize]
    }

    pub(crate) fn token(&self, id: u32) -> Token<'_> {
        match self.texts.get(id as usize) {
            Some(text) if !text.is_empty() => Token::Text(text),
            _ => Special::ALL
                .into_iter()
                .find(|&special| self.special(special) == id)
                .map_or(Token::Foreign, Token::Special),
        }
    }

    pub(crate) fn text(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize).map_or(b"", |text| text)
    }

    pub(crate) fn choices(&self, part: Part) -> Option<&Choices> {
        self.choices.get(&part.key())
    }

    /// Computes the choices in every reachable state.
    fn explore(&mut self) {
        let mut open: Vec<Part> = [Special::ContextStart, Special::ArgSep]
            .into_iter()
            .chain(Event::ALL.map(Event::special))
            .map(Part::after)
            .collect();
        while let Some(part) = open.pop() {
            if self.choices.contains_key(&part) {
                continue;
            }
            self.choices.insert(part, self.choices_in(part));
            open.extend((0..=u8::MAX).filter_map(|byte| Some(part.step(byte)?.0.key())));
        }
    }

    fn choices_in(&self, part: Part) -> Choices {
        let mut always = vec![0; self.mask_words()];
        let mut sometimes = Vec::new();
        self.trie.walk(
            (part, false),
            |(part, depends), byte| {
                let (part, read) = part.step(byte)?;
                let depends = depends || matches!(read, Read::NameEnd | Read::ValueEnd { unchanged: true });
                Some((part, depends))
            },
            |id, (_, depends)| match depends {
                true => sometimes.push(id),
                false => set(&mut always, id),
            },
        );
        Choices {
            always: always.into(),
            sometimes: sometimes.into(),
        }
    }
}

pub(crate) fn set(mask: &mut [u64], id: u32) {
    mask[(id / u64::BITS) as usize] |= 1 << (id % u64::BITS);
}

impl Part {
    /// Returns the part that follows a special token.
    pub(crate) fn after(special: Special) -> Part {
        match special {
            Special::ContextStart | Special::ActionSep => Part::Text(Utf8::WHOLE),
            Special::CallSep | Special::LineSep => Part::Locals(Locals::Start),
            Special::ArgSep => Part::Value(Value::Start),
            _ => Part::Nothing,
        }
    }
}
