"""Generate the reference pages of the documentation site from the code: options, configuration keys, API."""

from __future__ import annotations

import argparse
import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "cwm_core"

# Pages of the API, one a package: the modules whose public names it lists.
API = {
    "cwm_core": ["cwm_core"],
    "trace": ["cwm_core.trace.recorder", "cwm_core.trace.store", "cwm_core.trace.context"],
    "tokenizer": ["cwm_core.tokenizer.tokenizer", "cwm_core.tokenizer.chat"],
    "data": ["cwm_core.data.shards", "cwm_core.data.loader", "cwm_core.data.documents", "cwm_core.data.traces"],
    "formats": ["cwm_core.formats.traces", "cwm_core.formats.megatron", "cwm_core.formats.parquet"],
    "view": ["cwm_core.view.page", "cwm_core.view.text", "cwm_core.view.diff"],
    "machines": [
        "cwm_core.machines.process",
        "cwm_core.machines.protocol",
        "cwm_core.machines.sandboxed",
        "cwm_core.machines.docker",
        "cwm_core.machines.shell",
        "cwm_core.machines.literals",
    ],
    "model": [
        "cwm_core.model.config",
        "cwm_core.model.rotary",
        "cwm_core.model.transformer",
        "cwm_core.model.loss",
        "cwm_core.model.shipped",
        "cwm_core.model.weights.loading",
        "cwm_core.model.weights.saving",
    ],
    "training": [
        "cwm_core.training.config",
        "cwm_core.training.trainer",
        "cwm_core.training.parallel",
        "cwm_core.training.world",
        "cwm_core.training.checkpoint",
        "cwm_core.training.metrics",
        "cwm_core.training.run",
    ],
    "planning": ["cwm_core.planning.plan"],
    "inference": [
        "cwm_core.inference.engine",
        "cwm_core.inference.requests",
        "cwm_core.inference.prediction",
        "cwm_core.inference.grammar",
        "cwm_core.inference.constraint",
    ],
    "debugger": ["cwm_core.debugger.debugger", "cwm_core.debugger.frames"],
    "environments": [
        "cwm_core.environments.environment",
        "cwm_core.environments.tasks",
        "cwm_core.environments.profile",
        "cwm_core.environments.tools",
        "cwm_core.environments.outcomes",
        "cwm_core.environments.rewards",
        "cwm_core.environments.rollouts",
        "cwm_core.environments.trajectories",
        "cwm_core.environments.summary",
        "cwm_core.environments.encoding",
        "cwm_core.environments.agents.protocol",
    ],
    "corpus": [
        "cwm_core.corpus.pipeline",
        "cwm_core.corpus.recording",
        "cwm_core.corpus.reasons",
        "cwm_core.corpus.effects",
        "cwm_core.corpus.unit",
        "cwm_core.corpus.sample",
        "cwm_core.corpus.contests",
        "cwm_core.corpus.repository",
        "cwm_core.corpus.functions.discovery",
        "cwm_core.corpus.functions.explore",
        "cwm_core.corpus.describe",
        "cwm_core.corpus.filters",
    ],
    "evaluation": [
        "cwm_core.evaluation.traces",
        "cwm_core.evaluation.problems",
        "cwm_core.evaluation.calls",
        "cwm_core.evaluation.executions",
        "cwm_core.evaluation.recordings",
        "cwm_core.evaluation.divergence",
        "cwm_core.evaluation.failures",
        "cwm_core.evaluation.report",
        "cwm_core.evaluation.custom",
    ],
    "rl": [
        "cwm_core.rl.run",
        "cwm_core.rl.algorithm",
        "cwm_core.rl.loss",
        "cwm_core.rl.records",
        "cwm_core.rl.controller",
        "cwm_core.rl.generation",
        "cwm_core.rl.exact",
        "cwm_core.rl.processes",
        "cwm_core.rl.kinds",
        "cwm_core.rl.tasks.protocol",
        "cwm_core.rl.tasks.traces",
        "cwm_core.rl.tasks.calls",
        "cwm_core.rl.tasks.coding",
        "cwm_core.rl.tasks.mathematics",
        "cwm_core.rl.tasks.software",
        "cwm_core.rl.tasks.questions",
        "cwm_core.rl.tasks.curriculum",
        "cwm_core.rl.rewards",
    ],
}

