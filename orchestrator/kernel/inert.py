# SPDX-License-Identifier: GPL-2.0-only
"""Files of a kernel tree that cannot affect the kernel."""

from __future__ import annotations

import re

INERT = re.compile(
    r"(Documentation/(?!.*(Kconfig|Makefile)$)|LICENSES/|tools/testing/|\.git/"
    r"|\.mailmap$|MAINTAINERS$)"
)


def is_inert(path: str) -> bool:
    """Whether the file is left out of builds, so that editing it causes none, and neither does what
    a patch does to it."""
    return INERT.match(path) is not None
