"""From a name to a projection."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import msgspec
import pydantic

from projections.contract import CqrsProjection, RebuildDoc

__all__ = ["SHIPPED", "ResolveError", "resolve"]

SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "aircraft-log": "projections.flights:AircraftLog",
        "aircraft-months": "projections.flights:AircraftMonths",
        "airports": "projections.flights:Airports",
        "order-summary": "projections.orders:OrderSummary",
    }
)
"""The projections that come with refold: name → where the class is."""

OURS: Mapping[str, str] = MappingProxyType({"projections": "registry.py", "streams": "cluster.py"})
"""The packages that refold itself is made of, each with a module by which a copy of it is known."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_QUERIES = (msgspec.Struct, pydantic.BaseModel)
_NAME_RULE = "lower-case letters, digits, '.', '_' and '-', the first a letter or a digit, at most 100"


class ResolveError(LookupError):
    """There is no projection of this name, or what is there cannot be folded with. Nothing was started."""


def resolve(name_or_path: str, *, named: Sequence[str] = (), beside: Path | None = None) -> CqrsProjection[Any]:
    """Find a projection and check its declaration.

    Args:
        name_or_path: A shipped name (`aircraft-log`), `package.module:Class`, or `path/to/file.py:Class`; without the
            class where the module has one projection.
            Modules are looked for in the current directory too, as `python -m` does. The class is a
            subclass of CqrsProjection, constructed without arguments, or an instance of one.
        named: Further names that the user could have meant, for the message.
        beside: A directory in which modules are looked for too.

    Raises:
        ResolveError: Nothing of that name can be imported (the cause is chained), it is no projection, or
            its name, version, `partition_by` or read model type is not as the contract says.
    """
    target = SHIPPED.get(name_or_path, name_or_path)
    place, colon, attribute = target.rpartition(":")
    if not colon:
        place, attribute = target, _only_one(target, named, beside)
        target = f"{place}:{attribute}"
    if not place or not attribute:
        raise ResolveError(
            f"Projection {name_or_path!r} is no full name: write `module:Class`, "
            "for example `shop.orders:OrderSummary`."
        )
    module = _load_file(Path(place), target) if place.endswith(".py") else _load_module(place, target, beside)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ResolveError(
                f"Projection {target!r}: {place} has no attribute {attribute!r}.{_offer(attribute, _declared(module))}"
            ) from None
    projection = _construct(found, target)
    _check(projection, target)
    return projection


def _only_one(name: str, named: Sequence[str], beside: Path | None) -> str:
    """Name the projection in a module that has one."""
    if name.endswith(".py"):
        module = _load_file(Path(name), name)
    elif re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) and _is_module(name, beside):
        module = _load_module(name, name, beside)
    else:
        raise ResolveError(_unknown(name, named))
    own = [one for one in _declared(module) if getattr(getattr(module, one), "__module__", "") == module.__name__]
    if len(own) != 1:
        raise ResolveError(
            f"{name} is a module.{_offer('', own)}"
            + (f" Name one of them, for example `{name}:{own[0]}`." if own else "")
        )
    return own[0]


def _is_module(name: str, beside: Path | None) -> bool:
    """Say whether there is a module of a name; one that is there and fails to import, is."""
    places = [str(Path.cwd()), *([] if beside is None else [str(beside)])]
    sys.path[:0] = [place for place in places if place not in sys.path]
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
    except Exception:  # noqa: BLE001  (of a package on the way to it)
        return True


def _unknown(name: str, named: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [*named, *SHIPPED], n=3, cutoff=0.5)
    did_you_mean = f" Did you mean {' or '.join(near)}?" if near else ""
    configured = f"refold.toml names {', '.join(named)}. " if named else ""
    return (
        f"No projection is called {name!r}.{did_you_mean} {configured}Shipped are {', '.join(SHIPPED)}; "
        "name one of your own as `module:Class`, for example `shop.orders:OrderSummary`."
    )


def _load_module(name: str, target: str, beside: Path | None) -> ModuleType:
    here = str(Path.cwd())
    for place in (here, *([] if beside is None else [str(beside)])):
        if place not in sys.path:
            sys.path.insert(0, place)
    _check_no_clash(name, target, [Path(here), *([] if beside is None else [beside])])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only a missing part of the name itself means "no such module"; else the module's own import failed.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ResolveError(
                f"Projection {target!r}: there is no module {error.name!r}, neither installed nor in {here}. "
                "Go to the directory that holds it, or install it."
            ) from error
        raise _import_failed(target, name, error) from error
    except Exception as error:
        raise _import_failed(target, name, error) from error


