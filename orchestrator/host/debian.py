# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages without root: a private apt that does not change this machine's apt.

It takes the address of the mirror and network settings (`Acquire::*`) from the machine; its lists,
sources and downloads are separate, under cache_dir()/apt. apt verifies the indexes with Debian's
archive keyring, and the packages with the indexes. All failures raise InfraError, since none of
them is the fault of a kernel.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
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
from orchestrator.host import apt_sources, archive, distributions, files, proc, seal
from orchestrator.host.apt_sources import AptSource
from orchestrator.host.files import lock_of
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, cached_dir, is_intact, locked, need_space

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "ORCHESTRATOR_DEBIAN_MIRROR"
"""Environment variable (`URI` or `URI SECURITY_URI`) that overrides the machine's mirror."""
STABLE = ("bullseye", "bookworm", "trixie")
"""Releases that also have -security and -backports suites."""
ROLLING = ("forky", "testing", "sid", "unstable")
RELEASES = {*STABLE, *ROLLING, "stable", "oldstable", "oldoldstable"}
ARCHITECTURE = "amd64"
"""The only architecture of packages that are of use here."""
LISTS_LAST = 24 * 3600
"""Age in seconds after which package lists are fetched again."""
RETRY_AFTER = 600
"""Age in seconds after which lists are fetched again if they lack a package."""


@dataclass(frozen=True, order=True)
class Package:
    """One version of a binary package, and the suite that it is in."""

    name: str
    version: str
    suite: str

    @property
    def upstream(self) -> str:
        """`6.12.43` of `1:6.12.43-1~bpo12+1`."""
        return re.sub(r"^\d+:|[-+~].*$", "", self.version)


def host_suites() -> tuple[str, ...]:
    """The suites whose programs run on this machine; the last may be backports.

    Raises InfraError on a machine that is not a Debian.
    """
    release = distributions.fields()
    codename = release.get("VERSION_CODENAME", "")
    if not codename and release.get("ID", "debian") == "debian":
        codename = "sid"  # before it was given the name of the next release
    if codename in STABLE:
        return (codename, f"{codename}-security", f"{codename}-backports")
    if codename in ROLLING:
        return (codename,)
    raise InfraError(
        f"this machine is not a Debian ({release.get('PRETTY_NAME', codename)}): "
        "install the programs from its own packages"
    )


def candidates(pattern: str, suites: Iterable[str]) -> list[Package]:
    """All packages in `suites` whose whole name matches the regular expression `pattern`, unsorted.

    A suite that the mirror does not have (any more) is skipped with a warning. Raises InfraError if
    no suite could be searched.
    """
    wanted = _configured(suites)
    if not wanted:
        raise InfraError("this machine's apt sources name no mirror for security updates")
    states = [(suite, _searchable(suite)) for suite in wanted]
    failures = unsearched(wanted)
    if len(failures) == len(wanted):
        raise failures[0]
    for failure in failures:
        _skipped(str(failure))
    return [
        package
        for suite, state in states
        if isinstance(state, Path)
        for package in _matching(state, pattern, suite)
    ]


def unsearched(suites: Iterable[str]) -> list[InfraError]:
    """Why this process could not search some of `suites`, one reason each."""
    return [_failures[place] for suite in suites if (place := _place((suite,))) in _failures]


_failures: dict[Path, InfraError] = {}
"""The place of a _state() -> why it cannot be had. A mirror that is down is asked once."""


def _configured(suites: Iterable[str]) -> list[str]:
    """Those of `suites` that this machine has a mirror for.

    Without one for security updates there are just fewer versions to choose from.
    """
    return [suite for suite in suites if not suite.endswith("-security") or _mirrors()[1]]


def _searchable(suite: str) -> Path | InfraError:
    """The _state() of `suite`, or why there is none."""
    place = _place((suite,))
    if place in _failures:
        return _failures[place]
    try:
        return _state((suite,))
    except InfraError as error:
        _failures[place] = error
        return error


@cache
def _skipped(why: str) -> None:
    """Warn about a suite that cannot be searched, once."""
    warn(f"skipped: {why}")


