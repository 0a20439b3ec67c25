"""Random whole programs for differential tests: everything a function body can do, always ending in few steps.

Templates are source text with fields: ``{e}`` an expression, ``{n}`` a name, ``{b}`` on a line of its own a block.
A second one of a kind is ``{e2}``, and so on.
"""

from __future__ import annotations

import re
import string
import textwrap

from hypothesis import strategies as st

NAMES = ["a", "b", "c", "x", "y"]
names = st.sampled_from(NAMES)

Texts = st.SearchStrategy[str]


def _fill(template: str, values: dict[str, str]) -> str:
    lines = []
    for line in template.splitlines():
        field = line.strip()
        if re.fullmatch(r"\{[bct]\d?\}", field):
            lines.append(textwrap.indent(values[field[1:-1]], line[: line.index("{")]))
        else:
            lines.append(line.format_map(values) + "\n")
    return "".join(lines)


def _filled(template: str, parts: dict[str, Texts]) -> Texts:
    """The template with each field drawn from the part that its first letter names."""
    template = textwrap.dedent(template).strip("\n")
    fields = sorted({field for _, field, _, _ in string.Formatter().parse(template) if field})
    return st.tuples(*(parts[field[0]] for field in fields)).map(
        lambda drawn: _fill(template, dict(zip(fields, drawn, strict=True)))
    )


def _any_of(templates: str, **parts: Texts) -> Texts:
    """One of the templates, which stand apart by blank lines."""
    return st.one_of([_filled(template, parts) for template in templates.split("\n\n")])


atoms = st.one_of(
    st.integers(-3, 12).map(repr),
    st.sampled_from(["None", "True", "1.5", "-0.0", "1e300", "'s'", '"it\'s"', "'é\\n'", "b'\\x00'", "2**80", "3j"]),
    st.sampled_from(
        ["[]", "()", "{}", "set()", "frozenset({1})", "[1, [2]]", "(1,)", "{'k': [1]}", "{1, 2}", "range(3)"]
    ),
    st.sampled_from(["Plain()", "Shown(1)", "Broken()", "Slotted(2)", "len", "shout", "total", "Point(1, 2)"]),
    names,
)

EXPRESSIONS = """
({e} + {e2})

({e} * {e2})

({e} - {e2})

({e} // {e2})

({e} < {e2})

({e} == {e2})

({e} and {e2})

({e} or {e2})

[{e}, {e2}]

({e}, {e2})

{{{a}: {e}}}

[{e} for {n} in range(3)]

[(w := {e}) for _ in range(2)]

{{{n}: {e} for {n} in range(2)}}

{{{n} for {n} in range(2) if {e}}}

list({e} for {n} in range(2))

[[{n} for {n2} in range(2)] for {n} in range(2) if {e}]

[(lambda: {n}) for {n} in range(2)]

(lambda {n}: {e})({e2})

(lambda {n}={e}, *rest: ({n}, rest))()

(w := {e})

({e} if {e2} else {e3})

f'{{{n}}}-{{{n2}!r:>4}}'

sorted([2, 1], key=lambda k: ({e}, -k)[1])

list(map(lambda k: {e}, range(2)))

list(filter(lambda k: {e}, [0, 1]))

min([3, 2], key=lambda k: ({e}, k)[1])

functools.reduce(lambda {n}, k: {e}, [1, 2, 3])

functools.partial(helper, {e})()

helper({e})

list(steps({e}))

list(delegating({e}))

run(job({e}))

[*{e}, *{e2}]

{{**{e}, 'z': {e2}}}

spread({e}, *[{e2}], k={e3})

spread(0, **{{'k': {e}, 'z': 1}})

eval('q', {{'q': {e}}})

counted()

str({e}).upper()[1:4]

str({e}).split('s', 1)

b'ab'.replace(b'a', bytes([1]))

{n}[0:1]

{n}.get('k', {e})

Slotted({e}).value

Point({e}, 1).total()

getattr({e}, 'value', {e2})
"""
# An expression is one line, put into others as it is.
expressions = st.recursive(
    atoms, lambda inner: _any_of(EXPRESSIONS, e=inner, a=atoms, n=names).map(str.strip), max_leaves=4
)