def _check_no_clash(name: str, target: str, places: Sequence[Path]) -> None:
    """Refuse a module of the user's in a package that is called as one of ours, which is loaded already."""
    package = name.partition(".")[0]
    if package not in OURS:
        return
    ours = Path(__file__).parent.parent
    for place in places:
        theirs = place / package
        is_there = theirs.is_dir() or theirs.with_suffix(".py").is_file()
        if is_there and place != ours and not (theirs / OURS[package]).is_file():
            raise ResolveError(
                f"Projection {target!r}: {theirs} has the name of a package of refold, {package!r}, and only one of "
                f"them can be loaded. Rename yours, or name the file: {place / name.replace('.', '/')}.py:Class."
            )


def _load_file(path: Path, target: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ResolveError(f"Projection {target!r}: there is no file {path}.")
    name = f"_refold_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ResolveError(f"Projection {target!r}: Python cannot load {path} as a module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up while it is being executed
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failed(target, str(path), error) from error
    return module


def _import_failed(target: str, module: str, error: Exception) -> ResolveError:
    return ResolveError(
        f"Projection {target!r}: importing {module} failed with {type(error).__name__}: {error}. "
        "Correct the module; `python -c 'import …'` shows the whole traceback."
    )


def _declared(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, CqrsProjection)
        or (isinstance(value, type) and issubclass(value, CqrsProjection) and value is not CqrsProjection)
    ]


def _offer(attribute: str, names: list[str]) -> str:
    near = difflib.get_close_matches(attribute, names, n=3, cutoff=0.5) or names
    return f" Its projections are {', '.join(near)}." if near else " It holds no projection at all."


def _construct(found: Any, target: str) -> CqrsProjection[Any]:
    if isinstance(found, CqrsProjection):
        return found
    if not (isinstance(found, type) and issubclass(found, CqrsProjection)):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ResolveError(
            f"Projection {target!r} is {kind}, which is no CqrsProjection: "
            "derive it from projections.contract.CqrsProjection."
        )
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ResolveError(f"Projection {target!r} is incomplete: it does not define {', '.join(missing)}.")
    try:
        return found()
    except Exception as error:
        raise ResolveError(
            f"Projection {target!r} cannot be constructed without arguments: "
            f"{type(error).__name__}: {error}. "
            "Give its parameters defaults, or name an instance in place of the class."
        ) from error


def _check(projection: CqrsProjection[Any], target: str) -> None:
    wrong = []
    name: object = getattr(projection, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wrong.append(f"name is {name!r}, and must be {_NAME_RULE}")
    version: object = projection.version
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        wrong.append(f"version is {version!r}, and must be a whole number from 1")
    partition_by: object = projection.partition_by
    if partition_by not in (None, "stream", "model"):
        wrong.append(f"partition_by is {partition_by!r}, and must be None, 'stream' or 'model'")
    idempotent: object = projection.idempotent
    if not isinstance(idempotent, bool):
        wrong.append(f"idempotent is {idempotent!r}, and must be True or False")
    try:
        msgspec.convert(projection.rebuild_doc, RebuildDoc)
        unknown = sorted(set(projection.rebuild_doc) - set(RebuildDoc.__annotations__))
        if unknown:
            wrong.append(f"rebuild_doc has {', '.join(unknown)}, and knows {', '.join(RebuildDoc.__annotations__)}")
    except (msgspec.ValidationError, TypeError) as error:
        wrong.append(f"rebuild_doc is not as it should be: {error}")
    query: object = projection.Query
    if query is not None:
        if not (isinstance(query, type) and (dataclasses.is_dataclass(query) or issubclass(query, _QUERIES))):
            wrong.append(f"Query is {query!r}, and must be a dataclass, a msgspec.Struct or a pydantic model")
        if type(projection).matches is CqrsProjection.matches:
            wrong.append("it has a Query, and no `matches` to say what that means")
    try:
        projection.model_type()
    except TypeError as error:
        wrong.append(str(error))
    if wrong:
        raise ResolveError(f"Projection {target!r} is declared wrongly: {'; '.join(wrong)}.")
