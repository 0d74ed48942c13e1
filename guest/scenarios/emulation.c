// SPDX-License-Identifier: GPL-2.0
/*
 * title: each instruction that the kernel emulates at int3
 * promise: >-
 *   A CPU that hits int3 goes on as if it had executed the new instruction (JMP, NOP, CALL, RET, or
 *   each conditional jump with each combination of flags). No other register changes, and the stack
 *   is as that instruction leaves it.
 * order: 210
 * symbols: [ideal_nops]
 */
#include <linux/kernel.h>
#include <linux/string.h>
#if __has_include(<linux/objtool.h>)
#include <linux/objtool.h>
#endif
#include <asm/processor-flags.h>
#include "compat.h"
#include "scenario.h"

/* Registers and stack of a CPU. The assembly below has the offsets as numbers. */
struct state {
	unsigned long gpr[15];
	unsigned long sp;
	unsigned long flags;
	unsigned long top;	/* value on top of the stack */
	unsigned long where;	/* enum where */
};

/* Where the CPU went on: at the pad before, right behind or further ahead of the site. */
enum where { BACK = 1, BEHIND, AHEAD };

struct state orch_emulation_before, orch_emulation_after;
unsigned long orch_emulation_stack;

#define TOP		0x5a5a5a5a
#define RET_INSN	0xc3

#define MOVES_16(op)							\
	op("rbx", 8) op("rcx", 16) op("rdx", 24) op("rsi", 32)		\
	op("rdi", 40) op("rbp", 48) op("r8", 56) op("r9", 64)		\
	op("r10", 72) op("r11", 80) op("r12", 88) op("r13", 96)		\
	op("r14", 104) op("r15", 112)
#define LOAD(reg, at)	"movq orch_emulation_before + " #at "(%rip), %" reg "\n\t"
#define STORE(reg, at)	"movq %" reg ", orch_emulation_after + " #at "(%rip)\n\t"

/* No instruction between popf and pushf may change a flag. */
#define PAD(name, where)						\
	".globl orch_emulation_" name "\n"				\
	"orch_emulation_" name ":\n\t"					\
	"movq %rax, orch_emulation_after(%rip)\n\t"			\
	"movl $" #where ", %eax\n\t"					\
	"jmp orch_emulation_landed\n"

/*
 * A site with a pad before it, one right behind it and one further ahead. @far:
 * bytes in between, so that a displacement uses all bits of its only byte, or
 * more than one of its four bytes.
 */
