"""Runs inside GDB: sees every sync round, text write and int3 of a window, and holds the poker at the gate.

GDB loads this file with `source`; nothing else of the program is importable there, so it uses the standard library
only. A stop that only counts is answered here and never crosses MI: that is what makes watching every one affordable.

What becomes of an int3 is learnt without a second stop: its handler is made to return through a stub in the module
(guest/module/gate.c), which notes it down; the `return` event comes with the next stop. Where there is no module there
is a second stop, where the handler returns to; and no poke is announced.

Only hardware breakpoints are used. Under KVM a software breakpoint would write 0xcc into the very text under test;
under TCG both kinds write nothing. All lie on functions of the kernel that run once a write, a sync round and CPU, or
a trap (arch/x86/kernel/alternative.c: __text_poke, do_sync_core, poke_int3_handler or its namesakes).

One JSON object a line goes to the events file, written through at once:

    n      running number, from 1
    t      host seconds since the epoch
    kind   window | hold | write | sync | int3 | return | stopper | end | cpus | error | again: a stop seen before.
           Now and then one is reported twice, when another CPU stops while GDB steps this one over its breakpoint
    step   number of the step that the test module is at
    cpu    number of the virtual CPU that stopped
    bytes  the site's bytes at that moment, hex, while a window is open

and by kind: window: site, from, to, seq, task, targets; write and hold: addr, len, src (hex), own, irqs (bool), owner
(task that holds text_mutex, 0 for none; left out until it is known where the mutex says so), and where the module has
not announced it before (hex: eight bytes at addr) and callers (words on the stack that point into text); int3: ip (of
the byte that trapped); return: value, ip (where the CPU will go on), trap (ip at entry); stopper: own (stop_machine()
was called by the poker); cpus: cpus (where each CPU is, as Watch.cpus() tells), once a window, when something looks as
if the report might want to show it. What is right and wrong the agent does not know.
"""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path

import gdb

WINDOW = struct.Struct("<QIIQQQ8s8s2Q")  # struct orch_window in guest/module/orch.h
PT_REGS_IP = 0x80  # offsetof(struct pt_regs, ip), the same on x86-64 since 2.6
EFLAGS_IF = 0x200
DIE_INT3 = 2  # enum die_val in arch/x86/include/asm/kdebug.h, since there is one
THREAD_SIZE = 0x4000  # of x86-64 since 3.15; 0x2000 before
MASK = (1 << 64) - 1


NOPS = (b"\x0f\x1f\x44\x00\x00", b"\x66\x66\x66\x66\x90", b"\xf3\x0f\x1e\xfa", b"\x66\x90", b"\x90")
"""What functions begin with that does nothing: the tracer's five bytes, ENDBR64, short NOPs."""


CALLERS = 8
"""Words of the stack that are kept of a write by others: enough to get out of the text-poke code."""
SLOT = 32
"""Bytes of a slot in orch_slots (guest/module/gate.c)."""
RETURN = struct.Struct("<5Q")  # struct orch_return in guest/module/gate.c
ENOUGH, MOST = 4, 16
"""int3 of each CPU in a phase that are looked at where nobody holds the poker, and the most of one of them on average.
Stops take longer than the guest has between two ticks, and a scheduler that only traps gets no work done."""
RETURN_STUB = 64
"""Bytes from one CPU's stub in orch_return_stubs to the next."""


