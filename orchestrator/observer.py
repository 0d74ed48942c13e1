# SPDX-License-Identifier: GPL-2.0-only
"""A run in one guest, to which commands are sent by ssh: boot, load the module, poke, collect."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from orchestrator import ui
from orchestrator.course import PART_SECONDS, Course
from orchestrator.errors import (
    BootError,
    GuestRefused,
    InfraError,
    ModuleRefused,
    OrchestratorError,
)
from orchestrator.guest import module
from orchestrator.guests import RECORDER_SECONDS, ShellGuest, collect_records, short
from orchestrator.host import proc
from orchestrator.machine import cpus
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import SILENCE_SECONDS, until
from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import PlanStep
from orchestrator.survey import (
    KALLSYMS,
    addresses_of,
    companions,
    kernel_addresses,
    lines_for_steps,
    module_names,
    online_cpus,
    sites,
)
from orchestrator.text import emulation, symbols
from orchestrator.text.functions import LOCK, POKE_ONE
from orchestrator.text.keys import SiteCpu
from orchestrator.watch.recorder import CURRENT, Recorder
from orchestrator.watch.watch import SYMBOLS, Watch

BOOT_SECONDS = 300
STEPS_OUTPUT = 256 << 10
"""Most bytes that guest/init/steps may print: a line for each companion. At the speed of the serial
line, the guest could otherwise keep us listening for minutes."""
REFUSALS = (
    "Key was rejected",  # EKEYREJECTED: CONFIG_MODULE_SIG_FORCE, or module.sig_enforce
    "Required key not available",  # ENOKEY: the same before 5.4
    "not permitted",  # EPERM: lockdown, or the sysctl kernel.modules_disabled
    "not support",  # ENOSYS: no CONFIG_MODULES
    "not implemented",
)
"""What insmod says when the kernel takes no module of ours, however it is built."""


@dataclass(frozen=True, kw_only=True)
class Observer(Course):
    """Takes the scenarios through one machine."""

    machine: Machine
    recorder: Recorder
    """QEMU's log of what the guest does to its text, and its count of int3."""
    directory: Path
    """The run's."""
    vmlinux: Path | None = None
    """Names the kernel's functions."""
    without_module: bool = False
    """Whether to do without the test module; guest/init/flip then writes the guest's report."""
    fallback: Sequence[Scenario] = ()
    """The scenarios to run without the module, if the kernel refuses it."""
    on_loaded: Callable[[], Path | None] = lambda: None
    """Called once the test module is loaded, if there is one, and before anything is poked. Returns
    a file with the kernel's symbols, in case there is no vmlinux."""
    on_attached: Callable[[Watch], None] = lambda _: None
    """Called after that, once GDB is attached."""

    def prepare(self) -> tuple[dict[str, int], list[str]]:
        """Boot the guest and load the test module.

        Returns the addresses that the watch needs, by name, and the module's lines of
        /proc/kallsyms. Raises BootError.
        """
        limit = self.machine.silence.limit
        self.evidence.consoles = {"": self.machine.console}
        with ui.step("booting"), self._nothing_poked(), limit(SILENCE_SECONDS):
            self.machine.cont()
            try:
                self.machine.wait_ready(BOOT_SECONDS)
            except BootError:
                self._explain_boot()
                raise
            self.evidence.cpus = self._online()
            self._look_up_parameters()
        return self._load()

    def _load(self) -> tuple[dict[str, int], list[str]]:
        loading = "reading kernel symbols" if self.without_module else "loading the test module"
        limit = self.machine.silence.limit
        with ui.step(loading), self._nothing_poked(), limit(SILENCE_SECONDS):
            addresses, module_symbols = self._load_module()
            self._configure_recorder(module_symbols, self.on_loaded())
        return addresses, module_symbols

    @contextlib.contextmanager
    def _nothing_poked(self) -> Iterator[None]:
        """A guest that fails in this block fails before the test has poked anything: BootError."""
        try:
            yield
        except (TimedOut, KernelFault) as error:
            self._explain_boot()
            raise BootError(f"{error}; nothing had been poked yet") from error

    def _explain_boot(self) -> None:
        """Record where the CPUs of a guest are that does not get to the first poke of the test, and
        judge what the kernel itself has poked until then."""
        guest = self._guest(None, {}, [])
        with contextlib.suppress(OrchestratorError):  # GDB is not attached yet
            guest.record_cpus(cpus.snapshot(self.machine.qmp, self.machine.spec.smp))
        with contextlib.suppress(OrchestratorError):
            collect_records(self.evidence, [guest], {"": None}, ended=True)

    def observe(self) -> None:
        try:
            addresses, module_symbols = self.prepare()
        except ModuleRefused as refusal:
            if not self.fallback:
                raise
            ui.say(f"{refusal}: only what needs no test module is run")
            observer = replace(self, scenarios=self.fallback, fallback=(), without_module=True)
            observer._observe(*observer._load())
        else:
            self._observe(addresses, module_symbols)

    def _observe(self, addresses: dict[str, int], module_symbols: list[str]) -> None:
        silence = self.machine.silence
        silence.signs.append(lambda: self.recorder.events)
        watch = Watch(self.machine, addresses, self.directory, module=not self.without_module)
        self.evidence.impossible_breakpoints = watch.impossible
        with silence.limit(SILENCE_SECONDS), watch:
            self.on_attached(watch)
            # From now on, text is to change by its writers only.
            if not self.recorder.look(self._wait):
                raise InfraError("QEMU's plugin does not look at the kernel's text")
            guest = self._guest(watch, addresses, module_symbols)
            for seed in self.rounds():
                self._observe_round(watch, guest, seed)

    def _guest(
        self, watch: Watch | None, addresses: dict[str, int], module_symbols: list[str]
    ) -> ShellGuest:
        return ShellGuest(
            machine=self.machine,
            recorder=self.recorder,
            addresses=addresses,
            module_symbols=module_symbols,
            kernel_lines=self._kernel_lines(),
            watch=watch,
            evidence=self.evidence,
            flips=self.without_module,
        )

    def memory(self) -> dict[str, float]:
        text = self._text("/proc/meminfo")
        free = re.search(r"^MemFree:\s+(\d{1,12}) kB", text, re.MULTILINE | re.ASCII)
        if not free:
            raise InfraError(f"the guest does not say how much memory it uses, but {text[:100]!r}")
        return {
            "QEMU": proc.resident(self.machine.process.pid),
            "guest": self.machine.spec.memory - int(free[1]) / 1024,
        }

    def _observe_round(self, watch: Watch, guest: ShellGuest, seed: int) -> None:
        self.evidence.consoles = {"": self.machine.console}
        steps = self.plan(seed)
        with self.collecting([guest]):
            try:
                self._poke_everything(watch, steps)
                guest.prove_console()
            except (TimedOut, KernelFault) as error:
                with self.machine.post_mortem():
                    guest.explain(error)

    # -- the guest before the first poke

    def _online(self) -> tuple[int, ...]:
        text = self._text("/sys/devices/system/cpu/online").strip()
        return online_cpus(text, self.machine.spec.smp)

    def _text(self, path: str, timeout: float = 300) -> str:
        """The content of a file in the guest, whatever bytes there are in it."""
        return self.machine.ssh.get(path, timeout).decode(errors="replace")

    def _look_up_parameters(self) -> None:
        self.look_up_parameters(self.machine.spec, self._text("/proc/cmdline"))

    def _kernel_lines(self) -> list[str]:
        """The lines of the vmlinux's symbol table, with the guest's addresses."""
        return symbols.shifted(symbols.of_vmlinux(self.vmlinux), self.evidence.kernel_offset)

    def _symbols(self, names: Sequence[str]) -> dict[str, int]:
        """Addresses by name from the guest's symbol table; names that it lacks are left out."""
        pattern = "|".join(names)
        _, output = self.machine.ssh.run(
            f"grep -E ' [a-zA-Z] ({pattern}){symbols.CLONE}*([[:space:]]|$)' /proc/kallsyms"
        )
        return kernel_addresses(output.splitlines())

    def _load_module(self) -> tuple[dict[str, int], list[str]]:
        """Load the test module with the addresses that it needs. Returns what prepare() does."""
        names = module_names(self.scenarios)
        kernel_symbols = self._symbols((*names, *SYMBOLS, *emulation.SYMBOLS))
        poke = next((name for name in POKE_ONE if name in kernel_symbols), None)
        if poke is None or LOCK not in kernel_symbols:
            raise BootError(
                f"this kernel has no {' or '.join(POKE_ONE)}, or no {LOCK}: "
                "there is nothing to test"
            )
        if "nokaslr" in self.evidence.not_taken:
            lines = symbols.of_vmlinux(self.vmlinux)
            self.evidence.kernel_offset = symbols.offset(lines, {poke: kernel_symbols[poke]})
        if self.without_module:
            return kernel_symbols, []
        # Hexadecimal without 0x: the module parses with the kernel's sscanf(), and a parameter has
        # 1024 bytes.
        parameter = ",".join(
            f"{name}:{kernel_symbols[name]:x}" for name in names if name in kernel_symbols
        )
        emulates = self._emulates(kernel_symbols)
        status, output = self.machine.ssh.run(
            f"insmod /{module.NAME} symbols={parameter} {emulates}"
        )
        if status:
            self._explain_refusal(short(output))
        _, output = self.machine.ssh.run(
            f"grep -F '[{module.NAME.removesuffix('.ko')}]' /proc/kallsyms"
        )
        module_symbols = [line for line in output.splitlines() if KALLSYMS.match(line)]
        return kernel_symbols | addresses_of(module_symbols), module_symbols

    def _explain_refusal(self, output: str) -> NoReturn:
        """Raise what insmod's output means, with what the kernel's log says about the module."""
        name = module.NAME.removesuffix(".ko")
        _, log = self.machine.ssh.run(f"dmesg | grep -E '\\b{name}: |Lockdown: insmod' | tail -n 1")
        reason = f"{output}; {short(log)}" if log.strip() else output
        if any(refusal in output for refusal in REFUSALS):
            raise ModuleRefused(f"the kernel does not take the test module ({reason})")
        raise BootError(f"the guest cannot load the test module: {reason}")

    def _emulates(self, kernel_symbols: dict[str, int]) -> str:
        """The module's parameter that says what the kernel can emulate, empty if nobody knows."""
        emulated = emulation.emulated(kernel_symbols, self.machine.read_memory)
        if emulated is None:
            ui.say(
                "cannot find out which instructions this kernel emulates at int3: "
                "RET and conditional jumps are left out"
            )
            return ""
        return f"emulates={','.join(sorted(emulated))}"

    def _configure_recorder(self, module_symbols: Sequence[str], file: Path | None) -> None:
        """Have the recorder watch what is known only now: the kernel of which there is no vmlinux,
        one that is elsewhere (KASLR), the test module's sites.

        file: a file with the kernel's symbols, in case there is no vmlinux.
        """
        lines = self._kernel_lines() or symbols.of_vmlinux(file)
        found = self._symbols((*CURRENT, LOCK))  # a per-CPU variable alone has no real address
        current = [f"{found[name]:x} A {name}" for name in CURRENT if name in found]
        self.recorder.configure([*lines, *current], sites(module_symbols))
        self.recorder.reload(self._wait)

    def _wait(self, done: Callable[[], bool]) -> bool:
        return until(done, RECORDER_SECONDS, self.machine.check)

    # -- the two parts of a run

    def _poke_everything(self, watch: Watch, steps: Sequence[PlanStep]) -> None:
        """First what GDB watches, each scenario there and back; then free, with no breakpoint."""
        evidence = self.evidence
        evidence.no_qemu_ledger = self.recorder.why_not
        self._send(f"- plan {len(steps)}\n", PART_SECONDS)
        start = self.recorder.read()
        self._run_watched(watch, [step for step in steps if step.is_watched])
        middle = self.recorder.read()
        evidence.qemu_gated = middle - start
        self._run_free([step for step in steps if not step.is_watched], middle)

    def _run_watched(self, watch: Watch, steps: Sequence[PlanStep]) -> None:
        activity = "switching sysctls" if self.without_module else "holding the poker in each phase"
        with (
            ui.step(f"GDB watches: {activity}"),
            self.recorder.gdb(),
            watch.window(steps[0].number if self.without_module else 0),
        ):
            self.evidence.breakpoints = tuple(watch.points)
            self._run_steps(steps)

    def _run_free(self, steps: Sequence[PlanStep], before: Counter[SiteCpu]) -> None:
        """before: QEMU's count of int3 at the end of the watched part."""
        shared = [step for step in steps if not step.scenario.exclusive]
        exclusive = [step for step in steps if step.scenario.exclusive]
        with ui.step("free-running: poking as fast as possible"):
            # The free-running ledger has only the sites, not what code scenarios poke.
            self._run_steps([step for step in shared if not step.scenario.code])
            self.evidence.qemu_free = self.recorder.read() - before
            self._run_steps([step for step in shared if step.scenario.code])
        if exclusive:
            with ui.step("free-running: poking with other activity in the guest"):
                self._run_steps(exclusive)

    def _run_steps(self, steps: Sequence[PlanStep]) -> None:
        """Have the test module run the steps one after the other."""
        lines = lines_for_steps(steps)
        output = self._send(lines, self.part_seconds) if lines else ""
        self.evidence.companions |= companions(output.splitlines())

    def _send(self, lines: str, timeout: float) -> str:
        """Send lines to guest/init/steps and return its output."""
        # Without QEMU's ledger nothing is seen of a free-running step until it ends.
        patience = SILENCE_SECONDS + (self.free_seconds if self.recorder.why_not else 0)
        with self.machine.silence.limit(patience):
            status, output = self.machine.ssh.run(
                "steps", timeout, stdin=lines.encode(), most=STEPS_OUTPUT
            )
        if status:
            raise GuestRefused(f"the test module refused a command: {short(output)}")
        return output