# Tables of configuration keys: title, file, class.
TABLES = [
    ("Top level", "training/run.py", "RunConfig"),
    ("Table `[data]`", "training/run.py", "DataConfig"),
    ("Table `[model]`", "model/config.py", "ModelConfig"),
    ("Table `[model.rope_parameters]`", "model/rotary.py", "RopeParameters"),
    ("Table `[training]`", "training/config.py", "TrainConfig"),
    ("Top level of `cwm rl`", "rl/run.py", "RLConfig"),
    ("Table `[data]` of `cwm rl`", "rl/run.py", "RowsConfig"),
    ("Table `[rollouts]`", "rl/controller.py", "RolloutConfig"),
    ("Table `[generation]`", "rl/run.py", "GenerationConfig"),
    ("Table `[algorithm]`", "rl/algorithm.py", "Algorithm"),
    ("Table `[loss]`", "rl/loss.py", "LossConfig"),
]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"reference/cli.md": cli_page(), "reference/configuration.md": configuration_page()}
    pages |= {f"reference/api/{name}.md": api_page(name, modules) for name, modules in API.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def api_page(name: str, modules: list[str]) -> str:
    """Return the page of a package: its modules, rendered from their docstrings."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"docs/hooks.py names {module}, which does not exist")
    title = "cwm_core" if name == "cwm_core" else f"cwm_core.{name}"
    return f"# {title}\n\n" + "\n".join(f"::: {module}\n" for module in modules)


def configuration_page() -> str:
    """Return the page of all keys of the configurations of `cwm train` and `cwm rl`."""
    parts = ["# Configuration keys\n\nKeys of the TOML files that `cwm train` and `cwm rl` read.\n"]
    for title, file, name in TABLES:
        parts.append(f"## {title}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |")
        parts += [f"| `{key}` | `{cell(kind)}` | {default} | {text} |" for key, kind, default, text in keys(file, name)]
        parts.append("")
    return "\n".join(parts)


def keys(file: str, name: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and description of the fields of a dataclass, read from its source."""
    tree = ast.parse((PACKAGE / file).read_text("utf-8"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    for at, node in enumerate(found.body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        text = ""
        after = found.body[at + 1] if at + 1 < len(found.body) else None
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = cell(" ".join(after.value.value.split()))
        default = "required" if node.value is None else f"`{cell(ast.unparse(node.value))}`"
        yield node.target.id, ast.unparse(node.annotation), default, text


def cli_page() -> str:
    """Return the page of every verb and option, read from the parser."""
    from cwm_core.cli import build_parser, commands

    parts = ["# All options\n\nGenerated from `cwm VERB --help`.\n"]
    for name, parser in commands(build_parser()):
        description = (parser.description or "").strip()
        parts.append(f"## {name}\n\n{description}\n\n```text\n{parser.format_usage().strip()}\n```\n")
        rows = [row for action in parser._actions if (row := option(action))]
        if rows:
            parts.append("| argument | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def option(action: argparse.Action) -> str | None:
    """Return the table row of an argument; None for `--help` and what is hidden."""
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
        return None
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = " ".join(value) if isinstance(value, tuple) else value
    name = ", ".join(action.option_strings) + (f" {value}" if action.option_strings and value else "")
    unset = action.default in (None, False, argparse.SUPPRESS) or action.default == []
    default = "" if unset else f"`{cell(str(action.default))}`"
    text = (action.help or "") % {**vars(action), "prog": "cwm"}
    return f"| `{cell(name or value)}` | {default} | {cell(' '.join(text.split()))} |"


def cell(text: str) -> str:
    """Return text that stands in a table's cell."""
    return text.replace("|", "\\|")