class HardwareBreakpoint(gdb.Breakpoint):
    """A hardware breakpoint whose hits go to one method of the watch.

    To go on from a breakpoint GDB takes it out, steps the CPU alone, and puts it in again: a second stop for each, and
    with each stop QEMU throws all its translations away. So the CPU is sent past the breakpoint instead: where the
    instruction is a NOP or a direct jump by setting one register, else through a copy of it in `slot`, as kprobes do.
    """

    def __init__(self, address, seen, slot):
        super().__init__(f"*{address:#x}", type=gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        self.silent = True
        self._seen = seen
        self._address = address
        self._next = following(address) or (copied(address, slot) if slot else None)

    def stop(self):
        """Never stops the guest for good."""
        try:
            AGENT.see_returns()
            self._seen(cpu_number(), gdb.newest_frame())
            if self._next and register(gdb.newest_frame(), "rip") == self._address:
                go_to(self._next)
        except (
            Exception
        ) as error:  # an error in stop() would otherwise stop the guest without a word
            AGENT.emit("error", -1, what=f"{type(error).__name__}: {error}")
        return False


def following(address):
    """Where the instruction at `address` leads when that is all it does, else None."""
    code = memory(address, 5)
    for nop in NOPS:
        if code.startswith(nop):
            return address + len(nop)
    if code[0] == 0xE9:
        return address + 5 + struct.unpack("<i", code[1:])[0]
    if code[0] == 0xEB:
        return address + 2 + struct.unpack("<b", code[1:2])[0]
    return None


def copied(address, slot):
    """Copy the instruction at `address` to `slot`, with a jump behind it to what follows; `slot`.

    None where it cannot run elsewhere (calls, conditional jumps): GDB has to step over it.
    """
    decoded = gdb.selected_frame().architecture().disassemble(address, count=1)[0]
    code, length = bytearray(memory(address, decoded["length"])), decoded["length"]
    if re.match(r"(call|j\w+|loop|xbegin|\(bad\))", decoded["asm"]):
        return None
    if "%rip" in decoded["asm"]:
        target = re.search(r"\(%rip\)[^#]*# (0x[0-9a-f]+)", decoded["asm"])
        if not target:
            return None
        used = int(target[1], 16)
        at = code.find(struct.pack("<i", used - (address + length)))
        if at < 0:
            return None
        code[at : at + 4] = struct.pack("<i", used - (slot + length))
    code += b"\xe9" + struct.pack("<i", address - (slot + 5))
    gdb.selected_inferior().write_memory(slot, bytes(code))
    return slot


def go_to(address):
    gdb.execute(f"set var $rip = {address:#x}", to_string=True)


def cpu_number():
    """QEMU numbers its threads from 1 in the order of its CPUs (gdbstub/gdbstub.c: gdb_get_cpu_index)."""
    return gdb.selected_thread().ptid[1] - 1


def register(frame, name):
    return int(frame.read_register(name)) & MASK


def memory(address, size):
    return bytes(gdb.selected_inferior().read_memory(address, size))


def quad(address):
    return struct.unpack("<Q", memory(address, 8))[0]


def text_words(stack, count):
    """Those of the `count` words on the stack that lead into the kernel's or its modules' text, behind a call there."""
    try:
        words = struct.unpack(f"<{count}Q", memory(stack, 8 * count))
    except gdb.MemoryError:
        return []
    return [word for word in words if word >> 31 == 0x1FFFFFFFF and behind_call(word)]


def behind_call(address):
    """Whether there is a call before `address`: of a function (e8), or by a register (ff d0 to ff d7)."""
    try:
        code = memory(address - 5, 5)
    except gdb.MemoryError:
        return False
    return code[0] == 0xE8 or (code[3] == 0xFF and code[4] & 0xF8 == 0xD0)


class Agent:
    """The points of one window, the gate, and what both have seen.

    config: symbols (name -> address) with at least `write`, `sync`, `int3` and `text_mutex`; `stopper` optional; with
    the test module `orch_window`, `orch_gate_stub`, `orch_gate_resume`, `orch_slots`, `orch_returns`,
    `orch_return_stubs`. limit: how many breakpoints there are. regs: how the handler gets its pt_regs: `rdi`, or
    `die_args` for a die notifier (third argument, struct die_args, whose first member is regs). events: path of the
    file.
    """

    def __init__(self, config):
        self.symbols = config["symbols"]
        self.regs = config["regs"]
        self.limit = config["limit"]
        self.events = Path(config["events"])
        self.points = []
        self.module = "orch_window" in self.symbols
        self.traps = {}  # cpu -> (address of pt_regs, ip of the trap), of those whose handler has not returned
        self.stacks = {}  # cpu -> stack pointer when that handler will have returned
        self.way_back = None  # without a module: the point where handlers return to
        self.handler = None  # the point on it, of a window
        self.met = {}  # cpu -> int3 looked at since the last sync round
        self.round_seen = False
        self.write_style = None
        self.owner_at = None
        self.count = 0
        self.step = 0
        self.window = None
        self.forget()

    def forget(self):
        self.seq = None
        self.writes = 0
        self.held = None  # stack pointer of the poker that waits at the gate
        self.stack = None  # pointer into the poker's stack
        self.written = None  # all that tells the last write from any other
        self.synced = set()  # CPUs, since the last write
        self.shown = False

    def emit(self, kind, cpu, **fields):
        self.count += 1
        event = {
            "n": self.count,
            "t": round(time.time(), 6),
            "step": self.step,
            "kind": kind,
            "cpu": cpu,
        }
        if self.window and kind not in ("window", "error"):
            event["bytes"] = memory(self.window["site"], self.window["len"]).hex()
        event.update(fields)
        self.file.write(json.dumps(event) + "\n")

    # -- opening and closing, while the guest is stopped

    def open(self, step=0):
        """Set the points, the most telling first, as many as the machine has breakpoints for; their names.

        The events file begins anew: a run that goes on for hours keeps the last round's.
        """
        self.file = self.events.open("w", buffering=1)
        seen = {
            "write": self.on_write,
            "sync": self.on_sync,
            "int3": self.on_int3,
            "stopper": self.on_stopper,
        }
        wanted = [name for name in seen if name in self.symbols][: self.limit - (not self.module)]
        self.step = step
        self.points = [self.point(name, seen[name]) for name in wanted]
        self.handler = dict(zip(wanted, self.points, strict=True)).get("int3")
        self.forget()
        return wanted

    def point(self, name, seen):
        """A breakpoint on the symbol `name`, with the slot of its own."""
        slot = None
        if self.module:
            slot = self.symbols["orch_slots"] + SLOT * ("write", "sync", "int3", "stopper").index(
                name
            )
        return HardwareBreakpoint(self.symbols[name], seen, slot)

    def survey(self):
        """Instead of the window's points: only count who traps where, to tell why nothing goes on."""
        self.close()
        self.trapping = {}
        self.points = [self.point("int3", self.on_trapping)]

    def trap(self, frame):
        """At the handler's entry: where its pt_regs are, and the address of the int3. None when it is about none: a die
        notifier is told of everything else, too."""
        if self.regs == "die_args" and register(frame, "rsi") != DIE_INT3:
            return None
        regs = register(frame, "rdi") if self.regs == "rdi" else quad(register(frame, "rdx"))
        return regs, quad(regs + PT_REGS_IP) - 1

    def on_trapping(self, cpu, frame):
        if not (trap := self.trap(frame)):
            return
        _, ip = trap
        entry = self.trapping.setdefault(
            f"{cpu} {ip:x}", {"cpu": cpu, "ip": ip, "traps": 0, "int3": 0}
        )
        entry["traps"] += 1
        entry["int3"] += memory(ip, 1) == b"\xcc"

    def cpus(self):
        """Where each CPU is: the registers that tell, and the words on its stack that may be return addresses."""
        seen, stopped = [], gdb.selected_thread()
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.ptid[1]):
            thread.switch()
            frame = gdb.newest_frame()
            stack = register(frame, "rsp")
            seen.append(
                {
                    "cpu": thread.ptid[1] - 1,
                    "rip": register(frame, "rip"),
                    "rsp": stack,
                    "eflags": register(frame, "eflags"),
                    "stack": text_words(stack, 64),
                }
            )
        stopped.switch()
        return seen

    def close(self):
        for point in [*self.points, *([self.way_back] if self.way_back else [])]:
            point.delete()
        self.points, self.way_back = [], None
        self.see_returns()
        self.end_window()

    # -- what the points see

    def end_window(self):
        """The poke that was watched is over: note what the site holds now."""
        if self.window:
            self.emit("end", -1, seq=self.seq)
            if memory(self.window["site"], self.window["len"]) != self.window["to"]:
                self.show_cpus()
        self.window = None

    def show_cpus(self):
        if not self.shown:
            self.shown = True
            self.emit("cpus", -1, cpus=self.cpus())

    def look_at_window(self, cpu):
        """Read the module's orch_window, so that what follows is accounted to the poke under way, if any."""
        if not self.module:
            return
        now = WINDOW.unpack(memory(self.symbols["orch_window"], WINDOW.size))
        site, length, gated, seq, step, task, old, new, *targets = now
        if site and seq == self.seq:
            return
        self.end_window()
        self.step = step
        if not site:
            return
        self.forget()
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

    def arguments(self, frame):
        """(address, source, length) of __text_poke, told apart by which register points into the site.

        Up to 6.0 it is __text_poke(addr, opcode, len); then a function to copy with comes first.
        """
        registers = [register(frame, name) for name in ("rdi", "rsi", "rdx", "rcx")]
        if self.window:
            for style in (1, 0):
                if (
                    self.window["site"]
                    <= registers[style]
                    < self.window["site"] + self.window["len"]
                ):
                    self.write_style = style
                    return registers[style : style + 3]
        style = 1 if self.write_style is None else self.write_style
        return registers[style : style + 3]

    def owner(self):
        """The task that holds text_mutex, 0 for none; None while it is not known which of its words tells.

        That differs by version and configuration (kernel/locking/mutex.h, rtmutex_common.h), and is found at the first
        poke of which the module has said who does it. The lowest bits are flags.
        """
        words = struct.unpack("<4Q", memory(self.symbols["text_mutex"], 32))
        if self.owner_at is None and self.window:
            owners = [at for at, word in enumerate(words) if word & ~7 == self.window["task"]]
            self.owner_at = owners[0] if owners else None
        return None if self.owner_at is None else words[self.owner_at] & ~7

    def on_write(self, cpu, frame):
        self.look_at_window(cpu)
        if self.round_seen:
            self.round_seen, self.met = False, {}
            self.look_at_int3(True)
        address, source, length = self.arguments(frame)
        own = bool(self.window) and 0 <= address - self.window["site"] < self.window["len"]
        fields = {
            "addr": address,
            "len": length,
            "src": memory(source, length).hex() if 0 < length <= 16 else "",
            "own": own,
            "irqs": bool(register(frame, "eflags") & EFLAGS_IF),
        }
        stack = register(frame, "rsp")
        if (owner := self.owner()) is not None:
            fields["owner"] = owner
        if not own:
            fields["before"] = memory(address, 8).hex()
            fields["callers"] = text_words(stack, 32)[:CALLERS]
        if own and self.written == (
            stack,
            address,
            fields["src"],
            memory(self.window["site"], self.window["len"]),
        ):
            self.emit(
                "again", cpu
            )  # the same stop: a second write would find the site changed by the first
            return
        if own and self.window["gated"] and self.writes and self.held != stack:
            self.held = stack
            self.emit("hold", cpu, **fields)
            if len(self.synced) < len(gdb.selected_inferior().threads()):
                self.show_cpus()
            self.move_to_gate(frame)
            return
        self.held = None
        self.emit("write", cpu, **fields)
        self.writes += own
        if own:
            self.stack = stack
            self.written = (
                stack,
                address,
                fields["src"],
                memory(self.window["site"], self.window["len"]),
            )
            self.synced = set()
            if (self.writes == 1 and fields["src"] != "cc") or not fields["irqs"]:
                self.show_cpus()

    def move_to_gate(self, frame):
        resume = struct.pack("<Q", register(frame, "rip"))
        gdb.selected_inferior().write_memory(self.symbols["orch_gate_resume"], resume)
        go_to(self.symbols["orch_gate_stub"])

    def on_sync(self, cpu, frame):
        if self.window:
            self.look_at_window(
                cpu
            )  # a round that nobody has waited for goes on when the poke has returned
        self.synced.add(cpu)
        self.round_seen = True
        self.emit("sync", cpu)

    def on_int3(self, cpu, frame):
        if not (trap := self.trap(frame)):
            return
        regs, ip = trap
        if self.traps.get(cpu) == (regs, ip):
            self.emit("again", cpu, ip=ip)  # the same trap: its handler has not returned
            return
        if not self.window:
            self.look_at_window(cpu)
        self.emit("int3", cpu, ip=ip)
        if cpu not in self.traps:  # one within another (in an NMI) goes back by itself
            self.traps[cpu] = (regs, ip)
            stack, inferior = register(frame, "rsp"), gdb.selected_inferior()
            if not self.module:
                self.stacks[cpu] = stack + 8
                if not self.way_back:  # the handler has one caller, so one place to return to
                    self.way_back = HardwareBreakpoint(quad(stack), self.on_way_back, None)
                self.way_back.enabled = True
                self.met[cpu] = self.met.get(cpu, 0) + 1
                cpus = len(gdb.selected_inferior().threads())
                if (
                    sum(count >= ENOUGH for count in self.met.values()) == cpus
                    or max(self.met.values()) >= MOST * cpus
                ):
                    self.look_at_int3(False)
                return
            noted = RETURN.pack(regs, quad(stack), 0, 0, 0)
            inferior.write_memory(self.symbols["orch_returns"] + cpu * RETURN.size, noted)
            stub = self.symbols["orch_return_stubs"] + cpu * RETURN_STUB
            inferior.write_memory(stack, struct.pack("<Q", stub))

    def on_way_back(self, cpu, frame):
        if cpu in self.traps and register(frame, "rsp") == self.stacks[cpu]:
            regs, trap = self.traps.pop(cpu)
            value = register(frame, "rax") & 0xFFFFFFFF
            self.emit("return", cpu, value=value, ip=quad(regs + PT_REGS_IP), trap=trap)
            self.way_back.enabled = bool(self.traps) or self.handler.enabled

    def look_at_int3(self, wanted):
        """Whether handlers are stopped in from now on."""
        if not self.module and self.handler.enabled != wanted:
            self.handler.enabled = wanted

    def see_returns(self):
        """Tell of the handlers that have returned since the last stop."""
        if not self.module:
            return
        for cpu, (_, trap) in list(self.traps.items()):
            noted = memory(self.symbols["orch_returns"] + cpu * RETURN.size, RETURN.size)
            _, _, ip, value, done = RETURN.unpack(noted)
            if done:
                del self.traps[cpu]
                self.emit("return", cpu, value=value & 0xFFFFFFFF, ip=ip, trap=trap)
                if self.window and trap == self.window["site"] and not value & 0xFFFFFFFF:
                    self.show_cpus()

    def on_stopper(self, cpu, frame):
        # multi_cpu_stop(data): whoever calls stop_machine() has the data on its stack. Others may do so at any time,
        # the scheduler too (migrate_swap()).
        data = register(frame, "rdi")
        self.emit(
            "stopper", cpu, own=self.stack is not None and abs(data - self.stack) < THREAD_SIZE
        )


AGENT = None


def start(path):
    """Make the watch from the configuration in the JSON file `path`."""
    global AGENT
    AGENT = Agent(json.loads(Path(path).read_text()))
