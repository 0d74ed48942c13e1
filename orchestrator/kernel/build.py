# SPDX-License-Identifier: GPL-2.0-only
"""Configures and builds a kernel in a workspace, and copies out what a run needs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import BuildError, InfraError, shortened
from orchestrator.host import files, proc, seal
from orchestrator.host.paths import cache_dir
from orchestrator.kernel import config, toolchain
from orchestrator.kernel.workspace import Workspace

MADE_KEY = "certs/signing_key.pem"
"""The key for modules that the build makes itself."""
LAYOUT = 2
"""Part of every digest. Increase it when the result of a build changes."""
LINE_TABLES = {"KCFLAGS": "-g1"}
"""Variables for make, for a kernel without debug information of its own: file and line of each
instruction, for traces, and nothing about variables and types."""
TARGET = {"ARCH": "x86_64", "CROSS_COMPILE": ""}
"""Variables for make, for kernels and modules: some trees set others in their Makefile."""
FIXED = {
    **TARGET,
    "LOCALVERSION": "",
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "orchestrator",
    "KBUILD_BUILD_HOST": "orchestrator",
    "KBUILD_BUILD_VERSION": "1",
}
"""Variables for make that keep user, time and host out of the image: same input, same bytes."""
FOREIGN_VARIABLES = re.compile(
    r"(MAKE.*|MFLAGS|GNUMAKEFLAGS|ARCH|CROSS_COMPILE|KBUILD_.*|KCFLAGS|KCONFIG_.*"
    r"|O|V|W|C|M|CC|LD|LLVM)"
)
"""Environment variables that would change or break the build; a Makefile may have started us."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to configure and build a source."""

    base: str
    """One of make's targets tinyconfig, allnoconfig and defconfig, or the text of a .config."""
    fragments: Sequence[tuple[str, str]] = ()
    """(name, text), merged on the base in order."""
    settings: Sequence[str] = ()
    """Single options (`CONFIG_X=y`), merged last."""
    optional: frozenset[str] = frozenset()
    """Names of fragments whose options may get lost: our defaults, on a tree of any version."""
    make: Mapping[str, str] = field(default_factory=dict)
    """Variables for make's command line."""

    def identity(self) -> str:
        """Text that is equal exactly for recipes that this compiler makes the same kernel of."""
        parts = [
            LAYOUT,
            self.base,
            list(self.fragments),
            list(self.settings),
            sorted(self.make.items()),
            toolchain.described(self.make),
        ]
        return repr(parts)

    def requests(self, source: Path) -> list[tuple[str, config.Options]]:
        """(who requests, options); later ones override earlier ones. source: the kernel's tree."""

        def exists(path: str) -> bool:
            return path == MADE_KEY or (source / path).exists()

        fragments = [
            (who, config.without_missing_files(config.parse(text, who), exists))
            for who, text in self.fragments
        ]
        return [*fragments, ("setting", config.settings(self.settings))]

    @property
    def whole(self) -> frozenset[str]:
        """Names of the fragments that are the .config of a whole kernel."""
        return frozenset(who for who, text in self.fragments if config.is_whole(text))


