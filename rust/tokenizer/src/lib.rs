//! Byte-level BPE tokenizer for code and execution traces, with the same ids as tiktoken and Hugging Face `tokenizers`.
//!
//! A pattern [splits](Splitter) text into pieces, and the bytes of each piece [merge](merge) into tokens of the
//! [vocabulary](Vocabulary). Text produces [special tokens](SpecialTokens) only if the caller allows them.

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
