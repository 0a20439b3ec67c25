//! Traces of Python executions: compact storage, text form, stored form, and a strict parser of model output.
//!
//! A [`Trace`] consists of a context (source text) and one frame per event. Source lines, variable names, and lists of
//! names are interned. A CALL or LINE frame stores only the values that changed, so that a step of a loop takes a few
//! dozen bytes. `docs/concepts/trace-format.md` describes the format.

mod json;
mod level;
mod parse;
mod scope;
mod special;
pub mod store;
mod stored;
mod text;
mod trace;

pub use json::push_code_point;
pub use level::{Level, LoopBudget, coarsen};
pub use parse::{ParseError, ParseErrorKind, Parsed, Piece, TokenParser, parse_cut_text, parse_text};
pub use scope::{State, resolve, state_at};
pub use special::Special;
pub use stored::{StoredError, from_bytes, to_bytes};
pub use text::{Part, Renderer};
pub use trace::{Event, FrameRef, Line, Outcome, Shown, Trace};
