"""Each filter drops what it is made for, says why, and keeps ordinary samples."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from email.message import Message
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.corpus.filters import (
    Decontamination,
    Drop,
    DropCounts,
    NoEffects,
    Sample,
    SizeLimits,
    first_difference,
    is_deterministic,
    terminates,
)
from cwm_core.corpus.generator import generate
from cwm_core.corpus.sample import Filter
from hypothesis import given
from hypothesis import strategies as st

CODE = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"


def sample(code: str = CODE, call: str = "f(3)", **fields) -> Sample:
    fields.setdefault("trace", cwm.record_source(code, call))
    return Sample("a", code, call, **fields)


# ---- limits


def test_traces_that_were_cut_do_not_terminate() -> None:
    cut = cwm.Recorder(max_frames=5).record_source(CODE, "f(3)")
    assert terminates(sample(trace=cut)) == Drop("truncated", "max_frames")
    assert terminates(sample()) is None


def test_limits_hold_at_their_edges() -> None:
    trace = cwm.record_source(CODE, "f(3)")
    frames, size, tokens = len(trace), len(trace.to_bytes()), 77
    for limits, reason in [
        ({"min_frames": frames}, None),
        ({"min_frames": frames + 1}, "too few frames"),
        ({"max_frames": frames}, None),
        ({"max_frames": frames - 1}, "too many frames"),
        ({"max_bytes": size}, None),
        ({"max_bytes": size - 1}, "too many bytes"),
        ({"max_tokens": tokens, "count_tokens": lambda _: tokens}, None),
        ({"max_tokens": tokens - 1, "count_tokens": lambda _: tokens}, "too many tokens"),
    ]:
        drop = SizeLimits(**limits)(sample(trace=trace))
        assert (drop and drop.reason) == reason
    with pytest.raises(ValueError, match="count_tokens"):
        SizeLimits(max_tokens=3)


# ---- determinism

RECORD = """
import sys
import cwm_core as cwm
sys.stdout.buffer.write(cwm.record_source(sys.argv[1], sys.argv[2]).to_bytes())
"""


def recorded(code: str, call: str, hash_seed: str) -> cwm.Trace:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", RECORD, code, call], env=environment, capture_output=True, check=True)
    return cwm.Trace.from_bytes(done.stdout)


def test_recordings_under_two_hash_seeds() -> None:
    ordered = "def f():\n    return sorted({'a', 'b', 'c', 'd', 'e', 'g'})\n"
    hashed = "def f():\n    for c in {'a', 'b', 'c', 'd', 'e', 'g'}:\n        return c\n"
    assert first_difference(*(recorded(ordered, "f()", seed) for seed in "01")) is None
    one, other = (recorded(hashed, "f()", seed) for seed in "12")
    found = first_difference(one, other)
    assert found is not None and found.where.startswith("frame ") and found.first != found.second
    drop = is_deterministic(sample(hashed, "f()", trace=one, again=other))
    assert drop is not None and drop.reason == "not deterministic" and found.where in drop.detail
    with pytest.raises(ValueError, match="no second recording"):
        is_deterministic(sample())


@given(first=st.integers(0, 400), second=st.integers(0, 400))
def test_the_first_difference_is_the_first(first: int, second: int) -> None:
    one, other = (cwm.record_source(*generate(seed)) for seed in (first, second))
    same_code = one.with_context(""), other.with_context("")
    found = first_difference(*same_code)
    assert (found is None) == (same_code[0] == same_code[1])
    if found is not None and found.where.startswith("frame "):
        at = int(found.where.split()[1])
        assert list(one.frames[:at]) == list(other.frames[:at])
        assert at in (len(one), len(other)) or one.frames[at] != other.frames[at]
    if one.context != other.context:
        assert first_difference(one, other).where == "context"


def test_the_place_where_a_time_limit_cuts_does_not_matter() -> None:
    loop = "def f():\n    n = 0\n    while True:\n        n += 1\n"
    cut = [cwm.Recorder(max_seconds=seconds).record_source(loop, "f()") for seconds in (0.002, 0.02)]
    assert len(cut[0]) != len(cut[1]) and first_difference(*cut) is None
    by_frames = [cwm.Recorder(max_frames=n).record_source(loop, "f()") for n in (20, 30)]
    assert first_difference(*by_frames).where == "frame 20"


# ---- evaluation sets

WORDS = st.lists(st.sampled_from([f"w{number}" for number in range(40)]), max_size=60)


@given(problem=WORDS, text=WORDS, n=st.integers(1, 6))
def test_runs_of_words_are_found_exactly(problem: list[str], text: list[str], n: int) -> None:
    index = Decontamination(n, shortest=n)
    index.add("p", " ".join(problem))
    runs = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (problem, text)]
    assert (index.match(" + ".join(text)) is not None) == bool(runs[0] & runs[1])
    assert len(index) == len(runs[0]) and index.left_out == (len(problem) < n)


def test_problems_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    short = "def f(text): return text.upper().strip().center(40)"
    rows = [{"code": CODE, "input": "3"}, {"code": short, "id": "second"}, {"code": "def f(x): return x"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    index = Decontamination(n=9, shortest=7)
    index.add_jsonl(path)
    assert index.left_out == 1
    renamed_layout = "# other\n" + CODE.replace("    ", "\t")
    assert index(sample(renamed_layout)) == Drop("in an evaluation set", "problems.jsonl: 1")
    assert index(sample(short, "f('')")) == Drop("in an evaluation set", "problems.jsonl: second")
    assert index(sample("def f(n):\n    return n\n", "f(3)")) is None

    path.write_text('{"code": "x"}\n{"prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"problems.jsonl, line 2: 'code' is missing"):
        Decontamination().add_jsonl(path)
    path.write_text("[]\n")
    with pytest.raises(ValueError, match="line 1: not a JSON object"):
        Decontamination().add_jsonl(path)
    with pytest.raises(ValueError, match="shortest"):
        Decontamination(3, 4)


# ---- effects

SHOWN_BY_ID = """
class A:
    def __repr__(self):
        return "A" if id(self) else ""