SIMPLE = """
{n} = {e}

{n} = {n2} = {e}

{n} += {e}

{e}

del {n}

{n}, {n2} = {e}

{n}, *{n2} = {e}

{n}.append({e})

{n}.append({n})

{n}[0] = {e}

{n}[0:1] = {e}

{n}['k'] = {n2}

{n}.update({{'u': {e}}})

{n}.pop()

{n}.sort(key=lambda k: {e})

del {n}[0]

{n}.extend({e})

{n}.value = {e}

typed: int = {e}

pass

print({n}, end='')

{n} = lambda {n2}={e}: ({n2}, y)

exec(compile('q = {a}\\nq += 1\\ndel q\\n', '<cwm>', 'exec'), {{}})

exec('q = [i for i in range(2)]', own := {{}})
"""
ENDING = """
raise ValueError({n})

raise KeyError({n}) from ValueError(1)

raise ExceptionGroup('g', [ValueError({n}), TypeError({e})])

assert {n}, {e}

return {n}
"""
simple = _any_of(SIMPLE + "\n" + ENDING, e=expressions, a=atoms.filter(lambda a: "'" not in a), n=names)

COMPOUND = """
if {e}:
    {b}
else:
    {b2}

for {n} in range(3):
    {b}

for {n} in [1, 's']:
    {b}
else:
    {b2}

for {n} in steps(2):
    {b}

for {n} in range(2): {n2} = {e}

for {n} in range(2):
    if {e}:
        break
    {b}
    continue
else:
    {b2}

for {n} in range(3):
    try:
        {b}
        continue
    finally:
        {n2} = {e}
        {b2}

for {n} in range(2):
    try:
        {b}
    finally:
        break

while counted() % 3 and total < 40:
    {b}

try:
    {b}
except ValueError as e:
    {b2}

try:
    {b}
except Exception:
    {b2}
else:
    {n} = {e}

try:
    {b}
finally:
    {b2}

try:
    {b}
except* ValueError as e:
    {n} = e.exceptions
except* (TypeError, KeyError):
    {n2} = {e}

with Managed() as {n}:
    {b}

with Managed() as {n}, Swallow({e}) as {n2}:
    {b}

def made({n}):
    {b}
{n2} = made({e})

def made({n}, /, {n}_more={e}, *rest, key={e2}, **others):
    {b}
    return rest, key, others
{n2} = made(1, 2, 3, key=4, z={e3})

def made(a=1):
    nonlocal b
    {b}
    del b
    {b2}
    b = {e}
made()

@decorated
def made({n}):
    {b}
made({e})

@tagged({e})
@decorated
def made({n}=0):
    {b}
{n2} = made()

def made({n}):
    {b}
    yield {e}
{n} = list(made({e2}))

def made({n}):
    {n2} = yield from steps({e})
    {b}
    return {n2}
{n} = [*made({e2})]

it = echo({e})
{n} = next(it)
{n2} = it.send({e2})
try:
    it.throw(ValueError({e3}))
    {b}
finally:
    it.close()

def down(level):
    {b}
    return down(level - 1) if level else {e}
{n} = down(2)

def outer({n}):
    def inner():
        nonlocal {n}
        {b}
        return {n}
    del {n}
    {n} = {e}
    return inner(), inner
{n2} = outer({e2})[0]

class Local(Plain):
    {c}
    {n} = [{n2} for k in range(2)]
    def method(self, {n}={e2}):
        {b}
        return __class__
    {c2}
{n2} = Local().method()

class Local:
    __slots__ = ('p', 'q')
    class Inner:
        {c}
    def __init__(self, p):
        self.p = p
        {b}
{n} = Local({e}).p

async def made({n}):
    {t}
    return {e}
{n2} = run(made({e2}))

async def ticked({n}):
    {t}
    yield {e}
    {n} = yield {n}
async def made():
    return [({n2}, {e2}) async for {n2} in ticked(3)]
{n} = run(made())

match {e}:
    case [{n}, *_]:
        {b}
    case {{'k': [{n2}, *_], **rest}}:
        {b2}
    case Point(p=1 as {n}, q=_) | Shown(value={n}):
        {b}
    case str() | int() as y if {e2}:
        {b2}
    case _:
        {n} = {e2}
"""
IN_CLASS = """
{n} = {e}

del {n}

{n} = [({n2}, {e}) for {n2} in range(2)]

for {n} in range(2): {n2} = {n}

@property
def {n}(self):
    return self, {e}

{n} = lambda self, k={n2}: (k, {e})
"""
IN_COROUTINE = """
{n} = {e}

{n} = await Later({e})

async for {n} in ticks({e}):
    {n2} = {e2}

async with Guarded() as {n}:
    {n2} = await Later({n})
    {e}

{n} = [{n2} async for {n2} in ticks(2) if {e}]

{n} = [await Later({n2}) for {n2} in range(2)]

try:
    {n} = await failing({e})
except ValueError as error:
    {n2} = error.args
finally:
    {e2}

print({n}, end='')
"""


