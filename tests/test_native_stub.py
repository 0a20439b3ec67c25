"""`_native.pyi` says exactly what the compiled module has: names, methods, and how each parameter is passed."""

import ast
import inspect
import types
from enum import Enum
from pathlib import Path

import cwm_core
import pytest
from cwm_core import _native

STUB = Path(cwm_core.__file__).with_name("_native.pyi")
# Every type has these or gets them with another slot: a stub need not repeat them.
IMPLIED = {*dir(object), "__module__", "__delitem__", "__weakref__", "__dict__"}


def is_private(name):
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def declared(body):
    """Public name → its last definition in one scope of the stub, imports apart."""
    names = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return {name: node for name, node in names.items() if not is_private(name)}


def stub_parameters(function, *, bound):
    """(name, kind, has a default) for each parameter, without the first when the function is `bound`."""
    args, kinds = function.args, inspect.Parameter
    positional = [(a.arg, kinds.POSITIONAL_ONLY) for a in args.posonlyargs]
    positional += [(a.arg, kinds.POSITIONAL_OR_KEYWORD) for a in args.args]
    first_default = len(positional) - len(args.defaults)
    out = [(name, kind, i >= first_default) for i, (name, kind) in enumerate(positional)][bound:]
    out += [(args.vararg.arg, kinds.VAR_POSITIONAL, False)] if args.vararg else []
    out += [(a.arg, kinds.KEYWORD_ONLY, d is not None) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    out += [(args.kwarg.arg, kinds.VAR_KEYWORD, False)] if args.kwarg else []
    return out


def module_parameters(function, *, bound):
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default is not p.empty) for p in parameters][bound:]


def decorators(function):
    return {ast.unparse(decorator) for decorator in function.decorator_list}


def check_function(where, node, value, *, bound):
    assert isinstance(node, ast.FunctionDef), f"{where} is a function in the module only"
    assert stub_parameters(node, bound=bound) == module_parameters(value, bound=bound), f"{where}: parameters differ"


def check_member(where, node, value):
    """One attribute of a class against its line in the stub; `value` as the class's own __dict__ holds it."""
    if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
        assert isinstance(node, ast.AnnAssign) or "property" in decorators(node), f"{where} is an attribute"
    elif isinstance(value, staticmethod):
        assert "staticmethod" in decorators(node), f"{where} is a static method"
        check_function(where, node, value.__func__, bound=False)
    elif isinstance(value, types.ClassMethodDescriptorType):
        assert "classmethod" in decorators(node), f"{where} is a class method"
        check_function(where, node, value, bound=True)
    elif isinstance(value, types.MethodDescriptorType):
        assert not decorators(node), f"{where} is a plain method"
        check_function(where, node, value, bound=True)
    elif isinstance(value, types.WrapperDescriptorType):  # a slot: its parameters have no names
        assert isinstance(node, ast.FunctionDef), f"{where} is a method"
    else:
        assert isinstance(node, ast.AnnAssign), f"{where} is a constant"


def check_class(name, node, cls):
    if issubclass(cls, BaseException):  # what an `except` clause catches
        assert [ast.unparse(base) for base in node.bases] == [base.__name__ for base in cls.__bases__], f"{name}: bases"
    stub, members = declared(node.body), dict(vars(cls))
    constructor = stub.pop("__init__", None) or stub.pop("__new__", None)
    if constructor is not None:
        assert "__new__" in members, f"{name} has no constructor in the module"
        assert stub_parameters(constructor, bound=True) == module_parameters(cls, bound=False), f"{name}: constructor"
    elif "__new__" in members and not issubclass(cls, BaseException):
        raise AssertionError(f"{name} has a constructor that the stub does not declare")
    public = {member for member in members if not is_private(member) and member not in IMPLIED}
    assert stub.keys() - members.keys() == set(), f"{name}: in the stub only"
    assert public - stub.keys() == set(), f"{name}: in the module only"
    for member, line in stub.items():
        check_member(f"{name}.{member}", line, members[member])


def check_enum(name, node, cls):
    """Compare members and values, in order."""
    members = {line.targets[0].id: ast.literal_eval(line.value) for line in node.body if isinstance(line, ast.Assign)}
    assert [ast.unparse(base) for base in node.bases] == [base.__name__ for base in cls.__bases__], f"{name}: bases"
    assert list(members.items()) == [(member.name, member.value) for member in cls], f"{name}: members"


def check(stub_source, module):
    stub = declared(ast.parse(stub_source).body)
    public = {name for name in vars(module) if not name.startswith("_")}
    assert set(stub) - public == set(), "in the stub only"
    assert public - set(stub) == set(), "in the module only"
    for name, node in stub.items():
        value = getattr(module, name)
        if isinstance(value, type):
            assert isinstance(node, ast.ClassDef), f"{name} is a class"
            (check_enum if issubclass(value, Enum) else check_class)(name, node, value)
        elif callable(value):
            check_function(name, node, value, bound=False)
        else:
            assert isinstance(node, ast.AnnAssign), f"{name} is a constant"


def test_stub_matches_module():
    check(STUB.read_text(encoding="utf-8"), _native)


DOCUMENTED = ["CwmError", "DamagedFileError", "Frame", "Frames", "ParsedTrace", "RecordingLimit", "Recording", "Trace"]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_equal_those_of_the_module(name):
    stub = {node.name: node for node in ast.parse(STUB.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    cls = getattr(_native, name)
    assert ast.get_docstring(stub[name]) == inspect.cleandoc(cls.__doc__)
    for method, node in declared(stub[name].body).items():
        if method.strip("_") != "new" and (doc := ast.get_docstring(node)) is not None:
            assert inspect.cleandoc(getattr(cls, method).__doc__) == doc, method
