"""Convert traces and token shards to and from other file formats: Parquet, JSONL, and Megatron indexed datasets."""
