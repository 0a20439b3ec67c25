"""A small data set in the form of CruxEval, and programs that are up to no good."""

import json

from cwm_core.evaluation import Problem

PROGRAMS = [
    ("def f(a, b):\n    return a + b\n", "2, 3", "5"),
    ("def f(s):\n    out = ''\n    for c in s:\n        out = c + out\n    return out\n", "'abc'", "'cba'"),
    ("def f(n):\n    t = 0\n    while n:\n        t += n\n        n -= 1\n    return t\n", "4", "10"),
    ("def f(xs):\n    return sorted(set(xs))\n", "[3, 1, 3]", "[1, 3]"),
    ("def f(d, k):\n    d[k] = len(d)\n    return d\n", "{'a': 1}, 'b'", "{'a': 1, 'b': 1}"),
    ("def g(n):\n    return n * n\n\ndef f(n):\n    return g(n) - g(n - 1)\n", "5", "9"),
    ("def f(s, n=2):\n    return s * n\n", "'xy'", "'xyxy'"),
    ("def f(x):\n    try:\n        return 1 / x\n    except ZeroDivisionError:\n        return None\n", "0", "None"),
    ("def f(n):\n    return f(n - 1) * n if n else 1\n", "4", "24"),
    ("def f(xs):\n    return [x for x in xs if x % 2]\n", "[1, 2, 3]", "[1, 3]"),
    ("def f(s):\n    return s.split(',')\n", "'a,b'", "['a', 'b']"),
    ("def f(a):\n    print('noise' * 1000)\n    return {a, a + 1}\n", "1", "{1, 2}"),
]

PROBLEMS = [Problem(f"sample_{i}", *program) for i, program in enumerate(PROGRAMS)]

HOSTILE = {
    "ended by exit code 3": "import os\ndef f(x):\n    os._exit(3)\n",
    "ended by signal 9": "import os\ndef f(x):\n    os.kill(os.getpid(), 9)\n",
    "limit: seconds": "import time\ndef f(x):\n    time.sleep(60)\n",
    "limit: max_frames": "def f(x):\n    while True:\n        x += 1\n",
    "limit: processes": "import os\ndef f(x):\n    while True:\n        os.fork()\n",
    "does not compile": "def f(x) return x\n",
    "raised before the call": "1 / 0\n",
    "ended without a result": "import os\ndef f(x):\n    os._exit(0)\n",
    "answer too large": "import os\ndef f(x):\n    for _ in range(20):\n        os.write(3, b'A' * (1 << 20))\n",
    "no whole trace": "import os\ndef f(x):\n    os.write(3, b'Aforged')\n    os._exit(0)\n",
}
"""Programs by the reason that they cannot be recorded; 3 is the descriptor of the answer."""

HARMLESS = [
    Problem("forks", "import os\ndef f(x):\n    os.fork()\n    return x\n", "1", "1"),
    Problem("floods", "import os\ndef f(x):\n    os.write(1, b'x' * (8 << 20))\n    return x\n", "1", "1"),
    Problem("thread", "import threading, time\ndef f(x):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n"
            "    return x\n", "1", "1"),
    Problem("closes", "import sys\ndef f(x):\n    sys.stdout.close()\n    sys.stdin.close()\n    return x\n", "1", "1"),
]  # fmt: skip
"""Programs that do what they should not, and can be recorded all the same."""


def write_problems(path, problems=PROBLEMS):
    rows = [{"id": p.id, "code": p.code, "input": p.input, "output": p.output} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