_NEEDED = {"make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "gcc": "gcc"}


def build(work: Workspace, recipe: Recipe, name: str, into: Path) -> list[config.LostOption]:
    """Build the source in `work` by `recipe` and put what a run needs into the directory `into`:

    bzImage, vmlinux (with symbols), config, release, and kbuild/, which is enough to build modules.

    Returns the options of the optional fragments that got lost. Raises BuildError if any other
    option got lost or something does not compile; the message has the compiler's own lines.
    """
    for program, package in {**_NEEDED, **toolchain.needed(recipe.make)}.items():
        proc.need(program, package)
    _discard_unknown(work)
    try:
        with ui.step(f"configure {name}"):
            lost = _configure(work, recipe)
        variables = with_lines(work.build / ".config", recipe)
        with ui.step(f"build {name}") as step:
            _make(work, variables, ["bzImage", "modules_prepare"], name, step)
    except BuildError:
        # make ended by itself, and removes files that it has only half written
        _note_built(work)
        raise
    _note_built(work)
    _collect(work, into)
    return lost


def with_lines(dot_config: Path, recipe: Recipe) -> Mapping[str, str]:
    """Variables for make that give a kernel with this .config line tables at least."""
    final = config.parse(dot_config.read_text(), str(dot_config))
    if final.get("CONFIG_DEBUG_INFO") == "y":  # -g1 behind its -g would take the rest away
        return recipe.make
    return toolchain.merged(LINE_TABLES, recipe.make)


# --- configuration -------------------------------------------------------------------------------


def _configure(work: Workspace, recipe: Recipe) -> list[config.LostOption]:
    """Write build/.config, only if it changes, and return the optional options that got lost.

    Raises BuildError if another requested option got lost.
    """
    requests = recipe.requests(work.src)
    key = hashlib.sha256(repr((recipe.identity(), _kconfig_state(work))).encode()).hexdigest()
    remembered, final = work.root / "config.key", work.build / ".config"
    done = f"{key} {_hash(final)}"
    if not final.is_file() or not remembered.is_file() or remembered.read_text() != done:
        remembered.unlink(missing_ok=True)
        # Configure in a separate output directory. $KCONFIG_CONFIG is not enough: tinyconfig merges
        # on a file that is always named .config.
        draft = work.root / "configure" / ".config"
        draft.parent.mkdir(exist_ok=True)
        draft.unlink(missing_ok=True)
        if recipe.base in ("tinyconfig", "allnoconfig", "defconfig"):
            _make(work, recipe.make, [recipe.base], recipe.base, output=draft.parent)
        else:
            draft.write_text(recipe.base)
        options = config.parse(draft.read_text(), "base configuration")
        for _, more in requests:
            for option, value in more.items():
                # Move it to the end: kconfig takes the last member of a choice that is set.
                options.pop(option, None)
                options[option] = value
        draft.write_text(config.render(options))
        _make(work, recipe.make, ["olddefconfig"], "olddefconfig", output=draft.parent)
        if not final.is_file() or final.read_bytes() != draft.read_bytes():
            shutil.copyfile(draft, final)
    result = config.parse(final.read_text(), str(final))
    lost = config.lost(requests, result)
    if recipe.whole:
        # Only what can be set was asked for; what cannot be set here is reported.
        prompted = config.prompted(_kconfig_texts(work))
        lost = [one for one in lost if one.by not in recipe.whole or one.option in prompted]
    failed = [one for one in lost if one.by not in recipe.optional | recipe.whole]
    if failed:
        count = f"{len(failed)} option{'s' if len(failed) > 1 else ''}"
        raise BuildError(
            f"{count} did not survive `make olddefconfig`:\n"
            + "\n".join(f"  {option}" for option in failed)
        )
    remembered.write_text(f"{key} {_hash(final)}")
    return lost


def _kconfig_state(work: Workspace) -> list[str]:
    """Path, size and time of the source's Kconfig files: a patch to one can change the options."""
    listing = []
    for folder, folders, names in os.walk(work.src):
        if folder == str(work.src):
            folders.remove("Documentation") if "Documentation" in folders else None
        for name in names:
            if name.startswith(("Kconfig", "tiny", "x86_64_def")) or (
                folder == str(work.src) and name == "Makefile"
            ):
                status = os.stat(f"{folder}/{name}")  # noqa: PTH116
                listing.append(f"{folder}/{name} {status.st_size} {status.st_mtime_ns}")
    return sorted(listing)


def _kconfig_texts(work: Workspace) -> Iterator[str]:
    for line in _kconfig_state(work):
        path = Path(line.rsplit(" ", 2)[0])
        if path.name.startswith("Kconfig"):
            yield path.read_text(errors="replace")


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


# --- make ----------------------------------------------------------------------------------------


def _make(
    work: Workspace,
    variables: Mapping[str, str],
    targets: Sequence[str],
    name: str,
    step: ui.Progress | None = None,
    output: Path | None = None,
) -> None:
    """Run make with `targets` in the workspace.

    Its output goes to build.log; `step` shows the progress.
    output: the directory for O=, by default the workspace's build directory.
    Raises BuildError, or InfraError if the host refused something: disk, memory, processes.
    """
    environment = {
        key: value for key, value in os.environ.items() if not FOREIGN_VARIABLES.fullmatch(key)
    }
    if shutil.which("ccache"):
        environment |= {
            "CCACHE_DIR": str(cache_dir() / "ccache"),
            # Workspaces share objects: ccache makes paths below this one relative before it
            # compares.
            "CCACHE_BASEDIR": str(work.root),
            "CCACHE_NOHASHDIR": "1",
        }
    settings = {**FIXED, **variables, **toolchain.variables(variables)}
    environment["LC_ALL"] = "C.UTF-8"
    jobs = len(os.sched_getaffinity(0))
    command = ["make", f"-j{jobs}", "-C", str(work.src), f"O={output or work.build}"]
    command += [f"{key}={value}" for key, value in settings.items()]
    log = work.root / "build.log"
    counter = _ObjectCounter(work.root / "objects", work.build / ".config", step)
    status, lines = _run([*command, *targets], environment, log, work.lock, counter)
    if status == 0:
        return
    text = "".join(lines)
    if trouble := proc.host_trouble(text):
        raise InfraError(
            f"this machine could not build {name}: {shortened(trouble)} (the whole log: {log})"
        )
    raise BuildError(f"{name} does not build:\n{explain(text)}\n(the whole log: {log})")


def _estimated_objects(config: Path) -> int:
    """About how many objects a kernel with this .config has; 0 if there is no such file.

    They grow with the options that are built in. With our small configuration this was at most 3 %
    off in 13 trees, from 5.6 (383 options, 958 objects) to 7.3 (588, 1,230), in November 2026.
    """
    try:
        return 450 + 4 * config.read_bytes().count(b"=y\n") // 3
    except OSError:
        return 0


class _ObjectCounter:
    """Shows how many objects are built so far, out of the number in the largest build so far.

    That number is remembered in the file `memory`. Before the first build it is estimated.
    """

    def __init__(self, memory: Path, config: Path, step: ui.Progress | None) -> None:
        self._memory, self._step, self._made, self._shown = memory, step, 0, 0.0
        try:
            self._largest = int(memory.read_text())
        except (OSError, ValueError):
            self._largest = 0
        self._total = self._largest or (_estimated_objects(config) if step else 0)

    def line(self, text: str) -> None:
        if not self._step or not re.match(r"  (CC|AS|LD|AR)\s", text):
            return
        self._made += 1
        if time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            self._step.count(self._made, self._total, "objects")

    def finish(self) -> None:
        if self._made > self._largest:
            self._memory.write_text(str(self._made))


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    lock: int,
    counter: _ObjectCounter,
) -> tuple[int, list[str]]:
    """Run make and read its output line by line; its exit status and the lines.

    Raises InfraError if make was killed.
    On Ctrl-C, make gets 5 s to remove files that it has only half written.
    """
    lines: list[str] = []
    child = subprocess.Popen(
        proc.mortal(command),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
    )
    assert child.stdout
    try:
        with log.open("w") as sink:
            sink.write(f"+ {' '.join(command)}\n")
            for raw in child.stdout:
                line = raw.decode(errors="replace")
                sink.write(line)
                lines.append(line)
                counter.line(line)
        status = child.wait()
    except BaseException:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        raise
    finally:
        child.stdout.close()
    proc.check_not_killed(command, status)
    if status == 0:
        counter.finish()
    return status, lines


