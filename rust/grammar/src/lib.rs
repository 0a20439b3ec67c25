//! Constrained decoding: which tokens may come next so that a generation stays a well-formed trace.
//!
//! What is well formed is what the strict parser of `cwm-trace` takes without an error; on top of that, `..` stands only
//! for a variable that has a value to refer to, and action lines may be held to those of a source. Within a part (CONTEXT,
//! LOCALS, LINE, VALUE) the text is read by an [automaton over bytes](part) of a few dozen states; which tokens each of
//! them takes is worked out once for a vocabulary ([`Grammar`]). Only tokens that end a variable's name, or a value `..`,
//! depend on what was written before: these few are tried one by one at each step ([`Constraint`]).

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
