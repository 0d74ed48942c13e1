# SPDX-License-Identifier: GPL-2.0-only
"""dask with TLS, set up as docs/sweep.md says."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.host.paths import PROJECT
from orchestrator.host.proc import mortal

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with the certificates of docs/sweep.md, and its configuration of dask."""
    text = (PROJECT / "docs/sweep.md").read_text()
    commands = next(
        block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if "x509" in block
    )
    config = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "tls" in block)
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(["sh", "-e", "-c", commands], cwd=directory, check=True, capture_output=True)
    return directory, config.replace("/home/me/tls", str(directory))


@pytest.fixture
def config(guide: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "dask"
    folder.mkdir()
    (folder / "tls.yaml").write_text(guide[1])
    monkeypatch.setenv("DASK_CONFIG", str(folder))
    return folder


@pytest.fixture
def address(config: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls"),
        *("--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
    ]
    child = subprocess.Popen(mortal(command), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"tls://127.0.0.1:{port}"
    child.kill()
    child.wait()


CONNECT = """
import os, sys
from orchestrator.errors import InfraError
from orchestrator.many.sweep.place import Cluster
try:
    Cluster(sys.argv[1])
    print("connected", flush=True)
except InfraError as error:
    print(error, flush=True)
os._exit(0)  # a client that never connected would wait 20 s for its end
"""


def connect(address: str) -> str:
    """A sweep's connection, in a process of its own: dask reads its configuration when imported."""
    command = [sys.executable, "-c", CONNECT, address]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout


def test_a_sweep_connects_with_the_certificates_of_the_guide_and_not_without(
    address: str, config: Path
) -> None:
    assert "connected" in connect(address)
    (config / "tls.yaml").unlink()
    output = connect(address)
    assert "connected" not in output
    assert "no dask scheduler answers" in output and "check the certificates" in output
    assert "connected" not in connect(address.replace("tls", "tcp"))
