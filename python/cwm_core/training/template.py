"""Write a commented configuration file for `cwm train` from the dataclasses of its tables."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ..model import ModelConfig, RopeParameters, preset
from .config import TrainConfig
from .run import DataConfig, RunConfig, model_keys

_PRESET = "tiny"

# Keys without a default, or with one that a first run should change.
_REQUIRED = {
    "output": '"runs/first"',
    "tokenizer": '"vocabulary"',
    "data.sources": '{ all = { folder = "shards" } }',
    "data.seq_len": "1024",
    "training.max_steps": "1000",
}

# Examples for keys whose default, None or an empty table, TOML cannot express.
_EXAMPLES = {
    "data.epochs": "1",
    "data.buckets": "[{ max_length = 512, batch_size = 16, seq_len = 512 }, { batch_size = 8 }]",
    "data.mask": "{ context = 1.0 }",
}

# Set by `cwm train` itself, or with a default that no number expresses.
_HIDDEN = {"training.checkpoint_folder", "model.rope_parameters.attention_factor"}


def template() -> str:
    """Return a TOML file with every key of a run, its description and its default.

    Keys that a run needs are set. All other keys are comments that show their default.
    """
    shape = preset(_PRESET)
    parts = [
        "# Configuration of `cwm train`. Keys in comments show defaults. Relative paths start at the current folder.",
        "",
        *_keys(RunConfig, "", ("output", "tokenizer", "tensorboard")),
        "[model]",
        *_comment("Named configuration: cwm-32b, cwm-1b, small or tiny. The keys below change it."),
        f'preset = "{_PRESET}"',
        "",
        *_comment("Instead of preset: model folder with the initial weights."),
        '# folder = "runs/previous"',
        "",
        *_keys(ModelConfig, "model.", model_keys(), vars(shape)),
        *_keys(RopeParameters, "model.rope_parameters.", None, vars(shape.rope_parameters)),
        "[data]",
        *_keys(DataConfig, "data."),
        "[training]",
        *_keys(TrainConfig, "training."),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _keys(
    kind: type, prefix: str, names: tuple[str, ...] | None = None, values: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yield the lines for the fields of a dataclass; `values` replace its defaults."""
    texts = _descriptions(kind)
    table, _, nested = prefix.partition(".")
    for key in fields(kind):
        path = prefix + key.name
        if path in _HIDDEN or (names is not None and key.name not in names):
            continue
        yield from _comment(texts[key.name])
        name = nested + key.name if table else key.name
        if path in _REQUIRED:
            yield f"{name} = {_REQUIRED[path]}"
        else:
            default = values[key.name] if values else key.default
            yield f"# {name} = {_EXAMPLES[path] if path in _EXAMPLES else _toml(default)}"
        yield ""


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    assert isinstance(value, int | float)
    return repr(value)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")


def _descriptions(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a class, which exist only in its source."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            found[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found
