# SPDX-License-Identifier: GPL-2.0-only
"""Runs inside GDB: records every sync, text write and int3, and holds the poker at the gate.

GDB loads this file with `source`. It uses only the standard library, because the rest of the
program cannot be imported there. Each stop is handled here and never crosses MI, which makes it
affordable to watch every single one.

All breakpoints are hardware breakpoints. A software breakpoint under KVM would write 0xcc into the
very text under test; under TCG neither kind writes anything. They are set on kernel functions that
run once per write, once per sync round and CPU, or once per trap. In arch/x86/kernel/alternative.c
these are __text_poke(), do_sync_core() and poke_int3_handler(), or their names in other versions.

What the int3 handler did with a trap is learnt without a second stop: the agent replaces the
handler's return address by a stub in the test module (guest/module/gate.c), which records the
result. The `return` event is therefore written at the next stop, whichever that is. Without the
module there is a second breakpoint where the handler returns to, and no poke is announced.

The events file has one JSON object per line, and every line is written at once:

    n      number of the event, from 1 in each window of observation
    t      seconds since the epoch, by the host's clock
    kind   window | hold | write | piece | sync | int3 | return | stopper | end | cpus | error |
           again
    step   number of the step that the test module is running
    cpu    number of the virtual CPU that stopped; -1 if the event is not about one
    bytes  the site's bytes at that moment, in hex; only while a window is open

`again` stands for a stop that was recorded before. GDB sometimes reports one twice, if another CPU
stops while GDB steps this one over its breakpoint. Further fields, by kind:

    window       site, from, to, seq, task, gated, targets: orch_window of guest/module/orch.h
    write, hold  addr, len, src (hex): the arguments of the write
                 own (bool): the write is to the site of the open window
                 irqs (bool): interrupts are on
                 pieces, written: the tail was written in pieces, and addr, len and src are those of
                 the whole; this write was of the last piece, with this address, length and bytes
                 owner: the task that holds text_mutex, 0 for none. Left out until the agent knows
                 which word of the mutex that is
                 elsewhere: CPUs that have not synced since the last write, and are in user mode or
                 sleep. Left out if there are none
                 before (hex: 8 bytes at addr), callers (return addresses on the stack): only if the
                 module has not announced the write
    piece        as in a write: a part of the tail, after which more of it must follow
    int3         ip: address of the byte that trapped
    return       value: what the handler returned; ip: where the CPU continues
                 trap: ip of the int3 event
    stopper      own (bool): the poker called stop_machine()
    end          seq: of the window that has ended; elsewhere: as in a write
    cpus         cpus: where each CPU is, as in Agent.cpus(). At most once per window, if something
                 happened that the report may want to show
    error        what: the exception

The agent does not judge what is right and what is wrong. orchestrator/verdict/model.py does.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from pathlib import Path

import gdb

WINDOW = struct.Struct("<QIIQQQ8s8s2Q")  # struct orch_window in guest/module/orch.h
RETURN = struct.Struct("<5Q")  # struct orch_return in guest/module/gate.c
SLOT_SIZE = 32  # of each slot in orch_slots in guest/module/gate.c
RETURN_STUB_SIZE = 64  # of each CPU's stub in orch_return_stubs in guest/module/gate.c
SLOTS = ("write", "sync", "int3", "stopper")
"""Which breakpoint has which slot in orch_slots."""

PT_REGS_IP = 0x80  # offsetof(struct pt_regs, ip): the same on x86-64 since 2.6
EFLAGS_IF = 0x200
DIE_INT3 = 2  # enum die_val in arch/x86/include/asm/kdebug.h: unchanged since it was introduced
THREAD_SIZE = 0x4000  # on x86-64 since 3.15; 0x2000 before
U64_MAX = (1 << 64) - 1

NOPS = (b"\x0f\x1f\x44\x00\x00", b"\x66\x66\x66\x66\x90", b"\xf3\x0f\x1e\xfa", b"\x66\x90", b"\x90")
"""No-ops that functions begin with: ftrace's 5-byte NOPs, ENDBR64, and short NOPs."""

