//! Constrained decoding: which tokens may come next so that a generation stays a well-formed trace.
//!
//! A trace is well formed if the strict parser of `cwm-trace` accepts it. In addition, `..` is allowed only for a
//! variable that has a value to refer to, and action lines can be restricted to the lines of a source. Within a part
//! (CONTEXT, LOCALS, LINE, VALUE), an [automaton over bytes](part) with a few dozen states reads the text. The tokens
//! that each state accepts are computed once per vocabulary ([`Grammar`]). Only tokens that end the name of a variable,
//! or a value `..`, depend on the text before: these few are tried one by one at each step ([`Constraint`]).

mod constraint;
mod grammar;
mod lines;
mod names;
mod part;
mod trie;
mod utf8;

pub use constraint::{Constraint, Refused};
pub use grammar::Grammar;
pub use lines::Lines;
