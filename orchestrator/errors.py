"""Why a run could not reach a verdict of its own: one exception a cause, each a single clear sentence.

The message of every exception here is shown to the user as it is, so it says what is wrong *and* what to do.
`outcome` is the word that the run's verdict takes, `exit_status` what the process returns (design: 1 only ever means
that the kernel failed; 125 tells `git bisect run` to skip; 129 is wrong usage).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_PASS = 0
EXIT_KERNEL_FAILED = 1
EXIT_UNTESTABLE = 125
EXIT_USAGE = 129
EXIT_INTERRUPTED = 130


class OrchestratorError(Exception):
    """Base of all errors that are explained rather than traced back."""

    outcome = "infra"
    exit_status = EXIT_UNTESTABLE


class UsageError(OrchestratorError):
    """The request itself is wrong: an unknown name, an impossible number, a path that is not there."""

    outcome = "usage"
    exit_status = EXIT_USAGE


class BuildError(OrchestratorError):
    """The kernel or its test module does not build: a patch does not apply, an option did not survive, gcc failed."""

    outcome = "build-error"


class BootError(OrchestratorError):
    """The guest never came up far enough to be tested."""

    outcome = "boot-error"


class InfraError(OrchestratorError):
    """The host, the emulator, the debugger or the network failed; says nothing about the kernel."""

    outcome = "infra"


class GuestRefused(InfraError):
    """The test module did not understand a command that is right: either is broken, or the guest's memory is."""


class LostVM(OrchestratorError):
    """The virtual machine went away in mid-run (QEMU died, the guest reset itself)."""

    outcome = "lost-vm"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
