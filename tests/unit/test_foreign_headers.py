# SPDX-License-Identifier: GPL-2.0-only
"""Headers of a newer Debian, used with this machine's compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.kernel import foreign_headers

MAKEFILE = """\
KBUILD_CFLAGS += -mpreferred-stack-boundary=3 -fsanitize=kernel-address -fno-such-option
KBUILD_CFLAGS += $(filter-out -mpreferred-stack-boundary -fsanitize%,$(X)) -mcmodel=kernel
KBUILD_CFLAGS += -fno-such-value=$(X) -fno-such-value-but-a-flag -fno-strict-aliasing
KBUILD_CFLAGS += -fno-such=literal-$(X) -fuse-ld=bfd -fuse-ld=no-such
"""


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    common = tmp_path / "usr/src/linux-headers-7.3-common"
    common.mkdir(parents=True)
    (common / "Makefile").write_text(MAKEFILE)
    (common / ".kernelvariables").write_text(
        "CC = $(or $(shell command -v gcc-15),$(CROSS_COMPILE)gcc)\n"
    )
    return tmp_path


def test_options_are_refused_as_they_are_written(headers: Path) -> None:
    """gcc knows -mpreferred-stack-boundary=3 and -fuse-ld=bfd, but no other form of these two."""
    assert foreign_headers._refused_options(headers) == {
        "-mpreferred-stack-boundary",
        "-fsanitize",
        "-fno-such-option",
        "-fno-such-value=",
        "-fno-such=",
        "-fuse-ld=no-such",
        "-fno-such-value-but-a-flag",
    }


def test_the_compiler_gets_all_options_that_it_knows(
    headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_headers.adapt(headers, headers, "sid")
    variables = headers / "usr/src/linux-headers-7.3-common/.kernelvariables"
    compiler = headers / "runtime/gcc"
    assert f",{compiler})" in variables.read_text()
    (headers / "bin").mkdir()
    gcc = headers / "bin/gcc"
    gcc.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    gcc.chmod(0o755)
    arguments = [
        *("-mpreferred-stack-boundary=3", "-mpreferred-stack-boundary", "-fsanitize=undefined"),
        *("-fuse-ld=bfd", "-fuse-ld=no-such", "-fno-such=literal-3"),
        *("-fno-such-value=3", "-fno-such-value=a b", "-fno-such-option", "-fno-such-option-2"),
        *("-DX=-fno-such-option", "a file.c"),
    ]
    done = subprocess.run(
        [compiler, *arguments],
        env={"PATH": f"{gcc.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "-mpreferred-stack-boundary=3",
        "-fsanitize=undefined",
        "-fuse-ld=bfd",
        "-fno-such-option-2",
        "-DX=-fno-such-option",
        "a file.c",
    ]
