"""The examples of the guide on shards and packing run."""

from typing import Any

import pytest
from readme import examples


def test_the_examples_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for example in examples("docs/guides/pack.md"):
        exec(compile(example, "docs/guides/pack.md", "exec"), names)
    assert names["loader"].stats().efficiency > 0.5 and len(names["buckets"]) == 3