def _blocks(statement: Texts) -> Texts:
    return st.lists(statement, min_size=1, max_size=3).map("".join)


def _statements(statement: Texts) -> Texts:
    # Python forbids a walrus in a comprehension of a class body.
    in_class = _blocks(_any_of(IN_CLASS, e=expressions.map(lambda e: e.replace("w := ", "")), n=names))
    in_coroutine = _blocks(_any_of(IN_COROUTINE, e=expressions, n=names))
    return _any_of(COMPOUND, e=expressions, n=names, b=_blocks(statement), c=in_class, t=in_coroutine)


statements = st.recursive(simple, _statements, max_leaves=10)

PRELUDE = """
import functools
total = 0
class Plain:
    pass
class Shown:
    def __init__(self, value):
        self.value = value
    def __repr__(self):
        return f'Shown({self.value!r})'
class Broken:
    def __repr__(self):
        raise ValueError
class Slotted:
    __slots__ = ('value',)
    def __init__(self, value):
        self.value = value
class Point:
    __match_args__ = ('p', 'q')
    def __init__(self, p, q):
        self.p, self.q = p, q
    def total(self):
        return self.p + self.q
class Managed:
    def __enter__(self):
        return self
    def __exit__(self, *error):
        return False
class Swallow:
    def __init__(self, value):
        self.value = value
    def __enter__(self):
        return self.value
    def __exit__(self, kind, error, traceback):
        return kind is not None and issubclass(kind, Exception)
class Later:
    def __init__(self, value):
        self.value = value
    def __await__(self):
        yield 'waiting'
        return self.value
class Guarded:
    async def __aenter__(self):
        return await Later(1)
    async def __aexit__(self, *error):
        await Later(2)
        return False
async def ticks(last):
    for i in range(2):
        yield i
        await Later(i)
    yield last
async def failing(value):
    await Later(value)
    raise ValueError(value)
async def job(value):
    return await Later(value)
def run(coroutine):
    for step in range(20):
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
    coroutine.close()
def decorated(function):
    def wrapper(*args):
        return function(*args)
    return wrapper
def tagged(tag):
    def apply(function):
        function.tag = tag
        return function
    return apply
def shout(text='x'):
    return text
def spread(first, /, *args, k=0, **kwargs):
    return first, args, k, kwargs
def counted():
    global total
    total += 1
    return total
def helper(value):
    return value
def steps(n):
    for i in range(2):
        got = yield i
    return n
def delegating(n):
    r = yield from steps(n)
    yield r
def echo(value):
    try:
        while True:
            value = yield value
    except ValueError as error:
        yield error.args
    finally:
        value = None
"""


def _guard(statement: str) -> str:
    return f"try:\n{textwrap.indent(statement, '    ')}except Exception as e:\n    c = str(e)\n"


# A statement that fails does not end the program where it is guarded, so that later ones run too.
_body = st.lists(st.one_of(statements, statements.map(_guard)), min_size=1, max_size=6)

programs = _body.map(
    lambda body: PRELUDE + "def f(a, b, c):\n    global x\n    y = 0\n" + textwrap.indent("".join(body), "    ")
)
