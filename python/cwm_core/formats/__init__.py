"""Convert traces and token shards from and to other file formats: Parquet, JSONL, Megatron's indexed datasets."""
