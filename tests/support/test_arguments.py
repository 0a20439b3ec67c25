"""Arguments that users get wrong: one string for several, and NumPy numbers for Python's."""

import dataclasses
import json

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.formats.traces import import_traces
from cwm_core.support.arguments import to_python_numbers


def test_single_strings_are_rejected(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("")
    with cwm.ShardWriter(tmp_path / "shards", 10) as writer:
        for call, name in (
            (lambda: import_traces("traces", tmp_path / "new.cwmtraces"), "sources"),
            (lambda: writer.add_many([1], [0, 1], sources="tag"), "sources"),
            (lambda: cwm.Recorder().record_file(script, "argument"), "argv"),
        ):
            with pytest.raises(TypeError, match=f"{name}: expected .* strings"):
                call()


@pytest.mark.parametrize("unordered", [{"a", "b"}, frozenset({"a"})])
def test_sets_are_rejected_where_the_order_matters(unordered):
    tokenizer = cwm.Tokenizer.train(unordered, 256)  # the order of texts does not matter
    for call, name in (
        (lambda: cwm.Tokenizer.train([], 256, special_tokens=unordered), "special_tokens"),
        (lambda: tokenizer.encode_batch(unordered), "texts"),
        (lambda: tokenizer.encode_files(unordered), "paths"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected a list, because the order matters, got a"):
            call()
    assert cwm.Tokenizer.train([], 256, special_tokens={"b": 0, "a": 0}.keys()).special_tokens == {"b": 256, "a": 257}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: cwm.ShardWriter("new", "600"), "vocab_size: expected a whole number or a tokenizer, got '600'"),
        (lambda _: cwm.ShardWriter("new", 600.0), "vocab_size: expected a whole number or a tokenizer, got 600.0"),
        (lambda at: cwm.PackedLoader(at, 8, mask="x"), "mask: expected fractions by label"),
        (lambda at: cwm.PackedLoader(at, 8, buckets=[10]), "buckets: expected a list of"),
        (lambda at: cwm.PackedLoader({"a": (at, "b")}, 8), "source 'a': expected a number as the share"),
        (lambda at: cwm.PackedLoader({"a": (at, 1, 1.5)}, 8), "source 'a': .* whole numbers of epochs"),
        (lambda _: cwm.Tokenizer.train([], 256, pattern=None), "split pattern: expected a string, got None"),
        (
            lambda _: cwm.Tokenizer.train([], 256, special_tokens={"<a>": 1.5}),
            "'<a>': expected a whole number as its id",
        ),
    ],
)
def test_arguments_of_the_wrong_type_are_named(tmp_path, call, message):
    with cwm.ShardWriter(tmp_path, 10) as writer:
        writer.add([1, 2, 3])
    with pytest.raises(TypeError, match=message):
        call(tmp_path)


def test_numpy_scalars_are_numbers(tmp_path):
    with cwm.ShardWriter(tmp_path, np.int64(10)) as writer:
        writer.add([1, 2, 3])
    loader = cwm.PackedLoader({"a": (tmp_path, np.float32(1), np.int64(2))}, np.int64(3))
    assert sum(1 for _ in loader) == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_at_least_one(threads):
    tokenizer = cwm.Tokenizer.train([], 256)
    for call in (
        lambda: tokenizer.encode_batch(["a"], threads=threads),
        lambda: tokenizer.encode_files([], threads=threads),
        lambda: cwm.Tokenizer.train([], 256, threads=threads),
    ):
        with pytest.raises(ValueError, match=f"threads: expected 1 or more, got {threads}"):
            call()


@pytest.mark.parametrize(("wrong", "name"), [(b"abc", "bytes"), (None, "NoneType"), (3, "int")])
def test_items_that_are_not_strings_are_named(wrong, name):
    tokenizer = cwm.Tokenizer.train([], 256)
    for call in (
        lambda: tokenizer.encode_batch(["a", wrong]),
        lambda: cwm.Tokenizer.train(iter(["a", wrong]), 256),
    ):
        with pytest.raises(TypeError, match=f"texts: item 1: expected a string, got {name}"):
            call()


@pytest.mark.torch
def test_engines_reject_a_single_prompt():
    torch = pytest.importorskip("torch")
    from cwm_core.inference import Engine
    from cwm_core.model import Transformer
    from cwm_core.model.config import preset

    tokenizer = cwm.Tokenizer.train([], 256)
    torch.manual_seed(0)
    config = preset("tiny", vocab_size=tokenizer.vocab_size, num_hidden_layers=1)
    engine = Engine(Transformer(config), tokenizer)
    with pytest.raises(TypeError, match="prompts: expected several strings"):
        engine.generate("a prompt", 1)


def test_numpy_scalars_become_python_numbers():
    converted = to_python_numbers((np.int64(1), (np.float32(0.5), None), np.True_, "a"))
    assert converted == (1, (0.5, None), True, "a")
    assert [type(value) for value in (converted[0], converted[1][0], converted[2])] == [int, float, bool]


@pytest.mark.torch
def test_configurations_take_numpy_integers():
    pytest.importorskip("torch")
    from cwm_core.model.config import ModelConfig, preset
    from cwm_core.training import TrainConfig

    sizes = {"vocab_size": 300, "num_hidden_layers": 2, "sliding_window": 8}
    ours = preset("tiny", **{name: np.int64(size) for name, size in sizes.items()}, eos_token_id=(np.int32(5),))
    assert ours == preset("tiny", **sizes, eos_token_id=(5,))
    assert ModelConfig.from_hf(json.loads(json.dumps(ours.to_hf()))) == ours

    steps = {"max_steps": np.int64(3), "learning_rate": np.float64(0.5), "seed": np.uint8(1)}
    expected = TrainConfig(max_steps=3, learning_rate=0.5, seed=1)
    for config in (TrainConfig(**steps), TrainConfig.from_dict(steps)):
        assert config == expected
        assert json.dumps(dataclasses.asdict(config)) == json.dumps(dataclasses.asdict(expected))
