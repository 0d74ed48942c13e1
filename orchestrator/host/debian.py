"""Debian packages without root: a private apt that reads the machine's configuration and changes nothing of it.

Only the mirror's address, proxies and the like (`Acquire::*`) are taken from the machine; lists, sources and downloads
are our own, under cache_dir()/apt. Indexes are checked against Debian's own archive keyring and packages against the
indexes, both by apt. All failures are InfraError: nothing here says anything about a kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, locked, need_space, write_whole

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "ORCHESTRATOR_DEBIAN_MIRROR"
"""Environment variable that overrides the mirror found in the machine's apt sources (`URI` or `URI SECURITY_URI`)."""
STABLE = ("bullseye", "bookworm", "trixie")
"""Releases that have -security and -backports beside them."""
ROLLING = ("forky", "testing", "sid", "unstable")
LISTS_LAST = 24 * 3600
"""Seconds after which package lists are fetched anew."""
RETRY_AFTER = 600
"""Seconds after which a package that was not found is worth fetching the lists again."""


@dataclass(frozen=True, order=True)
class Package:
    """One version of a binary package and the suite that has it."""

    name: str
    version: str
    suite: str

    @property
    def upstream(self) -> str:
        """`6.12.43` of `1:6.12.43-1~bpo12+1`."""
        return re.sub(r"^\d+:|[-+~].*$", "", self.version)


def host_suites() -> tuple[str, ...]:
    """The suites that match this machine, so that what is unpacked from them runs on it; the last may be backports."""
    release = Path("/etc/os-release")
    text = release.read_text() if release.is_file() else ""
    found = re.search(r'^VERSION_CODENAME="?(\w+)', text, re.MULTILINE)
    codename = found[1] if found else "sid"
    if codename in STABLE:
        return (codename, f"{codename}-security", f"{codename}-backports")
    if codename in ROLLING:
        return (codename,)
    raise InfraError(
        f"this machine is not a Debian (codename {codename}): install the programs from its own packages"
    )


def candidates(pattern: str, suites: Iterable[str]) -> list[Package]:
    """All packages whose whole name matches the regular expression `pattern`, in any of `suites`, unsorted.

    A suite that the mirror does not have (any more) is skipped with a note; InfraError when none could be asked.
    """
    found: list[Package] = []
    failures: list[InfraError] = []
    asked = 0
    for suite in suites:
        if suite.endswith("-security") and _mirrors()[1] is None:
            continue  # a machine without a security mirror just has fewer versions to choose from
        try:
            state = _state((suite,))
        except InfraError as error:
            failures.append(error)
            continue
        asked += 1
        found += _matching(state, pattern, suite)
    if not asked:
        raise (
            failures[0]
            if failures
            else InfraError("this machine's apt sources name no mirror for security updates")
        )
    for failure in failures:
        warn(f"skipped: {failure}")
    return found


def download(package: Package) -> Path:
    """The .deb of `package`, verified by apt against the signed index; from the cache when it was fetched before."""
    return _fetch(_state((package.suite,)), [(package.name, package.version)])[0]


def newest(name: str, suites: Sequence[str]) -> Package:
    """The newest version of the package called exactly `name` in `suites`."""
    found = candidates(re.escape(name), suites)
    if not found:
        raise InfraError(f"no package {name} in {', '.join(suites)} of the Debian mirror")
    return newest_of(found)


def newest_of(packages: Iterable[Package]) -> Package:
    """The one with the highest version, by dpkg's rules."""
    chosen: Package | None = None
    for package in packages:
        if chosen is None or _newer(package.version, chosen.version):
            chosen = package
    assert chosen is not None
    return chosen


def closure(packages: Sequence[str], suites: Sequence[str]) -> list[Path]:
    """The .debs of `packages` and of all they depend on that this machine has not installed, recommendations left out.

    The last of `suites` is preferred where several have a package (as `apt-get -t`).
    """
    state = _state(tuple(suites))
    command = [
        "apt-get",
        "-t",
        suites[-1],
        "--no-install-recommends",
        "--reinstall",
        "--print-uris",
        "-y",
        "install",
    ]
    listing = _apt(state, [*command, *packages], f"cannot resolve {', '.join(packages)}")
    wanted = []
    for line in listing.splitlines():
        if match := re.match(r"'\S+' ([^_\s]+)_([^_\s]+)_\w+\.deb \d+", line):
            wanted.append((match[1], urllib.parse.unquote(match[2])))
    if not wanted:
        raise InfraError(
            f"apt names nothing to download for {', '.join(packages)}:\n{_tail(listing)}"
        )
    return _fetch(state, wanted)


def unpack(deb: Path, into: Path) -> None:
    """Unpack the files of `deb` below `into`. A damaged archive is removed from the cache, so that a repeat helps."""
    into.mkdir(parents=True, exist_ok=True)
    try:
        proc.run([proc.need("dpkg-deb", "dpkg"), "-x", deb, into])
    except subprocess.CalledProcessError as error:
        if "No space left" in error.output:
            raise InfraError(
                f"no space left in {into} for {deb.name}: free some and repeat"
            ) from error
        if deb.is_relative_to(cache_dir()):
            deb.unlink(missing_ok=True)
        raise InfraError(
            f"{deb.name} is damaged and was removed from the cache, repeat:\n{_tail(error.output)}"
        ) from error


