# SPDX-License-Identifier: GPL-2.0-only
"""The recorder: a QEMU plugin that logs everything the guest does to its own text, in one order.

in_qemu/ has the plugin and the layout of its files; docs/recorder.md says what is recorded. The
plugin changes nothing in the guest, and depends on neither the guest nor GDB. It also counts int3
by address and CPU. Under KVM QEMU does not see instructions, so there is no recorder, and the run
reports that.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import mmap
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InfraError
from orchestrator.host.logs import Log, MemoryFile
from orchestrator.host.tools import QEMU_GOOD, Qemu
from orchestrator.machine.accel import PROBE_CPUS, PROBE_INT3, Accel
from orchestrator.machine.qemu import escaped
from orchestrator.text.functions import (
    CPU_COMES_OR_GOES,
    DYING,
    FLUSH,
    GRACE_PERIODS,
    GUARDS,
    HANDLERS,
    KEY_SWITCHES,
    KEY_UPDATE,
    KPROBE_SYNC,
    LOAD_MM,
    LOCK,
    LOCKS,
    REMOVED,
    STOPPERS,
    SYNC,
    TRANSFORM,
    WRITERS,
)
from orchestrator.text.keys import SiteCpu
from orchestrator.watch import plugin

FILES = sorted(Path(__file__).with_name("in_qemu").glob("*.[ch]"))
"""What the plugin is made of."""
CPUS = 64
SLOTS = 32768
SLOT = struct.Struct(f"<Q{CPUS}Q")  # struct slot in files.h
CONTROL = struct.Struct("<6I10Q")  # struct control
RELOAD, TURN, LOOK = range(3)
GDB, WAIT_AT, WAITS, LET_GO, HOLD, SINGLE, STEPS = range(48, CONTROL.size, 8)
"""Offsets of the last members."""
QUAD = struct.Struct("<Q")

RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("cpu", "u1"),
        ("flags", "<u2"),
        ("number", "<u4"),
        ("word", "<u8", (7,)),
    ]
)
"""struct record in record.h, which documents the fields of each kind."""

Records = NDArray[np.void]
Counts = Counter[SiteCpu]
"""Number of executed int3."""

Wait = Callable[[Callable[[], bool]], bool]
"""Waits until its argument returns true, and returns whether it did in time."""
READ = mmap.PROT_READ
KEY_IS_OFF = 1 << 16
"""Above the locks, KEY_IS_OFF in locks.h: whoever calls the function switches a key that counts
as off."""
CPUS_ARE_WRITTEN = 1 << 17
"""Likewise: CPUs come and go."""
CHUNK = 1 << 14
"""Records that are compressed at once."""
CURRENT = ("current_task", "pcpu_hot")
"""Per-CPU variable that has, or begins with, the task that a CPU runs."""

POINTS: Mapping[str, tuple[str, ...]] = {
    "early": ("text_poke_early",),
    "stopper": STOPPERS,
    "unlock": ("mutex_unlock",),
    "entry": ("exc_int3", "do_int3"),
    "kprobe": ("kprobe_int3_handler",),
    "ftrace": ("ftrace_int3_handler",),
    "key": KEY_SWITCHES,
    "static_call": ("__static_call_update",),
    "transform": (TRANSFORM,),
    "tracer": ("ftrace_update_ftrace_func",),
    "removed": (REMOVED,),
    "load": (LOAD_MM,),
    "freed": ("vfree", "execmem_free"),
    "slot": ("__free_insn_slot",),
    "lock": ("mutex_lock", "mutex_lock_nested"),
    "cpus_lock": ("cpus_read_lock", "cpus_write_lock"),
    "cpus_try": ("cpus_read_trylock",),
    "cpus_unlock": ("cpus_read_unlock", "cpus_write_unlock"),
    "end": ("machine_restart", "native_machine_restart"),  # with LTO only the latter is called
    "dies": DYING,
    "flush": (FLUSH,),
    "guarded": (
        *(name for name in GUARDS if name not in (*KEY_SWITCHES, TRANSFORM)),
        *CPU_COMES_OR_GOES,
    ),
}
"""Name in the configuration -> functions; all of those that a kernel has are watched."""

PROBES = "kprobe_table"
DATA: Mapping[str, tuple[str, ...]] = {
    "text_mutex": (LOCK,),
    "per_cpu_offset": ("__per_cpu_offset",),
    "online_mask": ("__cpu_online_mask", "cpu_online_bits"),
    "current_task": CURRENT,
    "memset": ("text_poke_memset",),
    "text_start": ("_stext", "_text"),
    "text_end": ("_etext",),
    "jump_label_mutex": ("jump_label_mutex",),
    "jump_table": ("__start___jump_table",),
    "jump_table_end": ("__stop___jump_table",),
    "static_call_mutex": ("static_call_mutex",),
    "call_sites": ("__start_static_call_sites",),
    "call_sites_end": ("__stop_static_call_sites",),
    "poking_mm": ("text_poke_mm", "poking_mm"),
    "poking_addr": ("text_poke_mm_addr", "poking_addr"),
    "page_offset_base": ("page_offset_base",),
    "init_top_pgt": ("init_top_pgt",),
    "ftrace_lock": ("ftrace_lock",),
    "ftrace_pages": ("ftrace_pages_start",),
    "ftrace_enabled": ("ftrace_enabled",),
    "ftrace_disabled": ("ftrace_disabled",),
    "ftrace_ops_list": ("ftrace_ops_list",),
    "ftrace_caller": ("ftrace_caller",),
    "ftrace_regs_caller": ("ftrace_regs_caller",),
    "ftrace_call": ("ftrace_call",),
    "ftrace_regs_call": ("ftrace_regs_call",),
    "ftrace_ops": ("ftrace_caller_op_ptr",),
    "ftrace_regs_ops": ("ftrace_regs_caller_op_ptr",),
    "function_trace_op": ("function_trace_op",),
    PROBES: ("kprobe_table",),
    "patching_address": ("bp_int3_addr",),
    "patching_array": ("text_poke_array",),
    "patching_flag": ("bp_patching_in_progress",),
    "patching_refs_percpu": ("text_poke_array_refs", "bp_refs"),
}
"""Name in the configuration -> symbols, of which the first that a kernel has is used."""


WATCHED = frozenset(
    itertools.chain(
        WRITERS,
        (SYNC,),
        KPROBE_SYNC,
        HANDLERS,
        LOCKS,
        *POINTS.values(),
        GRACE_PERIODS,
        *DATA.values(),
    )
)
"""All names for which configuration() looks."""

MOST_POINTERS = 1024
DEFAULT_BYTES = 512
"""Of a variable behind which there is no symbol: KPROBE_TABLE_SIZE is 64."""
DESCRIPTOR = "bp_desc"
"""What the poke handler looks at, from 5.10 to 6.14."""


def configuration(lines: Sequence[str], sites: Mapping[int, int]) -> list[str]:
    """The lines of the plugin's configuration.

    lines: as printed by nm(1) or read from /proc/kallsyms. Compilers give clones of a static
    function a suffix (do_sync_core.llvm.123, .constprop.0); they are watched like the function.
    sites: length by address, of the test module's sites.
    """
    addresses: dict[str, list[int]] = {}
    for line in lines:
        address, _, name, *module = line.split()
        base, _, suffix = name.partition(".")
        if base not in WATCHED:
            continue
        if not module and not suffix.startswith(("cold", "part", "cfi_jt")):
            addresses.setdefault(base, []).append(int(address, 16))

    def first(names: Iterable[str]) -> list[int]:
        return next((addresses[name] for name in names if name in addresses), [])

    # Before, other locks did.
    guards = {} if addresses.keys().isdisjoint(KPROBE_SYNC) else GUARDS

    def demands(name: str) -> str:
        """What must be when a function is called: bits, of locks by their numbers."""
        bits = sum(1 << LOCKS.index(lock) for lock in guards.get(name, ()))
        bits |= KEY_IS_OFF if guards and name == KEY_UPDATE else 0
        bits |= CPUS_ARE_WRITTEN if guards and name in CPU_COMES_OR_GOES else 0
        return f" {bits:x}" if bits else ""

    conf = [f"write {address:x}" for address in first(WRITERS)]
    conf += [f"sync {address:x}" for address in addresses.get(SYNC, [])]
    for name, convention in HANDLERS.items():
        notifier = int(convention == "die_args")
        conf += [f"poke {address:x} {notifier}" for address in addresses.get(name, [])]
    for point, names in POINTS.items():
        conf += [
            f"{point} {address:x}{demands(name)}"
            for name in names
            for address in addresses.get(name, [])
        ]
    for name, number in GRACE_PERIODS.items():
        conf += [f"grace {address:x} {number:x}" for address in addresses.get(name, [])]
    for number, name in enumerate(LOCKS):
        conf += [f"mutex {address:x} {number:x}" for address in addresses.get(name, [])]
    for point, names in DATA.items():
        for found in first(names)[:1]:
            size = f" {_pointers(lines, found):x}" if point == PROBES else ""
            conf.append(f"{point} {found:x}{size}")
    conf += [f"patching_refs {address:x}" for address in _descriptors(lines)]
    return conf + [f"site {address:x} {length:x}" for address, length in sites.items()]


def _descriptors(lines: Sequence[str]) -> list[int]:
    """Where the struct bp_patching_desc is. Up to efd608fa7403 (6.0) bp_desc only points to it."""
    found = [int(line.split()[0], 16) for line in lines if line.split()[2:] == [DESCRIPTOR]][:1]
    return [address for address in found if _size(lines, address) >= 16]


def _pointers(lines: Sequence[str], address: int) -> int:
    """How many pointers the array at `address` has, which is a power of two."""
    return 1 << min(_size(lines, address) // 8, MOST_POINTERS).bit_length() - 1


def _size(lines: Sequence[str], address: int) -> int:
    """Bytes until the next symbol: the size of the variable at `address`, and what pads it."""
    others = (int(line.split()[0], 16) for line in lines)
    return min((one for one in others if one > address), default=address + DEFAULT_BYTES) - address


class Recorder:
    """The recorder of one machine.

    The plugin writes to files that are on no disk, so that nobody can remove or truncate them.
    """

    def __init__(self, qemu: Qemu, accel: Accel, limit: int = 1024) -> None:
        """limit: MiB that a log may have; what comes after that is lost."""
        self._limit = limit
        self._ledger = MemoryFile("int3.ledger")
        self._control = MemoryFile("recorder.control", bytes(CONTROL.size))
        self._conf = MemoryFile("recorder.conf")
        self._logs = (MemoryFile("recorder.0.log"), MemoryFile("recorder.1.log"))
        self.plugin: Path | None = None
        self.why_not: str | None = None
        """Why nothing is recorded; None if something is."""
        self.ordered = accel.thread == "single"
        """Whether the log is in the order of execution: not if CPUs run at the same time."""
        self.lines: Sequence[str] = ()
        """The symbols by which it was configured."""
        self._configuration: list[str] = []
        if accel.kind == "kvm":
            self.why_not = "under KVM QEMU does not see the guest's instructions"
        else:
            try:
                self.plugin = plugin_for(qemu)
            except InfraError as error:
                self.why_not = str(error)

    @property
    def options(self) -> tuple[str, ...]:
        """Arguments for QEMU's command line."""
        if not self.plugin:
            return ()
        files = {
            "ledger": self._ledger,
            "control": self._control,
            "conf": self._conf,
            "log0": self._logs[0],
            "log1": self._logs[1],
        }
        arguments = ",".join(f"{name}={file.path}" for name, file in files.items())
        return ("-plugin", f"file={escaped(self.plugin)},{arguments},limit={self._limit}")

    # -- the count of int3

    def read(self) -> Counts:
        """The counts of int3 so far. They are exact while the guest is stopped."""
        return _counts(self._ledger.read())

    @property
    def lost_int3(self) -> str:
        """Why int3 may be missing in the counts, as a sentence; empty if none are."""
        if not self.plugin:
            return ""
        if not self._ledger.size():
            return "QEMU's plugin did not begin to count int3"
        if sum(1 for _ in _slots(self._ledger.read())) == SLOTS:
            return f"QEMU's plugin counts int3 at {SLOTS:,} addresses only, and there may be more"
        return ""

    def save_int3(self, log: Log) -> None:
        """Write a copy of the counts for people; nothing if there are none."""
        log.write(self._ledger.read())

    # -- what to record

    def configure(self, lines: Sequence[str], sites: Mapping[int, int] | None = None) -> None:
        """Watch the functions in these lines of a symbol table, and the test module's sites.

        Takes effect when QEMU starts, or with reload().
        """
        self.lines = lines
        self._configuration = configuration(lines, sites or {})
        self._conf.replace("".join(f"{line}\n" for line in self._configuration).encode())

    def address(self, name: str) -> int:
        """The first address that the configuration has under this name, 0 if there is none."""
        words = [line.split() for line in self._configuration]
        return next((int(word[1], 16) for word in words if word[0] == name), 0)

    def reload(self, wait: Wait) -> bool:
        """Have a running guest be watched as configured last."""
        return self._ask(RELOAD, wait)

    def look(self, wait: Wait) -> bool:
        """Compare the kernel's text to what was last seen of it and written since."""
        return self._ask(LOOK, wait)

    def look_first(self) -> None:
        """Have the text be looked at when the guest begins to execute. It is stopped now."""
        self._ask(LOOK, lambda _: True)

    @contextlib.contextmanager
    def gdb(self) -> Iterator[None]:
        """While the block runs, GDB may keep CPUs from executing the first instruction of a
        watched function."""
        self._set(GDB, 1)
        try:
            yield
        finally:
            self._set(GDB, 0)

    # -- stopping at an event

    def wait_at(self, records: int, *, single: bool = False) -> None:
        """Have the guest wait in the middle of an instruction once the log has so many records.

        single: whether QEMU executes one instruction at a time from now on, so that `steps` counts.
        """
        self._set(SINGLE, int(single))
        self._set(WAIT_AT, records)

    def hold(self) -> None:
        """Have the guest wait when it waits for a plan, which is the same instruction each time."""
        self._set(HOLD, 1)

    @property
    def waits(self) -> bool:
        """Whether the guest waits now."""
        with self._mapped() as control:
            return QUAD.unpack_from(control, WAITS) != QUAD.unpack_from(control, LET_GO)

    def let_go(self) -> None:
        """Let a guest that waits go on. It does not wait for being saved again."""
        self._set(HOLD, 0)
        with self._mapped() as control:
            control[LET_GO : LET_GO + QUAD.size] = control[WAITS : WAITS + QUAD.size]

    @property
    def steps(self) -> int:
        """How many instructions have begun since the guest waited last.

        After hold(): whether any has, and they counted only once the guest has left that place.
        """
        with self._mapped() as control:
            return int(QUAD.unpack_from(control, STEPS)[0])

    def _set(self, member: int, value: int) -> None:
        with self._mapped() as control:
            QUAD.pack_into(control, member, value)

    def _ask(self, wish: int, wait: Wait) -> bool:
        """Returns whether the wish was fulfilled, which takes until the guest executes anything."""
        if not self.plugin:
            return True
        with self._mapped() as control:
            number = struct.unpack_from("<I", control, 4 * wish)[0] + 1
            struct.pack_into("<I", control, 4 * wish, number)
            return wait(lambda: struct.unpack_from("<I", control, 12 + 4 * wish)[0] == number)

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[mmap.mmap]:
        with mmap.mmap(self._control.fileno(), CONTROL.size) as control:
            yield control

    # -- what was recorded

    def take(self, wait: Wait) -> Records:
        """The log so far. The recorder goes on in another file, as soon as no poke is under way."""
        before = self._state().turned
        self._ask(TURN, wait)
        state = self._state()
        if state.turned != before:
            return self._load(before, state.previous)
        return self.records()

    def records(self) -> Records:
        """The log that is being written, so far."""
        state = self._state()
        return self._load(state.turned, state.records)

    @property
    def lost(self) -> str:
        """Why records are missing, as a sentence without a full stop; empty if none are."""
        count = self._state().lost
        return f"{count:,} events found no room in the recorder's log" if count else ""

    @property
    def looks(self) -> int:
        """How often the whole text has been looked at."""
        return self._state().looked

    @property
    def events(self) -> int:
        """Changes whenever anything was seen that is recorded."""
        state = self._state()
        return state.records + state.lost

    def _state(self) -> _State:
        return _State(*CONTROL.unpack(self._control.read())[4:9])

    def _load(self, turn: int, count: int) -> Records:
        if not count:
            return np.zeros(0, RECORD)
        size = count * RECORD.itemsize
        return np.frombuffer(mmap.mmap(self._logs[turn & 1].fileno(), size, prot=READ), RECORD)


