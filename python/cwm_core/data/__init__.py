"""Read training documents, store them in token shards, and pack shards into batches."""

from .documents import DocumentKind, document_files, document_kinds, read_items
from .loader import Batch, Bucket, LoaderStats, PackedLoader, Packing, TensorBatch
from .report import ShardSummary, SourceSummary, describe
from .shards import Document, Shards, ShardWriter
from .traces import TrainingDocument, encode_for_training, training_texts

__all__ = [
    "Batch",
    "Bucket",
    "Document",
    "DocumentKind",
    "LoaderStats",
    "PackedLoader",
    "Packing",
    "ShardSummary",
    "ShardWriter",
    "Shards",
    "SourceSummary",
    "TensorBatch",
    "TrainingDocument",
    "describe",
    "document_files",
    "document_kinds",
    "encode_for_training",
    "read_items",
    "training_texts",
]
