# SPDX-License-Identifier: GPL-2.0-only
"""Why a run ended without a verdict of its own: one exception per cause, each with one sentence.

The user sees the message of each exception as it is, so it says what is wrong *and* what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_PASS = 0
EXIT_KERNEL_FAILED = 1
"""Never used for anything but a failure of the kernel."""
EXIT_UNTESTABLE = 125
"""Makes `git bisect run` skip the commit."""
EXIT_USAGE = 129
EXIT_INTERRUPTED = 130


class OrchestratorError(Exception):
    """Base of all errors that are shown as a sentence rather than a traceback."""

    outcome = "infra"
    """The outcome of the run's verdict."""
    exit_status = EXIT_UNTESTABLE
    """The exit status of the process."""


class UsageError(OrchestratorError):
    """The request itself is wrong: an unknown name, an impossible number, a missing file."""

    outcome = "usage"
    exit_status = EXIT_USAGE


class BuildError(OrchestratorError):
    """The kernel or its test module does not build.

    A patch does not apply, Kconfig dropped an option, or gcc failed.
    """

    outcome = "build-error"


class BootError(OrchestratorError):
    """The guest did not boot far enough to be tested."""

    outcome = "boot-error"


class ModuleRefused(BootError):
    """The kernel takes no test module, however it is built: it demands a signature, say."""


class InfraError(OrchestratorError):
    """The host, the emulator, the debugger or the network failed. Says nothing about the kernel."""

    outcome = "infra"


class GuestRefused(InfraError):
    """The test module refused a correct command. The module or the guest's memory is damaged."""


class LostVM(OrchestratorError):
    """The virtual machine went away during the run: QEMU died, or the guest reset itself."""

    outcome = "lost-vm"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` with the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
