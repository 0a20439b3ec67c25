"""Training data: token shards on disk, and the loader that packs them into batches."""

from .documents import DocumentKind, document_files, document_kinds, read_items
from .loader import Batch, Bucket, PackedLoader
from .report import describe
from .shards import Document, Shards, ShardWriter
from .traces import TrainingDocument, encode_for_training, training_texts

__all__ = [
    "Batch",
    "Bucket",
    "Document",
    "DocumentKind",
    "PackedLoader",
    "ShardWriter",
    "Shards",
    "TrainingDocument",
    "describe",
    "document_files",
    "document_kinds",
    "encode_for_training",
    "read_items",
    "training_texts",
]
