"""From what the user asked for to a kernel that boots: the one door to everything below orchestrator/kernel."""

from __future__ import annotations

from orchestrator.errors import UsageError
from orchestrator.kernel import stock
from orchestrator.kernel.model import Kernel, KernelRequest


def obtain(request: KernelRequest) -> Kernel:
    """The kernel that `request` names, from the cache or fetched and built now.

    Errors: UsageError (no such kernel, not a kernel tree), BuildError (a patch, an option, the compiler), InfraError
    (mirror, disk, missing programs).
    """
    if request.selector.startswith("debian:") and request.tree is None:
        if request.patches or request.fragments or request.settings:
            raise UsageError(f"{request.selector} is a finished image: patches and settings need a source (6.1-plain)")
        return stock.obtain(request.selector)
    raise NotImplementedError