def g():
    a = A()
    return a
def f():
    pass
"""


def in_loop(body: str) -> str:
    """Return a program that runs a statement in a coroutine."""
    return f"import asyncio\nasync def g():\n    {body}\ndef f(): return asyncio.run(g())"


EFFECTS = [  # code, effects seen, those seen with clocks
    ("def f(): return sorted({3: 1}, key=str)", "", ""),
    ("def f():\n    import colorsys, wave, xml.dom.minidom", "", ""),  # an import is not an effect
    ("import os\ndef f(): open(os.devnull).close()", "file", "file"),
    ("import os\ndef f(): os.listdir('/')", "file", "file"),
    ("import socket\ndef f(): socket.socket().close()", "network", "network"),
    ("import subprocess\ndef f(): subprocess.run(['true'])", "process", "process"),
    ("import os\ndef f(): os.environ['A'] = '1'", "environment", "environment"),
    ("def f(): return id(f)", "id", "id"),
    (SHOWN_BY_ID + "RECORD = 'g()'", "", ""),  # the recorder shows the object, the program does not
    (SHOWN_BY_ID + "RECORD = 'repr(g())'", "id", "id"),
    ("import random\ndef f(): return random.random()", "random", "random"),
    ("import random\ndef f(): return random.Random(3).random()", "", ""),
    ("import random\ndef f(): return random.Random()", "", "entropy"),
    ("import os\ndef f(): return os.urandom(2)", "", "entropy"),
    ("import secrets\ndef f(): return secrets.token_hex(2)", "", "entropy"),
    ("import time\ndef f(): return [t() for t in [time.perf_counter]]", "", "clock"),
    ("import copy\ndef f(): return copy.deepcopy([[1], {2: [3]}])", "", ""),
    (
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: list\ndef f(): return dataclasses.asdict(A([1]))",
        "",
        "",
    ),
    ("import pprint\ndef f(): return pprint.pformat({1: [2, {3: 'x' * 99}]})", "", ""),
    ("import json\ndef f(): return json.dumps([1, {'a': []}], indent=1)", "", ""),
    ("import enum\ndef f(): return enum.Enum('E', 'a b')", "", ""),
    ("import inspect, functools\ndef f(): return inspect.signature(functools.wraps(f)(lambda x: x))", "", ""),
    (in_loop("await asyncio.sleep(0)"), "", ""),
    (in_loop("await asyncio.wait_for(asyncio.sleep(0.001), 9)"), "", ""),
    (in_loop("asyncio.get_running_loop().time()"), "", "clock"),
    (in_loop("await asyncio.to_thread(len, '')"), "", "thread"),
    (in_loop("await asyncio.start_server(print, '127.0.0.1', 0)"), "network", "network"),
    ("import traceback\ndef f():\n    try: 1 / 0\n    except Exception: traceback.format_exc()", "", ""),
    ("import linecache\ndef f(): return linecache.getline('/etc/passwd', 1)", "file", "file"),
    ("import logging\ndef f(): logging.getLogger('x').error('y')", "", ""),
    ("import datetime\ndef f(): return datetime.datetime.strptime('2020', '%Y')", "", ""),
    ("import email.utils\ndef f(): return email.utils.formatdate()", "", "clock"),
    ("import uuid\ndef f(): return uuid.uuid4()", "", "entropy"),
    ("def f(): return open(0, closefd=False).read()", "input", "input"),
    ("def f(): open(1, 'w', closefd=False).close()", "", ""),
    ("import pathlib\ndef f(): pathlib.Path('/dev/stdin').read_text()", "input", "input"),
    ("import pathlib\ndef f(): pathlib.Path('/etc/passwd').read_text()", "file", "file"),
    ("def f():\n    import numpy", "", ""),
    ("import os\ndef f(): return os.getpid()", "", "machine"),
    ("import getpass\ndef f(): return getpass.getuser()", "", "machine"),
    ("import os\ndef f(): return os.uname().nodename", "", "machine"),
    ("import os\ndef f(): return os.path.abspath('x')", "", "machine"),
    ("import threading\ndef f():\n    with threading.RLock(): return threading.current_thread().name", "", ""),
    ("import collections\ndef f(): return repr(collections.UserList([1])), repr(collections.ChainMap())", "", ""),
    ("def f(): return list(map(id, [1]))", "id", "id"),
    ("import datetime\nclass D(datetime.date): pass\ndef f(): return D.today()", "", "clock"),
]
WATCH = """
import contextlib, json, sys
import cwm_core as cwm
from cwm_core.corpus.effects import Effects
seen = []
for code in json.loads(sys.argv[1]):
    names = {}
    exec(code, names)
    with Effects(clocks=sys.argv[2] == "clocks") as effects, contextlib.suppress(KeyError):
        names["f"]()
        cwm.record_source(code, names["RECORD"])
    seen.append(" ".join(sorted(effects.names)))
