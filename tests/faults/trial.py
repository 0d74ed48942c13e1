# SPDX-License-Identifier: GPL-2.0-only
"""One fault being tried: the command, where its files are, and the means to disturb it."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from faults import processes
from faults.fault import BROKEN, EITHER, HEALTHY, TRUTH, Fault
from faults.processes import Process
from faults.world import RUN, World

COLOUR = re.compile(r"\x1b\[[\d;]*m")
POLL = 0.02
ORPHAN_SECONDS = 4.0
"""How long a process or temporary file may outlive the command."""

MOMENTS: dict[str, float] = {
    "start": 0.8,
    "early": 2.5,
    "made": 0.5,
    "boot": 4.0,
    "ready": 2.0,
    "watch": 0.8,
    "free": 0.6,
    "end": 0.3,
    "report": 0.4,
}
"""What a run can be doing -> seconds after its begin within which a random moment is drawn."""


class Trial:
    """State of one trial. `prepare` and `inject` of a fault get it; see there.

    Only `inject` runs in another thread than the rest, and only while the command runs.
    """

    def __init__(self, fault: Fault, number: int, seed: int, world: World) -> None:
        self.fault = fault
        self.world = world
        self.name = f"{fault.name}#{number}"
        self.rng = random.Random(f"{seed}:{self.name}")
        truth = {EITHER: self.rng.choice((HEALTHY, HEALTHY, BROKEN))}
        self.kernel = truth.get(fault.kernel, fault.kernel)
        slug = re.sub(r"[^\w.-]+", "-", self.name)
        self.directory = world.scratch / slug
        self.directory.mkdir()
        self.marker = f"{world.scratch.name}/{slug}"
        self.run_directory = self.directory / "out" / "run"
        self.run_directory.parent.mkdir()
        self.env = {
            **world.environment(self.directory),
            "XDG_CACHE_HOME": str(world.cache),
            processes.MARKER: self.marker,
        }
        self.arguments: list[str] = [*RUN]
        """Of `orchestrator`; --output and what breaks the kernel are added to those of `run`."""
        self.wrapper: list[str] = []
        """Words before the command."""
        self.cwd = self.directory
        self.root = Path("/")
        """Where the command's file system is seen from here."""
        self.undo: list[Callable[[], object]] = []
        """What to do when everything was looked at."""
        self.note = ""
        """What was drawn at random, for the table."""
        self.edited = True
        """Whether a broken kernel is one by --edit-text; else the fault itself breaks it."""
        self.truth: int | None = None
        """Status of the undisturbed command where it is not that of a run."""
        self.happened: Callable[[], bool] = lambda: True
        """Whether the fault came to pass, asked at the end; else the verdict must be TRUTH."""
        self.ended = threading.Event()
        self.started = self.injected = self.over = 0.0
        self.status: int | None = None
        self.signalled: set[int] = set()
        """Signals that were sent to the command itself."""
        self.memory = 0
        """Largest resident size of the command, in MiB."""
        self.trouble: list[str] = []
        """What our own code could not do."""

    # -- what is expected

    def allowed(self) -> frozenset[int]:
        truth = self.truth if self.truth is not None else int(self.broken)
        words = self.fault.allowed if self.took_place else frozenset({TRUTH})
        return frozenset(truth if word == TRUTH else int(word) for word in words)

    @property
    def broken(self) -> bool:
        """Whether the kernel is broken; one that the fault breaks is not if the fault came late."""
        return self.kernel == BROKEN and (self.edited or self.took_place)

    @property
    def took_place(self) -> bool:
        """Whether the command was still running when the fault was due."""
        return bool(self.injected) and self.happened()

    # -- files

    def seen(self, path: Path) -> Path:
        """`path` of the command, as this process reaches it."""
        return self.root / path.relative_to("/")

    def file(self, name: str) -> Path:
        """A file of the run directory."""
        return self.seen(self.run_directory) / name

    def text(self, name: str) -> str:
        with contextlib.suppress(OSError):
            if self.file(name).is_file():  # a FIFO would keep us waiting
                return self.file(name).read_bytes().decode(errors="replace")
        return ""

    def consoles(self) -> str:
        """What all guests of the run have written to their consoles."""
        branches = self.seen(self.run_directory / "branches")
        names = [
            f"branches/{one.parent.name}/console.log" for one in branches.glob("*/console.log")
        ]
        return "\n".join(map(self.text, ("console.log", *names)))

    @property
    def stdout(self) -> str:
        text = (self.directory / "stdout").read_bytes().decode(errors="replace")
        return COLOUR.sub("", text)

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_bytes().decode(errors="replace")

    # -- the command

    def command(self) -> list[str]:
        arguments = [*self.arguments]
        if arguments[:1] == ["run"]:
            arguments += ["--output", str(self.run_directory)]
            if self.kernel == BROKEN and self.edited:
                arguments += ["--edit-text", str(self.world.broken_edit)]
        return [*self.wrapper, sys.executable, "-m", "orchestrator", *arguments]

    def run(self) -> None:
        """Start the command, inject the fault, and wait for the end of both."""
        self._run()
        injector = threading.Thread(target=self._inject, daemon=True)
        injector.start()
        deadline = self.started + self.fault.limit * self.world.scale
        while self.process.poll() is None and time.monotonic() < deadline:
            self.memory = max(self.memory, processes.memory_peak(self.process.pid))
            time.sleep(0.05)
        self.status = self.process.poll()
        self.over = time.monotonic()
        self.ended.set()
        injector.join(10)
        if self.status is None:
            processes.end_all(self.marker)
            self.process.wait()

    def _run(self) -> None:
        with (
            (self.directory / "stdout").open("wb") as out,
            (self.directory / "stderr").open("wb") as err,
        ):
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                self.command(), env=self.env, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, start_new_session=True,
            )  # fmt: skip

    def _inject(self) -> None:
        if not self.fault.injects:
            self.injected = self.started
        try:
            self.fault.inject(self)
        except Exception as error:
            self.trouble.append(f"{type(error).__name__}: {error}")

    def run_again(self) -> int:
        """The same command once more with nothing going wrong; its exit status."""
        for name in ("stdout", "stderr"):
            (self.directory / name).rename(self.directory / f"{name}.first")
        if self.run_directory.exists():
            self.run_directory.rename(self.directory / "first")
        self.env = {n: value for n, value in self.env.items() if not n.startswith("FAULT_")}
        self._run()
        try:
            return self.process.wait(self.fault.limit * self.world.scale)
        except subprocess.TimeoutExpired:
            processes.end_all(self.marker)
            return -1

    # -- for injectors

    def moment(self, *moments: str) -> bool:
        """Wait for a random moment of one of these parts of the run; false if it ended before."""
        what = self.rng.choice(moments or tuple(MOMENTS))
        delay = self.rng.uniform(0, MOMENTS[what])
        self.note = f"{self.note} {what}+{delay:.2f}".strip()
        return self.until(lambda: self._begun(what)) and self.pause(delay * self.world.scale)

    def _begun(self, what: str) -> bool:
        match what:
            case "start" | "early":
                return True
            case "made":
                return self.file("spec.json").exists()
            case "boot":
                return self.text("qemu.cmd") != "" and self.find("qemu") is not None
            case "ready":
                return "guest ready" in self.consoles()
            case "watch":
                return self.text("events.jsonl") != ""
            case "free":
                return bool(re.search(r"^.*\bok 2 ", self.consoles(), re.MULTILINE))
            case "end":
                return self.file("guest.ktap").exists()
            case _:
                return self.file("verdict.json").exists()

    def until(self, predicate: Callable[[], bool]) -> bool:
        """Wait until `predicate()`; false if the command ended before."""
        while not predicate():
            if self.ended.wait(POLL):
                return False
        return not self.ended.is_set()

    def pause(self, seconds: float) -> bool:
        """Whether the command is still running after `seconds`."""
        return not self.ended.wait(seconds)

    def now(self) -> bool:
        """Note that the fault takes place now; false if the command has ended."""
        if self.ended.is_set() or self.process.poll() is not None:
            return False
        self.injected = time.monotonic()
        return True

    def find(self, role: str) -> Process | None:
        """A process of the command by its role; "main" is the command itself."""
        found = processes.marked(self.marker)
        if role == "main":
            return next((one for one in found if one.pid == self.process.pid), None)
        fitting = [one for one in found if one.role == role and one.pid != self.process.pid]
        return self.rng.choice(fitting) if len(fitting) > 1 else next(iter(fitting), None)

    def signal(self, role: str, *numbers: signal.Signals, gap: float = 0.0) -> None:
        """Wait for a process with that role and send it the signals, `gap` seconds apart."""
        victim: Process | None = None

        def there() -> bool:
            nonlocal victim
            victim = self.find(role)
            return victim is not None

        if not self.until(there) or victim is None or not self.now():
            return
        for at, number in enumerate(numbers):
            if at:
                self.ended.wait(gap)
            if victim.pid == self.process.pid:
                self.signalled.add(number)
            victim.send(number)
