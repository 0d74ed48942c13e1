# SPDX-License-Identifier: GPL-2.0-only
"""A headless Chromium, and pages to look at with it."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))  # recorded runs

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SITE = 0xFFFFFFFF81001000

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Tests are skipped where there is none: `setup browser` installs it."""
    binary = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if not binary:
        pytest.skip("Chromium is not installed: as root, `./setup browser` does it")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        # No sandbox: root has none.
        chromium = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file, and fails the test if the page does or asks for anything else."""
    wrong: list[str] = []
    contexts = []

    def show(file: Path, scheme: str = "light", width: int = 1100) -> Any:
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith("file:") else wrong.append(request.url),
        )
        page.goto(file.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each kind of page."""
    from good_run import Run
    from test_results import result_of
    from test_site import DAY, RUN

    from orchestrator.many.history import Flaky
    from orchestrator.report import page, site, timeline

    found = {}
    timed = Run().take({4 << shift: shift for shift in range(10, 27)})  # from 4 us to 0.3 s
    for name, run in (("pass", timed), ("fail", _without_sync())):
        directory = tmp_path_factory.mktemp(name)
        lines = [json.dumps(event) for event in run.events]
        (directory / timeline.EVENTS).write_text("\n".join(lines))
        (directory / "console.log").write_text("[    0.000000] Linux version 6.1\n" * 100)
        page.write(result_of(run, directory))
        found[name] = directory / "report.html"
    found["64 CPUs"] = _many_cpus(tmp_path_factory.mktemp("many"))
    directory = tmp_path_factory.mktemp("site")
    failed = replace(RUN, id=2, outcome="fail", exit_status=1, kernel="debian:6.1", smp=8,
                     reason="sync: CPU 1 did not run do_sync_core")  # fmt: skip
    runs = [failed, RUN, replace(RUN, id=3, ended=RUN.ended - DAY, exit_status=125)]
    site.write(directory, runs, [Flaky("6.1-int3", "d", 4, "tcg", "claim", "sync", 3, 1)])
    found["site"] = directory / site.INDEX
    return found


def _without_sync() -> Any:
    from test_timeline import without_sync

    return without_sync()


def _many_cpus(directory: Path) -> Path:
    """A run on 64 CPUs, one of which does not sync; only the recorder saw it."""
    from good_run import Run
    from recorded import AROUND, Written
    from test_results import result_of

    from orchestrator.report import page, timeline
    from orchestrator.verdict.outcome import judge as verdict_of
    from orchestrator.verdict.recorded.judge import judge

    log, every = Written(), range(64)
    for offset, data in ((0, "cc"), (1, "fb000000"), (0, "e9")):
        log.write(SITE, offset, bytes.fromhex(data), online=(1 << 64) - 1)
        log.sync(*(cpu for cpu in every if cpu != 37 or offset != 1))
        for cpu in every:
            log.trap(SITE, SITE + 5, cpu=cpu)
    log.unlock()
    (directory / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    run = Run()
    run.cpus, run.requested_cpus = tuple(every), 64
    run.record = judge(log.records, AROUND)
    evidence = run.evidence()
    for step in evidence.steps:  # what GDB saw was on two CPUs
        for poke in step.watched.all_pokes if step.watched else ():
            poke.violations.clear()
    result = result_of(run, directory, evidence)
    spec = replace(result.spec, smp=64)
    page.write(replace(result, spec=spec, verdict=verdict_of(evidence)))
    return directory / "report.html"
