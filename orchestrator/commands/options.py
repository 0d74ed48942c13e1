# SPDX-License-Identifier: GPL-2.0-only
"""Options that several commands share.

orchestrator/spec.py and orchestrator/kernel/model.py declare the options of a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.kernel.model import CHANGES, SOURCE, KernelRequest
from orchestrator.options import add_options, from_namespace
from orchestrator.spec import RunSpec

MAX_JOBS = 256
"""Most runs at a time."""


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a kernel and change its source or configuration."""
    add_options(parser, KernelRequest, SOURCE, CHANGES)


def add_kernel_filter(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses among the kernels of the history."""
    parser.add_argument(
        "--kernel",
        default="*",
        metavar="GLOB",
        help="show only kernels whose name or release matches (default: all)",
    )


def add_output(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help=help)


def add_verbosity(parser: argparse.ArgumentParser, *, guest: bool = False) -> None:
    """Add -q, and -v for a command that boots one guest. cli.py does what they say."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print only warnings and the result"
    )
    if guest:
        group.add_argument(
            "-v", "--verbose", action="store_true", help="also print the guest's console, on stderr"
        )


def kernel_request(options: argparse.Namespace) -> KernelRequest:
    return from_namespace(KernelRequest, options)


def run_spec(options: argparse.Namespace) -> RunSpec:
    """The run that the options ask for. Raises UsageError for a value that is out of range."""
    return from_namespace(
        RunSpec, options, kernel=kernel_request(options), directory=options.output
    )
