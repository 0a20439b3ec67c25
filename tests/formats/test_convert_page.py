"""The examples of the page on converting data, on small files."""

import cwm_core as cwm
import pytest
import readme
from cwm_core.formats.megatron import MegatronWriter

pa = pytest.importorskip("pyarrow")


def test_the_examples_run(tmp_path, monkeypatch):
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    tokenizer = cwm.Tokenizer.train([], 256)
    ids = tokenizer.encode("x = 1\n")
    with MegatronWriter("corpus/text_document", tokenizer) as writer:
        writer.add(ids)
    with cwm.ShardWriter("shards/traces", tokenizer) as shards:
        shards.add(ids)
    for number in range(2):
        parquet.write_table(pa.table({"input_ids": [ids.tolist()]}), f"part-{number}.parquet")
    namespace = {"cwm": cwm, "tokenizer": tokenizer, "ids": ids}
    for example in readme.examples("docs/guides/convert.md"):
        exec(example, namespace)
    assert len(cwm.Shards("shards/web")) == 2
    for name in ("code", "traces"):
        assert cwm.Shards(f"corpus/{name}_document")[0].tokens.tolist() == ids.tolist()
