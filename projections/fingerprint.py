"""From a projection to the fingerprint of the code that is loaded for it."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from projections.contract import CqrsProjection

__all__ = ["StaleSource", "fingerprint"]

_LIBRARIES = {"msgspec", "pydantic"}
"""Where read models' own base classes come from."""
_STDLIB = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
_READING = ("Query", "matches", "validate")
_TOLD = frozenset({"rebuild_doc"})
"""What only tells of a projection."""
_PARSINGS = 10
_parsing = threading.Lock()
"""Python 3.11 fails now and then where two threads parse at once (CPython gh-106905)."""
_seen: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()
"""The source of each module as it was when it was first asked for, which is what is loaded."""


class StaleSource(RuntimeError):
    """A module's file was changed since the process loaded it, so what it folds with cannot be told any more."""


def fingerprint(projection: CqrsProjection[Any]) -> str:
    """Give 16 hex digits that change when the projection's code does.

    Hashed are the sources of the modules that hold the projection's class, its base classes, its read model's classes
    and those of its events, and of the modules of the same package that these import, without comments, docstrings and
    layout; and the projection's name, version, `partition_by`, read model type and types of events. Of a module that is
    in no package, the modules beside it count as its package. The path of a module is not hashed. A module whose file
    is changed later keeps the fingerprint of what is loaded.

    Not seen: other packages, and the attributes of an instance. Where a module has no source (a REPL, a compiled
    module), the bytecode of the classes' functions is hashed in its place, and of functions without bytecode nothing
    but the class's qualified name. Bytecode also changes with the Python version, and in rare cases the normal form
    of source does.

    What readers alone use (`Query`, `matches`, and `validate`, which compares) is no part of it, unless the same module
    has a use for that name elsewhere.

    Raises:
        StaleSource: A module's file was changed between its import and the first call.
    """
    digest = hashlib.sha256()
    cls = type(projection)
    model = projection.model_type()
    sources: dict[str, str] = {}
    with _parsing:
        events = projection.event_types()
        data = () if events is None else chain.from_iterable(kind.__mro__ for kind in events.by_name.values())
        for name, classes in _modules_of([*cls.__mro__, *model.__mro__, *data]).items():
            if not _follow(name, sources):
                sources[name] = "\n".join(map(_bytecode, classes))
    for name in sorted(sources):
        digest.update(sources[name].encode())
        digest.update(b"\0")
    facts = (projection.name, projection.version, projection.partition_by, model.__qualname__)
    digest.update(repr(facts).encode())
    if events is not None:
        named = sorted((name, kind.__qualname__) for name, kind in events.by_name.items())
        digest.update(repr((named, events.refuses_unknown)).encode())
    return digest.hexdigest()[:16]


def _modules_of(classes: list[type]) -> dict[str, list[type]]:
    """Group the user's classes by module, in the order given."""
    modules: dict[str, list[type]] = {}
    for cls in classes:
        name = cls.__module__
        if name != CqrsProjection.__module__ and name.partition(".")[0] not in _LIBRARIES and not _is_standard(name):
            modules.setdefault(name, []).append(cls)
    return modules


def _is_standard(name: str) -> bool:
    """Say whether a module is Python's own, by where it is: a user's may have the same name."""
    if name in ("builtins", "typing"):
        return True
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        return name in sys.stdlib_module_names and name != "__main__"
    path = Path(file).resolve()
    return bool(_STDLIB & set(path.parents)) and not _INSTALLED & set(path.parents)


def _follow(name: str, sources: dict[str, str]) -> bool:
    """Take a module's source in, and those of its package that it imports. False: it has none."""
    if name in sources:
        return True
    source = _source(name)
    if source is None:
        return False
    try:
        tree = _parsed(source)
    except SyntaxError:
        return False
    imports = sorted(_imports(tree, name))
    sources[name] = _normalised(_without_reading(tree))
    for imported in imports:
        if imported != CqrsProjection.__module__ and _is_kin(imported, name):
            _follow(imported, sources)
    return True


def _parsed(source: str) -> ast.Module:
    """Parse, again where somebody else has parsed meanwhile.

    CPython before 3.12 counts the depth of all parsers together: one in another thread, or one that the garbage
    collector sets off in this one (writing a traceback parses its lines), makes it fail with a SystemError.
    """
    for _ in range(_PARSINGS):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)


