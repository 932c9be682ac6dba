"""refold.toml: where it is found, what wins, and everything wrong in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.cli.parts import find_projection
from streams.cli.wiring import FoldOptions, PlaceOptions
from streams.config import FoldSettings, KafkaSettings
from streams.configfile import ConfigFile
from streams.errors import ConfigError
from streams.resolving import resolve_settings, unknown_variables

FILE = """
bootstrap_servers = "file:9092"
state_dir = "state"
cache_bytes = 2000000

[kafka]
"client.rack" = "r1"

[projections.shop]
class = "order-summary"
topic = "orders"
type_field = "kind"
cache_bytes = 3000000

[projections.flights]
class = "aircraft-log"
topic = "flights"
group = "planes"
tombstones = "skip"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a file, and a directory below it that is current."""
    for name in ("BOOTSTRAP_SERVERS", "KAFKA", "TOPIC", "STATE_DIR"):
        monkeypatch.delenv(f"REFOLD_{name}", raising=False)
    (tmp_path / "refold.toml").write_text(FILE)
    below = tmp_path / "some" / "where"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return tmp_path


def test_projection_needs_no_more_than_its_name(place: Path) -> None:
    wired = FoldOptions().wire("shop")
    assert wired.projection.name == "order-summary"
    assert wired.events.topic == "orders"
    assert wired.events.kafka.bootstrap_servers == "file:9092"
    assert wired.events.kafka.kafka == {"client.rack": "r1"}
    assert wired.settings.cache_bytes == 3_000_000
    assert wired.state_dir == place / "state"  # beside the file, wherever one is
    assert wired.given_group is None
    flights = FoldOptions().wire("flights")
    assert flights.given_group == "planes"
    assert flights.settings.cache_bytes == 2_000_000
    assert PlaceOptions().find("flights").state_dir == place / "state"


def test_flags_win_over_the_environment_and_that_over_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_TOPIC", "env")
    monkeypatch.setenv("REFOLD_CACHE_BYTES", "4000000")
    wired = FoldOptions().wire("shop")
    assert (wired.events.topic, wired.settings.cache_bytes) == ("env", 4_000_000)
    wired = FoldOptions(topic="flag", cache_bytes="5000000").wire("shop")
    assert (wired.events.topic, wired.settings.cache_bytes) == ("flag", 5_000_000)


def test_file_that_is_named_wins_and_must_be_there(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[projections.shop]\nclass = "order-summary"\ntopic = "elsewhere"\n')
    assert FoldOptions(config=str(other)).wire("shop").events.topic == "elsewhere"
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read: No such file"):
        FoldOptions(config=str(tmp_path / "missing.toml")).wire("shop")


def test_all_that_is_wrong_in_flags_environment_and_file_is_one_message(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "refold.toml").write_text(
        'cachebytes = 1\n[projections.shop]\nclass = "order-summary"\ncodec = "avro"\ntpoic = "orders"\n'
        'kafka = {"sasl.password" = ["canary"]}\n'
    )
    monkeypatch.setenv("REFOLD_CHECKPOINT_SECONDS", "soon")
    with pytest.raises(ConfigError) as raised:
        FoldOptions(cache_bytes="many").wire("shop")
    said = str(raised.value)
    file = place / "refold.toml"
    for wrong in (
        "--cache-bytes: input should be a valid integer",
        "REFOLD_CHECKPOINT_SECONDS: input should be a valid number",
        f"{file} [projections.shop] codec: input should be 'json' or 'cloudevents' (got 'avro')",
        f"{file}: unknown key 'cachebytes' (did you mean 'cache_bytes'?)",
        f"{file} [projections.shop]: unknown key 'tpoic' (did you mean 'topic'?)",
        f"{file} [projections.shop] kafka.sasl.password",
    ):
        assert wrong in said
    assert "canary" not in said
    assert len(said.splitlines()) > 6


def test_variable_that_the_parser_read_is_not_called_a_flag(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_CACHE_BYTES", "many")
    with pytest.raises(ConfigError, match=r"^Settings are wrong: REFOLD_CACHE_BYTES: ") as raised:
        FoldOptions(cache_bytes="many").wire("shop")
    assert "--cache-bytes" not in str(raised.value)


def test_what_is_needed_and_nowhere_given_is_named_with_each_way_to_give_it(place: Path) -> None:
    (place / "refold.toml").write_text('[projections.shop]\nclass = "order-summary"\n')
    with pytest.raises(
        ConfigError, match=r"topic: it is needed. Give --topic, REFOLD_TOPIC, or topic in .*refold.toml"
    ):
        FoldOptions().wire("shop")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("topic", "is not TOML"),
        ('projections = "all"', "projections are tables"),
        ("[projections]\nshop = 1", "projections are tables"),
        ('[projections.shop]\ntopic = "t"', "gives no class"),
        ("[projections.shop]\nclass = 1", "gives no class"),
    ],
)
def test_file_that_is_not_as_it_should_be_is_named(place: Path, text: str, why: str) -> None:
    (place / "refold.toml").write_text(text)
    with pytest.raises(ConfigError, match=why) as raised:
        FoldOptions(topic="t").wire("shop")
    assert str(place / "refold.toml") in str(raised.value)


def test_unknown_projection_is_told_with_those_of_the_file(place: Path) -> None:
    with pytest.raises(LookupError, match=r"called 'shpo'. Did you mean shop\? refold.toml names shop, flights"):
        find_projection("shpo", ConfigFile.find())


def test_module_beside_the_file_is_found_from_anywhere(place: Path) -> None:
    (place / "beside_the_file.py").write_text(
        "from projections.orders import OrderSummary\nclass Mine(OrderSummary):\n    name = 'mine'\n"
    )
    (place / "refold.toml").write_text('[projections.m]\nclass = "beside_the_file:Mine"\n')
    assert find_projection("m", ConfigFile.find()).name == "mine"


def test_class_in_a_file_is_found_beside_the_configuration(place: Path) -> None:
    (place / "mine.py").write_text(
        "from projections.orders import OrderSummary\nclass Mine(OrderSummary):\n    name = 'mine'\n"
    )
    (place / "refold.toml").write_text('[projections.m]\nclass = "mine.py:Mine"\n')
    assert find_projection("m", ConfigFile.find()).name == "mine"


def test_no_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ConfigFile.find() == ConfigFile()


def test_variables_that_nobody_reads_are_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_TPOIC", "x")
    monkeypatch.setenv("REFOLD_SERVICE_HOST", "10.0.0.1")  # by Kubernetes, of a service that is called refold
    monkeypatch.setenv("REFOLD_PORT_9092_TCP", "tcp://10.0.0.1:9092")
    monkeypatch.setenv("REFOLD_CACHE_BYTES", "2000000")
    found = unknown_variables()
    assert "REFOLD_TPOIC (did you mean 'REFOLD_TOPIC'?)" in found
    assert not any("SERVICE" in name or "PORT" in name or "CACHE" in name for name in found)


def test_client_settings_of_a_file_stay_beside_those_of_the_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets come by the environment, and the rest by the file."""
    (place / "refold.toml").write_text('[kafka]\n"client.rack" = "a"\n"sasl.username" = "ann"\n')
    monkeypatch.setenv("REFOLD_KAFKA", '{"sasl.username": "bob", "sasl.password": "canary"}')
    (found,) = resolve_settings([KafkaSettings], file=ConfigFile.find())
    assert isinstance(found, KafkaSettings)
    assert found.kafka == {"client.rack": "a", "sasl.username": "bob", "sasl.password": "canary"}
    for wrong in ("[1]", "{"):
        monkeypatch.setenv("REFOLD_KAFKA", wrong)
        with pytest.raises(ConfigError, match="REFOLD_KAFKA"):
            resolve_settings([KafkaSettings], file=ConfigFile.find())


def test_programs_own_arguments_are_called_as_they_are() -> None:
    with pytest.raises(ConfigError, match=r"cache_bytes: .*\n.*cache_byte: there is no such setting \(did you mean"):
        resolve_settings([FoldSettings], arguments={"cache_bytes": "x", "cache_byte": 1})
    with pytest.raises(ConfigError, match="nonsense: there is no such setting"):
        resolve_settings([KafkaSettings], arguments={"nonsense": 1})
