# SPDX-License-Identifier: GPL-2.0-only
"""Which workarounds an older tree needs to build today."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.guest import module
from orchestrator.kernel import compat
from orchestrator.kernel.compat import CompatEntry, needed

KNOWN = [
    CompatEntry.model_validate(
        {"from": "3.0", "before": "4.15", "why": "a", "make": {"KCFLAGS": "-w"}, "config": ["A=y"]}
    ),
    CompatEntry.model_validate(
        {
            "from": "4.4",
            "before": "5.1",
            "why": "b",
            "make": {"KCFLAGS": "-x", "V": "1"},
            "config": ["B=n"],
        }
    ),
]


@pytest.mark.parametrize(
    ("version", "why", "make", "config"),
    [
        ((2, 6), (), {}, ""),
        ((3, 0), ("a",), {"KCFLAGS": "-w"}, "CONFIG_A=y"),
        ((4, 14), ("a", "b"), {"KCFLAGS": "-w -x", "V": "1"}, "CONFIG_A=y\n# CONFIG_B is not set"),
        ((4, 15), ("b",), {"KCFLAGS": "-x", "V": "1"}, "# CONFIG_B is not set"),
        ((5, 1), (), {}, ""),
    ],
)
def test_all_entries_for_a_version_are_combined(
    version: tuple[int, int], why: tuple[str, ...], make: dict[str, str], config: str
) -> None:
    result = needed(version, known=KNOWN)
    assert (result.why, dict(result.make), result.config.strip()) == (why, make, config)


def test_a_fix_that_a_stable_release_already_has_is_not_applied(tmp_path: Path) -> None:
    entry = {"from": "3.0", "before": "4.16", "why": "c", "lacks": {"arch/module.c": "PLT32"}}
    known = [CompatEntry.model_validate(entry)]
    assert needed((4, 4), None, known).why == needed((4, 4), tmp_path, known).why == ()
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "module.c").write_text("case PC32:\n")
    assert needed((4, 4), tmp_path, known).why == ("c",)
    (tmp_path / "arch" / "module.c").write_text("case PC32:\ncase PLT32:\n")
    assert needed((4, 4), tmp_path, known).why == ()


def test_the_version_comes_from_the_makefile() -> None:
    assert compat.version("# SPDX\nVERSION = 4\nPATCHLEVEL = 19\nSUBLEVEL = 0\n") == (4, 19)
    assert compat.version("all:\n") == (0, 0)


def test_our_compat_file_is_valid() -> None:
    assert compat.entries()
    for entry in compat.entries():
        assert compat.pair(entry.first) < compat.pair(entry.before) and entry.why
        assert all((compat.FILE.parent / name).is_file() for name in entry.patches)


def test_a_damaged_compat_file_is_an_infra_error(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("- {from: 3}\n")
    with pytest.raises(InfraError, match=r"wrong\.yaml"):
        compat.entries(tmp_path / "wrong.yaml")


def test_our_module_is_built_with_warnings_even_where_the_kernel_is_not() -> None:
    assert module._with_warnings("-fno-pie -w -fcommon") == "-fno-pie -fcommon"
    assert module._with_warnings("ld -z max-page-size=0x200000") == "ld -z max-page-size=0x200000"
