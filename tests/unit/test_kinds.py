# SPDX-License-Identifier: GPL-2.0-only
"""The registry of kernel kinds: it is complete, and each form of request has exactly one kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.host.paths import PROJECT
from orchestrator.kernel import kinds, obtain
from orchestrator.kernel.kinds.kind import KINDS, Kind
from orchestrator.kernel.model import KernelRequest

DIGEST = "0" * 64
BZIMAGE, TREE = {"bzimage": Path("bzImage")}, {"tree": Path("linux")}

REQUESTS = [
    ({"selector": "6.1-int3"}, "DefinitionKind"),
    ({"selector": "6.1-plain"}, "DefinitionKind"),
    ({"selector": "./mine.yaml"}, "DefinitionKind"),
    ({"selector": "debian:6.1"}, "DebianImageKind"),
    ({"selector": "debian:6.1.176"}, "DebianImageKind"),
    ({"selector": "debian:6.1-cloud"}, "DebianImageKind"),
    ({"selector": "debian-source:6.12"}, "DebianSourceKind"),
    ({"selector": "git:WHERE@REF"}, "GitKind"),
    ({"selector": f"built:{DIGEST}"}, "BuiltKind"),
    (TREE, "TreeKind"),
    (BZIMAGE, "ImageKind"),
    (BZIMAGE | {"headers": Path("headers")}, "ImageKind"),
    (TREE | {"selector": "debian:6.1"}, "TreeKind"),
    (BZIMAGE | {"selector": "git:WHERE@REF"}, "ImageKind"),
]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("fields", "expected"), REQUESTS, ids=str)
def test_exactly_one_kind_serves_each_request(fields: dict[str, object], expected: str) -> None:
    request = KernelRequest(**fields)  # type: ignore[arg-type]
    assert [type(kind).__name__ for kind in KINDS if kind.matches(request)] == [expected]
    assert type(kinds.kind_of(request)).__name__ == expected


def test_every_kind_serves_one_of_these_requests() -> None:
    assert {type(kind).__name__ for kind in KINDS} == {expected for _, expected in REQUESTS}


def test_every_file_registers_one_kind() -> None:
    folder = PROJECT / "orchestrator" / "kernel" / "kinds"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "kind"}
    assert sorted(type(kind).__module__.rpartition(".")[2] for kind in KINDS) == sorted(files)


def test_every_selector_of_the_readme_is_served() -> None:
    table = (PROJECT / "README.md").read_text().partition("| `--kernel` | |")[2].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    forms = [form for row in rows for form in re.findall(r"`([^`]+)`", row)]
    assert len(forms) >= 8
    tested = {str(fields.get("selector")) for fields, _ in REQUESTS} | {
        "--tree PATH",
        "--bzimage FILE --headers DIR",
    }
    assert set(forms) <= tested


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_every_kind_can_check_identify_and_obtain(kind: Kind) -> None:
    for method in ("matches", "check", "identify", "fetch", "obtain"):
        assert callable(getattr(kind, method))
    assert type(kind).obtain is not Kind.obtain and type(kind).identify is not Kind.identify


@pytest.mark.parametrize("selector", ["6.1-int", "foo:6.1"])
def test_an_unknown_selector_is_an_unknown_kernel(selector: str) -> None:
    request = KernelRequest(selector=selector)
    message = re.escape(f"unknown kernel {selector}") + ".*`orchestrator kernels list` shows them"
    for call in (obtain.obtain, obtain.identify):
        with pytest.raises(UsageError, match=message):
            call(request)
    with pytest.raises(UsageError, match=message):
        obtain.fetch(selector)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (BZIMAGE | TREE, "give only one of them"),
        ({"headers": Path("headers")}, "--headers needs --bzimage"),
        (BZIMAGE | {"settings": ("SMP=y",)}, "bzImage is a finished kernel: patches and settings"),
        ({"selector": "debian:6.1", "settings": ("SMP=y",)}, "debian:6.1 is a finished kernel"),
        ({"selector": "debian:6.1-clod"}, "write debian:VERSION"),
        ({"selector": "debian-source:6"}, "are named by series, such as debian-source:6.12"),
        ({"selector": "git:linux"}, "write git:URL-or-path@REF"),
        ({"selector": f"built:{DIGEST}"}, "the cache has no kernel with that digest"),
        (TREE, "is not a directory: --tree takes"),
        ({"patches": (Path("gone.patch"),)}, "there is no patch gone.patch"),
        ({"fragments": (Path("gone.config"),)}, "there is no config fragment gone.config"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_before_anything_is_fetched(
    fields: dict[str, object], message: str
) -> None:
    request = KernelRequest(**fields)  # type: ignore[arg-type]
    for call in (obtain.obtain, obtain.identify):
        with pytest.raises(UsageError, match=re.escape(message)):
            call(request)


def test_a_kind_without_anything_to_fetch_says_so() -> None:
    place = obtain.place(DIGEST)
    place.mkdir(parents=True)
    assert obtain.identify(KernelRequest(selector=f"built:{DIGEST}")) == (DIGEST, place)
    with pytest.raises(UsageError, match=r"built:0+: a kernel of this kind has nothing to fetch"):
        obtain.fetch(f"built:{DIGEST}")
