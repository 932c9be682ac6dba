"""A name finds its projection, or the message says why not; the fingerprint follows the code alone."""

from __future__ import annotations

import ast
import importlib
import linecache
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from projections.contract import CqrsProjection
from projections.fingerprint import StaleSource, _parsed, fingerprint
from projections.orders import OrderSummary
from projections.registry import SHIPPED, ResolveError, resolve

GOOD = """
    from projections.contract import CqrsProjection, Event

    class Totals(CqrsProjection[dict]):
        name = "totals"

        def extract_model_id(self, event):
            return event.stream

        def apply_to_model(self, model, event):
            return {"total": (model or {"total": 0})["total"] + event.data["amount"]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(path: Path, code: str) -> None:
    path.write_text(dedent(code))


def refusal(name: str) -> str:
    with pytest.raises(ResolveError) as caught:
        resolve(name)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_projection_is_found_by_the_name_that_it_has(name: str) -> None:
    assert resolve(name).name == name


def test_a_class_of_a_module_in_the_current_directory_is_found(here: Path) -> None:
    write(here / "shop_totals.py", GOOD)
    assert resolve("shop_totals:Totals").name == "totals"


def test_a_class_in_a_file_is_found_and_has_the_fingerprint_of_the_module(here: Path) -> None:
    write(here / "shop_totals.py", GOOD)
    assert fingerprint(resolve("shop_totals.py:Totals")) == fingerprint(resolve("shop_totals:Totals"))


def test_a_module_with_one_projection_needs_no_class(here: Path) -> None:
    write(here / "shop_totals.py", GOOD)
    assert resolve("shop_totals").name == "totals"
    assert resolve("shop_totals.py").name == "totals"
    write(here / "shop_both.py", "from shop_totals import Totals\nclass More(Totals): name = 'more'\n")
    assert resolve("shop_both").name == "more", "what it imports is not its own"
    write(here / "shop_three.py", GOOD + "\n    class Others(Totals): name = 'others'\n")
    message = refusal("shop_three")
    assert "Its projections are Totals, Others." in message
    assert "`shop_three:Totals`" in message
    write(here / "shop_none.py", "import json\n")
    assert "It holds no projection at all." in refusal("shop_none")
    write(here / "shop_raises.py", "raise RuntimeError('no licence')\n")
    assert "RuntimeError: no licence" in refusal("shop_raises")
    assert "No projection is called 'shop_absent.nothing'" in refusal("shop_absent.nothing")


def test_an_instance_is_used_as_it_is(here: Path) -> None:
    write(here / "shop_instance.py", GOOD + "\n    totals = Totals()\n")
    assert resolve("shop_instance:totals") is sys.modules["shop_instance"].totals


def test_a_misspelt_shipped_name_is_answered_with_the_near_one() -> None:
    assert "Did you mean aircraft-log" in refusal("aircraft-lgo")


def test_a_module_that_is_not_there_is_told_from_one_that_fails_to_import(here: Path) -> None:
    assert "no module 'shop_absent'" in refusal("shop_absent:Totals")
    write(here / "shop_broken.py", "import shop_dependency\n")
    assert "importing shop_broken failed with ModuleNotFoundError" in refusal("shop_broken:Totals")
    write(here / "shop_raises.py", "raise RuntimeError('no licence')\n")
    assert "RuntimeError: no licence" in refusal("shop_raises:Totals")
    write(here / "shop_syntax.py", "class\n")
    assert "SyntaxError" in refusal("shop_syntax.py:Totals")
    assert "no file" in refusal("shop_absent.py:Totals")


def test_a_failed_import_is_chained_as_the_cause(here: Path) -> None:
    write(here / "shop_raises.py", "raise RuntimeError('no licence')\n")
    with pytest.raises(ResolveError) as caught:
        resolve("shop_raises:Totals")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_missing_class_is_answered_with_the_projections_that_are_there(here: Path) -> None:
    write(here / "shop_totals.py", GOOD)
    assert "Its projections are Totals." in refusal("shop_totals:Total")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("projections.orders:Order", "is no CqrsProjection"),
        ("projections.orders:annotations", "is no CqrsProjection"),
        ("projections.orders:", "module:Class"),
        (":OrderSummary", "module:Class"),
        ("projections.contract:CqrsProjection", "does not define apply_to_model, extract_model_id"),
    ],
)
def test_what_is_no_projection_is_refused(name: str, said: str) -> None:
    assert said in refusal(name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('name = "Totals"', "name is 'Totals'"),
        ('name = "-totals"', "name is '-totals'"),
        ('name = "totals\\n"', "name is 'totals\\n'"),
        (f'name = "{"x" * 101}"', "at most 100"),
        ("name = 7", "name is 7"),
        ("pass", "name is None"),
        ('name = "totals"; version = 0', "version is 0"),
        ('name = "totals"; version = True', "version is True"),
        ('name = "totals"; version = "2"', "version is '2'"),
        ('name = "totals"; partition_by = "key"', "partition_by is 'key'"),
        ('name = "totals"; Query = 7', "Query is 7"),
        ('name = "totals"; rebuild_doc = {"typical": 3}', "rebuild_doc has typical, and knows typical_seconds_per"),
        ('name = "totals"; rebuild_doc = {"memory_bytes": "much"}', "rebuild_doc is not as it should be"),
        ('name = "totals"; rebuild_doc = 7', "rebuild_doc is not as it should be"),
        ('name = "totals"; Query = dict', "Query is <class 'dict'>"),
        ('name = "totals"; Query = Event', "no `matches`"),
    ],
)
def test_a_wrong_declaration_is_refused_with_the_value(here: Path, line: str, said: str) -> None:
    write(here / "shop_wrong.py", GOOD.replace('name = "totals"', line))
    assert said in refusal("shop_wrong:Totals")


def test_all_that_is_wrong_is_said_at_once(here: Path) -> None:
    wrong = GOOD.replace('name = "totals"', 'name = "T"; version = 0').replace("[dict]", "")
    write(here / "shop_wrong.py", wrong)
    message = refusal("shop_wrong:Totals")
    assert "name is 'T'" in message
    assert "version is 0" in message
    assert "names no read model" in message


def test_a_class_that_needs_arguments_is_refused(here: Path) -> None:
    write(here / "shop_wants.py", GOOD + "\n        def __init__(self, currency): ...\n")
    assert "cannot be constructed without arguments" in refusal("shop_wants:Totals")


def test_a_name_of_a_hundred_characters_is_taken(here: Path) -> None:
    write(here / "shop_long.py", GOOD.replace('"totals"', f'"{"x" * 100}"'))
    assert len(resolve("shop_long:Totals").name) == 100


def fingerprint_of(directory: Path, code: str) -> str:
    write(directory / "shop_totals.py", code)
    sys.modules.pop("shop_totals", None)
    importlib.invalidate_caches()
    linecache.checkcache()
    return fingerprint(resolve("shop_totals:Totals"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Totals", "# what was bought\n\n    class Totals"),
        ('name = "totals"', 'name   =   "totals"  # stable'),
        ('name = "totals"', '"""Totals."""\n        name = "totals"\n        """The name."""'),
        ("return event.stream", '"""The stream."""\n            return event.stream'),
    ],
)
def test_comments_docstrings_and_layout_keep_the_fingerprint(here: Path, old: str, new: str) -> None:
    before = fingerprint_of(here, GOOD)
    assert fingerprint_of(here, GOOD.replace(old, new, 1)) == before


READING = """
        @dataclass
        class Query:
            least: int = 0

        def matches(self, model, query):
            return model["total"] >= query.least

        def validate(self, old, new):
            return True
