# SPDX-License-Identifier: GPL-2.0-only
"""Why a run ended without a verdict of its own: one exception per cause, each with one sentence.

The user sees the message of each exception as it is, so it says what is wrong *and* what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

EXIT_PASS = 0
EXIT_KERNEL_FAILED = 1
"""Never used for anything but a failure of the kernel."""
EXIT_UNTESTABLE = 125
"""Makes `git bisect run` skip the commit."""
EXIT_USAGE = 129
EXIT_SIGNAL = 128
"""Plus the number of the signal that ended the program: 130 after Ctrl-C, 143 after SIGTERM.

SIGHUP is number 1, so its status is that of wrong usage as well. The sentence on standard error
tells them apart: only that of a signal begins with INTERRUPTED.
"""
INTERRUPTED = "interrupted by "
SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 10: "SIGUSR1", 12: "SIGUSR2", 14: "SIGALRM",
    15: "SIGTERM", 24: "SIGXCPU",
}  # fmt: skip
"""The signals that end the program in order, by number: all with which a user, a service manager or
a batch system ends programs. SIGUSR1, SIGUSR2, SIGALRM and SIGXCPU say that the time is up."""


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


class InternalError(InfraError):
    """This program failed, in a way that nobody has foreseen. Says nothing about the kernel."""


class InterruptedRun(InfraError):
    """A signal ended the run. What had been seen until then stands."""


class Interrupted(KeyboardInterrupt):
    """A signal asks this program to end. host/interrupts.py raises it in the main thread."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{INTERRUPTED}{SIGNALS[number]}")
        self.exit_status = EXIT_SIGNAL + number


class TimeUp(KeyboardInterrupt):
    """The time is up that the user gave a run. host/interrupts.py raises it in the main thread."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the run took longer than --timeout {seconds:g}s")


def sentence(error: BaseException) -> str:
    """What the user reads about `error`, in one sentence, whatever it is."""
    if isinstance(error, OrchestratorError | Interrupted | TimeUp):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return f"{INTERRUPTED}SIGINT"
    if isinstance(error, ValueError) and "embedded null byte" in str(error):
        return "a name cannot contain a NUL character"
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        return f"{what}: {shortened(str(error.filename))}" if error.filename else what
    text = shortened(" ".join(str(error).split()))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"orchestrator itself failed, which says nothing about the kernel: {what}"


def shortened(text: str, length: int = 200) -> str:
    """`text`, with `…` in place of what exceeds `length` characters: it may come from anywhere."""
    return text if len(text) <= length else f"{text[:length]}…"


UNPRINTABLE = re.compile(r"[^\n\t -~\xa0-\U0010ffff]|[\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal may obey, that change the order of text, or that are not encodable."""


def printable(text: str) -> str:
    """`text` with all UNPRINTABLE characters as in Python: \\x1b for an escape.

    What a guest, a repository or a file of somebody else says may contain commands for a terminal.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` with the known name closest to `name`, or an empty string."""
    import difflib  # rarely needed, and this module is the first that the program imports

    # What all options begin with makes none of them like another.
    names = {one.lstrip("-"): one for one in known}
    close = difflib.get_close_matches(name.lstrip("-"), names, n=1, cutoff=0.55)
    return f" (did you mean {names[close[0]]}?)" if close else ""
