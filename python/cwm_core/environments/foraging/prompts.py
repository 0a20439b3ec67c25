"""Write prompts like those of users: they report failing tests, but not the change that broke them."""

import random
from collections.abc import Sequence

# Size of the names of tests. The rest of a prompt has less than half a kilobyte.
_SHOWN_BYTES = 4096
_SHOWN_NAMES = 12

OPENINGS = (
    "{count} in this repository {fail} although {they} used to pass.",
    "Something in the source code broke: {count} {fail} now.",
    "I ran `{command}` and {count} {fail}.",
    "Our CI is red. {count_upper} {fail}, and nobody changed the tests.",
    "After some recent edit the code no longer does what its tests ask for; {count} {fail}.",
)
LISTINGS = ("Failing:\n\n{names}", "These fail:\n\n{names}", "From the report:\n\n{names}", "")
REQUESTS = (
    "Find the cause and fix it. The tests are right and must stay as they are.",
    "Please repair the code, not the tests.",
    "Work out what is wrong in the code and correct it so that the whole suite passes again.",
    "Make them pass again without changing any test.",
)


def write_prompt(failing: Sequence[str], command: str, seed: str) -> str:
    """Return a prompt, chosen by `seed`, that names failing tests or their number.

    It has at most `MAX_PROMPT_TOKENS` bytes and therefore, with a byte-level tokenizer, at most as many tokens.
    """
    rng = random.Random(seed)
    one = len(failing) == 1
    count = "one test" if one else f"{len(failing)} tests"
    words = {
        "count": count,
        "count_upper": count.capitalize(),
        "fail": "fails" if one else "fail",
        "they": "it" if one else "they",
        "command": command if len(command) < 200 else "pytest",
        "names": _listing(failing),
    }
    parts = [rng.choice(options).format(**words) for options in (OPENINGS, LISTINGS, REQUESTS)]
    text = "\n\n".join(part for part in parts if part)
    return text[:1].upper() + text[1:]


def _listing(names: Sequence[str]) -> str:
    lines: list[str] = []
    size = 0
    for name in names[:_SHOWN_NAMES]:
        line = f"- {name}"
        size += len(line.encode(errors="backslashreplace")) + 1
        if size > _SHOWN_BYTES:
            break
        lines.append(line)
    more = len(names) - len(lines)
    return "\n".join([*lines, *([f"- and {more} more" if lines else f"- {more} tests"] if more else [])])
