"""The HTML page: what it holds, that hostile values stay data, and that its script resolves variables as we do."""

import base64
import json
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cwm_core as cwm
import pytest
from cwm_core.view import Example, differences, gallery, html
from hypothesis import given, settings
from hypothesis import strategies as st

EVENTS = ["call", "line", "return", "exception"]
HOSTILE = [
    "</script><script>document.title = 'broken'</script>",
    "<!--<script>",
    "]]>",
    "&lt;&amp;&#39;",
    "\u2028\u2029",
    "\ud800",
    "\udc00\ud800",
    "\U0001f600",
    "\x00\x1b[2J\r",
    "\u202e",
    "@DATA@@TITLE@",
    "\\1\\u003c",
    '"',
    "..x",
    "",
]
BUSY = """
class E:
    def __init__(self, text): self.text = text
    def __repr__(self): return self.text

def numbers(n):
    for i in range(n):
        sent = yield i

def fall(n):
    if n == 0:
        raise ValueError(n)
    try:
        fall(n - 1)
    finally:
        n += 100

def f(texts):
    for text in texts:
        e = E(text)
    total = 0
    for n in numbers(4):
        total += n
        if n == 2:
            del total
            total = 5
    try:
        fall(3)
    except ValueError as error:
        caught = error
    class Inner:
        a = 1
        b = [a, 2]
    return sorted([3, 1, 2], key=lambda k: -k), e
"""


class Page(HTMLParser):
    """The tags of a page, its title and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.title = ""
        self.texts: dict[str, str] = {}
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = dict(attrs).get("id") or tag
        assert not {"src", "href", "srcset"} & dict(attrs).keys()

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.inside] = self.texts.get(self.inside, "") + data

    @property
    def data(self) -> Any:
        """Return the data of the only trace."""
        [example] = json.loads(self.texts["data"])["examples"]
        return example


def read_rows(data: Any, rows: list[list[int]]) -> list[tuple[str, Any, str, int | None, Any]]:
    """The frames that the page's rows stand for."""
    frames = []
    for event, line, *rest in rows:
        number, text = data["lines"][line]
        shown: Any = None
        if event < 2:
            shape = data["shapes"][rest[0]]
            written = {slot: data["values"][value] for slot, value in zip(rest[1::2], rest[2::2], strict=True)}
            shown = {data["names"][name]: written.get(slot, "..") for slot, name in enumerate(shape)}
        frames.append((EVENTS[event], shown, text, number or None, None if event < 2 else data["values"][rest[0]]))
    return frames


def contents(frames: Any) -> list[tuple[str, Any, str, int | None, Any]]:
    return [(frame.event, frame.locals, frame.line, frame.lineno, frame.arg) for frame in frames]


def busy_trace() -> cwm.Trace:
    return cwm.record_source(BUSY, f"f({HOSTILE!r})")


def test_page_holds_the_trace() -> None:
    trace = busy_trace()
    data = Page(html(trace)).data
    assert read_rows(data, data["recorded"]) == contents(trace.frames)
    assert data["context"] == trace.context
    assert data["predicted"] is None


def test_page_holds_the_variables_that_frames_leave_out() -> None:
    trace = busy_trace()
    coarse = trace.coarsen(changes_only=True)
    assert any(frame.locals and ".." in frame.locals for frame in coarse.frames)
    data = Page(html(coarse, predicted=coarse)).data
    assert read_rows(data, data["recorded"]) == read_rows(data, data["predicted"]) == contents(trace.frames)


