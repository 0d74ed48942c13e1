# SPDX-License-Identifier: GPL-2.0-only
"""What the host sends to a guest, and how it reads the answers, by ssh or from memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

from orchestrator.errors import BootError, InfraError
from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import PlanStep
from orchestrator.text import emulation, symbols
from orchestrator.text.functions import LOCK, POKE_ONE
from orchestrator.verdict import model
from orchestrator.verdict.evidence import Companion
from orchestrator.watch.recorder import CURRENT
from orchestrator.watch.watch import SYMBOLS

KALLSYMS = re.compile(r"([0-9a-f]{16}) [a-zA-Z] (\S+)(\s|$)", re.ASCII)
"""A line of /proc/kallsyms; whatever is no such line is left out."""


def kernel_addresses(lines: Sequence[str]) -> dict[str, int]:
    """Addresses by name from the guest's symbol table. Raises BootError if it hides them."""
    addresses = addresses_of(lines)
    if addresses and not any(address >> 63 for address in addresses.values()):
        raise BootError("the guest's /proc/kallsyms shows no addresses of the kernel")
    return addresses


def online_cpus(text: str, smp: int) -> tuple[int, ...]:
    """The CPUs that the guest says are online. Raises InfraError for nonsense.

    smp: the number of CPUs that the machine has.
    """
    cpus: set[int] = set()
    # Not more than the machine has, whatever the guest says.
    if re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text, re.ASCII):
        for part in text.split(","):
            first, _, last = part.partition("-")
            cpus |= {*range(int(first), int(last or first) + 1)}
    if not cpus or max(cpus) >= smp:
        raise InfraError(f"the guest does not say which CPUs are online, but {text[:100]!r}")
    return tuple(sorted(cpus))


def module_names(scenarios: Sequence[Scenario]) -> tuple[str, ...]:
    """The kernel symbols whose addresses the test module takes."""
    scenario_names = (name for scenario in scenarios for name in scenario.symbols)
    return tuple(dict.fromkeys((*POKE_ONE, LOCK, *scenario_names)))


def watched_names() -> tuple[str, ...]:
    """All kernel symbols that the host wants to know besides those of module_names()."""
    return tuple(dict.fromkeys((*SYMBOLS, *emulation.SYMBOLS, *CURRENT, LOCK)))


def addresses_of(lines: Sequence[str]) -> dict[str, int]:
    """Addresses by name from lines of /proc/kallsyms."""
    return symbols.addresses(line for line in lines if KALLSYMS.match(line))


def sites(module_symbols: Sequence[str]) -> dict[int, int]:
    """The test module's sites, and how long they can be, from its lines of /proc/kallsyms.

    They are labels orch_NAME_site in guest/module/sites.c, each with an orch_NAME_int3.
    """
    names = addresses_of(module_symbols)
    return {
        address: model.INSTRUCTION
        for name, address in names.items()
        if name.endswith("_site") and f"{name.removesuffix('_site')}_int3" in names
    }


def targets(site: int, addresses: Mapping[str, int]) -> frozenset[int]:
    """Where the test sends a CPU that traps on one of its sites."""
    name = next(name for name, address in addresses.items() if address == site)
    name = name.removesuffix("_site")
    ends = ("_int3", "_ret", "_handler")
    return frozenset(addresses[name + end] for end in ends if name + end in addresses)


def lines_for_steps(steps: Sequence[PlanStep], *, numbered: bool = False) -> str:
    """The steps as lines for guest/init/steps.

    numbered: whether to say the number of each step, because others come in between.
    """
    commands = [
        (
            step.scenario.name if step.scenario.companion and not step.lacks else "-",
            f"number {step.number};{step.command}" if numbered else step.command,
        )
        for step in steps
    ]
    # Steps without a companion go in one write: returning to the shell in between takes longer
    # than a gated step.
    groups = itertools.groupby(commands, key=itemgetter(0))
    return "".join(
        f"{name} {';'.join(command for _, command in group)}\n" for name, group in groups
    )


def companions(lines: Iterable[str]) -> dict[str, Companion]:
    """Results of scripts by the scenario's name, from what guest/init/steps has printed.

    Raises InfraError for nonsense.
    """
    found = {}
    for line in lines:
        if line.startswith("companion "):
            if not (words := re.fullmatch(r"companion (\S+) (\d{1,3})(?: (.*))?", line)):
                raise InfraError(f"the guest reports nonsense about a script: {line[:200]!r}")
            found[words[1]] = Companion(int(words[2]), words[3] or "")
    return found
