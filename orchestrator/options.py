"""Options that several commands take, each said once: which kernel, on what machine, poked how."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.kernel.model import KernelRequest
from orchestrator.machine import accel


def kernel_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", default=KernelRequest.selector, metavar="NAME",
                        help="of kernels/, debian:VERSION, debian-source:SERIES, git:WHERE@REF (6.1-int3)")
    parser.add_argument("--tree", type=Path, metavar="PATH", help="build this source tree or tarball (never written)")
    parser.add_argument("--bzimage", type=Path, metavar="FILE", help="a kernel that is built already")
    parser.add_argument("--headers", type=Path, metavar="DIR", help="its headers or build tree, for the test module")
    kernel_changes(parser)


def kernel_changes(parser: argparse.ArgumentParser) -> None:
    """What is done to a kernel's source or configuration before it is built."""
    parser.add_argument("--patch", type=Path, action="append", default=[], metavar="FILE",
                        help="apply it first: a diff, a mail, or an mbox with a series (repeatable)")
    parser.add_argument("--config", type=Path, action="append", default=[], metavar="FILE", help="config fragment")
    parser.add_argument("--set", action="append", default=[], metavar="CONFIG_X=y", help="one config option")


def kernel_request(options: argparse.Namespace) -> KernelRequest:
    return KernelRequest(
        selector=options.kernel,
        tree=options.tree,
        bzimage=options.bzimage,
        headers=options.headers,
        patches=tuple(options.patch),
        fragments=tuple(options.config),
        settings=tuple(options.set),
    )


def machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--smp", type=int, default=8, metavar="N", help="CPUs of the guest (8)")
    parser.add_argument("--accel", choices=accel.CHOICES, default="auto", help="KVM where it works, else TCG (auto)")
    parser.add_argument("--cpu", metavar="MODEL", help="QEMU's CPU model (host under KVM, max under TCG)")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="memory of the guest (1024)")
    parser.add_argument("--qemu", type=Path, metavar="PATH", help="the qemu-system-x86_64 to use")


def poking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", action="append", default=[], metavar="NAME", help="only these; wildcards (all)")
    parser.add_argument("--duration", type=float, default=3.0, metavar="S", help="seconds of free-running pokes (3)")
