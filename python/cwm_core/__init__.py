"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from cwm_core.data import PackedLoader, Shards, ShardWriter

__all__ = ["PackedLoader", "ShardWriter", "Shards"]