def depends(deb: Path) -> list[tuple[str, str | None]]:
    """What `deb` depends on: package names, with the version where exactly one is asked for (`= 6.1.192-2`)."""
    text = proc.run([proc.need("dpkg-deb", "dpkg"), "--showformat=${Depends}", "-W", deb]).stdout
    found = re.findall(r"([a-z0-9][a-z0-9.+-]+)(?::\w+)?(?:\s*\(([<>=]+)\s*([^)]+)\))?", text)
    return [(name, version if relation == "=" else None) for name, relation, version in found]


# --- the private apt -------------------------------------------------------------------------------------------------


@cache
def _mirrors() -> tuple[str, str | None]:
    """The URIs of the archive and of its security part (None where there is none) in the machine's sources."""
    if named := os.environ.get(MIRROR_VARIABLE):
        archive, _, security = named.partition(" ")
        return archive, security.strip() or None
    proc.need("apt-get", "apt (this needs a Debian)")
    shape = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)\t$(SIGNED_BY)"
    try:
        listing = proc.run(
            ["apt-get", "indextargets", "--format", shape, "Created-By: Packages"]
        ).stdout
    except subprocess.CalledProcessError as error:
        raise InfraError(
            f"apt cannot read this machine's sources:\n{_tail(error.output)}"
        ) from error
    archives: dict[str, int] = {}
    securities: dict[str, int] = {}
    releases = {*STABLE, *ROLLING, "stable", "oldstable", "oldoldstable"}
    for line in listing.splitlines():
        uri, release, component, origin, signed_by = (line.split("\t") + [""] * 5)[:5]
        name = release.removesuffix("-security").removesuffix("-updates").removesuffix("-backports")
        if name not in releases or component != "main" or origin not in ("", "Debian"):
            continue
        # Others' repositories also call their suites after Debian's: trust what names Debian or its keyring first.
        weight = 2 * (origin == "Debian") + ("debian-archive" in signed_by)
        group = securities if release.endswith("-security") else archives
        group[uri] = max(weight, group.get(uri, 0))
    if not archives:
        raise InfraError(
            f"this machine's apt sources name no Debian mirror: set {MIRROR_VARIABLE} to one's URI"
        )
    return max(archives, key=archives.__getitem__), max(
        securities, key=securities.__getitem__, default=None
    )


@cache
def _state(suites: tuple[str, ...]) -> Path:
    """A directory with an apt.conf and fresh lists of `suites`; old lists will do when the mirror cannot be reached."""
    state = cache_dir() / "apt" / "+".join(suites)
    with locked(state / "lock", waiting_for("another run's apt")):
        if _age(state) > LISTS_LAST:
            _refresh(state)
    return state


