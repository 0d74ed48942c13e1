# SPDX-License-Identifier: GPL-2.0-only
"""What a run is called in every report, and which commit repeat.sh names."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import kcidb_io
import pytest

from orchestrator import run as flow
from orchestrator import rundir
from orchestrator.errors import BuildError, InfraError, UsageError
from orchestrator.guest import module
from orchestrator.host import debian
from orchestrator.kernel import from_source, obtain, sources, versions
from orchestrator.kernel.kinds import git as git_kind
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.many import history
from orchestrator.options import from_json
from orchestrator.report import files, kcidb, page
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import judge
from orchestrator.verdict.result import RunResult

FAKE = Path(__file__).parent / "fakekernel"
MAILS = Path(__file__).parent.parent / "data" / "mails"
PATCH = MAILS / "plain.diff"
BASE = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", *identity, "-C", tree, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A repository with a tag and a commit on top."""
    tree = tmp_path / "linux"
    subprocess.run(["cp", "-r", FAKE, tree], check=True)
    git(tree, "init", "-q", "-b", "main")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "one")
    git(tree, "tag", "-a", "-m", "x", "v6.12")
    git(tree, "commit", "-q", "--allow-empty", "-m", "two")
    return tree


def test_the_name_of_a_tree_has_its_directory_commit_and_changes(
    linux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(linux, "rev-parse", "--short=12", "HEAD")
    monkeypatch.chdir(linux)
    request = KernelRequest(tree=Path(), patches=(PATCH,), settings=("CONFIG_X=y",))
    assert request.name == "linux + plain.diff + CONFIG_X=y"
    assert obtain.title(request) == f"linux v6.12-1-g{commit} + plain.diff + CONFIG_X=y"
    (linux / "Makefile").write_text((linux / "Makefile").read_text() + "\n")
    assert obtain.title(KernelRequest(tree=Path())) == f"linux v6.12-1-g{commit} with changes"


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (KernelRequest(), "6.1-int3"),
        (KernelRequest(patches=(PATCH,)), "6.1-int3 + plain.diff"),
        (KernelRequest(selector="git:~/linux@v6.12"), "git:~/linux@v6.12"),
        (KernelRequest(bzimage=Path("/boot/vmlinuz-6.1")), "vmlinuz-6.1"),
        (
            KernelRequest(patches=tuple(Path(f"{number}.patch") for number in range(9))),
            "6.1-int3 + 0.patch + 1.patch + 2.patch + 6 more",
        ),
        (
            KernelRequest(patches=tuple(Path(f"{number}.patch") for number in range(4))),
            "6.1-int3 + 0.patch + 1.patch + 2.patch + 3.patch",
        ),
    ],
)
def test_a_request_has_a_name(request_: KernelRequest, name: str) -> None:
    assert request_.name == name


def _failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: KernelRequest) -> Kernel:
        raise error

    monkeypatch.setattr(flow, "obtain", fail)


def _run(request: KernelRequest) -> RunResult:
    result = flow.run(RunSpec(kernel=request, smp=2))
    files.write(result)
    page.write(result)
    history.record(result)
    return result


