//! Token shards on disk and the loader that packs them into training batches.
//!
//! - [`writer`], [`shard`], [`shards`], [`format`](mod@format): folders of shards. [`megatron`]: Megatron indexed
//!   datasets. [`part`]: a file of either format.
//! - [`permute`]: seeded shuffling without memory. [`mix`]: drawing documents from sources by token share.
//! - [`rows`], [`bins`], [`window`], [`plan`]: planning which documents go into which row, from lengths alone.
//! - [`batch`]: filling batches with a rank's rows. [`loader`]: one order of rows for all ranks, resumable anywhere.
//!   [`prefetch`]: preparing batches ahead.

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