def _source(name: str) -> str | None:
    """Give the source that a module was loaded from; None where there is none."""
    module = sys.modules.get(name)
    if module is None:  # imported within a function that has not run yet
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        return None if spec is None else _read(spec.loader, name)
    if module not in _seen:
        source = _read(getattr(module, "__loader__", None), name)
        if source is None:
            try:
                source = inspect.getsource(module)
            except (OSError, TypeError):
                return None
        _check_loaded(module, source)
        _seen[module] = source
    return _seen[module]


def _read(loader: Any, name: str) -> str | None:
    try:
        source: str | None = loader.get_source(name)
    except (AttributeError, ImportError, OSError):
        return None
    return source


def _check_loaded(module: ModuleType, source: str) -> None:
    """Make sure that a file's functions are those that are loaded.

    Raises:
        StaleSource: They are not.
    """
    if type(getattr(module, "__loader__", None)) is not importlib.machinery.SourceFileLoader:
        return  # it may have changed the code on the way, as test runners do
    file = str(module.__file__)
    try:
        compiled = compile(source, file, "exec", dont_inherit=True)
    except SyntaxError:
        raise _stale(module) from None
    on_disk: dict[str, list[list[str]]] = {}
    for code in _codes(compiled):
        on_disk.setdefault(code.co_qualname, []).append(list(_code_lines(code)))
    for function in _functions(module):
        code = function.__code__
        if code.co_filename == file and list(_code_lines(code)) not in on_disk.get(code.co_qualname, []):
            raise _stale(module)


def _stale(module: ModuleType) -> StaleSource:
    return StaleSource(
        f"{module.__file__} was changed since this process loaded it, so the code that folds is not the code in the "
        "file. Start the process again."
    )


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for value in vars(module).values():
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            yield from _methods(value)


def _methods(cls: type) -> Iterator[FunctionType]:
    for value in vars(cls).values():
        found = getattr(value, "fget", getattr(value, "__func__", value))
        if isinstance(found, FunctionType):
            yield found


def _imports(tree: ast.AST, name: str) -> Iterator[str]:
    """Name what a module imports, anywhere in it."""
    module = sys.modules.get(name)
    package = getattr(module, "__package__", None) or name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_kin(imported: str, name: str) -> bool:
    """Say whether a module is of the same package as another, or beside it where that is in none."""
    if "." in name or hasattr(sys.modules.get(name), "__path__"):
        return imported.partition(".")[0] == name.partition(".")[0]
    ours = getattr(sys.modules.get(name), "__file__", None)
    if ours is None or "." in imported:
        return False
    directory = Path(ours).resolve().parent
    return directory not in _INSTALLED | _STDLIB and (directory / f"{imported}.py").is_file()


def _without_reading(tree: ast.Module) -> ast.Module:
    """Leave out of projections what is no part of the fold.

    What a projection is, is told by the text alone, whatever is loaded: it has `apply_to_model`, or is derived from one
    that has, in the same module.
    """
    projections: list[ast.ClassDef] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names = {one.name for one in projections}
            if any(getattr(one, "name", None) == "apply_to_model" for one in node.body) or any(
                isinstance(base, ast.Name) and base.id in names for base in node.bases
            ):
                projections.append(node)
    asked_for = {part.attr for part in ast.walk(tree) if isinstance(part, ast.Attribute)}
    for node in projections:
        node.body = [one for one in node.body if not _is_told(one, _TOLD - asked_for)] or [ast.Pass()]
    reading = [one for node in projections for one in node.body if getattr(one, "name", None) in _READING]
    within = {id(part) for one in reading for part in ast.walk(one)}
    used = {
        getattr(part, "attr", None) or getattr(part, "id", None) for part in ast.walk(tree) if id(part) not in within
    }
    gone = {id(one) for one in reading if getattr(one, "name", None) not in used}
    for node in projections:
        node.body = [one for one in node.body if id(one) not in gone] or [ast.Pass()]
    return tree


def _is_told(statement: ast.stmt, names: Collection[str]) -> bool:
    """Whether a statement of a projection only tells of it."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name in names
    return False


def _normalised(tree: ast.AST) -> str:
    """Give code without comments, docstrings and layout."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Also the strings below attributes: an expression that is only a string does nothing anywhere.
            node.body = [statement for statement in body if not _is_text(statement)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(tree))


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _bytecode(cls: type) -> str:
    return "\n".join([cls.__qualname__, *(line for method in _methods(cls) for line in _code_lines(method.__code__))])


def _codes(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _code_lines(code: CodeType) -> Iterator[str]:
    yield f"{code.co_qualname} {code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_lines(constant)
        else:
            # A set's order differs from process to process.
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
