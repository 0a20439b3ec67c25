"""The examples of the page on tokenizing."""

import numpy as np
import pytest
import readme


def test_the_examples_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for example in readme.examples("docs/guides/tokenize.md"):
        exec(example, namespace)
    tokenizer, theirs, chat = (namespace[name] for name in ("tokenizer", "theirs", "chat"))
    ids, loss_mask = tokenizer.encode_chat(namespace["messages"])
    assert chat["input_ids"] == ids.tolist()
    assert np.array_equal(np.array(chat["assistant_masks"], bool), loss_mask)
    assert theirs("return x")["input_ids"] == tokenizer.encode("return x").tolist()