def _configure(state: Path) -> None:
    """Write the apt.conf and sources.list of `state`, after the machine's configuration as it is now."""
    if not KEYRING.is_file():
        raise InfraError(
            f"{KEYRING} is missing, without it no package can be trusted: install debian-archive-keyring"
        )
    archive, security = _mirrors()
    lines = []
    suites = state.name.split("+")
    for suite in suites:
        uri = security if suite.endswith("-security") else archive
        if uri:
            lines.append(f"deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n")
    if not lines:
        raise InfraError(f"this machine's apt sources name no mirror for {', '.join(suites)}")
    for part in ("lists/partial", "cache/archives/partial", "etc"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text("".join(lines))
    # The machine's own parts are not read (their hooks would act on the system's caches); its network settings are
    # copied. IndexTargets stay apt's own: appstream's and apt-file's would fetch far more than we need.
    dump = proc.run(["apt-config", "dump", "--format", '%F "%v";%n']).stdout
    unwanted = (
        "IndexTargets",
        "Languages",
        "Changelogs",
        "Allow",
    )  # Allow*: a signature must be there, always
    wanted = re.compile(f"Acquire::(?!{'|'.join(unwanted)})")
    copied = [line for line in dump.splitlines() if wanted.match(line)]
    own = {
        "Dir::Etc": f"{state}/etc",
        "Dir::Etc::main": f"{state}/etc/none",
        "Dir::Etc::parts": f"{state}/etc/none",
        "Dir::Etc::sourcelist": f"{state}/sources.list",
        "Dir::Etc::sourceparts": f"{state}/etc/none",
        "Dir::Etc::netrc": "/etc/apt/auth.conf",
        "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
        "Dir::State": str(state),
        "Dir::State::lists": f"{state}/lists",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": f"{state}/cache",
        "Dir::Log": f"{state}/cache",
        "APT::Architecture": "amd64",
        "APT::Update::Error-Mode": "any",  # else a suite that could not be fetched still exits 0
        "APT::Sandbox::User": "",  # _apt may not enter a home directory
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Debug::NoLocking": "true",  # dpkg's lock is root's; ours is taken around it
    }
    text = "\n".join([*copied, *(f'{key} "{value}";' for key, value in own.items()), ""])
    (state / "apt.conf").write_text(f'APT::Architectures {{ "amd64"; }};\n{text}')


def _age(state: Path) -> float:
    """Seconds since the lists of `state` were fetched; infinite when they never were."""
    stamp = state / "refreshed"
    return time.time() - stamp.stat().st_mtime if stamp.exists() else float("inf")


def _refresh(state: Path) -> None:
    """Fetch the lists of `state`, whose lock is held."""
    stamp = state / "refreshed"
    with ui.step(f"package lists of {state.name.replace('+', ', ')}"):
        try:
            need_space(state, 300, "apt's lists")
            _configure(state)
            _apt(state, ["apt-get", "update"], f"cannot fetch the package lists of {state.name}")
        except InfraError as error:
            if not stamp.exists():
                raise
            warn(f"using package lists that are {_age(state) / 3600:.0f} hours old: {error}")
            return
    stamp.touch()


def _matching(state: Path, pattern: str, suite: str) -> list[Package]:
    """The packages of `state` by `pattern`; when there are none and the lists are not quite new, they are renewed.

    Answers are kept until the lists change, so that asking for a kernel that is there costs no second of apt.
    """
    memory = state / "answers.json"
    for attempt in (1, 2):
        known: dict[str, list[list[str]]] = {}
        with contextlib.suppress(OSError, ValueError):
            if memory.stat().st_mtime >= (state / "refreshed").stat().st_mtime:
                known = json.loads(memory.read_text())
        if pattern in known:
            return [Package(*fields) for fields in known[pattern]]
        names = _apt(state, ["apt-cache", "pkgnames"], "cannot read apt's lists").split()
        chosen = [name for name in names if re.fullmatch(pattern, name)]
        found = []
        if chosen:
            for line in _apt(
                state, ["apt-cache", "madison", *chosen], "cannot read apt's lists"
            ).splitlines():
                fields = [field.strip() for field in line.split("|")]
                if len(fields) == 3 and fields[2].endswith("Packages"):
                    found.append(Package(fields[0], fields[1], suite))
        if found or attempt == 2 or _age(state) < RETRY_AFTER:
            known[pattern] = [[package.name, package.version, package.suite] for package in found]
            write_whole(memory, json.dumps(known))
            break
        with locked(state / "lock"):
            _refresh(state)
    return found


def _fetch(state: Path, wanted: Sequence[tuple[str, str]]) -> list[Path]:
    """The .debs of the (package, version) pairs, in that order, downloaded where the cache has them not."""
    store = cache_dir() / "debs"
    store.mkdir(parents=True, exist_ok=True)

    def cached(name: str, version: str) -> Path | None:
        return next(store.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"), None)

    # One download at a time: two runs that want the same package share it, and the mirror is the bottleneck anyway.
    with locked(store / ".lock", waiting_for("another run's download")):
        missing = [pair for pair in wanted if not cached(*pair)]
        if missing:
            title = (
                missing[0][0]
                if len(missing) == 1
                else f"{missing[0][0]} and {len(missing) - 1} more packages"
            )
            for stale in store.glob(".partial-*"):
                shutil.rmtree(stale, ignore_errors=True)
            with (
                ui.step(f"download {title}"),
                tempfile.TemporaryDirectory(prefix=".partial-", dir=store) as partial,
            ):
                need_space(store, 300, f"downloading {title}")
                _configure(
                    state
                )  # the machine's proxy may have changed since the lists were fetched
                names = [f"{name}={version}" for name, version in missing]
                _apt(
                    state,
                    ["apt-get", "download", *names],
                    f"cannot download {title}",
                    cwd=Path(partial),
                )
                for deb in Path(partial).glob("*.deb"):
                    deb.rename(store / deb.name)
    found = [cached(*pair) for pair in wanted]
    if None in found:
        raise InfraError(
            f"apt did not deliver {wanted[found.index(None)][0]} although it reported success"
        )
    return [deb for deb in found if deb]


def _apt(state: Path, command: Sequence[str], problem: str, cwd: Path | None = None) -> str:
    """Run an apt program on `state` and return what it printed; `problem` starts the sentence when it fails."""
    env = {"APT_CONFIG": str(state / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    # By a file and not by -o: only $APT_CONFIG is read before the machine's own parts, which it leaves out.
    try:
        return proc.run(command, cwd=cwd, env=env).stdout
    except subprocess.CalledProcessError as error:
        raise InfraError(f"{problem}:\n{_tail(error.output)}") from error


def _tail(output: str, lines: int = 4) -> str:
    """The lines of apt's output that tell what went wrong."""
    told = [line for line in output.splitlines() if line.startswith(("E:", "W:", "Err:"))]
    return "\n".join((told or output.splitlines())[-lines:])


def _newer(left: str, right: str) -> bool:
    return proc.run(["dpkg", "--compare-versions", left, "gt", right], check=False).returncode == 0
