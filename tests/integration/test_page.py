"""The page in a real Chromium: what it shows, what it does, and what hostile text on it does not do."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.integration.fleet import Fleet, Worker, fleet
from tests.integration.kit import Kit, produce, tally_events, until
from tests.integration.test_worker import metrics
from tests.support import envelope
from tests.tools import tool

pytestmark = pytest.mark.slow

NewKit = Callable[..., Kit]
FIXED = "tests.integration.versions:Fixed"
SLOW_FIXED = "tests.integration.versions:SlowFixed"
TOKEN = "s3cret-of-ann"
PATIENCE_MS = 60_000
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"&7"
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = tool("chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@contextmanager
def shown(browser: Browser, worker: Worker, **context: Any) -> Iterator[Page]:
    """The page of a worker. What it must never do fails the test: an error, a dialog, a request elsewhere."""
    wrong: list[str] = []
    opened: BrowserContext = browser.new_context(
        **{"viewport": {"width": 1100, "height": 900}, "color_scheme": "light", **context}
    )
    opened.set_default_timeout(PATIENCE_MS)
    page = opened.new_page()
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on(
        "console",
        lambda said: wrong.append(f"console: {said.text}") if "Content Security Policy" in said.text else None,
    )
    home = f"http://127.0.0.1:{worker.port}/"
    page.on("request", lambda asked: wrong.append(f"asked {asked.url}") if not asked.url.startswith(home) else None)
    try:
        page.goto(home)
        yield page
        assert not wrong
    finally:
        opened.close()


@contextmanager
def guarded(kit: Kit, directory: Path) -> Iterator[Fleet]:
    """Workers that know who may give commands."""
    tokens = directory / "admins"
    tokens.write_text(f"ann {TOKEN}\n")
    with fleet(kit, variables={"REFOLD_ADMIN_TOKENS": str(tokens)}) as workers:
        yield workers


def two_versions(workers: Fleet, projection: str) -> tuple[Worker, Worker]:
    """One worker with the code that is active, and one with other code."""
    old = workers.start("old")
    workers.ready(old)
    new = workers.start("new", projections=projection)
    workers.listening(new)
    return old, new


def sign_in(page: Page, token: str = TOKEN) -> None:
    page.get_by_role("button", name="Sign in").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("A token of").fill(token)
    dialog.get_by_role("button", name="Sign in").click()


def keep(page: Page, name: str) -> None:
    """Take a picture; where REFOLD_SCREENSHOTS names a directory, for the documentation."""
    directory = os.environ.get("REFOLD_SCREENSHOTS")
    picture = page.screenshot(full_page=True, path=None if directory is None else Path(directory) / f"{name}.png")
    assert len(picture) > 10_000, "an empty picture"


def accessible(page: Page) -> None:
    """Hold the page against the rules of WCAG 2.1 A and AA."""
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    assert found.violations_count == 0, found.generate_report()


def percent(page: Page) -> float:
    text = page.locator("dd.share").inner_text()
    return float(text.split()[0]) if text[:1].isdigit() else 0.0


def test_rebuild_is_begun_watched_approved_and_rolled_back_on_the_page(
    new_kit: NewKit,
    browser: Browser,
    tmp_path: Path,
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(1500))
    with guarded(kit, tmp_path) as workers:
        _, new = two_versions(workers, SLOW_FIXED)
        with shown(browser, new) as page:
            section = page.get_by_role("region", name="tally")
            expect(section.get_by_text("tally.v1 is active")).to_be_visible()
            expect(page.get_by_role("button", name="Rebuild…")).to_have_count(0)
            sign_in(page, "wrong")
            expect(page.get_by_role("alert")).to_have_text("This token is not known here.")
            page.get_by_role("button", name="Not now").click()
            sign_in(page)
            expect(page.get_by_text("as ann")).to_be_visible()
            page.get_by_role("button", name="Rebuild…").click()
            dialog = page.get_by_role("dialog")
            expect(dialog.get_by_text("up to 1,500")).to_be_visible()
            expect(dialog.get_by_text("once somebody has approved what differs")).to_be_visible()
            dialog.get_by_role("button", name="Leave it").click()
            assert workers.record().rebuild is None, "it was left"
            page.get_by_role("button", name="Rebuild…").click()
            dialog.get_by_role("button", name="Rebuild", exact=True).click()
            seen = watched(page)
            assert seen == sorted(seen), seen
            assert seen[-1] == 100.0
            assert len({one for one in seen if 0 < one < 100}) >= 2, seen
            approve = page.get_by_role("button", name="Approve…")
            approve.wait_for()
            expect(page.get_by_role("row", name=re.compile("stream-7 .*fixed"))).to_be_visible()
            keep(page, "page-light")
            approve.click()
            expect(dialog.get_by_text(re.compile(r"\d+ of \d+ models differ"))).to_be_visible()
            dialog.get_by_role("button", name="Approve and switch").click()
            expect(section.get_by_text("tally.v2-2 is active")).to_be_visible()
            assert workers.record().active == "tally.v2-2"
            expect(section.get_by_text("completed")).to_be_visible()
            page.get_by_role("button", name="Roll back…").click()
            dialog.get_by_role("button", name="Roll back").click()
            expect(section.get_by_text("tally.v1 is active")).to_be_visible()
            assert workers.record().active == "tally.v1"


def watched(page: Page) -> list[float]:
    """The percentages that are shown, from the rebuild's beginning until it waits for approval."""
    page.get_by_role("progressbar").wait_for()
    seen = [percent(page)]
    deadline = page.evaluate("performance.now()") + PATIENCE_MS
    while not page.get_by_role("button", name="Approve…").is_visible():
        assert page.evaluate("performance.now()") < deadline, seen
        if page.locator("dd.share").is_visible():
            now = percent(page)
            if now != seen[-1]:
                seen.append(now)
        page.wait_for_timeout(50)
    return [*seen, percent(page)]


