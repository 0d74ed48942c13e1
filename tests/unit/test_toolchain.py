# SPDX-License-Identifier: GPL-2.0-only
"""Compilers, kernel parameters, whole configurations and trees as people have them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import BuildError, UsageError
from orchestrator.guest import module
from orchestrator.kernel import build, config, obtain, sources, toolchain
from orchestrator.kernel.kinds.kind import refuse_changes
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.machine import parameters, qemu
from orchestrator.spec import RunSpec


def _obtain(tree: Path, **request: object) -> Kernel:
    return obtain.obtain(KernelRequest(tree=tree, **request))  # type: ignore[arg-type]


# --- --make --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "compiler", "linker", "packages"),
    [
        ({}, "gcc", "ld", {"gcc": "gcc", "ld": "binutils"}),
        ({"CC": "gcc-11"}, "gcc-11", "ld", {"gcc-11": "gcc-11", "ld": "binutils"}),
        ({"CC": "ccache clang"}, "ccache clang", "ld", {"clang": "clang", "ld": "binutils"}),
        (
            {"LLVM": "1"},
            "clang",
            "ld.lld",
            {"clang": "clang", "ld.lld": "lld", "llvm-ar": "llvm"},
        ),
        (
            {"LLVM": "-16"},
            "clang-16",
            "ld.lld-16",
            {"clang-16": "clang-16", "ld.lld-16": "lld-16", "llvm-ar-16": "llvm-16"},
        ),
        ({"LLVM": "1", "LD": "ld"}, "clang", "ld", None),
        ({"LLVM": "/opt/bin/"}, "/opt/bin/clang", "/opt/bin/ld.lld", None),
    ],
)
def test_makes_variables_choose_compiler_and_linker(
    make: dict[str, str], compiler: str, linker: str, packages: dict[str, str] | None
) -> None:
    assert (toolchain.compiler(make), toolchain.linker(make)) == (compiler, linker)
    if packages:
        assert toolchain.needed(make) == packages
    command = toolchain.variables(make)["CC"]
    assert command.endswith(compiler) and command.count("ccache") <= 1


@pytest.mark.parametrize(
    "line", ["LLVM", "=1", "1X=1", "O=/tmp", "M=x", "ARCH=arm", "KBUILD_OUTPUT=x"]
)
def test_what_is_no_variable_or_ours_is_wrong_usage(line: str) -> None:
    with pytest.raises(UsageError, match="--make"):
        obtain.check(KernelRequest(make=(line,)))


def test_finished_kernels_take_no_variables() -> None:
    with pytest.raises(UsageError, match="is a finished kernel"):
        refuse_changes(KernelRequest(make=("LLVM=1",)), "debian:6.1")


def test_variables_reach_make_and_the_module_and_are_part_of_the_digest(tree: Path) -> None:
    plain = _obtain(tree)
    flags = _obtain(tree, make=("KCFLAGS=-DX=1",))
    assert flags.digest != plain.digest
    assert flags.make == {"KCFLAGS": "-DX=1"}  # which guest/module.py builds with
    assert flags.name == "linux + KCFLAGS=-DX=1"
    (log,) = (tree.parent / "cache/orchestrator/work").glob("*/build.log")
    assert "KCFLAGS=-g1 -DX=1" in log.read_text().splitlines()[0]


def test_a_kernel_gets_line_tables_unless_it_has_more(tmp_path: Path) -> None:
    recipe = build.Recipe(base="tinyconfig", make={"KCFLAGS": "-w"})

    def flags(options: str) -> str:
        (tmp_path / ".config").write_text(options)
        return build.with_lines(tmp_path / ".config", recipe)["KCFLAGS"]

    assert flags("# CONFIG_DEBUG_INFO is not set\n") == "-g1 -w"
    assert flags("CONFIG_DEBUG_INFO_NONE=y\n") == "-g1 -w"
    assert flags("CONFIG_DEBUG_INFO=y\nCONFIG_DEBUG_INFO_BTF=y\n") == "-w"


def test_a_compiler_that_is_not_there_is_named(tree: Path) -> None:
    with pytest.raises(Exception, match=r"clang-99 is not installed: apt-get install clang-99"):
        _obtain(tree, make=("LLVM=-99",))


def test_flags_of_workarounds_and_user_add_up() -> None:
    both = toolchain.merged({"KCFLAGS": "-w", "A": "1"}, {"KCFLAGS": "-g1", "A": "2"})
    assert both == {"KCFLAGS": "-w -g1", "A": "2"}


def test_variables_of_the_environment_do_not_get_lost_in_silence(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLVM", "1")
    kernel = _obtain(tree)
    assert "LLVM=1 in the environment has no effect: use --make LLVM=1" in capsys.readouterr().err
    assert "gcc" in kernel.origin["compiler"]


# --- --append ------------------------------------------------------------------------------------


def test_parameters_are_added_or_take_the_place_of_ours() -> None:
    ours = qemu.PARAMETERS
    assert parameters.combined(ours, ()) == ours
    found = parameters.combined(ours, ('threadirqs dyndbg="file x +p"', "watchdog-thresh=10"))
    assert found[-3:] == ("threadirqs", 'dyndbg="file x +p"', "watchdog-thresh=10")
    assert not [one for one in found if one.startswith("watchdog_thresh")]
    users = parameters.combined(ours, ("kaslr pti=on ibt=on",))
    assert not {"nokaslr", "nopti", "ibt=off", "kaslr"} & set(users)
    assert users[-2:] == ("pti=on", "ibt=on")


@pytest.mark.parametrize(
    "text", ["rdinit=/bin/sh", "console=tty0", "a -- b", 'x="', "x" * 2000, "a\nb"]
)
def test_parameters_that_no_run_can_have_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="--append"):
        RunSpec(append=(text,))


def test_parameters_are_repeated() -> None:
    spec = RunSpec(append=("threadirqs", "preempt=full"))
    assert " ".join(spec.argv()).count("--append") == 2


# --- whole configurations ------------------------------------------------------------------------

WHOLE = """#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.1.0 Kernel Configuration
#
CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14) 12.2.0"
CONFIG_SMP=y
CONFIG_NOT_HERE_COMPUTED=y
CONFIG_SYSTEM_TRUSTED_KEYS="debian/certs/debian-uefi-certs.pem"
"""


def test_a_whole_config_asks_only_for_what_can_be_set(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "config-6.1.0-amd64"
    file.write_text(WHOLE)
    kernel = _obtain(tree, fragments=(file,))
    assert kernel.option("SMP") == "y"
    assert "NOT_HERE" not in kernel.origin.get("options lost", "")
    fragment = tmp_path / "mine.config"
    fragment.write_text("CONFIG_NOT_HERE=y\n")
    with pytest.raises(BuildError, match="CONFIG_NOT_HERE=y"):
        _obtain(tree, fragments=(file, fragment))


def test_options_with_a_prompt_can_be_set() -> None:
    text = """
