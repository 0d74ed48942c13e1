# SPDX-License-Identifier: GPL-2.0-only
"""The surroundings of a run: `orchestrator doctor`, setup, the Makefile, the Vagrantfile.

Hosts are simulated by a PATH of stubs, empty XDG directories, and a mirror that is off. Nothing is
installed or fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import doctor
from orchestrator.errors import EXIT_PASS, EXIT_UNTESTABLE, InfraError
from orchestrator.host import tools
from orchestrator.host.paths import PROJECT, cache_dir, locked
from orchestrator.kernel.model import KernelRequest

Stub = Callable[[str, str], Path]


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with an empty PATH and empty caches. Returns the directory in PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(tools.QEMU_VARIABLE, raising=False)
    return programs


@pytest.fixture
def stub(bare_path: Path) -> Stub:
    """Adds a program to the bare host's PATH, given its name and its shell commands."""

    def add(name: str, script: str) -> Path:
        (bare_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (bare_path / name).chmod(0o755)
        return bare_path / name

    return add


def host(*, offline: str = "", ready: tuple[str, ...] = ()) -> doctor.HostProbes:
    """A host with this state of the mirror and these cached kernels."""
    probes = doctor.HostProbes()
    probes.__dict__.update(offline=offline, ready=list(ready))
    return probes


def states(probe: Callable[[], Iterator[doctor.Diagnosis]]) -> dict[str, str]:
    return {diagnosis.name: diagnosis.state for diagnosis in doctor.examine(probe)}


# --- doctor


def test_every_package_is_looked_for() -> None:
    assert set(doctor.EVIDENCE) <= set(tools.HOST_PACKAGES)


@pytest.mark.skipif(
    not shutil.which("dpkg-query"), reason="only dpkg knows whether the package is installed"
)
@pytest.mark.parametrize("package", tools.HOST_PACKAGES)
def test_the_evidence_of_a_package_comes_with_the_package(package: str) -> None:
    installed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True
    )
    if installed.stdout != "installed":
        pytest.skip(f"{package} is not installed here")
    assert package not in doctor.missing_packages()


def test_a_bare_host_gets_a_report_and_no_traceback(
    bare_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.report() == EXIT_UNTESTABLE
    output = capsys.readouterr().out
    assert "could not be checked" not in output  # each missing thing has a sentence of its own
    assert "miss  gdb         watches the guest: " in output and "gdb (has gdb)" in output
    assert "Fix everything marked 'miss' before running." in output


def test_missing_packages_come_with_the_command_that_installs_them(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub("apt-get", "exit 1")
    for package in tools.HOST_PACKAGES:
        if package != "gdb" and not doctor.EVIDENCE.get(package, package).startswith("/"):
            stub(doctor.EVIDENCE.get(package, package), "exit 1")
    assert doctor.report() == EXIT_UNTESTABLE
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "miss  gdb" in line and "apt-get install -y --no-install-recommends gdb" in line
        for line in lines
    )
    assert lines[-1].startswith("As root: apt-get install -y --no-install-recommends")
    assert "gdb" in lines[-1].split()


def test_a_missing_ccache_is_only_a_warning(stub: Stub) -> None:
    found = states(host().packages)
    assert found["ccache"] == "warn"
    assert found["bison"] == "miss"


def test_a_failing_probe_costs_only_its_own_lines() -> None:
    def some_probe() -> Iterator[doctor.Diagnosis]:
        yield doctor.Diagnosis("ok", "first", "known")
        raise ZeroDivisionError("by nothing")

    first, second = doctor.examine(some_probe)
    assert first.state == "ok"
    assert (second.state, second.name) == ("warn", "some probe")
    assert "ZeroDivisionError: by nothing" in second.text


def test_an_error_of_this_program_is_reported_as_it_is() -> None:
    def probe() -> Iterator[doctor.Diagnosis]:
        raise InfraError("the disk is gone: buy one")
        yield

    assert [diagnosis.text for diagnosis in doctor.examine(probe)] == ["the disk is gone: buy one"]


def test_every_probe_is_isolated(
    bare_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    for name in ("_fields", "_output", "_held_locks", "cache_dir", "state_dir"):
        monkeypatch.setattr(doctor, name, broken)
    assert doctor.report() == EXIT_UNTESTABLE
    assert "broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo 'GNU gdb (Debian 13.1-3) 13.1'; echo python", "ok"),
        (
            "echo 'GNU gdb (Debian 13.1-3) 13.1'; "
            "echo 'Python scripting is not supported in this copy of GDB.'",
            "miss",
        ),
        ("exit 127", "miss"),
    ],
)
def test_gdb_needs_its_python(stub: Stub, script: str, state: str) -> None:
    stub("gdb", script)
    stub("setpriv", 'shift 3; exec "$@"')
    assert states(host().gdb) == {"GDB": state}


