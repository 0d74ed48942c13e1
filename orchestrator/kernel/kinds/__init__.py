# SPDX-License-Identifier: GPL-2.0-only
"""The kinds of kernel that a request can ask for, one module each.

To add a kind, add a module here with a subclass of Kind that is decorated with @register, and a row
to the README's table of kernels.
"""

from __future__ import annotations

import importlib
import pkgutil

from orchestrator.kernel.kinds.kind import KINDS, Kind
from orchestrator.kernel.model import KernelRequest

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def kind_of(request: KernelRequest) -> Kind:
    """The one kind that serves `request`."""
    (kind,) = [kind for kind in KINDS if kind.matches(request)]
    return kind