def save(records: Records, log: Log) -> None:
    """Write a compressed copy for people, which load() reads."""
    for part in packed(records):
        log.write(part)


def packed(records: Records) -> Iterator[bytes]:
    """The content of a compressed log, in parts."""
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    for start in range(0, len(records), CHUNK):
        yield packer.compress(records[start : start + CHUNK].tobytes())
    yield packer.flush()


def plugin_for(qemu: Qemu) -> Path:
    """The plugin, which `qemu` has loaded and which has counted the int3 of accel.probe().

    Raises InfraError if there is none.
    """
    if not qemu.good:
        version, oldest = (".".join(map(str, v)) for v in (qemu.version, QEMU_GOOD))
        raise InfraError(f"QEMU {version} is older than {oldest} and lacks the plugin interface")
    return plugin.compiled("recorder", FILES, qemu, "ledger", _miscount)


def _miscount(file: Path) -> str:
    """What is wrong with the count of a probe; empty if nothing is."""
    counted, executed = _counts(file.read_bytes()).total(), PROBE_CPUS * PROBE_INT3
    return (
        "" if counted == executed else f"it counted {counted} int3 where {executed} were executed"
    )


def _counts(content: bytes) -> Counts:
    counts: Counts = Counter()
    for site, *by_cpu in _slots(content):
        counts.update({SiteCpu(site, cpu): count for cpu, count in enumerate(by_cpu) if count})
    return counts


def _slots(content: bytes) -> Iterator[tuple[int, ...]]:
    """Address and count by CPU, of each address in the plugin's ledger so far."""
    for slot in SLOT.iter_unpack(content[: len(content) // SLOT.size * SLOT.size]):
        if not slot[0]:
            return
        yield slot


class _State(NamedTuple):
    """The last members of struct control."""

    turned: int = 0
    looked: int = 0
    records: int = 0
    lost: int = 0
    previous: int = 0


def load(path: Path) -> Records:
    """The records of a log, compressed or not."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    return np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)
