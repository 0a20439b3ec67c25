"""Trajectories in files: without loss, whatever is in them and wherever a write was cut; and as tokens to learn."""

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cwm_core import DamagedFileError, PackedLoader, Shards, Tokenizer
from cwm_core.cli import main
from cwm_core.environments import (
    EndReason,
    NearDuplicates,
    ReplyEnd,
    Task,
    Trajectory,
    TrajectoryReader,
    TrajectoryWriter,
    Turn,
    distinct,
    encode_trajectory,
    read_trajectories,
    write_shards,
)
from cwm_core.environments.trajectories import drop_failed, is_trajectory_file
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = ["def f(x):\n    return x\n", "<tool: bash>\nls -l\n</tool>\n", "été 😀 日本\n", "<output>\nx\n</output>\n"]
TOKENIZER = Tokenizer.train(TEXTS, 300)
TASK = Task("sums", "Repair add().", Path("/repo"), patch="diff \udc80", protected=("tests",), provenance={"seed": 1})

# Every code point, surrogates too, and those next to each other that another encoding would make one of.
texts = st.text(st.characters(exclude_categories=())) | st.just("\ud83d\ude00\r\n\u2028\x00\x85")
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.none() | st.integers(0, 2**40)
turns = st.builds(
    Turn,
    action=texts,
    observation=texts,
    role=st.sampled_from(["user", "tool: bash", "tool: edit"]),
    exit_code=st.none() | st.integers(0, 255),
    seconds=numbers,
    agent_seconds=numbers,
    finish=st.sampled_from(ReplyEnd),
    ids=st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    logprobs=st.none() | st.lists(st.none() | numbers, max_size=4).map(tuple),
    tokens=counts,
    prompt_tokens=counts,
    cached_tokens=counts,
)
tasks = st.builds(
    Task, texts, texts, patch=texts, solution=texts, folder=st.just(Path("/r")), protected=st.lists(texts).map(tuple)
)
trajectories = st.builds(
    Trajectory,
    name=texts,
    task=tasks,
    seed=st.integers(0, 2**48),
    settings=st.dictionaries(texts, texts | numbers | st.none() | st.lists(st.integers())),
    messages=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), max_size=2).map(tuple),
    turns=st.lists(turns, max_size=3).map(tuple),
    reward=numbers,
    reason=texts,
    end=st.sampled_from(EndReason),
    failure=st.none() | texts,
    started=numbers,
    seconds=numbers,
)


def turn(action="Look.\n<tool: bash>\nls\n</tool>", observation="<output>\na b\n</output>", role="tool: bash", **more):
    return Turn(action, observation, role, 0, 0.1, **more)


def trajectory(name="sums/0", turns=None, **changes):
    turns = [turn(), Turn("Done.")] if turns is None else turns
    messages = ({"role": "system", "content": "Use tools."}, {"role": "user", "content": TASK.prompt})
    whole = Trajectory(name, TASK, 3, {"agent": "script"}, messages, tuple(turns), 1.0, "the tests passed", "done")
    return replace(whole, **changes)


def write(path, several):
    with TrajectoryWriter(path) as writer:
        for one in several:
            writer.add(one)
    return path


@given(st.lists(trajectories, max_size=4, unique_by=lambda one: one.name))
def test_written_trajectories_are_read_back(tmp_path_factory, several):
    path = write(tmp_path_factory.mktemp("t") / "t.jsonl", several)
    assert list(read_trajectories(path)) == several
    for line in path.read_bytes().splitlines(keepends=True):
        assert line.endswith(b"}\n")
        json.loads(line.decode(errors="surrogatepass"))


@given(st.lists(trajectories, min_size=1, max_size=3, unique_by=lambda one: one.name), st.data())
def test_a_file_cut_anywhere_keeps_the_complete_records_and_resumes(tmp_path_factory, several, data):
    path = write(tmp_path_factory.mktemp("t") / "t.jsonl", several)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    reader = TrajectoryReader(path)
    assert list(reader) == several[:kept]
    assert reader.torn_bytes == cut - (whole[:cut].rfind(b"\n") + 1)
    with TrajectoryWriter(path) as writer:
        assert list(writer.names) == [one.name for one in several[:kept]]
        for one in several[kept:]:
            writer.add(one)
    assert path.read_bytes() == whole


@given(st.data())
def test_a_flipped_bit_is_noticed(tmp_path_factory, data):
    several = [trajectory("a"), trajectory("b", failure="été"), trajectory("c")]
    path = write(tmp_path_factory.mktemp("t") / "t.jsonl", several)
    whole = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)
    reader, good = TrajectoryReader(path), []
    try:
        for one in reader:
            good.append(one)
        assert reader.torn_bytes
    except DamagedFileError as error:
        assert f"{path}, record {len(good) + 1} at byte" in str(error)
    assert good == several[: len(good)] and len(good) < 3