def explain(output: str) -> str:
    """The lines of make's output that show what failed.

    These are the first error with its context; without one, the lines before make's `***`.
    """
    lines = output.splitlines()
    errors = re.compile(
        r"(\berror\b ?:|\bError: |undefined reference|multiple definition|fatal error|ERROR: )"
    )
    first = next((number for number, line in enumerate(lines) if errors.search(line)), None)
    if first is None:
        stars = (number for number, line in enumerate(lines) if "***" in line)
        first = next(stars, len(lines) - 1)
        return "\n".join(lines[max(0, first - 5) : first + 1])
    start = first
    while start > 0 and re.match(
        r"(In file included|\s+from )|.*: In function|.*: warning:", lines[start - 1]
    ):
        start -= 1
    shown: list[str] = []
    for line in lines[start:]:
        if len(shown) >= 20 or (
            len(shown) > first - start and re.match(r"(make(\[\d+\])?:|  [A-Z]{2,}\s)", line)
        ):
            break
        shown.append(line)
    return "\n".join(shown)


# --- what make left behind -----------------------------------------------------------------------


def _note_built(work: Workspace) -> None:
    """Note what make has left in the workspace, for _discard_unknown()."""
    files.save(work.root / "built", dict(_built(work)))


def _discard_unknown(work: Workspace) -> None:
    """Remove files that are not as the last make left them when it ended by itself.

    They were half written by a make that was killed, or damaged later. make would keep a truncated
    object, since it is newer than its source.
    """
    known = files.load(work.root / "built") or {}
    unknown = [path for path, stamp in _built(work) if known.get(path) != stamp]
    for path in unknown:
        (work.root / path).unlink()
    if unknown:
        (work.root / "config.key").unlink(missing_ok=True)