"""


def test_what_readers_alone_use_keeps_the_fingerprint(here: Path) -> None:
    good = GOOD.replace("    from projections", "    from dataclasses import dataclass\n    from projections", 1)
    before = fingerprint_of(here, good)
    assert fingerprint_of(here, good + READING) == before
    assert fingerprint_of(here, good + READING.replace(">=", ">")) == before
    folding = good.replace('["amount"]}', '["amount"] * self.matches({"total": 1}, self.Query())}')
    assert fingerprint_of(here, folding + READING) != fingerprint_of(here, folding + READING.replace(">=", ">"))


def test_what_is_told_of_a_rebuild_keeps_the_fingerprint_unless_the_fold_reads_it(here: Path) -> None:
    before = fingerprint_of(here, GOOD)
    told = GOOD.replace('name = "totals"', 'name = "totals"; rebuild_doc = {"notes": "quick"}')
    assert fingerprint_of(here, told) == before
    read = told.replace('["amount"]}', '["amount"] + len(self.rebuild_doc["notes"])}')
    assert fingerprint_of(here, read) != fingerprint_of(here, read.replace("quick", "slow"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"amount"', '"price"'),
        ('name = "totals"', 'name = "totals"; version = 2'),
        ('name = "totals"', 'name = "totals"; partition_by = "stream"'),
        ("CqrsProjection, Event", "CqrsProjection, Event\n    RATE = 3"),
    ],
)
def test_a_change_of_code_alters_the_fingerprint(here: Path, old: str, new: str) -> None:
    before = fingerprint_of(here, GOOD)
    assert fingerprint_of(here, GOOD.replace(old, new, 1)) != before


def test_a_change_in_a_base_class_of_another_module_alters_the_fingerprint(here: Path) -> None:
    write(here / "shop_derived.py", "from shop_totals import Totals\nclass More(Totals): name = 'more'\n")

    def now(code: str) -> str:
        sys.modules.pop("shop_derived", None)
        fingerprint_of(here, code)
        return fingerprint(resolve("shop_derived:More"))

    assert now(GOOD) != now(GOOD.replace('"amount"', '"price"'))


def test_the_fingerprint_is_sixteen_hex_digits_and_the_same_for_every_instance() -> None:
    assert fingerprint(OrderSummary()) == fingerprint(OrderSummary())
    assert len(fingerprint(OrderSummary())) == 16
    int(fingerprint(OrderSummary()), 16)


def without_source(amount: str) -> CqrsProjection[dict[str, int]]:
    """A projection as a REPL has it: its module has no file."""
    namespace: dict[str, type[CqrsProjection[dict[str, int]]]] = {"__name__": "not_a_module"}  # type: ignore[dict-item]
    exec(dedent(GOOD.replace('"amount"', amount)), namespace)
    return namespace["Totals"]()


def test_without_source_the_bytecode_tells_code_apart() -> None:
    assert fingerprint(without_source('"amount"')) == fingerprint(without_source('"amount"'))
    assert fingerprint(without_source('"amount"')) != fingerprint(without_source('"price"'))


def loaded(directory: Path, name: str, code: str) -> None:
    write(directory / f"{name}.py", code)
    importlib.invalidate_caches()
    for module in [module for module in sys.modules if module.partition(".")[0] in ("shop_totals", name, "shop")]:
        del sys.modules[module]


@pytest.mark.parametrize("name", ["queue", "shop_totals"])
def test_a_module_is_hashed_whatever_its_name(here: Path, name: str) -> None:
    # A user's module may be called as one of the standard library, where it is found first.
    seen = set()
    before = sys.modules.pop(name, None)
    try:
        for code in (GOOD, GOOD.replace('"amount"', '"price"')):
            write(here / f"{name}.py", code)
            sys.modules.pop(name, None)
            importlib.invalidate_caches()
            seen.add(fingerprint(resolve(f"{name}:Totals")))
    finally:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
    assert len(seen) == 2


@pytest.mark.parametrize("how", ["import shop_rates", "from shop_rates import RATE", "def f(): import shop_rates"])
def test_a_change_in_a_module_beside_it_that_it_imports_alters_the_fingerprint(here: Path, how: str) -> None:
    seen = []
    for rate in (1, 1, 2):
        loaded(here, "shop_rates", f"RATE = {rate}\n")
        seen.append(fingerprint_of(here, f"{how}\n{dedent(GOOD)}"))
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(
    "how", ["from .rates import RATE", "from shop import rates", "import shop.rates", "from . import rates"]
)
def test_a_change_in_a_module_of_its_package_alters_the_fingerprint(here: Path, how: str) -> None:
    (here / "shop").mkdir()
    seen = []
    for rate in (1, 1, 2):
        write(here / "shop" / "__init__.py", "")
        write(here / "shop" / "deep.py", f"RATE = {rate}\n")
        write(here / "shop" / "rates.py", "from shop.deep import RATE\n")
        loaded(here / "shop", "totals", f"{how}\n{dedent(GOOD)}")
        seen.append(fingerprint(resolve("shop.totals:Totals")))
    assert seen[0] == seen[1] != seen[2]


def test_a_file_changed_after_it_was_loaded_does_not_change_what_is_loaded(here: Path) -> None:
    before = fingerprint_of(here, GOOD)
    projection = resolve("shop_totals:Totals")
    write(here / "shop_totals.py", GOOD.replace('"amount"', '"price"'))
    assert fingerprint(projection) == before


def test_a_file_changed_before_anybody_looked_is_refused(here: Path) -> None:
    loaded(here, "shop_totals", GOOD)
    projection = resolve("shop_totals:Totals")
    write(here / "shop_totals.py", GOOD.replace('"amount"', '"price"'))
    with pytest.raises(StaleSource, match=r"shop_totals\.py was changed since this process loaded it"):
        fingerprint(projection)


@pytest.mark.parametrize(("path", "name"), [("projections/shop.py", "projections.shop"), ("streams.py", "streams")])
def test_package_of_the_users_that_is_called_as_one_of_ours_is_named_as_the_clash_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("class Orders: pass\n")
    monkeypatch.chdir(tmp_path)
    package = name.partition(".")[0]
    with pytest.raises(ResolveError, match=f"has the name of a package of refold, '{package}'.*Rename yours"):
        resolve(f"{name}:Orders")


def test_copy_of_refold_in_the_current_directory_is_no_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "projections").mkdir()
    (tmp_path / "projections" / "registry.py").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("aircraft-log").name == "aircraft-log"


def test_parser_that_another_one_disturbed_parses_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, failures = ast.parse, [SystemError("AST constructor recursion depth mismatch")] * 3

    def disturbed(source: str) -> ast.Module:
        if failures:
            raise failures.pop()
        return parse(source)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert ast.unparse(_parsed("x = 1")) == "x = 1"
