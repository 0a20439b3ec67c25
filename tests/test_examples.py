"""Every script in `examples/` runs, on tiny data; a user's script type-checks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.data import encode_for_training

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CODE = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"

USER_SCRIPT = """
import cwm_core as cwm


def describe(trace: cwm.Trace) -> list[str]:
    lines = [f"{frame.event}: {frame.line}" for frame in trace.frames]
    first = trace.frames[0]
    lines.append(first.event)
    state = trace.state(3)
    if state is not None:
        lines.extend(state.keys())
    return lines


trace = cwm.record_source("def f(n):\\n    return n\\n", "f(1)")
tokenizer = cwm.Tokenizer.train([trace.to_text()], vocab_size=300)
ids = tokenizer.encode_trace(trace)
parsed: cwm.ParsedTrace = tokenizer.parse_trace(ids)
complete: bool = parsed.complete
version: str = cwm.__version__
with cwm.TraceWriter("out.cwmtraces") as writer:
    writer.add(trace, source="user")
with cwm.Recorder(max_frames=100) as traces:
    describe(trace)
for one in traces:
    print(describe(one), len(one), version, complete)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder with `shards` and the `vocabulary` that made them."""
    folder = tmp_path_factory.mktemp("examples")
    traces = [cwm.record_source(CODE, f"f({n})") for n in range(1, 9)]
    tokenizer = cwm.Tokenizer.train([trace.to_text() for trace in traces], vocab_size=300)
    tokenizer.save(folder / "vocabulary")
    with cwm.ShardWriter(folder / "shards", tokenizer) as writer:
        for trace in traces:
            ids, loss_mask, spans = encode_for_training(tokenizer, trace)
            writer.add(ids, loss_mask, source="f", spans=spans)
    return folder


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command], check=False, cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(output):
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", output)]


@pytest.mark.torch
@pytest.mark.slow
def test_plain_pytorch_loop_resumes(shards, tmp_path):
    loop = [sys.executable, EXAMPLES / "pytorch_loop.py", shards / "shards", shards / "vocabulary", "--seq-len", "256"]
    whole = losses(run(*loop, "--steps", "6", "--checkpoint", "whole.pt", cwd=tmp_path))
    parts = [*loop, "--steps", "3", "--checkpoint", "parts.pt"]
    first, second = losses(run(*parts, cwd=tmp_path)), losses(run(*parts, cwd=tmp_path))
    assert first + second == whole and whole[-1] < whole[0]


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "cwm"])
def test_transformers_trainer(shards, tmp_path, model):
    script = EXAMPLES / "transformers_trainer.py"
    arguments = [shards / "shards", shards / "vocabulary", "--model", model, "--steps", "6", "--seq-len", "256"]
    first, last = losses(run(sys.executable, script, *arguments, "-o", "out", cwd=tmp_path))
    assert last < first
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "cwm"])
def test_packed_rows_do_not_attend_across_documents(shards, model):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from transformers_trainer import PackedRows, make_model
    finally:
        sys.path.remove(str(EXAMPLES))
    tokenizer = cwm.Tokenizer.load(shards / "vocabulary")
    row = next(iter(PackedRows(cwm.PackedLoader(shards / "shards", 1024, vocab_size=tokenizer))))
    network = make_model(model, tokenizer, 1024).eval()
    starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
    assert len(starts) > 1
    with torch.no_grad():
        packed = network(input_ids=row["input_ids"][None], position_ids=row["position_ids"][None]).logits[0]
        alone = network(input_ids=row["input_ids"][None, starts[1] : starts[1] + 50]).logits[0]
    torch.testing.assert_close(packed[starts[1] : starts[1] + 50], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_torchtitan_style_loop_resumes_on_other_ranks(shards, tmp_path):
    script, data = EXAMPLES / "torchtitan_loop.py", [shards / "shards", shards / "vocabulary", "--seq-len", "256"]
    whole = losses(run(sys.executable, script, *data, "--steps", "4", "--checkpoints", "whole", cwd=tmp_path))
    parts = [script, *data, "--steps", "2", "--checkpoints", "parts"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    first, second = losses(run(*torchrun, *parts, cwd=tmp_path)), losses(run(sys.executable, *parts, cwd=tmp_path))
    assert first + second == pytest.approx(whole, abs=2e-3)


def test_recording_in_a_pytest_suite(tmp_path):
    run(sys.executable, "-m", "pytest", "-q", EXAMPLES / "pytest_suite", "-p", "no:cacheprovider", cwd=tmp_path)
    with cwm.TraceReader(tmp_path / "orders.cwmtraces") as traces:
        assert [trace.frames[-1].arg for trace in traces] == ["15", "80"]


def test_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)


@pytest.mark.slow
def test_a_user_script_type_checks(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    run(sys.executable, "-m", "mypy", "--strict", "script.py", cwd=tmp_path)
    run(sys.executable, "script.py", cwd=tmp_path)
