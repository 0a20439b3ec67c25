//! Byte-level BPE tokenizer for code and execution traces: vocabularies of tiktoken and of Hugging Face, exactly.
//!
//! Text is [split](Splitter) into pieces by a pattern, and the bytes of each piece are [merged](merge) into tokens of
//! the [vocabulary](Vocabulary). [Special tokens](SpecialTokens) are never the result of that: only a caller who allows
//! them gets them.

mod cache;
mod error;
mod hash;
mod json;
mod merge;
mod pieces;
mod pool;
mod ranks;
mod special;
mod split;
mod tokenizer;
mod trace;
mod train;
mod vocab;

pub use error::{Error, Result};
pub use pieces::PieceCounts;
pub use special::{Matcher, SpecialTokens, cwm_special_tokens};
pub use split::{CL100K_PATTERN, GPT2_PATTERN, LLAMA3_PATTERN, O200K_PATTERN, QWEN2_PATTERN, Splitter};
pub use tokenizer::{Encoder, Tokenizer};
pub use trace::{FrameSpans, TraceTokens};
pub use vocab::{MAX_IDS, MergeOrder, Vocabulary};
