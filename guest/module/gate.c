// SPDX-License-Identifier: GPL-2.0
/*
 * Stubs to which the debugger sends a CPU.
 *
 * The gate: the debugger stops the poker at the entry of the kernel's function
 * that writes text, stores the address of that function in orch_gate_resume and
 * sets the poker's RIP to orch_gate_stub. There the poker waits until every CPU
 * has been through the site. Then it resumes where it was stopped, with all
 * registers unchanged.
 *
 * The kernel under test is not modified for this. The poker may sleep and is
 * scheduled like any thread, so the hammer of its own CPU runs through the site
 * as well. The stub leaves by RET, not by an indirect jump, because the target
 * need not have an ENDBR.
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
    "pushq %rax\n\t"		/* room for the address that RET pops */
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
 * bytes each. A CPU leaves a breakpoint by executing such a copy.
 */
asm(".pushsection .text, \"ax\"\n"
    ".balign 32\n"
    ".globl orch_slots\n"
    ".type orch_slots, @function\n"
    "orch_slots:\n\t"
    ".skip 8 * 32, 0xcc\n"
    ".size orch_slots, . - orch_slots\n"
    ".popsection\n");

/**
 * struct orch_return - how an int3 handler returned on one CPU
 * @regs: address of the trap's struct pt_regs (set by the debugger)
 * @to: address that the handler returns to (set by the debugger)
 * @ip: where the CPU resumes after the trap
 * @value: what the handler returned
 * @done: 1 once @ip and @value are set
 *
 * Tells the debugger the outcome of an int3 without a second stop. At the
 * handler's entry the debugger fills in @regs and @to and makes the handler
 * return to the CPU's stub in orch_return_stubs, which fills in the rest and
 * jumps to @to. At that moment rcx is dead. One structure per CPU is enough:
 * the handler runs with interrupts off.
 *
 * orchestrator/watch/agent.py reads this layout.
 */
struct orch_return {
	u64 regs;
	u64 to;
	u64 ip;
	u64 value;
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
