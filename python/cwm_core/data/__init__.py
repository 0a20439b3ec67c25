"""Training data: token shards on disk, and the loader that packs them into batches."""

from .loader import Batch, Bucket, PackedLoader
from .report import describe
from .shards import Document, Shards, ShardWriter

__all__ = ["Batch", "Bucket", "Document", "PackedLoader", "ShardWriter", "Shards", "describe"]
