"""A tokenizer in several threads, in forked children, and pickled."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from vocabularies import STDLIB


def test_a_forked_child_keeps_encoding(small):
    """Also where another thread was encoding when the process was forked."""
    text = STDLIB[3].read_text("utf-8")
    expected = small.encode(text)
    stop = threading.Event()

    def encode_all_the_time():
        while not stop.is_set():
            small.encode(text)

    thread = threading.Thread(target=encode_all_the_time)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(small.encode(text), expected) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_threads_share_a_tokenizer(small):
    texts = [path.read_text("utf-8") for path in STDLIB[:16]]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(small.encode, texts), map(small.encode, texts)))


@pytest.mark.parametrize("which", ["llama", "small"])
def test_pickling(which, request):
    tokenizer = request.getfixturevalue(which)
    again = pickle.loads(pickle.dumps(tokenizer))
    text = STDLIB[3].read_text("utf-8")
    assert np.array_equal(again.encode(text), tokenizer.encode(text))
    assert again.special_tokens == tokenizer.special_tokens
    assert again.pattern == tokenizer.pattern
