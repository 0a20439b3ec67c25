//! `cwm_core._native.TraceGrammar` and `TraceConstraint`. `cwm_core.inference.grammar` documents them.

use std::sync::Arc;

use cwm_grammar::{Constraint, Grammar, Lines};
use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::tokenizer::Tokenizer;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<TraceGrammar>()?;
    m.add_class::<TraceConstraint>()
}

/// Implementation of `cwm_core.inference.TraceGrammar`.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct TraceGrammar {
    grammar: Arc<Grammar>,
    lines: Option<Arc<Lines>>,
}

#[pymethods]
impl TraceGrammar {
    #[new]
    fn new(py: Python<'_>, tokenizer: &Tokenizer) -> PyResult<TraceGrammar> {
        let grammar = py.detach(|| Grammar::new(&tokenizer.0));
        Ok(TraceGrammar {
            grammar: Arc::new(grammar.map_err(|why| PyValueError::new_err(why.to_string()))?),
            lines: None,
        })
    }

    fn with_lines(&self, lines: Vec<String>) -> PyResult<TraceGrammar> {
        let lines = Lines::new(lines.iter().map(String::as_str)).ok_or_else(|| {
            PyValueError::new_err("lines: expected at least one line that is not empty, got no lines")
        })?;
        Ok(TraceGrammar {
            grammar: self.grammar.clone(),
            lines: Some(Arc::new(lines)),
        })
    }

    fn constraint(&self) -> TraceConstraint {
        TraceConstraint {
            constraint: Constraint::new(self.grammar.clone(), self.lines.clone()),
            mask: vec![0; self.grammar.mask_words()],
            vocab_size: self.grammar.vocab_size(),
        }
    }
}

/// Implementation of `cwm_core.inference.TraceConstraint`.
#[pyclass(module = "cwm_core._native")]
pub struct TraceConstraint {
    constraint: Constraint,
    mask: Vec<u64>,
    vocab_size: usize,
}

#[pymethods]
impl TraceConstraint {
    /// Fills a mask that has an item for each token. Items beyond the vocabulary become false.
    fn allowed(&mut self, mut mask: PyReadwriteArray1<'_, bool>) -> PyResult<()> {
        let mask = mask.as_slice_mut()?;
        if mask.len() < self.vocab_size {
            return Err(PyValueError::new_err(format!(
                "the mask has {} items, but the vocabulary has {} tokens",
                mask.len(),
                self.vocab_size
            )));
        }
        self.constraint.allowed(&mut self.mask);
        let (known, more) = mask.split_at_mut(self.vocab_size);
        let (whole, rest) = known.as_chunks_mut::<64>();
        for (items, word) in whole.iter_mut().zip(&self.mask) {
            *items = expanded(*word);
        }
        if let Some(word) = self.mask.get(whole.len()) {
            rest.copy_from_slice(&expanded(*word)[..rest.len()]);
        }
        more.fill(false);
        Ok(())
    }

    fn allows(&mut self, token: i64) -> bool {
        u32::try_from(token).is_ok_and(|token| self.constraint.allows(token))
    }

    fn advance(&mut self, token: i64) -> PyResult<()> {
        let taken = u32::try_from(token).is_ok_and(|token| self.constraint.advance(token).is_ok());
        if taken {
            Ok(())
        } else {
            Err(PyValueError::new_err(format!(
                "token {token} cannot follow in a well-formed trace"
            )))
        }
    }

    fn feed(&mut self, ids: PyReadonlyArray1<'_, i32>) -> PyResult<()> {
        for (at, &id) in ids.as_slice()?.iter().enumerate() {
            let id = id as u32; // a negative id becomes one outside any vocabulary
            self.constraint
                .advance(id)
                .map_err(|why| PyValueError::new_err(format!("the token at {at}: {why}")))?;
        }
        Ok(())
    }
}

/// Returns a boolean for each bit, the lowest first.
fn expanded(word: u64) -> [bool; 64] {
    let mut items = [false; 64];
    for (eight, byte) in items.as_chunks_mut::<8>().0.iter_mut().zip(word.to_le_bytes()) {
        *eight = BITS[usize::from(byte)];
    }
    items
}

/// The bits of each byte, the lowest first.
const BITS: [[bool; 8]; 256] = {
    let mut bits = [[false; 8]; 256];
    let mut at = 0;
    while at < 256 * 8 {
        bits[at / 8][at % 8] = (at / 8) >> (at % 8) & 1 == 1;
        at += 1;
    }
    bits
};