def download(package: Package) -> Path:
    """The .deb of `package`, from the cache or downloaded and verified by apt."""
    return _fetch((package.suite,), [(package.name, package.version)])[0]


def newest(name: str, suites: Sequence[str]) -> Package:
    """The newest version of the package called exactly `name` in `suites`."""
    packages = candidates(re.escape(name), suites)
    if not packages:
        raise InfraError(f"no package {name} in {', '.join(suites)} of the Debian mirror")
    return newest_of(packages)


def newest_of(packages: Iterable[Package]) -> Package:
    """The package with the highest version in dpkg's order. There must be at least one."""
    chosen: Package | None = None
    for package in packages:
        if chosen is None or _newer(package.version, chosen.version):
            chosen = package
    assert chosen is not None
    return chosen


def closure(packages: Sequence[str], suites: Sequence[str]) -> list[Path]:
    """The .debs of `packages` and of all dependencies that are not installed on this machine.

    Recommended packages are left out. If several of `suites` have a package, the last is preferred
    (as with `apt-get -t`).
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
    versions = []
    for line in listing.splitlines():
        if match := re.match(r"'\S+' ([^_\s]+)_([^_\s]+)_\w+\.deb \d+", line):
            versions.append((match[1], urllib.parse.unquote(match[2])))
    if not versions:
        raise InfraError(
            f"apt names nothing to download for {', '.join(packages)}:\n{_tail(listing)}"
        )
    return _fetch(tuple(suites), versions)


def unpack(deb: Path, into: Path) -> None:
    """Unpack the files of `deb` into the directory `into`, which is the root of absolute links.

    A damaged archive is removed from the cache, so that it is downloaded again next time.
    """
    into.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [proc.need("dpkg-deb", "dpkg"), "--fsys-tarfile", deb]
    with tempfile.TemporaryFile() as errors:
        reading = proc.mortal(command)
        with subprocess.Popen(reading, stdout=subprocess.PIPE, stderr=errors) as reader:
            assert reader.stdout
            try:
                archive.unpack(reader.stdout, into, chroot=True)
                problem = ""
            except archive.ArchiveError as error:
                problem = str(error)
                reader.stdout.close()  # so that dpkg-deb ends
        errors.seek(0)
        problem = "\n".join([problem, errors.read().decode(errors="replace")]).strip()
    if trouble := proc.host_trouble(problem):
        raise InfraError(f"{deb.name} cannot be unpacked to {into}: {trouble}")
    if reader.returncode != -signal.SIGPIPE:  # that one is ours
        proc.check_not_killed(command, reader.returncode)
    if problem or reader.returncode:
        if deb.is_relative_to(cache_dir()):
            deb.unlink(missing_ok=True)
        raise InfraError(
            f"{deb.name} is damaged and was removed from the cache, repeat:\n{_tail(problem)}"
        )


def depends(deb: Path) -> list[tuple[str, str | None]]:
    """(package, version) of each dependency of `deb`.

    The version is None unless the dependency requires exactly one (`= 6.1.192-2`).
    """
    text = proc.run([proc.need("dpkg-deb", "dpkg"), "--showformat=${Depends}", "-W", deb]).stdout
    fields = re.findall(r"([a-z0-9][a-z0-9.+-]+)(?::\w+)?(?:\s*\(([<>=]+)\s*([^)]+)\))?", text)
    return [(name, version if relation == "=" else None) for name, relation, version in fields]


# --- the private apt -----------------------------------------------------------------------------


@cache
def _mirrors() -> tuple[str, str | None]:
    """The URIs of the archive and of its security updates (None if missing) in the apt sources.

    They are read from the sources as apt is configured, whatever package lists this machine has
    downloaded: none at all in a container's image.
    """
    if named := os.environ.get(MIRROR_VARIABLE):
        archive, _, security = named.partition(" ")
        return archive, security.strip() or None
    sources = [source for source in apt_sources.configured() if not source.foreign]
    archives = [source for source in sources if _release(source) and not _is_security(source)]
    securities = [source for source in sources if _release(source) and _is_security(source)]
    if not archives:
        raise InfraError(
            f"this machine's apt sources name no Debian mirror: set {MIRROR_VARIABLE} to its URI"
        )
    return _likeliest(archives), _likeliest(securities) if securities else None


def _release(source: AptSource) -> bool:
    """Whether `source` is named like a suite of one of Debian's releases."""
    release = re.sub("-(security|updates|backports|proposed-updates)$", "", source.suite)
    return source.component == "main" and release in RELEASES


