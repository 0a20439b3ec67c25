"""The Python examples of the pages on generation and prediction, with a small untrained model in `runs/tiny`."""

import cwm_core as cwm
import pytest
from random_models import random_model
from readme import examples

TEXTS = ["def f(n):\n    return n * 2\n", '{"n": "21"}']


@pytest.fixture(autouse=True)
def model_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = cwm.Tokenizer.train(TEXTS, 300)
    config = cwm.model.preset("tiny", vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2)
    cwm.model.save(random_model(config), "runs/tiny")
    tokenizer.save("runs/tiny")


@pytest.mark.parametrize("page", ["docs/guides/generate.md", "docs/guides/predict.md"])
def test_the_examples_of_a_page_run(page, capsys):
    namespace = {}
    for example in examples(page):
        exec(example, namespace)
    assert capsys.readouterr().out
    assert len(namespace["generation"].ids) > 0