def test_an_incomplete_record_is_reported(tmp_path, caplog):
    path = write(tmp_path / "t.jsonl", [trajectory("a"), trajectory("b")])
    path.write_bytes(path.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING):
        assert [one.name for one in TrajectoryReader(path)] == ["a"]
    assert "skipped an incomplete record in the last" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("reward"), "a trajectory has no reward"),
        (lambda values: values.update(colour=1), "a trajectory has no field 'colour'"),
        (lambda values: values.update(reward="1"), "reward must have the type int"),
        (lambda values: values.update(reward=True), "reward must have the type int"),
        (lambda values: values.update(turns=[3]), "a turn must be a JSON object, got int"),
        (lambda values: values["turns"][0].update(ids=["1"]), "a turn's ids must be numbers"),
        (lambda values: values["turns"][0].update(ids={}), "a turn's ids must have the type list"),
        (lambda values: values["turns"][0].pop("action"), "a turn has no action"),
        (lambda values: values.update(end="over"), "end must be one of 'done', .*, got 'over'"),
        (lambda values: values["turns"][0].update(finish="cut"), "finish must be one of 'stop', 'length', got 'cut'"),
        (lambda values: values.update(messages=[{"role": 1}]), "message must be an object of strings"),
        (lambda values: values["task"].pop("prompt"), "a task's prompt must be a string"),
        (lambda values: values["task"].update(folder=1), "a trajectory's task"),
    ],
)
def test_hostile_records_are_refused(change, message):
    values = json.loads(trajectory().to_json().decode(errors="surrogatepass"))
    change(values)
    with pytest.raises(ValueError, match=message):
        Trajectory.from_json(json.dumps(values).encode())


@pytest.mark.parametrize("line", [b"[]", b"3", b"{", b"\xff", b"[" * 100_000, b'{"reward": NaN}', b"null"])
def test_hostile_lines_are_refused(line):
    with pytest.raises(ValueError):
        Trajectory.from_json(line)


def test_values_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    with TrajectoryWriter(tmp_path / "t.jsonl") as writer:
        for bad in (trajectory(reward=math.nan), trajectory(settings={"a": object()})):
            with pytest.raises(ValueError, match="'sums/0' cannot be written as JSON"):
                writer.add(bad)
        writer.add(trajectory())
        with pytest.raises(ValueError, match="already has a trajectory named 'sums/0'"):
            writer.add(trajectory())
    assert len(list(read_trajectories(tmp_path / "t.jsonl"))) == 1


def test_one_writer_at_a_time(tmp_path):
    with TrajectoryWriter(tmp_path / "t.jsonl"), pytest.raises(BlockingIOError, match="another process writes"):
        TrajectoryWriter(tmp_path / "t.jsonl")
    TrajectoryWriter(tmp_path / "t.jsonl").close()


def test_a_full_disk_leaves_whole_records(tmp_path):
    """The limit of a file's size stands for a disk's."""
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_trajectories import TrajectoryWriter, trajectory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
with TrajectoryWriter(sys.argv[1]) as writer:
    try:
        for n in range(100):
            writer.add(trajectory(f"sums/{n}"))
    except OSError:
        print(n)