def test_a_kernel_that_does_not_build_is_called_what_was_asked(
    linux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(BuildError("it does not build"), monkeypatch)
    result = _run(KernelRequest(tree=linux, patches=(PATCH,)))
    commit = git(linux, "rev-parse", "--short=12", "HEAD")
    name = f"linux v6.12-1-g{commit} + plain.diff"
    assert result.name == name
    assert "-linux-plain.diff-smp2-" in result.directory.name
    assert json.loads((result.directory / "verdict.json").read_text())["name"] == name
    assert f'name="{name} smp2"' in (result.directory / "junit.xml").read_text()
    assert f"# {name} smp2" in (result.directory / "results.ktap").read_text()
    assert f"{name} smp2</title>" in (result.directory / "report.html").read_text()
    assert [run.kernel for run in history.past()] == [name]
    report = kcidb.report([result.directory], "ours")
    kcidb_io.schema.V5_3.validate(report)
    assert report["checkouts"][0]["comment"] == name
    assert report["builds"][0]["status"] == "FAIL"


def test_a_patch_that_does_not_apply_makes_a_checkout_invalid(
    linux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(BuildError("fix.patch does not apply: a.c: hunk #1 does not fit"), monkeypatch)
    report = kcidb.report([_run(KernelRequest(tree=linux)).directory], "ours")
    assert report["checkouts"][0]["valid"] is False


def _kernel(tmp_path: Path, **more: str) -> Kernel:
    (tmp_path / "config").write_text("CONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_MODULES=y\n")
    origin = {
        "kind": "git",
        "tree": "https://example.org/torvalds/linux.git@v6.12",
        "git": "v6.12",
        "commit": BASE,
        "patches": "fix.patch",
        "patchset": "a" * 64,
    }
    return Kernel(
        name="x",
        release="6.12.0",
        digest="d" * 64,
        bzimage=tmp_path / "bzImage",
        config=tmp_path / "config",
        kbuild=tmp_path,
        origin=origin,
        **more,
    )


def test_kcidb_gets_commit_tree_patches_and_not_our_own_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "obtain", lambda request: _kernel(tmp_path))

    def broken(kernel: Kernel) -> dict[str, bytes | Path]:
        raise BuildError("the test module does not build for x")

    monkeypatch.setattr(module, "files", broken)
    report = kcidb.report([_run(KernelRequest(selector="git:https://x/y@v6.12")).directory], "ours")
    kcidb_io.schema.V5_3.validate(report)
    (checkout,) = report["checkouts"]
    assert checkout["git_commit_hash"] == BASE
    assert checkout["git_repository_url"] == "https://example.org/torvalds/linux.git"
    assert (checkout["tree_name"], checkout["git_commit_name"]) == ("linux", "v6.12")
    assert checkout["patchset_hash"] == "a" * 64
    assert report["builds"][0]["status"] == "PASS"  # it is the module that did not build
    assert report["tests"][0]["status"] == "ERROR"


def test_patched_and_unpatched_kernels_are_two_checkouts() -> None:
    plan = from_source.BuildPlan(recipe=from_source.Recipe(base="tinyconfig"), patches=(PATCH,))
    same = from_source.BuildPlan(recipe=plan.recipe, patches=(MAILS / "scissors.eml",))
    assert plan.origin()["patchset"] == same.origin()["patchset"]
    assert plan.digest("x") == same.digest("x")
    assert from_source.BuildPlan(recipe=plan.recipe, patches=()).origin() == {"patches": "none"}


# --- pinned names --------------------------------------------------------------------------------


def test_repeat_sh_names_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _kernel(tmp_path, pinned="debian:6.1.192")
    monkeypatch.setattr(flow, "obtain", lambda request: kernel)

    def none(kernel: Kernel) -> dict[str, bytes | Path]:
        raise InfraError("no")

    monkeypatch.setattr(module, "files", none)
    monkeypatch.setenv(versions.VARIABLE, '{"linux-source-6.1": [["a", "1", "b"]]}')
    result = flow.run(RunSpec(kernel=KernelRequest(selector="debian:6.1"), smp=2))
    script = (result.directory / "repeat.sh").read_text()
    assert "--kernel debian:6.1.192 " in script
    assert 'export ORCHESTRATOR_VERSIONS=\'{"linux-source-6.1": [["a", "1", "b"]]}\'' in script


@pytest.mark.parametrize(
    ("asked", "recorded"),
    [
        (KernelRequest(patches=(Path("a.patch"),)), "--patch {here}/a.patch"),
        (KernelRequest(tree=Path("linux")), "--tree {here}/linux"),
        (KernelRequest(tree=Path("absent")), "--tree absent"),
        (KernelRequest(selector="git:linux@main"), "--kernel git:{here}/linux@main"),
        (KernelRequest(selector="git:."), "--kernel git:{here}"),
        (KernelRequest(selector="git:~/linux@main"), "--kernel git:~/linux@main"),
        (KernelRequest(selector="git:https://x.org/l@v6"), "--kernel git:https://x.org/l@v6"),
    ],
)
def test_what_a_run_leaves_can_be_repeated_from_any_directory(
    asked: KernelRequest, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.patch").touch()
    (tmp_path / "linux").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = RunSpec(kernel=asked, smp=2, qemu=Path("qemu-system-x86_64"))
    recorded = recorded.format(here=tmp_path)
    directory = rundir.create(spec)
    evidence = Evidence(requested_cpus=2)
    result = RunResult(
        spec=spec, directory=directory, name="", kernel=None, machine=None, evidence=evidence,
        verdict=judge(evidence), seconds={},
    )  # fmt: skip
    assert f" {recorded} " in " ".join(result_file.record(result).command)
    script = (directory / "repeat.sh").read_text().replace("'", "")
    assert f" {recorded} " in script and " --qemu qemu-system-x86_64 " in script
    kept = from_json(RunSpec, json.loads((directory / "spec.json").read_text()))
    assert f" {recorded} " in f" {' '.join(kept.argv())}"


def test_a_branch_is_pinned_to_its_commit(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(name: str, source: sources.Source, plan: object, title: str) -> Kernel:
        return Kernel(name=title, release="6", digest="d", bzimage=linux, config=None)

    monkeypatch.setattr(from_source, "obtain_built", built)
    monkeypatch.setattr(git_kind.sources, "check_tree", lambda tree: None)
    kernel = obtain.obtain(KernelRequest(selector=f"git:{linux}@main", patches=(PATCH,)))
    assert kernel.name == f"git:{linux}@main + plain.diff"
    assert kernel.pinned == f"git:{linux}@{git(linux, 'rev-parse', 'HEAD')}"


def test_the_base_commit_takes_the_place_of_a_ref() -> None:
    thread = MAILS / "thread-with-tip-mails.mbox"
    for selector in ("git:~/linux", "git:ssh://git@example.org/linux.git"):
        request = KernelRequest(selector=selector, patches=(thread,))
        assert git_kind._pinned(request) == f"{selector}@{BASE}"
    given = KernelRequest(selector="git:~/linux@v6.12", patches=(thread,))
    assert git_kind._pinned(given) == given.selector
    with pytest.raises(UsageError, match="write git:URL-or-path@REF"):
        obtain.check(KernelRequest(selector="git:~/linux", patches=(PATCH,)))


def test_a_series_for_another_base_says_so(linux: Path, tmp_path: Path) -> None:
    source = sources.from_tree(linux)
    plan = from_source.BuildPlan(
        recipe=from_source.Recipe(base="tinyconfig"),
        patches=(MAILS / "thread-with-tip-mails.mbox",),
    )
    with pytest.raises(BuildError, match=r"made on 0123456789ab, and this is v6\.12-1-g"):
        from_source._patched(source, plan, lambda path: None, tmp_path / "scratch")


# --- wrong names ---------------------------------------------------------------------------------


def test_a_series_that_debian_has_not_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "candidates", lambda pattern, suites: [])
    monkeypatch.setattr(debian, "unsearched", lambda suites: [])
    with pytest.raises(UsageError, match=r"debian-source:9\.9: the Debian mirror has no"):
        obtain.settle(KernelRequest(selector="debian-source:9.9"))
    monkeypatch.setattr(debian, "unsearched", lambda suites: ["no route"])
    with pytest.raises(InfraError):
        obtain.settle(KernelRequest(selector="debian-source:9.9"))


@pytest.mark.parametrize(
    "selector", ["git:/nowhere", "git:/nowhere@v1", "git:x@y", "git:x", "nothing", "debian:x"]
)
def test_a_wrong_name_leaves_no_directory(selector: str, tmp_path: Path) -> None:
    def never(*arguments: object) -> Path:
        raise AssertionError("a directory was made")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "create", never)
        with pytest.raises(UsageError):
            flow.run(RunSpec(kernel=KernelRequest(selector=selector)))