def _is_security(source: AptSource) -> bool:
    return source.suite.endswith("-security")


def _likeliest(sources: Sequence[AptSource]) -> str:
    """The URI that is most likely Debian's: others use the names of its suites as well."""

    def weight(uri: str) -> tuple[bool, bool, int, bool]:
        own = [source for source in sources if source.uri == uri]
        folder = uri.rstrip("/").rpartition("/")[2]
        return (
            any(source.debians for source in own),
            any(source.architecture == ARCHITECTURE for source in own),
            len({source.suite for source in own}),
            folder in ("debian", "debian-security"),
        )

    return max(dict.fromkeys(source.uri for source in sources), key=weight)


@cache
def _state(suites: tuple[str, ...]) -> Path:
    """A directory with an apt.conf and recent lists of `suites`, old ones if the mirror is down."""
    state = _place(suites)
    with locked(state / "lock", waiting_for("another run's apt")):
        if _age(state) > LISTS_LAST or seal.damage(state / "lists", ()):
            _refresh(state)
    return state


def _place(suites: tuple[str, ...]) -> Path:
    return cache_dir() / "apt" / "+".join(suites)


def _configure(state: Path) -> None:
    """Write the apt.conf and sources.list of `state` from the machine's current configuration."""
    if not KEYRING.is_file():
        raise InfraError(
            f"{KEYRING} is missing, and without it no package can be verified: "
            "install debian-archive-keyring"
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
    # The machine's apt.conf.d is not read, because its hooks would act on the system's caches. Its
    # network settings are copied, except IndexTargets: those of appstream and apt-file would fetch
    # far more than we need. The Allow* settings are not copied: signatures are always required.
    dump = proc.run(["apt-config", "dump", "--format", '%F "%v";%n']).stdout
    copied_settings = re.compile("Acquire::(?!IndexTargets|Languages|Changelogs|Allow)")
    copied = [line for line in dump.splitlines() if copied_settings.match(line)]
    settings = {
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
        # without it, `apt-get update` exits 0 even if it could not fetch a suite
        "APT::Update::Error-Mode": "any",
        "APT::Sandbox::User": "",  # user _apt cannot enter a home directory
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Debug::NoLocking": "true",  # apt's lock needs root; callers hold our own
    }
    text = "\n".join([*copied, *(f'{key} "{value}";' for key, value in settings.items()), ""])
    (state / "apt.conf").write_text(f'APT::Architectures {{ "amd64"; }};\n{text}')


def _age(state: Path) -> float:
    """Seconds since the lists of `state` were fetched; infinite if they never were."""
    stamp = state / "refreshed"
    return time.time() - stamp.stat().st_mtime if stamp.exists() else float("inf")


def _refresh(state: Path) -> None:
    """Fetch the lists of `state`. The caller holds its lock."""
    stamp = state / "refreshed"
    with ui.step(f"package lists of {state.name.replace('+', ', ')}"):
        try:
            need_space(state, 300, "apt's lists")
            if seal.damage(state / "lists", ()):  # apt believes what it finds there
                files.remove(state / "lists")
            _configure(state)
            _apt(state, ["apt-get", "update"], f"cannot fetch the package lists of {state.name}")
        except InfraError as error:
            if not stamp.exists() or seal.damage(state / "lists", ()):
                raise
            warn(f"using package lists that are {_age(state) / 3600:.0f} hours old: {error}")
            return
    seal.seal(state / "lists")
    stamp.touch()


def _matching(state: Path, pattern: str, suite: str) -> list[Package]:
    """The packages in the lists of `state` that match `pattern`.

    If there are none and the lists are older than RETRY_AFTER, the lists are fetched again. Results
    are kept until the lists change, because a search with apt takes a second.
    """
    memory = state / "answers"
    for attempt in (1, 2):
        known: dict[str, list[list[str]]] = {}
        with contextlib.suppress(OSError):
            if memory.stat().st_mtime >= (state / "refreshed").stat().st_mtime:
                known = files.load(memory) or {}
        if pattern in known:
            return [Package(*fields) for fields in known[pattern]]
        names = _apt(state, ["apt-cache", "pkgnames"], "cannot read apt's lists").split()
        packages = _versions(state, [name for name in names if re.fullmatch(pattern, name)], suite)
        if packages or attempt == 2 or _age(state) < RETRY_AFTER:
            known[pattern] = [
                [package.name, package.version, package.suite] for package in packages
            ]
            files.remember(memory, known)
            break
        with locked(state / "lock"):
            _refresh(state)
    return packages


def _versions(state: Path, names: Sequence[str], suite: str) -> list[Package]:
    """All versions of the packages `names` in the lists of `state`."""
    if not names:
        return []
    listing = _apt(state, ["apt-cache", "madison", *names], "cannot read apt's lists")
    packages = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and fields[2].endswith("Packages"):
            packages.append(Package(fields[0], fields[1], suite))
    return packages


def _fetch(suites: tuple[str, ...], versions: Sequence[tuple[str, str]]) -> list[Path]:
    """The .debs of the (package, version) pairs in order.

    Those that are not in the cache are downloaded from `suites`.
    """
    store = cache_dir() / "debs"

    def place(pair: tuple[str, str]) -> Path:
        return store / "_".join(pair).replace(":", "%3a")

    # One download at a time: two runs that need the same package share it, and the mirror limits
    # the speed anyway.
    download = store / "download"
    with locked(lock_of(download), waiting_for("another run's download")):
        missing = [pair for pair in versions if not is_intact(place(pair))]
        if missing:
            title = (
                missing[0][0]
                if len(missing) == 1
                else f"{missing[0][0]} and {len(missing) - 1} more packages"
            )
            partial = files.partial_dir(download)
            try:
                with ui.step(f"download {title}"):
                    _download(_state(suites), missing, title, partial)
                for pair in missing:
                    _take(place(pair), partial, *pair)
            finally:
                files.remove(partial)
    return [next(place(pair).glob("*.deb")) for pair in versions]


def _download(state: Path, versions: Sequence[tuple[str, str]], title: str, into: Path) -> None:
    """Download the (package, version) pairs with apt, which verifies them."""
    need_space(into, 300, f"downloading {title}")
    # the machine's proxy may have changed since the lists were fetched
    _configure(state)
    names = [f"{name}={version}" for name, version in versions]
    _apt(state, ["apt-get", "download", *names], f"cannot download {title}", cwd=into)


def _take(place: Path, downloads: Path, name: str, version: str) -> None:
    """Move a .deb from the directory `downloads` to its place in the cache."""

    def make(partial: Path) -> None:
        debs = list(downloads.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"))
        if not debs:
            raise InfraError(f"apt did not download {name} although it reported success")
        debs[0].rename(partial / debs[0].name)

    cached_dir(place, make)


def _apt(state: Path, command: Sequence[str], problem: str, cwd: Path | None = None) -> str:
    """Run an apt program with `state` and return its output.

    problem: the beginning of the error message if it fails.
    """
    env = {"APT_CONFIG": str(state / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    # A file instead of -o options: apt reads $APT_CONFIG before the machine's own files, so that it
    # can exclude them.
    try:
        return proc.run(command, cwd=cwd, env=env).stdout
    except subprocess.CalledProcessError as error:
        raise InfraError(f"{problem}:\n{_tail(error.output)}") from error


def _tail(output: str, lines: int = 4) -> str:
    """The last lines of apt's output, only errors and warnings if there are any."""
    problems = [line for line in output.splitlines() if line.startswith(("E:", "W:", "Err:"))]
    return "\n".join((problems or output.splitlines())[-lines:])


def _newer(left: str, right: str) -> bool:
    return proc.run(["dpkg", "--compare-versions", left, "gt", right], check=False).returncode == 0
