# SPDX-License-Identifier: GPL-2.0-only
"""A sweep on two workers of a real dask cluster, compared with the same sweep on this host.

One of the workers is killed while it runs a guest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.host.paths import PROJECT, cache_dir

pytestmark = pytest.mark.vm
pytest.importorskip("distributed", reason="dask is not installed: pip install distributed")

MUTANT = "sync-after-tail-missing.patch"
KINDS = (
    "apt",
    "debs",
    "helpers",
    "initramfs",
    "modules",
    "recorder",
    "sources",
    "stock",
    "symbols",
    "tools",
)
MATRIX = f"""
kernels:
  - 6.1-int3
  - debian:6.1
  - name: broken
    kernel: 6.1-int3
    patches: [{PROJECT}/kernels/mutants/6.1-int3/{MUTANT}]
smp: [2]
scenarios: [nop5 one]
duration: 0.5
"""


def sweep(directory: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run a sweep. Returns its exit status, and the entries of sweep.json by cell."""
    matrix = directory.with_suffix(".yaml")
    matrix.write_text(MATRIX)
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "sweep",
        str(matrix),
        "--output",
        str(directory),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    print(done.stdout[-3000:], done.stderr[-3000:])
    content = json.loads((directory / "sweep.json").read_text())
    return done.returncode, {cell["cell"]: cell for cell in content["cells"]}


def processes(word: str, scratch: Path) -> dict[int, int]:
    """Processes whose command line contains both: parent process ids, by process id."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            line = (entry / "cmdline").read_bytes()
            if word.encode() in line and str(scratch).encode() in line:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    return parents


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie, which stays where nobody reaps orphans, does not."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX"


def _cache(other: Path) -> None:
    """Make a cache with links to everything in the user's cache, apart from the mutant."""
    for name in ("kernels", *KINDS):
        (cache_dir() / name).mkdir(exist_ok=True)
    (other / "kernels").mkdir(parents=True)
    for name in KINDS:
        (other / name).symlink_to(cache_dir() / name)
    for kernel in (cache_dir() / "kernels").glob("[!.]*"):
        if MUTANT not in (kernel / "kernel.json").read_text():
            (other / "kernels" / kernel.name).symlink_to(kernel)


@contextlib.contextmanager
def cluster(scratch: Path) -> Iterator[str]:
    """A scheduler and two workers, started as in docs/sweep.md. Returns the scheduler's address.

    Each worker has a cache of its own, which lacks only the patched kernel.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = str(Path(sys.executable).with_name("dask"))
    here = {**os.environ, "PYTHONPATH": str(PROJECT)}
    commands = {
        "scheduler": ["--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    }
    for name in ("one", "two"):
        _cache(scratch / name / "cache" / "orchestrator")
        commands[name] = [
            address,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            str(scratch / name),
        ]
    started = []
    try:
        for name, options in commands.items():
            own = {
                f"XDG_{which}_HOME": str(scratch / name / which.lower())
                for which in ("CACHE", "STATE")
            }
            word, environment = (name, here) if name == "scheduler" else ("worker", {**here, **own})
            with (scratch / f"dask-{name}.log").open("w") as log:
                command = [dask, word, *options]
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
        yield address
    finally:
        for child in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for log in sorted(scratch.glob("dask-*.log")):
            print(log.name, log.read_text()[-1500:])


def wait_for(condition: Callable[[], object], otherwise: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.2)


def kill_a_worker_in_mid_run(scratch: Path) -> list[int]:
    """Wait for a guest and kill its worker. Returns the processes that must end with it."""

    def busy() -> str:
        """The name of a worker that runs a guest, or an empty string."""
        return next(
            (name for name in ("one", "two") if processes("qemu-system-x86_64\0", scratch / name)),
            "",
        )

    wait_for(busy, "no guest came up on a worker")
    name = busy()
    time.sleep(1)
    guests, runs = (
        processes("qemu-system-x86_64\0", scratch / name),
        processes("\0run\0", scratch / name),
    )
    assert guests and len(runs) == 1
    os.kill(*runs.values(), signal.SIGKILL)
    return [*runs, *guests]


def test_a_cluster_gives_the_same_verdicts_as_this_host_even_if_a_worker_is_killed(
    tmp_path: Path,
) -> None:
    status, here = sweep(tmp_path / "here")
    assert status == 1
    assert {name: cell["outcome"] for name, cell in here.items()} == {
        "6.1-int3 smp2 nop5 one seed1": "pass",
        "debian:6.1 smp2 nop5 one seed1": "pass",
        "broken smp2 nop5 one seed1": "fail",
    }
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    killed: list[int] = []
    with cluster(scratch) as address:
        matrix = tmp_path / "there.yaml"
        matrix.write_text(MATRIX)
        command = [
            sys.executable,
            "-m",
            "orchestrator",
            "sweep",
            str(matrix),
            "--output",
            str(tmp_path / "there"),
        ]
        with (tmp_path / "there.log").open("w") as log:
            child = subprocess.Popen([*command, "--scheduler", address], stdout=log, stderr=log)
        try:
            killed = kill_a_worker_in_mid_run(scratch)
            time.sleep(1)
            assert not [pid for pid in killed if alive(pid)], (
                "a run or its guest outlived its worker"
            )
            assert child.wait(timeout=1200) == 1
        finally:
            child.kill()
            child.wait()
            print((tmp_path / "there.log").read_text())

        # A killed sweep leaves no guest on the workers either.
        command[-1] = str(tmp_path / "killed")
        child = subprocess.Popen([*command, "--scheduler", address], stderr=subprocess.DEVNULL)
        wait_for(lambda: processes("qemu-system-x86_64\0", scratch), "no guest came up on a worker")
        child.kill()
        child.wait()
        wait_for(
            lambda: not processes("qemu-system-x86_64\0", scratch),
            "guests outlived their sweep",
            seconds=30,
        )
    content = json.loads((tmp_path / "there" / "sweep.json").read_text())
    there = {cell["cell"]: cell for cell in content["cells"]}
    for key in ("outcome", "exit_status", "failed", "kernel", "release"):
        assert {name: cell[key] for name, cell in there.items()} == {
            name: cell[key] for name, cell in here.items()
        }
    for cell in there.values():
        assert (Path(cell["directory"]) / "report.html").is_file(), (
            "the run's directory did not come back"
        )
        assert Path(cell["directory"]).is_relative_to(tmp_path / "there")
    sent = (
        f"cache/orchestrator/kernels/{there['broken smp2 nop5 one seed1']['kernel'][:24]}/bzImage"
    )
    assert any((scratch / name / sent).is_file() for name in ("one", "two")), (
        "no worker got a bundle of the kernel"
    )

    # Cells with a result are not run again.
    status, again = sweep(tmp_path / "here")
    assert status == 1 and all(cell["kept"] for cell in again.values())
