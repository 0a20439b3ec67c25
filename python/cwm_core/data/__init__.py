"""Training data: token shards on disk, and the loader that packs them into batches."""

from .loader import Batch, Bucket, PackedLoader
from .report import describe
from .shards import Document, Shards, ShardWriter
from .traces import TrainingDocument, encode_for_training, training_texts

__all__ = [
    "Batch",
    "Bucket",
    "Document",
    "PackedLoader",
    "ShardWriter",
    "Shards",
    "TrainingDocument",
    "describe",
    "encode_for_training",
    "training_texts",
]