def test_page_holds_the_prediction() -> None:
    trace = cwm.record_source(BUSY, "f(['a', 'b'])")
    text = trace.to_text().replace('"total": "1"', '"total": "2", "more": ".."').replace("for n in", "for m in")
    prediction = cwm.Trace.parse(text[:-100])
    data = Page(html(trace, predicted=prediction)).data
    assert read_rows(data, data["predicted"]) == contents(prediction.frames)
    found = differences(trace.frames, prediction.frames)
    assert len(found) > 2
    for row, difference in zip(data["differences"], found, strict=True):
        index, flags, *names = row
        assert index == difference.index
        assert (
            flags == (difference.frame is not None) + 2 * difference.event + 4 * difference.line + 8 * difference.value
        )
        assert {data["names"][n] for n in names} == {*difference.changed, *difference.missing, *difference.extra}
    assert prediction.error in data["verdict"]


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_any_text_is_data(value: str, title: str) -> None:
    trace = cwm.record_source("def f(x):\n    return x\n", f"f({value!r})")
    page = html(trace, title=title)
    assert page.isascii()
    parsed = Page(page)
    assert parsed.tags == Page(html(trace)).tags
    assert read_rows(parsed.data, parsed.data["recorded"]) == contents(trace.frames)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_data(text: str) -> None:
    trace = cwm.record_source(BUSY, f"f([{text!r}])")
    page = html(trace, predicted=trace, title=text)
    assert page.isascii()
    assert page.count("</script") == Page(page).tags.count("script") == 2
    assert "<!--" not in page
    assert Page(page).tags == Page(html(cwm.record_source("def f(): pass", "f()"))).tags
    assert text in Page(page).data["values"] or text == ".."


def test_page_loads_nothing() -> None:
    page = html(busy_trace())
    assert "default-src 'none'" in page
    assert "//" not in page.split("<script")[0].replace("<!doctype html>", "")
    assert "http:" not in page and "https:" not in page


def test_a_hundred_thousand_frames() -> None:
    code = (
        "def g(i, s):\n    s.append(i)\n    return i\ndef f(n):\n    s = []\n    for i in range(n):\n        g(i, s)\n"
    )
    trace = cwm.Recorder(max_value_chars=100).record_source(code, "f(17_000)")
    assert len(trace) > 100_000
    began = time.process_time()
    page = html(trace, predicted=trace)
    assert time.process_time() - began < 20  # seconds of processor time: some 2 on a laptop, and test machines are slow
    assert len(page) < 1.5 * trace.nbytes


def test_no_frames() -> None:
    assert Page(html(cwm.Trace.parse("").trace)).data["recorded"] == []


# ---- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def run_in_page(folder: Path, page: str, script: str, fragment: str = "") -> Any:
    """Open a page in headless Chromium and return the value of an expression in it, through JSON."""
    assert BROWSER is not None
    ascii_json = r"JSON.stringify(value).replace(/[^ -~]/g, c => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'))"
    probe = f"<script>const value = {script}; document.body.innerHTML = '<pre>' + btoa({ascii_json});</script></body>"
    file = folder / "page.html"
    file.write_text(page.replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, file.as_uri() + fragment], capture_output=True, timeout=60, check=True)
    return json.loads(base64.b64decode(done.stdout.partition(b"<pre>")[2].partition(b"<")[0]))


STATES = """[recorded, predicted].map(track => track.rows.map((row, i) => track.hasState(i)
    ? Object.fromEntries([...track.variables(i)].map(([name, v]) => [data.names[name], v.text])) : null))"""


@needs_browser
def test_script_resolves_variables(tmp_path: Path) -> None:
    trace = busy_trace()
    prediction = cwm.Trace.parse(cwm.record_source(BUSY, "f(['a', 'b'])").to_text()[:-200])
    recorded, predicted = run_in_page(tmp_path, html(trace, predicted=prediction), STATES)
    assert recorded == trace.states()
    assert predicted == prediction.trace.states()