config A
\tbool "Do A"
config B
\tdef_bool y
\tdepends on A
menuconfig C
\ttristate
\tprompt "C" if A
config D
\tbool
\tdefault "x"
"""
    assert config.prompted([text]) == {"CONFIG_A", "CONFIG_C"}


def test_keys_that_the_source_lacks_are_left_out() -> None:
    options = {"CONFIG_SYSTEM_TRUSTED_KEYS": '"debian/x.pem"', "CONFIG_A": '"debian/x.pem"'}
    kept = config.without_missing_files(options, lambda path: False)
    assert kept == {"CONFIG_SYSTEM_TRUSTED_KEYS": '""', "CONFIG_A": '"debian/x.pem"'}
    assert config.without_missing_files(options, lambda path: True) == options


# --- trees ---------------------------------------------------------------------------------------


def test_a_subdirectory_stands_for_its_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _obtain(tree)
    monkeypatch.chdir(tree / "arch" / "x86")
    part = _obtain(Path())
    assert part.digest == whole.digest and part.name == "linux"
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match="is not a kernel source tree"):
        _obtain(Path())


@pytest.mark.parametrize("inside", [True, False])
def test_a_build_directory_stands_for_its_tree_and_is_no_source(
    inside: bool, tree: Path, tmp_path: Path
) -> None:
    whole = _obtain(tree)
    products = (tree if inside else tmp_path) / "out"
    (products / "include" / "generated").mkdir(parents=True)
    (products / "source").symlink_to(tree)
    (products / "Makefile").write_text("include source\n")
    (products / "include/generated/autoconf.h").write_text("#define X\n")
    assert _obtain(products).digest == whole.digest
    assert _obtain(tree).digest == whole.digest


def test_a_dirty_tree_says_so_and_its_changes_are_built(tree: Path) -> None:
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "one")):
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, "-C", tree, *arguments], check=True)
    clean = _obtain(tree)
    (tree / "localversion").write_text("-mine\n")
    local = _obtain(tree)
    assert local.digest != clean.digest
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text() + "\n# changed\n")
    dirty = _obtain(tree)
    assert dirty.name.endswith("with changes") and not clean.name.endswith("with changes")
    assert sources.from_tree(tree).origin["git"].endswith(" with changes")


# --- kCFI ----------------------------------------------------------------------------------------

CALLS = """
int called(int x) { return x + 1; }
int (*volatile pointer)(int) = called;
int call(int x) { return pointer(x); }
"""


def test_the_module_leaves_out_checks_of_kcfi_and_keeps_its_hashes(tmp_path: Path) -> None:
    names = ("clang", *(f"clang-{version}" for version in range(16, 30)))
    flags = ("--target=x86_64-linux-gnu", "-O2", "-mcmodel=kernel", "-fsanitize=kcfi", "-S")
    (tmp_path / "calls.c").write_text(CALLS)

    def compiled(compiler: str, *more: str) -> str | None:
        command = [compiler, *flags, *more, "calls.c", "-o", "-"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    known = [name for name in names if shutil.which(name) and compiled(name)]
    if not known:
        pytest.skip("needs clang 16 or newer")
    ignore = f"-fsanitize-ignorelist={module.SOURCES / 'kcfi.list'}"
    plain, ours = compiled(known[-1]), compiled(known[-1], ignore)
    assert plain and "ud2" in plain and ours
    assert "ud2" not in ours and "__cfi_called:" in ours
    assert "kcfi.list" in module.sources()