def _built(work: Workspace) -> Iterator[tuple[str, seal.Stamp]]:
    """Path and stamp of each file that make has written."""
    for top in (work.build, work.root / "configure"):
        if top.is_dir():
            for path in seal.listed(top):
                yield f"{top.name}/{path}", seal.stamp(f"{top}/{path}")


# --- results -------------------------------------------------------------------------------------


def _collect(work: Workspace, into: Path) -> None:
    """Copy the results out of the workspace, where the next build overwrites them."""
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work.build / "arch/x86/boot/bzImage", into / "bzImage")
    shutil.copyfile(work.build / "vmlinux", into / "vmlinux")
    shutil.copyfile(work.build / ".config", into / "config")
    shutil.copyfile(work.build / "include/config/kernel.release", into / "release")
    kbuild = into / "kbuild"
    # Source and build products side by side, as in a tree built in place; distributions' header
    # packages have the same files. Files in src are never written to, so they can be linked. Those
    # in build are overwritten, so they are copied.
    for part in ("include", "scripts", "arch/x86/include"):
        _gather(work.src / part, kbuild / part, link=True)
        _gather(work.build / part, kbuild / part, link=False)
    for pattern in ("Makefile", "arch/x86/Makefile*", "arch/Kconfig", "tools/scripts/*"):
        for file in work.src.glob(pattern):
            _gather(file, kbuild / file.relative_to(work.src), link=True)
    for name in (".config", "tools/objtool/objtool", "Module.symvers"):
        if (work.build / name).exists():
            _gather(work.build / name, kbuild / name, link=False)
    # Only `make modules` writes Module.symvers, but it builds all modules. Without any, modules can
    # only use the symbols of vmlinux.
    if not (kbuild / "Module.symvers").exists() and (work.build / "vmlinux.symvers").exists():
        shutil.copyfile(work.build / "vmlinux.symvers", kbuild / "Module.symvers")


def _gather(source: Path, target: Path, *, link: bool) -> None:
    """Copy or hard-link the file or directory `source`, if it exists, to `target`.

    Objects and make's dependency files in a directory are left out.
    """
    if not source.exists() and not source.is_symlink():
        return
    if source.is_dir() and not source.is_symlink():
        for child in source.iterdir():
            if not child.name.endswith((".o", ".a", ".cmd", ".d")):
                _gather(child, target / child.name, link=link)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif link:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
    else:
        shutil.copy2(source, target)
