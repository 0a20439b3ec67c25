//! Token shards on disk and the loader that packs them into training batches.
//!
//! Folders of shards ([`writer`], [`shard`], [`shards`], [`format`](mod@format)) and Megatron's indexed datasets
//! ([`megatron`]; [`part`] is either) are read in a seeded order that needs
//! no memory ([`permute`]) and drawn from by token share ([`mix`]); from lengths alone it is planned which documents lie
//! in which row ([`rows`], [`bins`], [`window`], [`plan`]); batches are filled ([`batch`]) with the rows of a rank's slice of one global order
//! that can be left and taken up anywhere ([`loader`]), ahead of their use if wanted ([`prefetch`]).

pub mod batch;
pub mod bins;
pub mod error;
pub mod format;
pub mod loader;
pub mod megatron;
pub mod mix;
pub mod part;
pub mod permute;
pub mod plan;
pub mod prefetch;
pub mod rows;
pub mod shard;
pub mod shards;
pub mod window;
pub mod writer;

pub use batch::{Arrays, Batch};
pub use error::{Error, Result};
pub use loader::{Config, Loader, State, Totals};
pub use megatron::Megatron;
pub use mix::{Mixture, Source};
pub use part::Part;
pub use plan::{Packing, Place};
pub use prefetch::{Made, Prefetcher};
pub use rows::Bucket;
pub use shard::{Shard, Span};
pub use shards::Shards;
pub use writer::{NewDocument, ShardWriter};