print(json.dumps(seen))
"""


@pytest.mark.parametrize("mode", ["no clocks", "clocks"])
def test_effects(mode: str) -> None:
    """Effects are seen, in a process of their own, because the hook stays in it."""
    codes = json.dumps([code for code, _, _ in EFFECTS])
    # With such a variable, `getpass.getuser` does not ask the system.
    names_of_user = ("LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in names_of_user}
    command = [sys.executable, "-c", WATCH, codes, mode]
    done = subprocess.run(command, input="", env=environment, capture_output=True, text=True, check=True)
    seen = dict(zip([code for code, _, _ in EFFECTS], json.loads(done.stdout), strict=True))
    assert seen == {code: with_clocks if mode == "clocks" else without for code, without, with_clocks in EFFECTS}


WATCHED = """
import sys, threading
import cwm_core as cwm
from cwm_core.corpus.effects import Effects
from cwm_core.corpus.generator import generate

for seed in range(30):
    program = generate(seed)
    plain = cwm.record_source(*program)
    with Effects(clocks=True) as effects:
        watched = cwm.record_source(*program)
    assert watched == plain and not effects.names, seed
with Effects() as effects:
    try:
        with Effects():
            pass
    except RuntimeError as error:
        print(error)
with Effects(clocks=True) as effects:
    thread = threading.Thread(target=len, args=("",))
    thread.start()
    thread.join()