#define SLOT(len, far, bytes, prepare)					\
	".balign 64\n"							\
	".globl orch_emulation_enter_" #len "\n"			\
	".type orch_emulation_enter_" #len ", @function\n"		\
	"orch_emulation_enter_" #len ":\n\t"				\
	"pushq %rbx\n\tpushq %rbp\n\tpushq %r12\n\t"			\
	"pushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"			\
	"movq %rsp, orch_emulation_stack(%rip)\n\t"			\
	"pushq $0x5a5a5a5a\n\t"						\
	prepare								\
	"movq %rsp, orch_emulation_before + 120(%rip)\n\t"		\
	"pushq orch_emulation_before + 128(%rip)\n\t"			\
	"popfq\n\t"							\
	MOVES_16(LOAD) LOAD("rax", 0)					\
	"jmp orch_emulation_site_" #len "\n"				\
	PAD("back_" #len, 1)						\
	".skip " #far ", 0xcc\n"					\
	".globl orch_emulation_site_" #len "\n"				\
	"orch_emulation_site_" #len ":\n\t"				\
	bytes "\n"							\
	PAD("behind_" #len, 2)						\
	".skip " #far ", 0xcc\n"					\
	PAD("ahead_" #len, 3)						\
	".size orch_emulation_enter_" #len ", . - orch_emulation_enter_" #len "\n"

asm(".pushsection .text, \"ax\"\n"
    SLOT(1, 64, "nop", "leaq orch_emulation_ahead_1(%rip), %rax\n\tpushq %rax\n\t")
    SLOT(2, 64, ".byte 0x66, 0x90", "")
    SLOT(5, 1000, ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00", "")
    SLOT(6, 1000, ".byte 0x0f, 0x8f\n\t.long orch_emulation_ahead_6 - (. + 4)", "")
    ".globl orch_emulation_landed\n"
    ".type orch_emulation_landed, @function\n"
    "orch_emulation_landed:\n\t"
    "movq %rax, orch_emulation_after + 144(%rip)\n\t"
    MOVES_16(STORE) STORE("rsp", 120)
    "movq (%rsp), %rax\n\t"
    "movq %rax, orch_emulation_after + 136(%rip)\n\t"
    "movq orch_emulation_stack(%rip), %rsp\n\t"
    "pushfq\n\t"
    "popq orch_emulation_after + 128(%rip)\n\t"
    "cld\n\t"
    "popq %r15\n\tpopq %r14\n\tpopq %r13\n\t"
    "popq %r12\n\tpopq %rbp\n\tpopq %rbx\n\t"
    "ret\n\t"
    "int3\n"
    ".size orch_emulation_landed, . - orch_emulation_landed\n"
    ".popsection\n");

#define DECLARE_SLOT(len)						\
	asmlinkage void orch_emulation_enter_##len(void);		\
	extern u8 orch_emulation_site_##len[], orch_emulation_back_##len[], \
		  orch_emulation_ahead_##len[]

DECLARE_SLOT(1);
DECLARE_SLOT(2);
DECLARE_SLOT(5);
DECLARE_SLOT(6);
asmlinkage void orch_emulation_landed(void);

/* For an objtool that checks the linked module and so ignores OBJECT_FILES_NON_STANDARD. */
#ifdef STACK_FRAME_NON_STANDARD
STACK_FRAME_NON_STANDARD(orch_emulation_enter_1);
STACK_FRAME_NON_STANDARD(orch_emulation_enter_2);
STACK_FRAME_NON_STANDARD(orch_emulation_enter_5);
STACK_FRAME_NON_STANDARD(orch_emulation_enter_6);
STACK_FRAME_NON_STANDARD(orch_emulation_landed);
#endif

static const struct slot {
	unsigned int len;
	u8 *site, *back, *ahead;
} slots[] = {
	{ 1, orch_emulation_site_1, orch_emulation_back_1, orch_emulation_ahead_1 },
	{ 2, orch_emulation_site_2, orch_emulation_back_2, orch_emulation_ahead_2 },
	{ 5, orch_emulation_site_5, orch_emulation_back_5, orch_emulation_ahead_5 },
	{ 6, orch_emulation_site_6, orch_emulation_back_6, orch_emulation_ahead_6 },
};

/* By direct calls: an indirect call needs an ENDBR, which the functions do not have. */
static void enter(unsigned int len)
{
	switch (len) {
	case 1:
		return orch_emulation_enter_1();
	case 2:
		return orch_emulation_enter_2();
	case 5:
		return orch_emulation_enter_5();
	case 6:
		return orch_emulation_enter_6();
	}
}

/* --- expectations, from the processor's manual */

enum kind { NOP, JMP, CALL, RET, JCC };

/**
 * struct trial - an instruction that a site is changed to
 * @name: for messages, and for orch_emulates() unless it is a JCC
 * @kind: what the instruction does
 * @slot: index of the site in slots
 * @to: its target
 * @cc: a conditional jump: the low four bits of its opcode
 * @emulated: how often it was emulated
 */
struct trial {
	const char *name;
	enum kind kind;
	unsigned int slot;
	enum where to;
	unsigned int cc;
	u64 emulated;
};

static bool taken(unsigned int cc, unsigned long flags)
{
	bool cf = flags & X86_EFLAGS_CF, pf = flags & X86_EFLAGS_PF, zf = flags & X86_EFLAGS_ZF;
	bool sf = flags & X86_EFLAGS_SF, of = flags & X86_EFLAGS_OF;
	const bool holds[] = { of, cf, zf, cf || zf, sf, pf, sf != of, zf || sf != of };

	return holds[cc / 2] != cc % 2;
}

static const char *const names[] = {
	"", "before the site", "behind the site", "at the target ahead",
};
static const char *const jcc[] = {
	"jo", "jno", "jb", "jae", "je", "jne", "jbe", "ja",
	"js", "jns", "jp", "jnp", "jl", "jge", "jle", "jg",
};
static const char *const gprs[] = {
	"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
};

#define ARITHMETIC	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_ZF | X86_EFLAGS_SF | \
			 X86_EFLAGS_OF)
#define KEPT		(ARITHMETIC | X86_EFLAGS_AF | X86_EFLAGS_DF | X86_EFLAGS_IF)

static void format_flags(char *to, size_t size, unsigned long flags)
{
	static const struct { unsigned long bit; const char *name; } bits[] = {
		{ X86_EFLAGS_CF, " CF" }, { X86_EFLAGS_PF, " PF" }, { X86_EFLAGS_AF, " AF" },
		{ X86_EFLAGS_ZF, " ZF" }, { X86_EFLAGS_SF, " SF" }, { X86_EFLAGS_DF, " DF" },
		{ X86_EFLAGS_IF, " IF" }, { X86_EFLAGS_OF, " OF" },
	};
	int i, at = 0;

	if (!(flags & KEPT))
		scnprintf(to, size, " none");
	for (i = 0; i < ARRAY_SIZE(bits); i++)
		if (flags & bits[i].bit)
			at += scnprintf(to + at, size - at, "%s", bits[i].name);
}

static void check(struct orch_run *run, enum orch_phase phase, const struct trial *trial)
{
	const struct state *before = &orch_emulation_before, *after = &orch_emulation_after;
	unsigned long sp = before->sp, top = TOP;
	enum where to = trial->to;
	char what[100], flags[40], became[40];
	int i;

	format_flags(flags, sizeof(flags), before->flags);
	format_flags(became, sizeof(became), after->flags);
	scnprintf(what, sizeof(what), "%s %s in phase %d on CPU %d with the flags%s", trial->name,
		  phase == ORCH_PHASE_NEW ? "executed" : "emulated", phase, raw_smp_processor_id(),
		  flags);
	if (trial->kind == NOP || (trial->kind == JCC && !taken(trial->cc, before->flags)))
		to = BEHIND;
	if (trial->kind == CALL) {
		sp -= 8;
		top = (unsigned long)slots[trial->slot].site + 5;
	} else if (trial->kind == RET) {
		sp += 8;
	}
	orch_expect(run, after->where == to, "%s: the CPU went on %s, not %s", what,
		    after->where <= AHEAD ? names[after->where] : "elsewhere", names[to]);
	orch_expect(run, after->sp == sp, "%s: the stack pointer moved by %ld, not %ld", what,
		    after->sp - before->sp, sp - before->sp);
	orch_expect(run, after->top == top, "%s: %lx is on top of the stack, not %lx", what,
		    after->top, top);
	orch_expect(run, !((after->flags ^ before->flags) & KEPT), "%s: the flags became%s", what,
		    became);
	for (i = 0; i < ARRAY_SIZE(gprs); i++)
		if (!orch_expect(run, after->gpr[i] == before->gpr[i],
				 "%s: %s changed to %lx from %lx", what, gprs[i], after->gpr[i],
				 before->gpr[i]))
			break;
}

static void pass(struct orch_run *run, enum orch_phase phase, struct trial *trial,
		 unsigned long flags)
{
	struct state *before = &orch_emulation_before;
	unsigned long now;
	int i;

	for (i = 0; i < ARRAY_SIZE(gprs); i++)
		before->gpr[i] = (unsigned long)orch_random(run, 0xffffffff) << 32 |
				 orch_random(run, 0xffffffff);
	asm volatile("pushfq\n\tpopq %0" : "=r" (now) : : "memory");
	before->flags = (now & ~KEPT) | flags;
	if (orch_random(run, 2))
		before->flags |= X86_EFLAGS_AF;
	if (orch_random(run, 2))
		before->flags |= X86_EFLAGS_DF;
	memset(&orch_emulation_after, 0, sizeof(orch_emulation_after));
	enter(slots[trial->slot].len);
	if (phase != ORCH_PHASE_NEW)
		trial->emulated++;
	check(run, phase, trial);
}

/* On the CPU that holds the poke, interrupts off. */
static void passes(struct orch_run *run, enum orch_phase phase, void *arg)
{
	struct trial *trial = arg;
	unsigned int i;

	for (i = 0; i < 32; i++)
		pass(run, phase, trial,
		     (i & 1 ? X86_EFLAGS_CF : 0) | (i & 2 ? X86_EFLAGS_PF : 0) |
		     (i & 4 ? X86_EFLAGS_ZF : 0) | (i & 8 ? X86_EFLAGS_SF : 0) |
		     (i & 16 ? X86_EFLAGS_OF : 0));
}

/* --- the pokes */

/* Up to 5.12 the kernel chooses from several NOPs, and emulates only the chosen ones. */
static void make_nop(u8 *insn, unsigned int len)
{
	static const u8 nops[][5] = { { 0x66, 0x90 }, { 0x0f, 0x1f, 0x44, 0x00, 0x00 } };
	const u8 *const **ideal = (const u8 *const **)orch_symbol("ideal_nops");

	if (ideal)	/* number 9 is the atomic NOP of five bytes */
		memcpy(insn, (*ideal)[len == 5 ? 9 : len], len);
	else
		memcpy(insn, nops[len == 5], len);
}

static void make(u8 *insn, const struct trial *trial)
{
	const struct slot *slot = &slots[trial->slot];
	const u8 *to = trial->to == BACK ? slot->back : slot->ahead;

	if (trial->kind == NOP)
		return make_nop(insn, slot->len);
	orch_jump_to(insn, slot->len, slot->site, to);
	if (trial->kind == CALL)
		insn[0] = 0xe8;
	if (trial->kind == RET)
		insn[0] = RET_INSN;
	if (trial->kind == JCC)
		insn[1] = 0x80 + trial->cc;
}

static bool hold(struct orch_run *run, struct trial *trial)
{
	static int cpu = -1;
	const struct slot *slot = &slots[trial->slot];
	struct orch_poke poke = { .addr = slot->site, .len = slot->len };

	cpu = orch_next_cpu(cpu);
	memcpy(poke.from, slot->site, slot->len);
	make(poke.to, trial);
	if (!memcmp(poke.from, poke.to, slot->len))	/* what is between is not emulated */
		return true;
	return orch_poke_held(run, &poke, cpu, passes, trial);
}

/* Remove the RET, so that the next round has something to change. No CPU is there. */
static void remove_ret(void)
{
	static const u8 ret = RET_INSN;
	struct orch_poke poke = {
		.addr = slots[0].site,
		.len = 1,
		.from = { RET_INSN },
		.to = { 0x90 },
		.emulate = &ret,
	};

	orch_poke(&poke);
}

ORCH_SCENARIO(emulation)
{
	static struct trial plain[] = {
		{ "ret", RET, 0, AHEAD },
		{ "jmp8", JMP, 1, AHEAD }, { "nop2", NOP, 1, BEHIND }, { "jmp8", JMP, 1, BACK },
		{ "nop2", NOP, 1, BEHIND },
		{ "jmp32", JMP, 2, AHEAD }, { "call", CALL, 2, BACK }, { "nop5", NOP, 2, BEHIND },
		{ "call", CALL, 2, AHEAD }, { "jmp32", JMP, 2, BACK }, { "nop5", NOP, 2, BEHIND },
	};
	struct trial conditional;
	unsigned int i, first;
	u64 emulated = 0, emulated_jcc = 0;

	if (!ORCH_EMULATES)
		return orch_skip(run, "this kernel sends CPUs to an address and emulates nothing");
	do {
		for (i = 0; i < ARRAY_SIZE(plain); i++) {
			plain[i].emulated = 0;
			if (orch_emulates(plain[i].name) && !hold(run, &plain[i]))
				return;
			emulated += plain[i].emulated;
		}
		if (orch_emulates("ret"))
			remove_ret();
		first = orch_random(run, 2);
		for (i = 0; orch_emulates("jcc") && i < ARRAY_SIZE(jcc); i++) {
			conditional = (struct trial){
				jcc[i], JCC, 3, (i + first) % 2 ? AHEAD : BACK, i,
			};
			if (!hold(run, &conditional))
				return;
			emulated_jcc += conditional.emulated;
		}
	} while (orch_time_left(run));
	orch_note("# emulated=%llu emulated_jcc=%llu\n", emulated, emulated_jcc);
}
