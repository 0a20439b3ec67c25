"""A model and a program for tests of the whole command."""

from pathlib import Path

import cwm_core as cwm
import pytest
from debugging import CODE, TOKENIZER


@pytest.fixture
def model(tmp_path, monkeypatch):
    from random_models import random_model  # needs torch, which conftest.py must not

    monkeypatch.chdir(tmp_path)
    config = cwm.model.preset(
        "tiny", vocab_size=TOKENIZER.vocab_size, hidden_size=32, num_hidden_layers=1, max_position_embeddings=600
    )
    cwm.model.save(random_model(config), tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    Path("prog.py").write_text(CODE)