@pytest.mark.parametrize(
    ("version", "offline", "state"),
    [
        ("10.0.2", "", "ok"),
        ("9.2.0", "off", "ok"),
        ("9.1.0", "off", "warn"),
        ("7.2.19", "", "note"),  # a run fetches a newer one
        ("7.2.19", "off", "warn"),  # a run has to use it
        (None, "", "note"),
        (None, "off", "miss"),
    ],
)
def test_the_qemu_that_a_run_would_use(
    stub: Stub, version: str | None, offline: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.watch.recorder.plugin.compiled", lambda *_: Path("recorder.so")
    )
    stub("setpriv", 'shift 3; exec "$@"')
    stub("gcc", "")
    if version:
        stub("qemu-system-x86_64", f"echo 'QEMU emulator version {version} (Debian)'")
    assert states(host(offline=offline).emulator) == {"QEMU": state}


def test_that_a_qemu_counts_int3_is_claimed_only_if_it_did(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("setpriv", 'shift 3; exec "$@"')
    stub("qemu-system-x86_64", "echo 'QEMU emulator version 99.1 (Debian)'")
    (diagnosis,) = doctor.examine(host().emulator)
    assert diagnosis.state == "note"
    assert "whether it counts int3 under TCG cannot be tried without gcc" in diagnosis.text

    def compiled(*_: object) -> Path:
        raise InfraError("our plugin does not work in this QEMU: it was refused")

    monkeypatch.setattr("orchestrator.watch.recorder.plugin.compiled", compiled)
    stub("gcc", "")
    (diagnosis,) = doctor.examine(host().emulator)
    assert diagnosis.state == "warn"
    assert "does not count int3 under TCG, so only the guest and GDB do" in diagnosis.text
    assert "it was refused" in diagnosis.text


def test_a_requested_qemu_that_does_not_exist_is_missing(
    bare_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tools.QEMU_VARIABLE, "/nowhere/qemu")
    (diagnosis,) = doctor.examine(host().emulator)
    assert diagnosis.state == "miss"
    assert "/nowhere/qemu is not a program" in diagnosis.text


@pytest.mark.parametrize(
    ("offline", "ready", "expected"),
    [
        ("", (), ["note"]),
        ("", (KernelRequest.selector,), ["ok"]),
        ("off", (KernelRequest.selector,), ["ok"]),
        ("off", ("debian:6.1",), ["ok", "warn"]),
        ("off", (), ["miss"]),
    ],
)
def test_kernels_that_can_run_without_the_mirror(
    bare_path: Path, offline: str, ready: tuple[str, ...], expected: list[str]
) -> None:
    assert [
        diagnosis.state for diagnosis in doctor.examine(host(offline=offline, ready=ready).kernels)
    ] == expected


def test_a_full_disk_is_reported(bare_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BUILD_MIB", 1 << 40)
    assert states(host().disk) == {"disk": "miss"}
    assert states(host(ready=(KernelRequest.selector,)).disk) == {"disk": "warn"}


def test_an_unwritable_cache_is_reported(
    bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert states(host().disk) == {"disk": "miss"}


def test_a_held_lock_is_reported_with_its_holder_and_not_disturbed(bare_path: Path) -> None:
    assert list(doctor._held_locks(cache_dir())) == []
    with locked(cache_dir() / "kernels" / ".some.lock"):
        assert list(doctor._held_locks(cache_dir())) == [
            (cache_dir() / "kernels" / ".some.lock", os.getpid())
        ]
        (diagnosis,) = doctor.examine(host().locks)
        assert diagnosis.text.startswith(f"process {os.getpid()} holds kernels/.some.lock")
    assert list(doctor._held_locks(cache_dir())) == []


def test_the_doctor_command_prints_one_line_per_diagnosis(tmp_path: Path) -> None:
    """In a process of its own, without a terminal, in ASCII, and with a mirror that refuses."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "ORCHESTRATOR_DEBIAN_MIRROR": "http://127.0.0.1:1/debian",
        "PYTHONIOENCODING": "ascii",
    }
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "doctor"],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (EXIT_PASS, EXIT_UNTESTABLE), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert lines
    assert all(line.split()[0] in doctor.STYLES for line in lines), (
        "one line per diagnosis, for grep"
    )
    assert sum("miss" in line.split()[:1] for line in lines) > 0 or done.returncode == EXIT_PASS


# --- setup


@pytest.fixture
def checkout(tmp_path: Path, stub: Stub, bare_path: Path) -> Path:
    """The files that setup reads, on a Debian of stubs, which log their calls in `calls`."""
    root = tmp_path / "checkout"
    (root / "orchestrator" / "host").mkdir(parents=True)
    shutil.copy(PROJECT / "setup", root)
    shutil.copy(PROJECT / "orchestrator" / "host" / "tools.py", root / "orchestrator" / "host")
    (root / "pyproject.toml").write_text("# the first\n")
    (root / "dev.lock").write_text("# no versions\n")
    log = f'echo "$(basename "$0") $*" >>{root}/calls'
    programs = (
        "sh",
        "basename",
        "cat",
        "cp",
        "cut",
        "dirname",
        "flock",
        "grep",
        "mkdir",
        "mv",
        "rm",
        "sed",
        "tail",
        "touch",
    )
    for program in programs:
        (bare_path / program).symlink_to(
            shutil.which(program, path=os.defpath + ":/usr/bin:/bin") or program
        )
    stub("id", f"case $1 in -u) cat {root}/uid;; *) echo someone;; esac")
    (root / "uid").write_text("0\n")
    stub("dpkg-query", f"cat {root}/installed")
    (root / "installed").write_text(
        "".join(f"{package} installed\n" for package in tools.HOST_PACKAGES)
    )
    stub("apt-get", f"{log}; ! [ -e {root}/apt-fails ]")
    # A python3 that makes environments whose python can "install", and logs its calls.
    stub(
        "python3",
        f"""case $1 in
        -c) exit 0;;
        -m) {log}; shift; [ "$2" = --clear ] && {{ rm -rf .venv; shift; }}
            mkdir -p .venv/bin; cp {root}/venv-python .venv/bin/python;;
        esac""",
    )
    (root / "venv-python").write_text(
        f"#!/bin/sh\ncase $1 in -P) [ -e .venv/installed ];;\n"
        f"-m) echo pip >>{root}/calls; ! [ -e {root}/pip-fails ] && touch .venv/installed;; esac\n"
    )
    (root / "venv-python").chmod(0o755)
    return root


def set_up(root: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Run setup. Returns its exit status, its stderr, and the calls that it made."""
    calls = root / "calls"
    calls.write_text("")
    done = subprocess.run(
        ["sh", "setup", *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr, calls.read_text().splitlines()


def test_setup_reads_the_one_list_of_packages() -> None:
    output = subprocess.run(
        ["sh", "setup", "list-packages"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    assert dict(line.split(" ", 1) for line in output.splitlines()) == tools.HOST_PACKAGES


def test_a_second_setup_does_nothing(checkout: Path) -> None:
    assert set_up(checkout)[::2] == (0, ["python3 -m venv --clear .venv", "pip"])
    assert set_up(checkout) == (0, "", [])


def test_root_installs_only_what_is_missing(checkout: Path) -> None:
    installed = [package for package in tools.HOST_PACKAGES if package not in ("gdb", "bison")]
    (checkout / "installed").write_text(
        "".join(f"{package} installed\n" for package in installed) + "gdb config-files\n"
    )
    status, output, calls = set_up(checkout, "packages")
    assert status == 0
    assert f"installing gdb: {tools.HOST_PACKAGES['gdb']}" in output
    (call,) = calls  # no update when the existing lists are good enough
    assert call.endswith("install -y --no-install-recommends bison gdb")


def test_package_lists_are_only_fetched_when_needed(checkout: Path) -> None:
    (checkout / "installed").write_text("")
    (checkout / "apt-fails").touch()
    status, output, calls = set_up(checkout, "packages")
    assert [call.split()[4] for call in calls] == ["install", "update"]
    assert "build/apt.log" in output
    assert status == 0, "the program itself judges what is missing"


def test_a_user_without_root_gets_the_command_and_everything_else(checkout: Path) -> None:
    (checkout / "uid").write_text("1000\n")
    (checkout / "installed").write_text("")
    status, output, calls = set_up(checkout)
    assert status == 0
    assert f"apt-get install -y --no-install-recommends {' '.join(tools.HOST_PACKAGES)}" in output
    assert calls == ["python3 -m venv --clear .venv", "pip"]


def test_setup_without_apt(checkout: Path, bare_path: Path) -> None:
    (bare_path / "apt-get").unlink()
    status, output, calls = set_up(checkout)
    assert status == 0
    assert "gdb" in output
    assert "pip" in calls
    assert set_up(checkout) == (0, "", []), "the note is only printed once"


def test_setup_without_python_fails(checkout: Path, stub: Stub) -> None:
    stub("python3", "exit 1")
    status, output, calls = set_up(checkout)
    assert status == 1
    assert "no Python 3.11 or newer" in output
    assert len(calls) == 1, "apt-get, for python3 and python3-venv"
    assert calls[0].endswith("python3 python3-venv")


def test_an_interrupted_installation_is_repeated(checkout: Path) -> None:
    (checkout / "pip-fails").touch()
    status, output, _ = set_up(checkout)
    assert status == 1
    assert "repeat" in output
    (checkout / "pip-fails").unlink()
    assert set_up(checkout)[::2] == (0, ["python3 -m venv --clear .venv", "pip"])


def test_a_changed_pyproject_is_installed_again(checkout: Path) -> None:
    set_up(checkout)
    (checkout / "pyproject.toml").write_text("# the second\n")
    assert set_up(checkout)[2] == ["python3 -m venv .venv", "pip"]
    assert set_up(checkout)[2] == []


def test_an_interrupted_change_is_not_mistaken_for_the_old_state(checkout: Path) -> None:
    set_up(checkout)
    (checkout / "pyproject.toml").write_text("# the second\n")
    (checkout / "pip-fails").touch()
    assert set_up(checkout)[0] == 1
    (checkout / "pip-fails").unlink()
    (checkout / "pyproject.toml").write_text("# the first\n")
    assert set_up(checkout)[2] == ["python3 -m venv --clear .venv", "pip"]


def test_a_moved_checkout_gets_an_environment_of_its_own(checkout: Path) -> None:
    set_up(checkout)
    moved = checkout.rename(checkout.with_name("moved"))
    checkout.symlink_to(moved)  # the stubs write there
    assert "pip" in set_up(moved)[2]


def test_two_setups_wait_for_each_other(checkout: Path) -> None:
    holder = subprocess.Popen(
        ["flock", str(checkout), "sh", "-c", "echo held; sleep 0.5"],
        stdout=subprocess.PIPE,
        env={"PATH": os.defpath + ":/usr/bin"},
    )
    assert holder.stdout
    holder.stdout.readline()
    status, output, _ = set_up(checkout)
    assert status == 0
    assert "waiting for another setup" in output
    assert holder.wait() == 0
    holder.stdout.close()


# --- make, CI, Vagrant


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_passes_arguments_on_and_explains_itself() -> None:
    def make(*arguments: str) -> str:
        return subprocess.run(
            ["make", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout

    setup, run = make("-n", "--no-print-directory", "run", "ARGS=--smp 2").splitlines()
    assert setup == "./setup"
    assert run.endswith(" .venv/bin/orchestrator run --smp 8 --smp 2")
    help_text = make()
    for target in ("run", "test", "test-unit", "test-vm", "lint", "doctor", "setup", "clean"):
        assert f"make {target} " in help_text


def test_ci_runs_make_test() -> None:
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


# The part of Vagrant's language that the Vagrantfile may use. It records and prints every
# assignment and call.
VAGRANT = """
require 'json'
class Recorder < BasicObject
  def initialize(); @seen = {}; end
  def seen(); @seen; end
  def method_missing(name, *arguments, **options, &block)
    if name.to_s.end_with?('=')
      @seen[name.to_s.chomp('=')] = arguments[0]
    else
      inner = ::Recorder.new
      block.call(inner) if block
      call = { 'arguments' => arguments, 'options' => options, 'block' => inner.seen }
      (@seen[name.to_s] ||= []) << call
    end
  end
end
module Vagrant
  def self.configure(version)
    vm = Recorder.new
    yield Struct.new(:vm).new(vm)
    puts JSON.generate('version' => version, 'vm' => vm.seen)
  end
end
load ARGV[0]
"""


@pytest.mark.skipif(
    not shutil.which("ruby"), reason="ruby, the language of a Vagrantfile, is not installed"
)
def test_the_vagrantfile_describes_a_machine_with_nested_virtualisation() -> None:
    done = subprocess.run(
        ["ruby", "-w", "-", str(PROJECT / "Vagrantfile")],
        input=VAGRANT,
        capture_output=True,
        text=True,
        check=True,
    )
    described = json.loads(done.stdout)
    vm = described["vm"]
    assert described["version"] == "2"
    assert vm["box"] == "debian/bookworm64"
    (folder,) = vm["synced_folder"]
    assert folder["options"]["type"] == "rsync"
    assert ".venv/" in folder["options"]["rsync__exclude"]
    providers = {entry["arguments"][0]: entry["block"] for entry in vm["provider"]}
    assert set(providers) == {"libvirt", "virtualbox"}
    for provider in providers.values():
        assert (provider["cpus"], provider["memory"]) == (4, 8192)
    assert providers["libvirt"]["nested"] is True
    assert providers["libvirt"]["cpu_mode"] == "host-passthrough"
    (customized,) = providers["virtualbox"]["customize"]
    assert customized["arguments"][0][2:] == ["--nested-hw-virt", "on"]
    steps = [entry["options"] for entry in vm["provision"]]
    assert "/vagrant/setup packages" in steps[0]["inline"]
    assert "apt-get install -q -y make git" in steps[0]["inline"]
    assert steps[1]["inline"] == "make -C /vagrant setup"
    assert steps[1]["privileged"] is False