@needs_browser
def test_page_shows_a_difference(tmp_path: Path) -> None:
    trace = cwm.record_source("def f(n):\n    s = 1\n    return s * n\n", "f('\\u2028<b>')")
    text = trace.to_text().replace('"s": "1"}', '"s": "2"}').replace("return s * n\n<|arg_sep|>", "s = 1\n<|arg_sep|>")
    page = html(trace, predicted=cwm.Trace.parse(text), title="</title><b>")
    shown = """{
        title: document.title, at: current, bold: document.querySelectorAll("td b, h1 b").length,
        differs: [...document.querySelectorAll("td.differs > div")].map(e => e.textContent),
        here: document.querySelector("#source .here .text").textContent,
        keys: ["Home", "n", "n", "p", "End", "ArrowLeft", "ArrowRight"].map(key => {
            document.dispatchEvent(new KeyboardEvent("keydown", { key }));
            return current;
        }),
        guess: (go(5), document.querySelector("#source .guess .text").textContent),
        stack: [...document.querySelectorAll("#stack .pair > div:first-child .text")].map(e => e.textContent),
    }"""
    assert run_in_page(tmp_path, page, shown, "#step=4") == {
        "title": "</title><b>",
        "at": 4,
        "bold": 0,
        "differs": ["2"],
        "here": "    return s * n",
        "keys": [0, 4, 5, 4, 6, 5, 6],
        "guess": "    s = 1",
        "stack": ["def main():", "def f(n):"],
    }


SHOWN = """[...Array(recorded.rows.length).keys()].map(at => (go(at), [
    [...document.querySelectorAll("#source .here")].map(row => row.textContent),
    [...document.querySelectorAll("#stack li")].map(row => [...row.children].map(e => e.textContent))]))"""


@needs_browser
def test_a_call_in_a_file_is_numbered_as_the_file(tmp_path: Path) -> None:
    trace = cwm.Recorder().record_source("def f():\n    return 1\n", "f()", file="program.py")
    shown = run_in_page(tmp_path, html(trace), SHOWN)
    assert [here for here, _ in shown] == [
        ["4def main():"], ["5    return f()"], ["1def f():"], ["2    return 1"], ["2    return 1"], ["5    return f()"],
    ]  # fmt: skip
    assert shown[3][1] == [["def main():", "line 5"], ["def f():", "line 2"]]
    shown = run_in_page(tmp_path, html(cwm.record_source("def f():\n    return 1\n", "f()")), SHOWN)
    assert [here for here, _ in shown][2:4] == [["2def f():"], ["3    return 1"]]


