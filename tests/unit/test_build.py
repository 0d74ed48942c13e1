# SPDX-License-Identifier: GPL-2.0-only
"""Building a fake kernel tree, which takes a second: what is rebuilt, reported, left alone."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import BuildError, UsageError
from orchestrator.host.paths import cache_dir
from orchestrator.kernel import build, from_source, obtain, workspace
from orchestrator.kernel.model import Kernel, KernelRequest


@pytest.fixture
def git_tree(tree: Path) -> Path:
    _git(tree, "init", "-q")
    _git(tree, "add", ".")
    _git(tree, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    return tree


def _git(tree: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", tree, *arguments], check=True)


def _obtain(tree: Path, **request: object) -> Kernel:
    return obtain.obtain(KernelRequest(tree=tree, **request))  # type: ignore[arg-type]


def _workspace() -> Path:
    (workspace,) = (cache_dir() / "work").iterdir()
    return workspace


def _compiled() -> list[str]:
    """The objects that the last make compiled, sorted."""
    lines = (_workspace() / "build.log").read_text().splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("  CC"))


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path} {path.lstat().st_mtime_ns}".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_build_has_everything_a_run_needs_and_leaves_the_tree_alone(git_tree: Path) -> None:
    before = _content(git_tree)
    kernel = _obtain(git_tree)
    assert _content(git_tree) == before, "the tree was written to"
    assert kernel.release == "6.1.0-fake"
    assert kernel.option("SMP") == "y"
    assert kernel.bzimage.read_bytes() and kernel.vmlinux and kernel.vmlinux.is_file()
    assert kernel.kbuild and (kernel.kbuild / "Module.symvers").is_file()
    assert (kernel.kbuild / "include/generated/autoconf.h").is_file()
    assert (kernel.kbuild / "include/linux/kernel.h").is_file()
    assert kernel.origin["kind"] == "tree"
    assert len(_compiled()) == 3


def test_build_products_do_not_matter_without_git_under_debians_gitignore(tree: Path) -> None:
    first = _obtain(tree)
    assert first.release == "6.1.0-fake"
    ignored = tree / ".gitignore"
    ignored.write_text(f"{ignored.read_text()}/*\n!/debian/\n")
    for target in ("tinyconfig", "bzImage"):
        subprocess.run(["make", "-s", "-C", tree, target, "CC=gcc"], check=True)
    (tree / "debian").mkdir()
    (tree / "debian/changelog").touch()
    assert _obtain(tree).digest == first.digest


def test_build_products_do_not_matter_without_git_and_gitignore(tree: Path) -> None:
    (tree / ".gitignore").unlink()
    first = _obtain(tree)
    for target in ("tinyconfig", "bzImage"):
        subprocess.run(["make", "-s", "-C", tree, target, "CC=gcc"], check=True)
    assert list(tree.rglob("*.o")) and (tree / "vmlinux").exists()
    # no pattern matches the names of host programs: they would count as sources
    shutil.rmtree(tree / "scripts/mod")
    assert _obtain(tree).digest == first.digest


def test_an_unchanged_tree_is_not_built_again(git_tree: Path) -> None:
    first = _obtain(git_tree)
    (_workspace() / "build.log").unlink()
    assert _obtain(git_tree) == first
    assert not (_workspace() / "build.log").exists()


def test_one_change_compiles_one_object(git_tree: Path) -> None:
    first = _obtain(git_tree)
    _edit(git_tree / "arch/x86/kernel/traps.c", "return ROUNDS", "return ROUNDS + 1")
    second = _obtain(git_tree)
    assert _compiled() == ["arch/x86/kernel/traps.o"]
    assert second.digest != first.digest
    assert second.bzimage.read_bytes() != first.bzimage.read_bytes()
    # back to the first content, whose finished kernel is still in the cache
    _edit(git_tree / "arch/x86/kernel/traps.c", "ROUNDS + 1", "ROUNDS")
    assert _obtain(git_tree) == first


def test_a_changed_header_compiles_everything_even_if_its_time_is_older(git_tree: Path) -> None:
    _obtain(git_tree)
    header = git_tree / "include/linux/kernel.h"
    _edit(header, "3", "2")
    os.utime(header, (1, 1))  # as after `cp -a` or unpacking an archive
    _obtain(git_tree)
    assert len(_compiled()) == 3


def test_a_new_timestamp_alone_is_no_change(git_tree: Path) -> None:
    first = _obtain(git_tree)
    (git_tree / "drivers/console.c").touch()
    assert _obtain(git_tree).digest == first.digest


def test_untracked_and_deleted_files_count(git_tree: Path) -> None:
    first = _obtain(git_tree)
    (git_tree / "drivers/new.c").write_text("int new;\n")
    assert _obtain(git_tree).digest != first.digest
    (git_tree / "drivers/new.c").unlink()
    (git_tree / "drivers/console.c").unlink()
    with pytest.raises(BuildError, match=r"console"):
        _obtain(git_tree)


def test_build_products_in_a_git_tree_do_not_matter(git_tree: Path) -> None:
    first = _obtain(git_tree)
    for target in ("tinyconfig", "bzImage"):
        subprocess.run(["make", "-s", "-C", git_tree, target, "CC=gcc"], check=True)
    assert (git_tree / ".config").exists() and (git_tree / "vmlinux").exists()
    assert _obtain(git_tree).digest == first.digest


def test_a_patch_is_applied_to_a_copy(git_tree: Path, tmp_path: Path) -> None:
    first = _obtain(git_tree)
    _edit(git_tree / "arch/x86/kernel/alternative.c", "phases = 3", "phases = 2")
    difference = subprocess.run(
        ["git", "-C", git_tree, "diff"], capture_output=True, text=True, check=True
    ).stdout
    _git(git_tree, "checkout", "-q", ".")
    patch = tmp_path / "two-rounds.patch"
    patch.write_text(difference)
    before = _content(git_tree)
    patched = _obtain(git_tree, patches=(patch,))
    assert _compiled() == ["arch/x86/kernel/alternative.o"]
    assert _content(git_tree) == before
    assert patched.digest != first.digest and patched.origin["patches"] == "two-rounds.patch"
    assert first.bzimage.read_bytes() != patched.bzimage.read_bytes()
    # the next build without the patch must not see what it left behind
    again = _obtain(git_tree, settings=("NR_CPUS=4",))
    assert again.digest not in (first.digest, patched.digest)
    assert "phases = 3" in (_workspace() / "src/arch/x86/kernel/alternative.c").read_text()


def test_a_compile_error_shows_the_compilers_lines(git_tree: Path) -> None:
    _edit(git_tree / "arch/x86/kernel/alternative.c", "return phases;", "return phase;")
    with pytest.raises(BuildError) as caught:
        _obtain(git_tree)
    message = str(caught.value)
    assert "arch/x86/kernel/alternative.c:8:16: error: " in message and "return phase;" in message
    assert "make" not in message.split("\n(the whole log")[0].splitlines()[-1]
    assert not list((cache_dir() / "kernels").glob("*/kernel.json"))
    assert not list((cache_dir() / "kernels").glob(".*partial*"))
    _edit(git_tree / "arch/x86/kernel/alternative.c", "return phase;", "return phases;")
    assert _obtain(git_tree).release == "6.1.0-fake"


def test_lost_options_are_named(git_tree: Path) -> None:
    with pytest.raises(
        BuildError, match=r"1 option did not survive.*\n  CONFIG_KPROBE=y \(requested by setting\)"
    ):
        _obtain(git_tree, settings=("CONFIG_KPROBE=y",))


def test_our_default_options_may_get_lost_on_a_tree_and_are_reported(git_tree: Path) -> None:
    from_source.TREE_FRAGMENT.write_text("CONFIG_SMP=y\nCONFIG_MPPARSE=y\n")
    assert _obtain(git_tree).origin["options lost"] == "CONFIG_MPPARSE"


def test_fragments_and_settings_override(git_tree: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.config"
    extra.write_text("CONFIG_SMP=n\nCONFIG_NR_CPUS=8\n")
    kernel = _obtain(git_tree, fragments=(extra,), settings=("CONFIG_NR_CPUS=16",))
    assert kernel.option("SMP") in (None, "n") and kernel.option("NR_CPUS") == "16"


def test_an_object_truncated_by_a_kill_is_built_again(git_tree: Path) -> None:
    first = _obtain(git_tree)
    _edit(git_tree / "arch/x86/kernel/traps.c", "return ROUNDS", "return ROUNDS + 1")
    second = _obtain(git_tree)
    shutil.rmtree(second.bzimage.parent)
    # like after a SIGKILL during compilation: newer than its source, but truncated
    (_workspace() / "build/arch/x86/kernel/traps.o").write_bytes(b"\x7fELF")
    third = _obtain(git_tree)
    assert _compiled() == ["arch/x86/kernel/traps.o"]
    assert third.digest == second.digest != first.digest
    assert len(third.bzimage.read_bytes()) > 1000


def test_a_damaged_object_is_built_again(git_tree: Path) -> None:
    first = _obtain(git_tree)
    image = first.bzimage.read_bytes()
    built = _workspace() / "build/arch/x86/kernel/traps.o"
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    built.write_bytes(content)
    shutil.rmtree(first.bzimage.parent)
    assert _obtain(git_tree).bzimage.read_bytes() == image
    assert _compiled() == ["arch/x86/kernel/traps.o"]


def test_an_interrupted_copy_is_repaired(git_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _obtain(git_tree)
    _edit(git_tree / "include/linux/kernel.h", "3", "2")
    _edit(git_tree / "drivers/console.c", "return 0", "return 1")
    place = workspace.Workspace._place
    done: list[str] = []

    def interrupted(self: workspace.Workspace, path: str, *rest: object) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(path)
        place(self, path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patching:
        patching.setattr(workspace.Workspace, "_place", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _obtain(git_tree)
    _obtain(git_tree)
    for name in ("include/linux/kernel.h", "drivers/console.c"):
        assert (_workspace() / "src" / name).read_text() == (git_tree / name).read_text()


def test_two_processes_at_once_build_once(git_tree: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_obtain, [git_tree, git_tree])
    assert first == second
    assert len(list((cache_dir() / "kernels").glob("*/kernel.json"))) == 1


def test_the_callers_environment_does_not_leak_in(
    git_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _obtain(git_tree)
    shutil.rmtree(cache_dir())
    for name, value in {
        "MAKEFLAGS": "-n",
        "O": "/nowhere",
        "KCFLAGS": "-fbroken",
        "ARCH": "arm",
    }.items():
        monkeypatch.setenv(name, value)
    assert _obtain(git_tree).bzimage.read_bytes() == first.bzimage.read_bytes()


def test_a_path_that_is_no_kernel_tree_is_refused(tmp_path: Path, git_tree: Path) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        _obtain(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a kernel source tree: it has no Makefile"):
        _obtain(tmp_path)
    with pytest.raises(UsageError, match="it has no arch/x86/kernel"):
        shutil.rmtree(git_tree / "arch")
        _obtain(git_tree)


def test_finished_kernels_take_no_settings() -> None:
    with pytest.raises(UsageError, match="is a finished kernel"):
        obtain.obtain(KernelRequest(selector="debian:6.1", settings=("SMP=y",)))


LOG = """\
  CC      kernel/fork.o
In file included from ../kernel/fork.c:12:
../include/linux/x.h: In function 'f':
../include/linux/x.h:5:9: error: 'y' undeclared
    5 |  return y;
      |         ^
make[4]: *** [kernel/fork.o] Error 1
  CC      kernel/exit.o
make: *** [Makefile:234: __sub-make] Error 2
"""


def test_explain_shows_the_error_with_its_context() -> None:
    assert build.explain(LOG).splitlines() == LOG.splitlines()[1:6]


def test_explain_shows_makes_message_without_a_compiler_error() -> None:
    assert "No rule to make target" in build.explain(
        "  GEN Makefile\nmake: *** No rule to make target 'x'.  Stop.\n"
    )