print(sorted(map(str, effects.names)), sys.getprofile())
open("/dev/null").close()
print(sorted(map(str, effects.names)))
"""


def test_watching_changes_no_trace_and_ends_with_its_block() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["effects are watched already", "['thread'] None", "['thread']"]


def test_effects_that_are_allowed() -> None:
    seen = sample(effects=frozenset({"id", "file"}))
    assert NoEffects()(seen) == Drop("effect: file", "file, id")
    assert NoEffects(allow={"file"})(seen) == Drop("effect: id", "id")
    assert NoEffects(allow={"file", "id"})(seen) is None


# ---- counts

DROPS = st.lists(st.none() | st.builds(Drop, st.sampled_from("abc"), st.sampled_from(["", "x", "y", "z", "u", "v"])))


@given(st.lists(DROPS, max_size=4))
def test_counts_merge_in_any_order(parts: list[list[Drop | None]]) -> None:
    together = DropCounts()
    for drop in (drop for part in parts for drop in part):
        together.add(drop)
    for order in (parts, parts[::-1]):
        merged = DropCounts()
        for part in order:
            counted = DropCounts()
            for drop in part:
                counted.add(drop)
            merged.merge(DropCounts.from_json(json.loads(json.dumps(counted.to_json()))))
        assert merged == together and merged.total == sum(map(len, parts))


@pytest.mark.parametrize("value", [{}, {"kept": -1, "dropped": {}, "examples": {}}, {"kept": 1, "dropped": 3}, []])
def test_invalid_counts_are_refused(value) -> None:
    with pytest.raises(ValueError):
        DropCounts.from_json(value)


def test_table_of_drops() -> None:
    console = pytest.importorskip("rich.console").Console(width=80, record=True, file=io.StringIO())
    drops = DropCounts()
    for drop in [None, None, Drop("[too] long", "9 > 3"), None]:
        drops.add(drop)
    console.print(drops.table())
    text = console.export_text()
    assert all(part in text for part in ("kept", "75.0%", "[too] long", "25.0%", "9 > 3"))


# ---- licenses


@pytest.fixture
def license():
    pytest.importorskip("license_expression")
    from cwm_core.corpus.filters import license

    return license


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(MIT OR GPL-2.0) AND (ISC OR GPL-3.0-only)", True),
        ("LicenseRef-own", False),
        ("", False),
        ("(MIT", False),
        ("public domain", False),
    ],
)
def test_which_expressions_are_allowed(license, expression: str, expected: bool) -> None:
    assert license.allowed(expression) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "MIT AND ISC", "License": "GPL-2.0-only"}, "MIT AND ISC"),
        ({"License": "BSD-3-Clause", "Classifier": ["License :: OSI Approved :: BSD License"]}, "BSD-3-Clause"),
        ({"License": "BSD", "Classifier": ["License :: OSI Approved :: BSD License"]}, "BSD-2-Clause AND BSD-3-Clause"),
        ({"License": "MIT", "Classifier": ["License :: Other/Proprietary License"]}, None),
        ({"License": "see the file", "Classifier": ["Programming Language :: Python"]}, None),
        ({"Classifier": ["License :: OSI Approved", "License :: OSI Approved :: MIT License"]}, "MIT"),
        ({}, None),
    ],
)
def test_licenses_of_metadata(license, fields, expected) -> None:
    metadata = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            metadata[name] = value
    assert license.of_metadata(metadata) == expected


def test_every_classifier_is_one_that_is_understood(license) -> None:
    for expression in [*license._CLASSIFIERS.values(), *license.PERMISSIVE]:
        assert license.normalized(expression) == expression


def test_licenses_of_headers_and_files(license, tmp_path: Path) -> None:
    assert license.of_source("#!/usr/bin/python\n# SPDX-License-Identifier: MIT OR ISC\n") == "MIT OR ISC"
    assert license.of_source("/* SPDX-License-Identifier: MIT */\n") == "MIT"
    assert license.of_source("x\n" * 60 + "# SPDX-License-Identifier: MIT\n") is None

    pytest.importorskip("ukkonen")
    from identify.vendor.licenses import LICENSES

    texts = dict(LICENSES)
    (tmp_path / "LICENSE").write_text(texts["MIT"].replace("[fullname]", "Some One"))
    assert license.of_file(tmp_path / "LICENSE") == license.of_folder(tmp_path) == "MIT"
    (tmp_path / "LICENSE.apache").write_text(texts["Apache-2.0"])
    assert license.of_folder(tmp_path) == "MIT AND Apache-2.0" or license.of_folder(tmp_path) == "Apache-2.0 AND MIT"
    (tmp_path / "COPYING").write_bytes(b"\xff all rights reserved")
    assert license.of_folder(tmp_path) is None


def test_samples_without_an_allowed_license_are_dropped(license) -> None:
    permissive = license.Licenses()
    assert permissive(sample()) == Drop("no known license")
    assert permissive(sample(provenance={"license": "MIT"})) is None
    assert permissive(sample(provenance={"license": "GPL-2.0-only"})) == Drop("license not allowed", "GPL-2.0-only")
    copyleft = "# SPDX-License-Identifier: GPL-3.0-or-later\n" + CODE
    assert permissive(sample(copyleft, provenance={"license": "MIT"})).detail == "GPL-3.0-or-later"
    assert license.Licenses({"GPL-3.0-or-later"})(sample(copyleft)) is None


# ---- secrets and personal data


@pytest.fixture(scope="module")
def find():
    pytest.importorskip("detect_secrets")
    pytest.importorskip("phonenumbers")
    from cwm_core.corpus.filters import find_secrets

    return lambda text: [found.kind for found in find_secrets(text)]


# Assembled here, so that scanners of repositories do not report them.
SECRETS = [
    "key = '" + "AKIA" + "IOSFODNN7EXAMPLQ'",
    "token = '" + "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8'",
    "-----BEGIN " + "RSA PRIVATE KEY-----",
    "url = 'https://user:" + "hunter2pass@intranet/'",
    "password = '" + "correcthorsebattery'",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_found_in_code_and_in_values(find, secret: str) -> None:
    assert "secret" in find(f"x = 1\n{secret}\n")
    from cwm_core.corpus.filters import no_secrets

    code = f"TEXT = {secret!r}\ndef f():\n    text = TEXT\n    return len(text)\n"
    drop = no_secrets(sample(code, "f()"))
    assert drop is not None and drop.reason == "secret" and "in the context, line 2" in drop.detail
    assert secret[-12:] not in drop.detail

    joined = "def f(a, b):\n    text = a + b\n    return text\n"
    half = len(secret) // 2
    drop = no_secrets(sample(joined, f"f({secret[:half]!r}, {secret[half:]!r})"))
    assert drop is not None and drop.reason == "secret"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mail someone@cs.uni-sb.de now", ["e-mail address"]),
        ("<a.b+c@sub.company.co.uk>", ["e-mail address"]),
        ("a@example.com b@x.example.org c@host.test root@localhost x@y", []),
        ("@decorator\nx = a @ b.c", []),
        ("call +49 30 901820", ["phone number"]),
        ("call +1 (415) 555-2671 or not", ["phone number"]),
        ("x = 1 +3 +4 123 456; y = +3.140000; z = +12", []),
        ("server 8.8.4.4:53", ["IP address"]),
        ("127.0.0.1 10.1.2.3 192.168.0.1 0.0.0.0 256.1.1.1 1.2.3.4.5", []),
        ("2606:4700:4700::1111", ["IP address"]),
        ("x[2::1] a::b std::vector fe80::1 ::1 12:30:45", []),
    ],
)
def test_personal_data(find, text: str, kinds: list[str]) -> None:
    assert find(text) == kinds


@given(
    st.lists(st.sampled_from([*"0123456789[](){},.- _=<>", "abc", "True", "None", *SECRETS, "8.8.4.4", "AP3abcdefgh"]))
)
def test_skipped_values_hold_no_secrets(find, parts: list[str]) -> None:
    from cwm_core.corpus.filters.secrets import _may_hold

    text = "".join(parts)
    assert _may_hold(text) or find(f"value = {text}") == []


def test_every_password_keyword_has_a_part_that_is_searched_for(find) -> None:
    from cwm_core.corpus.filters.secrets import _KEYWORD_PARTS
    from detect_secrets.plugins.keyword import DENYLIST

    assert all(any(part in keyword for part in _KEYWORD_PARTS) for keyword in DENYLIST)


def test_generated_programs_have_no_secrets(find) -> None:
    from cwm_core.corpus.filters import no_secrets

    for seed in range(100):
        program = generate(seed)
        assert no_secrets(sample(*program)) is None


# ---- all filters


@pytest.mark.parametrize(
    "library", ["rensa", "detect_secrets", "phonenumbers", "license_expression", "ukkonen", "rich.table"]
)
def test_a_missing_library_is_named_with_its_extra(library: str, tmp_path: Path) -> None:
    use = {
        "rensa": "Duplicates()",
        "detect_secrets": "list(find_secrets('x'))",
        "phonenumbers": "secrets._is_phone_number('+49 30 901820')",
        "license_expression": "license.allowed('MIT')",
        "ukkonen": "license.of_file('x')",
        "rich.table": "DropCounts().table()",
    }[library]
    code = f"import sys; sys.modules[{library!r}] = None\nfrom cwm_core.corpus.filters import *\n"
    code += f"from cwm_core.corpus.filters import license, secrets\n{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(("ImportError: ", "ModuleNotFoundError: ")) and f"needs {library}" in message
    assert message.endswith("run pip install '.[corpus]' in a checkout of cwm-core")


def test_a_chain_of_filters_stops_at_the_first_reason() -> None:
    chain: list[Filter] = [terminates, SizeLimits(max_frames=5), NoEffects()]
    drops = DropCounts()
    for one in (sample(), sample(call="f(0)"), sample("def f(n):\n    return n\n")):
        drops.add(next((drop for rule in chain if (drop := rule(one)) is not None), None))
    assert drops.to_json()["dropped"] == {"too many frames": 3 - drops.kept}


def test_provenance_stays_with_the_trace(tmp_path: Path) -> None:
    one = sample(provenance={"source": "a", "package": {"name": "p", "version": "1"}, "seed": 3})
    with cwm.TraceWriter(tmp_path / "x.cwmtraces") as writer:
        writer.add(one.trace, key=one.id, **one.provenance)
    assert one.provenance.items() <= cwm.TraceReader(tmp_path / "x.cwmtraces").metadata(one.id).items()
