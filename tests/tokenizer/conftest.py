"""Fixtures for tests of the tokenizer."""

import pytest
from cwm_core import Tokenizer
from vocabularies import STDLIB


@pytest.fixture(scope="session")
def small():
    """A trained vocabulary of 600 tokens."""
    return Tokenizer.train((path.read_text("utf-8") for path in STDLIB[:10]), 600)
