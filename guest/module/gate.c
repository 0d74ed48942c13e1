// SPDX-License-Identifier: GPL-2.0
/*
 * The gate's stub. The debugger stops the poker at the entry of the kernel's
 * function that writes text, stores that address in orch_gate_resume, and moves
 * the poker here. The poker waits until every CPU has been through the site,
 * and then goes on where it was stopped, with every register as it was.
 *
 * Nothing of the kernel under test is changed for this, and the poker may
 * sleep: it is scheduled like any thread, so the hammer of its own CPU runs
 * through the site too. RET, not an indirect jump, leads back: the target need
 * not have an ENDBR.
 */
#include <linux/linkage.h>
#include <linux/types.h>

extern u64 orch_gate_resume;
u64 orch_gate_resume;

asm(".pushsection .text, \"ax\"\n"
    ".balign 16\n"
    ".globl orch_gate_stub\n"
    ".type orch_gate_stub, @function\n"
    "orch_gate_stub:\n\t"
    "pushq %rax\n\t"		/* the slot that RET takes */
    "pushfq\n\t"
    "pushq %rax\n\t"
    "pushq %rcx\n\t"
    "pushq %rdx\n\t"
    "pushq %rsi\n\t"
    "pushq %rdi\n\t"
    "pushq %r8\n\t"
    "pushq %r9\n\t"
    "pushq %r10\n\t"
    "pushq %r11\n\t"
    "movq orch_gate_resume(%rip), %rax\n\t"
    "movq %rax, 80(%rsp)\n\t"
    "call orch_gate_hold\n\t"
    "popq %r11\n\t"
    "popq %r10\n\t"
    "popq %r9\n\t"
    "popq %r8\n\t"
    "popq %rdi\n\t"
    "popq %rsi\n\t"
    "popq %rdx\n\t"
    "popq %rcx\n\t"
    "popq %rax\n\t"
    "popfq\n\t"
    "ret\n\t"
    "int3\n"
    ".size orch_gate_stub, . - orch_gate_stub\n"
    ".popsection\n");

/*
 * Room for the debugger's copies of the instructions under its breakpoints, 32
 * bytes each: a CPU goes on from a breakpoint through such a copy.
 */
asm(".pushsection .text, \"ax\"\n"
    ".balign 32\n"
    ".globl orch_slots\n"
    ".type orch_slots, @function\n"
    "orch_slots:\n\t"
    ".skip 8 * 32, 0xcc\n"
    ".size orch_slots, . - orch_slots\n"
    ".popsection\n");

/*
 * How the debugger learns what became of an int3 without a second stop: at the
 * handler's entry it notes where the trap's pt_regs are and where the handler
 * returns to, and has it return here instead. At that moment rcx is dead. One
 * for each CPU: the handler runs with interrupts off.
 *
 * The layout is read by orchestrator/watch/agent.py.
 */
struct orch_return {
	u64 regs;
	u64 to;
	u64 ip;		/* where the CPU will go on */
	u64 value;	/* what the handler returned */
	u64 done;
};

extern struct orch_return orch_returns[64];
struct orch_return orch_returns[64];

asm(".pushsection .text, \"ax\"\n"
    ".balign 64\n"
    ".globl orch_return_stubs\n"
    ".type orch_return_stubs, @function\n"
    "orch_return_stubs:\n"
    ".set at, 0\n"
    ".rept 64\n\t"
    ".balign 64, 0xcc\n\t"
    "movq orch_returns + at(%rip), %rcx\n\t"
    "movq 0x80(%rcx), %rcx\n\t"	/* offsetof(struct pt_regs, ip) */
    "movq %rcx, orch_returns + at + 16(%rip)\n\t"
    "movq %rax, orch_returns + at + 24(%rip)\n\t"
    "movq $1, orch_returns + at + 32(%rip)\n\t"
    "jmp *orch_returns + at + 8(%rip)\n\t"
    ".set at, at + 40\n"
    ".endr\n"
    ".size orch_return_stubs, . - orch_return_stubs\n"
    ".popsection\n");
