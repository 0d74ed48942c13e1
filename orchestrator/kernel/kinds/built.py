# SPDX-License-Identifier: GPL-2.0-only
"""`built:DIGEST`: a kernel that is in the cache already.

A sweep uses it on machines that got the kernel from the one that built it.
"""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.host.paths import check
from orchestrator.kernel import from_source
from orchestrator.kernel.kinds.kind import Kind, refuse_changes, register
from orchestrator.kernel.model import Kernel, KernelRequest

PREFIX = "built:"


@register
class BuiltKind(Kind):
    prefix = PREFIX

    def check(self, request: KernelRequest) -> None:
        digest = self._digest(request)
        if not re.fullmatch("[0-9a-f]{64}", digest) or not from_source.place(digest).is_dir():
            raise UsageError(f"{request.selector}: the cache has no kernel with that digest")
        refuse_changes(request, request.selector)

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        digest = self._digest(request)
        return digest, from_source.place(digest)

    def obtain(self, request: KernelRequest) -> Kernel:
        digest = self._digest(request)
        check(from_source.place(digest), vital=from_source.VITAL)
        return from_source.cached(digest)

    def _digest(self, request: KernelRequest) -> str:
        return request.selector.removeprefix(self.prefix)