"""
    path = tmp_path / "t.jsonl"
    argv = [sys.executable, "-c", code, os.fspath(path), os.path.dirname(__file__)]
    written = int(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert 1 < written < 99
    reader = TrajectoryReader(path)
    assert len(list(reader)) == written and not reader.torn_bytes


def test_failed_rollouts_can_be_dropped(tmp_path):
    path = write(tmp_path / "t.jsonl", [trajectory("a"), trajectory("b", failure="x", end="failed"), trajectory("c")])
    assert drop_failed(path) == 1
    assert [one.name for one in read_trajectories(path)] == ["a", "c"]
    assert os.listdir(tmp_path) == ["t.jsonl"]


# ---- tokens


@settings(max_examples=50)
@given(st.lists(turns, max_size=4), st.integers(0, 9), st.floats(0, 1), texts)
def test_tokens_are_the_chats_and_spans_say_what_they_are(several, seed, part, name):
    whole = trajectory(name, several)
    encoded = encode_trajectory(TOKENIZER, whole, seed=seed, observations=part)
    chat = whole.conversation()
    ids, assistant = TOKENIZER.encode_chat(chat)
    np.testing.assert_array_equal(encoded.ids, ids)
    actions, observations = encoded.spans["action"].tolist(), encoded.spans["observation"].tolist()
    said = {"action": [], "observation": []}
    for message in chat[2:]:
        label = "action" if message["role"] == "assistant" else "observation"
        content = message["content"]
        content = content if message["role"].startswith("tool: ") else content.strip()
        said[label].append(TOKENIZER.decode(TOKENIZER.encode(content)) + "<|eot_id|>")
    assert [TOKENIZER.decode(ids[a:b]) for a, b in actions] == said["action"]
    assert [TOKENIZER.decode(ids[a:b]) for a, b in observations] == said["observation"]
    expected = assistant.copy()
    learned = 0
    for a, b in observations:
        assert encoded.loss_mask[a:b].all() or not encoded.loss_mask[a:b].any()
        expected[a:b] = encoded.loss_mask[a]
        learned += bool(encoded.loss_mask[a])
    np.testing.assert_array_equal(encoded.loss_mask, expected)
    if part in (0, 1):
        assert learned == part * len(observations)


def learned_observations(name, count, seed=0, part=0.5):
    encoded = encode_trajectory(TOKENIZER, trajectory(name, [turn()] * count), seed=seed, observations=part)
    return [bool(encoded.loss_mask[a]) for a, _ in encoded.spans["observation"]]


def test_the_requested_share_of_observations_is_learned():
    for part in (0.0, 0.25, 0.5, 1.0):
        lots = [lot for n in range(40) for lot in learned_observations(f"t/{n}", 50, part=part)]
        assert abs(np.mean(lots) - part) <= 5 * math.sqrt(part * (1 - part) / len(lots))


def test_the_mask_depends_on_seed_and_name_only():
    first = learned_observations("sums/0", 40)
    assert first == learned_observations("sums/0", 40)
    assert first[:10] == learned_observations("sums/0", 10)
    assert first != learned_observations("sums/1", 40)
    assert first != learned_observations("sums/0", 40, seed=1)
    # On every machine and for ever, so that data can be made again: the first bit of these hashes.
    assert first == [hashlib.sha256(f"0 {n} sums/0".encode()).digest()[0] < 128 for n in range(40)]


def test_a_cut_action_is_not_learned():
    whole = trajectory(turns=[turn(), Turn("Half an ac", finish="length", tokens=4)], end="action tokens")
    assert [message["role"] for message in whole.conversation()] == ["system", "user", "assistant", "tool: bash"]
    assert whole.tokens == 4


def test_shards_hold_the_encoded_trajectories(tmp_path):
    several = [trajectory(f"sums/{n}", [turn(observation=f"<output>\n{n}\n</output>"), Turn("ok")]) for n in range(5)]
    failed = trajectory("bad", failure="x", end="failed")
    assert write_shards(tmp_path / "shards", TOKENIZER, [*several, failed], seed=4) == 5
    for document, one in zip(Shards(tmp_path / "shards"), several, strict=True):
        encoded = encode_trajectory(TOKENIZER, one, seed=4)
        np.testing.assert_array_equal(document.tokens, encoded.ids)
        np.testing.assert_array_equal(document.loss_mask, encoded.loss_mask)
        assert document.source == "agent"
        for label, spans in encoded.spans.items():
            np.testing.assert_array_equal(document.spans[label], spans)
    batch = next(PackedLoader(tmp_path / "shards", 256, vocab_size=TOKENIZER, epochs=1))
    assert 0 < batch.loss_mask.sum() < batch.loss_mask.size


def test_cwm_tokenize_reads_trajectories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("rensa")
    words = " ".join(map(str, range(100)))
    several = [trajectory("a", [Turn(words)]), trajectory("b", [Turn(words + " more")]), trajectory("c", [Turn("x")])]
    Path("rollouts").mkdir()
    write("rollouts/trajectories.jsonl", [*several, trajectory("d", failure="x", end="failed")])
    assert is_trajectory_file("rollouts/trajectories.jsonl")
    TOKENIZER.save("vocabulary")
    command = ["tokenize", "rollouts/trajectories.jsonl", "--tokenizer", "vocabulary", "--seed", "2"]
    assert main([*command, "-o", "all"]) == 0 == main([*command, "-o", "distinct", "--max-jaccard", "0.5"])
    assert [len(Shards(folder)) for folder in ("all", "distinct")] == [3, 2]
    np.testing.assert_array_equal(Shards("all")[1].tokens, encode_trajectory(TOKENIZER, several[1], seed=2).ids)
    assert Shards("all").sources == ["rollouts"]
    assert main(["tokenize", *command[1:3], "v2", "--train-vocab", "260", "-o", "more"]) == 0


# ---- near duplicates


def jaccard(a, b):
    def shingles(words):
        return {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}

    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_near_duplicates_are_left_out_and_others_kept():
    pytest.importorskip("rensa")
    rng = np.random.default_rng(0)
    right = total = 0
    for n in range(60):
        words = [f"w{x}" for x in rng.integers(10_000, size=300)]
        changed = list(words)
        for at in rng.integers(300, size=int(rng.integers(1, 60))):
            changed[at] = f"c{rng.integers(10_000)}"
        truth = jaccard(words, changed)
        if abs(truth - 0.5) < 0.15:
            continue  # within three standard errors of the estimate
        seen = NearDuplicates(0.5)
        assert seen.check(trajectory(f"{n}/0", [Turn(" ".join(words))])) is None
        total += 1
        right += (seen.check(trajectory(f"{n}/1", [Turn(" ".join(changed))])) == f"{n}/0") == (truth > 0.5)
    assert total > 20
    assert right >= total - 1


def test_the_budget_makes_no_difference_and_order_decides():
    pytest.importorskip("rensa")

    def with_budget(name, left):
        observation = f"<output>\nalpha beta gamma\n</output>\n<budget>\n{left} turns are left\n</budget>"
        return trajectory(name, [turn(observation=observation)])

    several = [with_budget("a", 127), with_budget("b", 3), trajectory("c", [Turn("Something else.")])]
    assert [one.name for one in distinct(several)] == ["a", "c"]
    assert [one.name for one in distinct(reversed(several))] == ["c", "b"]
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        NearDuplicates(0.0)
