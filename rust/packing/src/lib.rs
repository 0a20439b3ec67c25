//! Token shards on disk and the loader that packs them into training batches.
//!
//! A folder of shards ([`writer`], [`reader`], [`format`](mod@format)) is read in a seeded order that needs no memory
//! ([`permute`]), several folders are drawn from by token share ([`mix`]), documents are packed into rows ([`pack`]),
//! and the rows of every rank come from one global order that can be left and taken up anywhere ([`loader`]).

pub mod error;
pub mod format;
pub mod loader;
pub mod mix;
pub mod pack;
pub mod permute;
pub mod reader;
pub mod writer;

pub use error::{Error, Result};
pub use loader::{Batch, Config, Loader, State, Stats};
pub use mix::Source;
pub use reader::{Shard, Shards};
pub use writer::ShardWriter;
