"""Training data: token shards on disk, and the loader that packs them into batches."""

from .loader import Batch, Bucket, PackedLoader
from .shards import Document, Shards, ShardWriter, describe

__all__ = ["Batch", "Bucket", "Document", "PackedLoader", "ShardWriter", "Shards", "describe"]