def test_rebuild_is_paused_resumed_and_cancelled_on_the_page(
    new_kit: NewKit,
    browser: Browser,
    tmp_path: Path,
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(6000))
    with guarded(kit, tmp_path) as workers:
        _, new = two_versions(workers, SLOW_FIXED)
        with shown(browser, new, color_scheme="dark") as page:
            sign_in(page)
            dialog = page.get_by_role("dialog")
            page.get_by_role("button", name="Rebuild…").click()
            dialog.get_by_role("button", name="Rebuild", exact=True).click()
            page.get_by_role("button", name="Pause…").click()
            dialog.get_by_role("button", name="Pause").click()
            expect(page.get_by_text("is paused")).to_be_visible()
            keep(page, "page-dark")
            accessible(page)
            page.get_by_role("button", name="Resume…").click()
            dialog.get_by_role("button", name="Resume").click()
            expect(page.get_by_text("is paused")).to_have_count(0)
            page.get_by_role("button", name="Cancel rebuild…").click()
            dialog.get_by_role("button", name="Cancel rebuild").click()
            expect(page.get_by_text(", cancelled")).to_be_visible()
            assert workers.record().active == "tally.v1"


def test_hostile_text_is_text_and_nothing_comes_from_elsewhere(
    new_kit: NewKit,
    browser: Browser,
    tmp_path: Path,
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [(HOSTILE, envelope(number)) for number in range(5)])
    with guarded(kit, tmp_path) as workers:
        old, new = two_versions(workers, FIXED)
        assert (
            new.ask("POST", "/v1/projections/tally/rebuild", {}, headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200
        )
        until("it to wait", lambda: workers.record().find("tally.v2-2") and phase(workers) == "waiting")
        produce(kit.bootstrap, kit.topic, [("s", f"{HOSTILE} is no JSON".encode())])
        with shown(browser, old) as page:
            expect(page.get_by_role("cell", name=HOSTILE, exact=True)).to_be_visible()
            expect(page.get_by_text(f"{HOSTILE} is no JSON").first).to_be_visible()
            expect(page.get_by_text("of 1 partitions are not folded")).to_be_visible()
            assert page.locator("#page img, #page script").count() == 0
            accessible(page)
        with shown(browser, new, **PHONE) as page:
            expect(page.get_by_role("cell", name=HOSTILE, exact=True)).to_be_visible()
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider == 0, "a phone has to scroll sideways"
            keep(page, "page-phone")
            accessible(page)


def phase(workers: Fleet) -> str:
    green = workers.record().find("tally.v2-2")
    return "" if green is None else green.phase


def test_who_may_not_read_sees_nothing_and_who_may_only_read_has_no_buttons(
    new_kit: NewKit,
    browser: Browser,
    tmp_path: Path,
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    readers, admins = tmp_path / "readers", tmp_path / "admins"
    readers.write_text("bob r3ad\n")
    admins.write_text(f"ann {TOKEN}\n")
    variables = {"REFOLD_READ_TOKENS": str(readers), "REFOLD_ADMIN_TOKENS": str(admins)}
    with fleet(kit, variables=variables) as workers:
        one = workers.start("a")
        until("it to be ready", one.is_ready)
        with shown(browser, one) as page:
            expect(page.get_by_text("A token is needed to read here.")).to_be_visible()
            assert "tally" not in page.content()
            accessible(page)
            sign_in(page, "r3ad")
            expect(page.get_by_role("region", name="tally")).to_be_visible()
            expect(page.get_by_role("button", name="Rebuild…")).to_have_count(0)
            sign_in(page)
            expect(page.get_by_role("button", name="Rebuild…")).to_be_visible()
            page.get_by_role("button", name="Sign out").click()
            expect(page.get_by_text("A token is needed to read here.")).to_be_visible()
        for path, status in (("/events", 401), ("/v1/me", 401), ("/v1/projections/tally/plan", 401), ("/", 200)):
            assert one.get(path)[0] == status, path


def test_page_without_tokens_takes_no_commands_and_says_where_they_are_taken(
    new_kit: NewKit,
    browser: Browser,
    tmp_path: Path,
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        with shown(browser, one) as page:
            expect(page.get_by_role("region", name="tally")).to_be_visible()
            expect(page.get_by_role("button")).to_have_count(0)
        elsewhere = {"Origin": "http://evil.example"}
        status, _, body = one.ask("POST", "/v1/projections/tally/rebuild", {}, headers=elsewhere)
        assert (status, "evil.example" in body["detail"]) == (403, True)
        proxied = {"Origin": "https://refold.example", "X-Forwarded-Host": "refold.example"}
        status, _, body = one.ask("POST", "/v1/projections/tally/rebuild", {"revision": 1}, headers=proxied)
        assert (status, "has changed since you looked" in body["detail"]) == (409, True)
        assert workers.record().rebuild is None
        for path in ("/page/../auth.py", "/page/%2e%2e/auth.py", "/page/none.js"):
            assert one.get(path)[0] == 404, path
        _, told, _ = one.ask("GET", "/")
        assert "default-src 'none'" in told["content-security-policy"]
        assert "unsafe" not in told["content-security-policy"]
        assert one.ask("GET", "/", headers={"If-None-Match": told["etag"]})[0] == 304
        tokens = tmp_path / "admins"
        tokens.write_text(f"ann {TOKEN}\n")
        two = workers.start("b", "--admin-port", "0", REFOLD_ADMIN_TOKENS=str(tokens))
        workers.listening(two)
        with shown(browser, two) as page:
            said = page.get_by_text("Commands are taken at port").inner_text()
            expect(page.get_by_role("button")).to_have_count(0)
        at_port = dataclasses.replace(two, port=int(re.findall(r"port (\d+)", said)[0]))
        with shown(browser, at_port) as page:
            sign_in(page)
            expect(page.get_by_role("button", name="Rebuild…")).to_be_visible()


def test_dead_letters_are_told_on_the_page_and_in_figures_and_answered_by_workers(
    new_kit: NewKit,
    browser: Browser,
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with fleet(kit, variables={"REFOLD_ON_ERROR": "dead-letter"}) as workers:
        one = workers.start("a")
        workers.ready(one)
        with shown(browser, one) as page:
            tally = page.get_by_role("region", name="tally")
            expect(tally.get_by_text("live", exact=True)).to_be_visible()
            events = [("stream-1", envelope(200, "fail")), ("stream-1", envelope(201)), ("stream-2", envelope(202))]
            produce(kit.bootstrap, kit.topic, events)
            expect(tally.get_by_text("2 dead letters wait")).to_be_visible()
            expect(tally.get_by_text("refold dead-letters tally")).to_be_visible()
            accessible(page)
            keep(page, "page-dead-letters")
            until("the figure", lambda: sum(metrics(one)["refold_dead_letters"].values()) == 2)
            (bad,) = [each for each in kit.refold("dead-letters", "list", "--json").splitlines() if "held" not in each]
            told = kit.refold("dead-letters", "drop", orjson.loads(bad)["event"], "--yes")
            assert told == "1 dropped, 1 folded, 0 failed again; 0 wait.\n"
            expect(tally.get_by_text("live", exact=True)).to_be_visible()
            until("the figure", lambda: sum(metrics(one)["refold_dead_letters"].values()) == 0)


def test_page_says_when_it_is_not_live_and_does_not_keep_a_worker_from_ending(
    new_kit: NewKit,
    browser: Browser,
    tmp_path: Path,
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    with fleet(kit) as workers:
        one = workers.start("a")
        workers.ready(one)
        with shown(browser, one) as page:
            expect(page.get_by_text("live", exact=True).first).to_be_visible()
            assert one.terminate(15) == 0
            expect(page.get_by_text("not live")).to_be_visible()
            again = workers.start("a", port=one.port)
            workers.ready(again)
            expect(page.get_by_text("not live")).to_have_count(0)
            produce(kit.bootstrap, kit.topic, tally_events(7, first=50))
            expect(page.get_by_text("57", exact=True).first).to_be_visible()
