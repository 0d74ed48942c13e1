"""Which accelerator the guest runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import UsageError, nearest
from orchestrator.tools import Qemu

CHOICES = ("auto", "kvm", "tcg", "tcg-multi", "tcg-single")


@dataclass(frozen=True)
class Accel:
    """kind: hardware virtualisation or QEMU's translator; thread: of TCG, one per CPU or one for all (None for KVM)."""

    kind: Literal["kvm", "tcg"]
    thread: Literal["multi", "single"] | None
    why: str

    @property
    def option(self) -> str:
        """The value of QEMU's -accel."""
        return f"tcg,thread={self.thread}" if self.kind == "tcg" else "kvm"

    @property
    def cpu(self) -> str:
        """The CPU model to use where the user names none.

        max, not qemu64: that is a K8 of 2003 for which kernels choose other NOPs than on what people run today. Without
        la57: a fifth level of page tables makes every page walk of TCG longer and proves nothing.
        """
        return "host" if self.kind == "kvm" else "max,la57=off"


def choose(accel: str, qemu: Qemu) -> Accel:
    """The accelerator for the user's word `accel` (one of CHOICES)."""
    if accel not in CHOICES:
        raise UsageError(f"unknown accelerator {accel}{nearest(accel, CHOICES)}: one of {', '.join(CHOICES)}")
    return _tcg(qemu)


def _tcg(qemu: Qemu) -> Accel:
    version = ".".join(map(str, qemu.version))
    if qemu.good:
        return Accel("tcg", "multi", f"QEMU {version} keeps up with code that changes under several threads")
    return Accel("tcg", "single", f"QEMU {version} loses invalidations of patched code when it runs several threads")