@needs_browser
def test_a_module_has_a_name_in_the_call_stack(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def f():\n    return 1\nf()\n")
    shown = run_in_page(tmp_path, html(cwm.Recorder().record_file(tmp_path / "script.py")), SHOWN)
    assert shown[1][1] == [["<module>", "line 1"]] and shown[4][1] == [["<module>", "line 3"], ["def f():", "line 2"]]
    names: dict[str, Any] = {}
    exec(compile("def f():\n    return 1\n", "no source", "exec"), names)
    shown = run_in_page(tmp_path, html(cwm.record(names["f"])), SHOWN)
    assert shown[1][1] == [["(no source)", "line 2"]]


@needs_browser
def test_the_table_shows_variables_over_time(tmp_path: Path) -> None:
    inner, outer = "def g(x):\n    y = x * 2\n    return y\n", "    s = 0\n    for i in range(n):\n        s += g(i)\n"
    code = f"{inner}def f(n):\n{outer}    return s\n"
    trace = cwm.record_source(code, "f(3)")
    at = next(i for i, frame in enumerate(trace.frames) if frame.line.strip() == "s = 0")
    shown = """{
        names: [...document.querySelectorAll("#steps th.variable")].map(e => e.textContent),
        steps: [...document.querySelectorAll("#steps tbody tr")].map(
            row => [...row.children].slice(2, -1).map(e => e.textContent)),
        changed: [...document.querySelectorAll("#steps tbody tr")].map(
            row => [...row.children].slice(2, -1).map(e => e.className === "changed")),
        at: document.querySelector("#steps [aria-current]").firstChild.textContent,
        clicked: (document.querySelectorAll("#steps tbody tr")[2].click(), current),
    }"""
    found = run_in_page(tmp_path, html(trace), shown, f"#step={at}")
    assert found["names"] == ["n", "s", "i"] and found["at"] == str(at) and found["clicked"] == 2
    for index, frame in enumerate(trace.frames):
        is_inside = frame.locals is not None and "n" in frame.locals
        state = trace.state(index) if is_inside else {}
        assert found["steps"][index] == [state.get(name, "") for name in ("n", "s", "i")]
        written = [is_inside and frame.locals.get(name, "..") != ".." for name in ("n", "s", "i")]
        assert found["changed"][index] == written


@needs_browser
def test_a_sentence_says_what_happens(tmp_path: Path) -> None:
    trace = cwm.record_source("def f(n):\n    s = n\n    return s\n", "f('<b>')")
    predicted = cwm.Trace.parse(trace.to_text().replace('"s": "\'<b>\'"', '"s": "1"'))
    shown = "[2, 3, 4, 5].map(at => (go(at), document.getElementById('sentence').textContent))"
    assert run_in_page(tmp_path, html(trace, predicted=predicted), shown) == [
        "Step 2: f is entered with n = '<b>'. The prediction agrees.",
        "Step 3: line 3 in f is about to run; no variable changed. The prediction agrees.",
        "Step 4: line 4 in f is about to run; s = '<b>' changed. The prediction differs in s.",
        "Step 5: line 4 in f returns '<b>'. The prediction agrees.",
    ]


@needs_browser
def test_source_is_colored_and_stays_text(tmp_path: Path) -> None:
    code = "def f(x):  # a <b>\n    y = '''one\n    # two''' + f\"{x}\" + 'it\\'s'\n    return len(y) + 0x1f\n"
    trace = cwm.record_source(code, "f('a')")
    shown = """{
        text: sourceRows.map(row => row.lastChild.textContent),
        kinds: Object.fromEntries(["keyword", "string", "digits", "comment", "defined", "builtin"].map(kind =>
            [kind, [...document.querySelectorAll("#source ." + kind)].map(e => e.textContent)])),
        bold: document.querySelectorAll("#source b").length,
    }"""
    found = run_in_page(tmp_path, html(trace), shown)
    lines = trace.context.replace("  # << START_OF_TRACE", "").removesuffix("\n").split("\n")
    assert [text if text != " " else "" for text in found["text"]] == lines and found["bold"] == 0
    assert found["kinds"]["string"] == ["'''one", "    # two'''", 'f"{x}"', "'it\\'s'", "'a'"]
    assert found["kinds"]["comment"] == ["# a <b>"] and found["kinds"]["digits"] == ["0x1f"]
    assert found["kinds"]["defined"][0] == "f" and found["kinds"]["builtin"] == ["len"]


@needs_browser
def test_keys_show_help(tmp_path: Path) -> None:
    trace = cwm.record_source("def f():\n    return 1\n", "f()")
    shown = """["?", "ArrowRight", "?", "ArrowRight"].map(key => {
        document.dispatchEvent(new KeyboardEvent("keydown", { key }));
        return [document.getElementById("keys").open, current];
    })"""
    assert run_in_page(tmp_path, html(trace), shown) == [[True, 0], [True, 0], [False, 0], [False, 1]]


@needs_browser
def test_a_notebook_shows_the_page(tmp_path: Path) -> None:
    trace = cwm.record_source("def f(n):\n    return n + 1\n", "f('\"<b>')")
    piece = trace._repr_html_()
    assert piece.count("<iframe") == 1 and "<script" not in piece
    shown = run_in_page(tmp_path, f"<html><body>{piece}</body></html>", "document.querySelector('iframe').srcdoc")
    assert shown == html(trace)


def examples() -> list[Example]:
    """Return three examples: one predicted right, one with a wrong value, and one that stops early."""
    made = []
    for n, change in enumerate(
        [lambda text: text, lambda text: text.replace('"y": "2"', '"y": "3"'), lambda text: text[:-90]]
    ):
        trace = cwm.record_source("def f(x):\n    y = x + x\n    z = y\n    return z\n", f"f({n})")
        predicted = cwm.Trace.parse(change(trace.to_text()))
        made.append(Example(f"f({n}) </script>", trace, predicted, {"states": n / 3, "output": None}))
    return made


def test_a_gallery_needs_examples() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        gallery([], title="empty")


def test_a_gallery_holds_its_examples() -> None:
    page = gallery(examples(), title="<b>", summary="@DATA@ </script>")
    assert page.isascii() and page.count("</script") == 2
    data = json.loads(Page(page).texts["data"])
    assert (data["title"], data["summary"]) == ("<b>", "@DATA@ </script>")
    for example, shown in zip(examples(), data["examples"], strict=True):
        assert shown == json.loads(Page(html(example.trace, predicted=example.predicted)).texts["data"])["examples"][
            0
        ] | {
            "title": example.title,
            "scores": example.scores,
        }


@needs_browser
def test_a_gallery_shows_an_example_at_its_first_difference(tmp_path: Path) -> None:
    page = gallery(examples(), title="All of them", summary="Three of three")
    shown = """{
        list: [...document.querySelectorAll("aside a")].map(link => [...link.children].map(part => part.textContent)),
        links: [...document.querySelectorAll("aside a")].map(link => link.getAttribute("href")),
        at: [document.querySelector("aside [aria-current] code").textContent, byId("title").textContent, current],
        next: (location.hash = "#example=" + example + "&step=1", followAddress(), current),
    }"""
    found = run_in_page(tmp_path, page, shown, "#example=1")
    assert found["list"][0] == ["f(0) </script>", "right at every step", "states 0% · output -"]
    assert found["list"][1] == ["f(1) </script>", "differs at step 4", "states 33.3% · output -"]
    assert found["list"][2][1].startswith("differs at step ")
    assert found["links"] == ["#example=0", "#example=1", "#example=2"]
    assert found["at"] == ["f(1) </script>", "f(1) </script>", 4] and found["next"] == 1
    assert run_in_page(tmp_path, page, "[example, current]", "#example=2&step=3") == [2, 3]
    assert run_in_page(tmp_path, page, "[example, current]", "#example=99&step=99")[0] == 2
    assert run_in_page(tmp_path, page, "[example, current]") == [0, 0]


@needs_browser
def test_the_table_shows_predicted_values_that_differ(tmp_path: Path) -> None:
    wrong = examples()[1]
    shown = """{
        cells: [...document.querySelectorAll("#steps .predicted")].map(e => e.textContent),
        sentence: (go(5), document.getElementById("sentence").textContent),
    }"""
    found = run_in_page(tmp_path, html(wrong.trace, predicted=wrong.predicted), shown, "#step=4")
    assert found["cells"] and set(found["cells"]) == {"≠ 3"}
    assert found["sentence"].endswith("The frame is predicted as written, but y differs since an earlier step.")


@needs_browser
def test_opens_a_hundred_thousand_frames(tmp_path: Path) -> None:
    code = "def f(n):\n    kept = 'kept'\n    for i in range(n):\n        n += i % 7\n    return n\n"
    trace = cwm.record_source(code, "f(50000)")
    page = html(trace)
    assert len(trace.frames) > 100_000 and len(page) < 5_000_000
    shown = "[length - 9, 3, length >> 1].map(i => (go(i), [...recorded.variables(i).values()].map(v => v.text)))"
    last, early, middle = run_in_page(tmp_path, page, shown)
    # Until the first step is shown; the browser's own start is not included. Test machines are slow.
    assert run_in_page(tmp_path, page, "performance.now()") < 10_000
    count = len(trace.frames)
    assert [last, early, middle] == [list(trace.state(i).values()) for i in (count - 9, 3, count >> 1)]