CALLERS = 8
"""Return addresses recorded for a foreign write: enough to get out of the text-poke code."""

INT3_PER_CPU, INT3_LIMIT = 4, 16
"""Without the module nobody holds the poker, and int3 are recorded only until there are enough.

The int3 breakpoint is disabled until the next phase when every CPU has recorded INT3_PER_CPU, or
when one has recorded INT3_LIMIT times the number of CPUs. A stop takes longer than the guest has
between two timer ticks, so a guest that only traps would get no work done.
"""


class HardwareBreakpoint(gdb.Breakpoint):
    """A hardware breakpoint that calls `on_hit(cpu, frame)` and never stops the guest for good.

    To resume at a breakpoint, GDB removes it, single-steps that one CPU, and inserts it again. That
    is a second stop for each hit, and at each stop QEMU discards all of its translations. So the
    CPU is moved past the breakpoint instead, by setting its rip. If the instruction under the
    breakpoint is a NOP or a direct jump, that is where it leads; otherwise it is a copy of the
    instruction in `slot`, as kprobes do it. GDB steps only if neither is possible.
    """

    def __init__(self, address, on_hit, slot):
        super().__init__(f"*{address:#x}", type=gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        self.silent = True
        self._on_hit = on_hit
        self._address = address
        self._resume_at = target_of_nop_or_jump(address) or (
            copy_instruction(address, slot) if slot else None
        )

    def stop(self):
        """GDB's hook. False resumes the guest."""
        try:
            AGENT.emit_returns()
            self._on_hit(cpu_number(), gdb.newest_frame())
            # The hit may have moved the CPU elsewhere: to the gate.
            if self._resume_at and register(gdb.newest_frame(), "rip") == self._address:
                set_rip(self._resume_at)
        except Exception as error:  # GDB would stop the guest, and tell nobody why
            AGENT.emit("error", -1, what=f"{type(error).__name__}: {error}")
        return False


def target_of_nop_or_jump(address):
    """Where a CPU goes from the NOP or direct JMP at `address`; None for other instructions."""
    code = memory(address, 5)
    for nop in NOPS:
        if code.startswith(nop):
            return address + len(nop)
    if code[0] == 0xE9:
        return address + 5 + struct.unpack("<i", code[1:])[0]
    if code[0] == 0xEB:
        return address + 2 + struct.unpack("<b", code[1:2])[0]
    return None


def copy_instruction(address, slot):
    """Copy the instruction at `address` to `slot`, and append a JMP to the instruction after it.

    A rip-relative operand is adjusted. Returns `slot`, or None for an instruction that cannot run
    elsewhere: a call, a conditional jump, or a rip-relative one whose operand is not found.
    """
    decoded = gdb.selected_frame().architecture().disassemble(address, count=1)[0]
    code, length = bytearray(memory(address, decoded["length"])), decoded["length"]
    if re.match(r"(call|j\w+|loop|xbegin|\(bad\))", decoded["asm"]):
        return None
    if "%rip" in decoded["asm"]:
        operand = re.search(r"\(%rip\)[^#]*# (0x[0-9a-f]+)", decoded["asm"])
        if not operand:
            return None
        target = int(operand[1], 16)
        before, now = displacement(target, address + length), displacement(target, slot + length)
        at = code.find(before) if before and now else -1
        if at < 0:
            return None
        code[at : at + 4] = now
    back = displacement(address + length, slot + length + 5)
    if not back:
        return None
    gdb.selected_inferior().write_memory(slot, bytes(code + b"\xe9" + back))
    return slot


def displacement(target, end):
    """The four bytes by which an instruction that ends at `end` refers to `target`.

    None if that is too far. Addresses wrap around: that of a per-CPU variable is near 0.
    """
    distance = ((target - end + (1 << 63)) & U64_MAX) - (1 << 63)
    return struct.pack("<i", distance) if -(1 << 31) <= distance < 1 << 31 else None


def set_rip(address):
    gdb.execute(f"set var $rip = {address:#x}", to_string=True)


def cpu_number():
    """QEMU numbers threads from 1, in CPU order (gdbstub/gdbstub.c: gdb_get_cpu_index())."""
    return gdb.selected_thread().ptid[1] - 1


def register(frame, name):
    return int(frame.read_register(name)) & U64_MAX


def memory(address, size):
    return bytes(gdb.selected_inferior().read_memory(address, size))


def read_u64(address):
    return struct.unpack("<Q", memory(address, 8))[0]


def return_addresses(stack, count):
    """Of the `count` words at `stack`, those that look like return addresses.

    That is, they point into the text of the kernel or a module, right after a call instruction.
    """
    try:
        words = struct.unpack(f"<{count}Q", memory(stack, 8 * count))
    except gdb.MemoryError:
        return []
    return [word for word in words if word >> 31 == 0x1FFFFFFFF and follows_call(word)]


def follows_call(address):
    """Whether a call ends at `address`: CALL rel32 (e8), or CALL of a register (ff d0 to ff d7)."""
    try:
        code = memory(address - 5, 5)
    except gdb.MemoryError:
        return False
    return code[0] == 0xE8 or (code[3] == 0xFF and code[4] & 0xF8 == 0xD0)


def sleeps(rip):
    """Whether a CPU has executed HLT or MWAIT, and nothing after it."""
    try:
        code = memory(rip - 3, 3)
    except gdb.MemoryError:
        return False
    return code[2:] == b"\xf4" or code == b"\x0f\x01\xc9"


class Agent:
    """The breakpoints, the gate, and what is known of the poke in progress.

    The configuration is the content of watch.json:

    symbols: addresses by name. Always `write`, `int3` and `text_mutex`; if the kernel has them,
        `sync` and `stopper`; with the test module, `orch_window`, `orch_gate_stub`,
        `orch_gate_resume`, `orch_slots`, `orch_returns` and `orch_return_stubs`.
    limit: number of hardware breakpoints that the machine has.
    regs: where the int3 handler gets its pt_regs. `rdi`, or `die_args` for a die notifier: the
        first member of struct die_args, its third argument.
    events: path of the events file, to which the agent appends. Whoever reads it also empties it.
        It is on no disk, so nobody can remove it, and it is not full when a disk is.
    """

    def __init__(self, config):
        self.symbols = config["symbols"]
        self.regs = config["regs"]
        self.limit = config["limit"]
        self.file = os.open(config["events"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.unwritten = b""  # complete events that the file did not take yet
        self.write_error = ""  # the last one
        self.breakpoints = []
        self.has_module = "orch_window" in self.symbols
        self.pending = {}  # cpu -> (address of pt_regs, ip of the int3), until its handler returns
        self.return_stacks = {}  # without the module: cpu -> stack pointer after that return
        self.return_breakpoint = None  # without the module: where the int3 handler returns to
        self.int3_breakpoint = None
        self.int3_counts = {}  # without the module: cpu -> int3 recorded in this phase
        self.sync_seen = False  # since the last write
        self.first_argument = None  # of the write function: see write_arguments()
        self.owner_word = None  # of text_mutex: see text_mutex_owner()
        self.count = 0
        self.step = 0
        self.window = None
        self.reset_poke()

    def reset_poke(self):
        """Forget the previous poke."""
        self.seq = None
        self.writes = 0
        self.held_stack = None  # stack pointer of the poker while it is held at the gate
        self.poker_stack = None  # its stack pointer at the last write
        self.last_write = None  # enough to recognise the same write
        self.in_pieces = False  # whether a part of the tail is written
        self.synced = set()  # CPUs that have synced since the last write
        self.cpus_emitted = False

    def emit(self, kind, cpu, **fields):
        """Write one event."""
        event = {
            "n": self.count + 1,
            "t": round(time.time(), 6),
            "step": self.step,
            "kind": kind,
            "cpu": cpu,
        }
        if self.window and kind not in ("window", "error"):
            event["bytes"] = memory(self.window["site"], self.window["len"]).hex()
        event.update(fields)
        line = json.dumps(event) + "\n"
        self.count += 1
        self.unwritten += line.encode()
        self.flush()

    def flush(self):
        """Write what is not written yet; what the file does not take now is tried again later."""
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[os.write(self.file, self.unwritten) :]
        except OSError as error:
            self.write_error = str(error)

    # -- called from watch.py while the guest is stopped

    def open(self, step=0):
        """Set the breakpoints, as many as the machine has, and return their names.

        The most informative come first.
        """
        self.count, self.unwritten = 0, b""
        handlers = {
            "write": self.on_write,
            "sync": self.on_sync,
            "int3": self.on_int3,
            "stopper": self.on_stopper,
        }
        # Without the module one breakpoint is reserved for the handler's return.
        limit = self.limit - (not self.has_module)
        names = [name for name in handlers if name in self.symbols][:limit]
        self.step = step
        self.breakpoints = [self.set_breakpoint(name, handlers[name]) for name in names]
        self.int3_breakpoint = dict(zip(names, self.breakpoints, strict=True)).get("int3")
        self.reset_poke()
        return names

    def close(self):
        """Remove the breakpoints and end the window."""
        extra = [self.return_breakpoint] if self.return_breakpoint else []
        for point in [*self.breakpoints, *extra]:
            point.delete()
        self.breakpoints, self.return_breakpoint = [], None
        self.emit_returns()
        self.end_window()

    def status(self):
        """How many events there were, and why some are not in the file (empty if all are)."""
        self.flush()
        return {"count": self.count, "error": self.write_error if self.unwritten else ""}

    def survey(self):
        """Replace the breakpoints by one that only counts int3 by CPU and address, in `surveyed`.

        That shows why a guest makes no progress.
        """
        self.close()
        self.surveyed = {}
        self.breakpoints = [self.set_breakpoint("int3", self.on_surveyed_int3)]

    def cpus(self):
        """Where each CPU is: registers, and the return addresses on its stack, innermost first."""
        cpus, selected = [], gdb.selected_thread()
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.ptid[1]):
            thread.switch()
            frame = gdb.newest_frame()
            stack = register(frame, "rsp")
            cpus.append(
                {
                    "cpu": thread.ptid[1] - 1,
                    "rip": register(frame, "rip"),
                    "rsp": stack,
                    "eflags": register(frame, "eflags"),
                    "stack": return_addresses(stack, 64),
                }
            )
        selected.switch()
        return cpus

    def elsewhere(self):
        """The CPUs that have not synced since the last write and are in user mode or sleep."""
        cpus, selected = [], gdb.selected_thread()
        for thread in gdb.selected_inferior().threads():
            if (cpu := thread.ptid[1] - 1) not in self.synced:
                thread.switch()
                frame = gdb.newest_frame()
                if register(frame, "cs") & 3 == 3 or sleeps(register(frame, "rip")):
                    cpus.append(cpu)
        selected.switch()
        return cpus

    # -- the window, and what the kernel's functions were called with

    def set_breakpoint(self, name, on_hit):
        """Set one on the symbol `name`, with its slot in the module if that is loaded."""
        slot = None
        if self.has_module:
            slot = self.symbols["orch_slots"] + SLOT_SIZE * SLOTS.index(name)
        return HardwareBreakpoint(self.symbols[name], on_hit, slot)

    def read_window(self, cpu):
        """Read the module's orch_window: which poke is in progress, if any, and of which step."""
        if not self.has_module:
            return
        fields = WINDOW.unpack(memory(self.symbols["orch_window"], WINDOW.size))
        site, length, gated, seq, step, task, old, new, *targets = fields
        if length > len(new):
            raise ValueError(f"orch_window announces an instruction of {length} bytes")
        if site and seq == self.seq:
            return
        self.end_window()
        self.step = step
        if not site:
            return
        self.reset_poke()
        self.seq = seq
        self.window = {
            "site": site,
            "len": length,
            "gated": bool(gated),
            "to": new[:length],
            "task": task,
        }
        self.emit(
            "window",
            cpu,
            site=site,
            seq=seq,
            task=task,
            gated=bool(gated),
            targets=[target for target in targets if target],
            bytes=memory(site, length).hex(),
            **{"from": old[:length].hex(), "to": new[:length].hex()},
        )

    def end_window(self):
        """End the window, if one is open: its `end` event has the bytes that the poke left."""
        if self.window:
            threads = len(gdb.selected_inferior().threads())
            elsewhere = self.elsewhere() if len(self.synced) < threads else []
            self.emit("end", -1, seq=self.seq, elsewhere=elsewhere)
            if memory(self.window["site"], self.window["len"]) != self.window["to"]:
                self.emit_cpus()
        self.window = None

    def emit_cpus(self):
        """Record where the CPUs are, once per window."""
        if not self.cpus_emitted:
            self.cpus_emitted = True
            self.emit("cpus", -1, cpus=self.cpus())

    def trap(self, frame):
        """At the handler's entry: the address of its pt_regs, and the address of the int3.

        None if it was called for something else, as a die notifier may be.
        """
        if self.regs == "die_args" and register(frame, "rsi") != DIE_INT3:
            return None
        regs = register(frame, "rdi") if self.regs == "rdi" else read_u64(register(frame, "rdx"))
        return regs, read_u64(regs + PT_REGS_IP) - 1

    def write_arguments(self, frame):
        """(address, source, length) of a call of __text_poke().

        It is __text_poke(addr, opcode, len) up to 6.0, and later has the function that copies as
        an additional first argument. The register that points into the site shows which it is.
        """
        registers = [register(frame, name) for name in ("rdi", "rsi", "rdx", "rcx")]
        if self.window:
            start, end = self.window["site"], self.window["site"] + self.window["len"]
            for first in (1, 0):
                if start <= registers[first] < end:
                    self.first_argument = first
                    return registers[first : first + 3]
        first = 1 if self.first_argument is None else self.first_argument
        return registers[first : first + 3]

    def text_mutex_owner(self):
        """The task that holds text_mutex, 0 for none; None if the owner's word is not known yet.

        Which word of the mutex that is depends on version and configuration (struct mutex, or with
        PREEMPT_RT struct rt_mutex_base). It is found at the first announced poke, because the
        module announces the poker's task. The lowest three bits are flags (MUTEX_FLAGS in
        kernel/locking/mutex.h).
        """
        words = struct.unpack("<4Q", memory(self.symbols["text_mutex"], 32))
        if self.owner_word is None and self.window:
            matches = [at for at, word in enumerate(words) if word & ~7 == self.window["task"]]
            self.owner_word = matches[0] if matches else None
        return None if self.owner_word is None else words[self.owner_word] & ~7

    # -- the breakpoints

    def on_write(self, cpu, frame):
        """At the entry of the function that writes text."""
        self.read_window(cpu)
        if self.sync_seen or "sync" not in self.symbols:  # a new phase
            self.sync_seen, self.int3_counts = False, {}
            self.enable_int3(True)
        address, source, length = self.write_arguments(frame)
        own = bool(self.window) and 0 <= address - self.window["site"] < self.window["len"]
        fields = {
            "addr": address,
            "len": length,
            "src": memory(source, length).hex() if 0 < length <= 16 else "",
            "own": own,
            "irqs": bool(register(frame, "eflags") & EFLAGS_IF),
        }
        stack = register(frame, "rsp")
        if (owner := self.text_mutex_owner()) is not None:
            fields["owner"] = owner
        if not own:
            fields["before"] = memory(address, 8).hex()
            fields["callers"] = return_addresses(stack, 32)[:CALLERS]
        incomplete = len(self.synced) < len(gdb.selected_inferior().threads())
        if incomplete and (elsewhere := self.elsewhere()):
            fields["elsewhere"] = elsewhere
        site_bytes = memory(self.window["site"], self.window["len"]) if own else None
        this_write = (stack, address, fields["src"], site_bytes)
        if own and self.last_write == this_write:
            # The same stop: a second write would find the site as the first one left it.
            self.emit("again", cpu)
            return
        if own and self.changes_nothing(address, length, source, site_bytes):
            self.last_write = this_write
            self.emit("piece", cpu, unchanged=True, **fields)
            return
        gated = own and self.window["gated"] and not self.in_pieces
        if gated and self.writes and self.held_stack != stack:
            self.held_stack = stack
            self.emit("hold", cpu, **fields)
            if incomplete:
                self.emit_cpus()
            self.move_to_gate(frame)
            return
        self.held_stack = None
        if own and self.is_piece(address, length, source, site_bytes):
            self.in_pieces = True
            self.last_write = this_write
            self.emit("piece", cpu, **fields)
            return
        if (
            own
            and (self.in_pieces or self.is_part(address, length, site_bytes))
            and address > self.window["site"]
        ):
            tail = self.window["to"][1:]
            fields |= {"written": [address, length, fields["src"]], "src": tail.hex()}
            fields |= {"addr": self.window["site"] + 1, "len": len(tail), "pieces": True}
        self.in_pieces = False
        self.emit("write", cpu, **fields)
        self.synced = set()
        self.writes += own
        if own:
            self.poker_stack = stack
            self.last_write = this_write
            if (self.writes == 1 and fields["src"] != "cc") or not fields["irqs"]:
                self.emit_cpus()

    def is_piece(self, address, length, source, site_bytes):
        """Whether a write is behind int3 and leaves a tail that is not the new one yet.

        As no CPU gets past int3, it does not matter in how many pieces a kernel writes the tail.
        """
        offset = address - self.window["site"]
        if offset == 0 or self.writes != 1 or site_bytes[:1] != b"\xcc" or length > 16:
            return False
        after = bytearray(site_bytes)
        after[offset : offset + length] = memory(source, length)
        return after[1 : len(site_bytes)] != self.window["to"][1:]

    def is_part(self, address, length, site_bytes):
        """Whether a write is behind int3, and of a part of the tail only."""
        offset, size = address - self.window["site"], self.window["len"]
        behind = offset > 0 and self.writes == 1 and site_bytes[:1] == b"\xcc"
        return behind and 0 < length < size - 1 and offset + length <= size

    def changes_nothing(self, address, length, source, site_bytes):
        """Whether a write is a piece that the tail has already, before any CPU has synced."""
        offset = address - self.window["site"]
        if offset == 0 or self.writes != 2 or self.synced or length > 16:
            return False
        same = memory(source, length) == site_bytes[offset : offset + length]
        return same and site_bytes[:1] == b"\xcc"

    def move_to_gate(self, frame):
        """Send the poker to the gate's stub, which returns it here when the gate opens."""
        resume = struct.pack("<Q", register(frame, "rip"))
        gdb.selected_inferior().write_memory(self.symbols["orch_gate_resume"], resume)
        set_rip(self.symbols["orch_gate_stub"])

    def on_sync(self, cpu, frame):
        """At the entry of do_sync_core()."""
        # A round that the poker did not wait for continues after the poke has returned.
        if self.window:
            self.read_window(cpu)
        self.synced.add(cpu)
        self.sync_seen = True
        self.emit("sync", cpu)

    def on_int3(self, cpu, frame):
        """At the entry of the int3 handler."""
        if not (trap := self.trap(frame)):
            return
        regs, ip = trap
        if self.pending.get(cpu) == (regs, ip):
            self.emit("again", cpu, ip=ip)  # the same trap: its handler has not returned
            return
        if not self.window:
            self.read_window(cpu)
        self.emit("int3", cpu, ip=ip)
        if cpu in self.pending:
            return  # nested, in an NMI: each CPU has only one record, so this return is not seen
        self.pending[cpu] = (regs, ip)
        if self.has_module:
            self.return_through_stub(cpu, frame, regs)
        else:
            self.stop_at_return(cpu, frame)

    def return_through_stub(self, cpu, frame, regs):
        """Have the handler return through the CPU's stub, which records the result."""
        stack, inferior = register(frame, "rsp"), gdb.selected_inferior()
        record = RETURN.pack(regs, read_u64(stack), 0, 0, 0)
        inferior.write_memory(self.symbols["orch_returns"] + cpu * RETURN.size, record)
        stub = self.symbols["orch_return_stubs"] + cpu * RETURN_STUB_SIZE
        inferior.write_memory(stack, struct.pack("<Q", stub))

    def stop_at_return(self, cpu, frame):
        """Without the module: set a breakpoint where the handler returns to."""
        stack = register(frame, "rsp")
        self.return_stacks[cpu] = stack + 8
        if not self.return_breakpoint:  # one is enough: the handler is called from one place
            self.return_breakpoint = HardwareBreakpoint(read_u64(stack), self.on_return, None)
        self.return_breakpoint.enabled = True
        self.int3_counts[cpu] = self.int3_counts.get(cpu, 0) + 1
        cpus = len(gdb.selected_inferior().threads())
        if (
            sum(count >= INT3_PER_CPU for count in self.int3_counts.values()) == cpus
            or max(self.int3_counts.values()) >= INT3_LIMIT * cpus
        ):
            self.enable_int3(False)

    def on_return(self, cpu, frame):
        """Without the module: where the int3 handler returns to."""
        if cpu in self.pending and register(frame, "rsp") == self.return_stacks[cpu]:
            regs, trap = self.pending.pop(cpu)
            value = register(frame, "rax") & 0xFFFFFFFF
            self.emit("return", cpu, value=value, ip=read_u64(regs + PT_REGS_IP), trap=trap)
            self.return_breakpoint.enabled = bool(self.pending) or self.int3_breakpoint.enabled

    def enable_int3(self, enabled):
        """Without the module: enable or disable the breakpoint on the int3 handler."""
        if not self.has_module and self.int3_breakpoint.enabled != enabled:
            self.int3_breakpoint.enabled = enabled

    def emit_returns(self):
        """Record the int3 handlers that have returned through their stub since the last stop."""
        if not self.has_module:
            return
        for cpu, (_, trap) in list(self.pending.items()):
            record = memory(self.symbols["orch_returns"] + cpu * RETURN.size, RETURN.size)
            _, _, ip, value, done = RETURN.unpack(record)
            if done:
                del self.pending[cpu]
                self.emit("return", cpu, value=value & 0xFFFFFFFF, ip=ip, trap=trap)
                if self.window and trap == self.window["site"] and not value & 0xFFFFFFFF:
                    self.emit_cpus()

    def on_stopper(self, cpu, frame):
        """At the entry of multi_cpu_stop(data).

        `data` is on the stack of whoever called stop_machine(), which tells the poker from others.
        They may call it at any time: the scheduler does so in migrate_swap().
        """
        data = register(frame, "rdi")
        stack = self.poker_stack
        self.emit("stopper", cpu, own=stack is not None and abs(data - stack) < THREAD_SIZE)

    def on_surveyed_int3(self, cpu, frame):
        """At the entry of the int3 handler, during a survey."""
        if not (trap := self.trap(frame)):
            return
        _, ip = trap
        entry = self.surveyed.setdefault(
            f"{cpu} {ip:x}", {"cpu": cpu, "ip": ip, "traps": 0, "int3": 0}
        )
        entry["traps"] += 1
        entry["int3"] += memory(ip, 1) == b"\xcc"


AGENT = None


def start(path):
    """Create the agent from the configuration in the JSON file `path`."""
    global AGENT
    AGENT = Agent(json.loads(Path(path).read_text()))
