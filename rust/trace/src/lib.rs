//! Traces of Python executions: compact storage, text form, stored form, and the strict parser of model output.
//!
//! A [`Trace`] is a context (source text) and frames, one an event. Frames are kept in rows: source lines, variable
//! names and sets of names are interned, and a CALL or LINE frame stores only the values that changed, so a step of a
//! loop costs a few dozen bytes. The format itself is described in `docs/concepts/trace-format.md`.

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
