// SPDX-License-Identifier: GPL-2.0
/*
 * The plain sites: instructions that only this module patches.
 *
 * Each lies in a function of its own that consists of the site and its exits.
 * The exits are asm goto labels, so the compiler knows all of them and keeps no
 * register live across the site. The conditional jumps before a site are never
 * taken (orch_never is always 0). They show objtool that the landing pads can be
 * reached.
 */
#include <linux/compiler.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"
#include "scenario.h"

u8 orch_never;

/* TEST comes first because kprobes refused what is relative to RIP before 4.1 (c80e5c0c23ce). */
#define NEVER	"testl %%eax, %%eax\n\tcmpb $0, orch_never(%%rip)\n\t"
#define GLOBAL(name)	".globl " #name "\n" #name ":\n\t"
#define PASS	static noinline notrace ORCH_NOCLONE __aligned(64)

extern u8 orch_nop5_site[], orch_nop5_new[], orch_nop5_int3[];
extern u8 orch_jmp32_site[], orch_jmp32_new[], orch_jmp32_int3[];
extern u8 orch_nop2_site[], orch_nop2_new[], orch_nop2_int3[];
extern u8 orch_one_site[], orch_one_ret[], orch_one_int3[];
extern u8 orch_line_site[], orch_line_new[], orch_line_int3[];
extern u8 orch_page_site[], orch_page_new[], orch_page_int3[];
extern u8 orch_jcc_site[], orch_jcc_new[], orch_jcc_int3[];
extern u8 orch_call_site[];
extern u8 orch_call_old[], orch_call_new[], orch_call_int3[], orch_call_handler[];

/*
 * A NOP that becomes a jump to a landing pad, and back. The comparison before it
 * leaves the zero flag set, for the site that is a conditional jump. The pad is
 * 11 bytes behind the end of the NOP or 245 bytes before it. The displacement of
 * the jump then begins with 0b, so the first byte of the NOP and the tail of the
 * jump make ud2 (0f 0b): a CPU that executes this mixture oopses at once and
 * writes to no memory.
 */
#define PAD(name)	GLOBAL(orch_##name##_new) "jmp %l[l_new]\n"
#define PAD_BEHIND(name) ".skip 6, 0x90\n" PAD(name)
#define PAD_BEFORE(name) PAD(name) ".org orch_" #name "_new + 240, 0xcc\n"

#define DEFINE_NOP_SITE(name, nop, before, behind)				\
PASS enum orch_result orch_pass_##name(void)					\
{										\
	asm goto(NEVER								\
		 "jne orch_" #name "_new\n\t"					\
		 "jne orch_" #name "_int3\n\t"					\
		 before								\
		 GLOBAL(orch_##name##_site)					\
		 ".byte " nop "\n\t"						\
		 ".byte 0xe9\n\t"						\
		 ".long %l[l_old] - (. + 4)\n\t"				\
		 behind								\
		 GLOBAL(orch_##name##_int3)					\
		 "jmp %l[l_int3]\n"						\
		 : : : "cc", "memory" : l_old, l_new, l_int3);			\
l_old:										\
	return ORCH_OLD;							\
l_new:										\
	return ORCH_NEW;							\
l_int3:										\
	return ORCH_INT3;							\
}

/* nop5 <-> jmp32 and nop2 <-> jmp8, as jump labels do (two bytes since 5.15). */
DEFINE_NOP_SITE(nop5, "0x0f, 0x1f, 0x44, 0x00, 0x00", "", PAD_BEHIND(nop5))
DEFINE_NOP_SITE(nop2, "0x66, 0x90", "", PAD_BEHIND(nop2))

/*
 * jne <-> je, with the zero flag set. Since 6.3 kernels patch conditional jumps
 * of six bytes (static calls that are tail calls), but only into each other: 6.1
 * takes the 0x0f before them for granted (text_poke_bp_batch()).
 */
DEFINE_NOP_SITE(jcc, "0x0f, 0x85\n\t.long orch_jcc_int3 - (. + 4)", "", PAD_BEHIND(jcc))

/*
 * line: the first byte is the last one of a cache line. page: three of the five
 * bytes are on one page and two on the next. No write that crosses either
 * boundary is atomic. Every byte of the page site changes, so that none that is
 * left unwritten goes unnoticed.
 */
DEFINE_NOP_SITE(line, "0x0f, 0x1f, 0x44, 0x00, 0x00",
		"jmp orch_line_site\n\t.balign 64, 0xcc\n\t.skip 63, 0xcc\n", PAD_BEHIND(line))
DEFINE_NOP_SITE(page, "0x0f, 0x1f, 0x44, 0x00, 0x00",
		"jmp orch_page_site\n\t.balign 4096, 0xcc\n\t.skip 4093 - 240, 0xcc\n"
		PAD_BEFORE(page), "")

/*
 * jmp32 <-> jmp32 with displacements 0x140 and 0x280. Both begin with the same
 * byte, so a CPU that sees bytes of both lands at 0x180 or 0x240, which is
 * counted as torn. At the NOP sites a CPU that executes a torn instruction
 * crashes instead.
 */
PASS enum orch_result orch_pass_jmp32(void)
{
	asm goto(NEVER
		 "jne orch_jmp32_old\n\t"
		 "jne orch_jmp32_torn1\n\t"
		 "jne orch_jmp32_torn2\n\t"
		 "jne orch_jmp32_new\n\t"
		 "jne orch_jmp32_int3\n\t"
		 "jmp orch_jmp32_site\n\t"
		 ".balign 8\n"
		 GLOBAL(orch_jmp32_site)
		 ".byte 0xe9, 0x40, 0x01, 0x00, 0x00\n\t"
		 ".skip 0x140, 0xcc\n"
		 "orch_jmp32_old:\n\t"
		 "jmp %l[l_old]\n\t"
		 ".org orch_jmp32_old + 0x40, 0xcc\n"
		 "orch_jmp32_torn1:\n\t"
		 "jmp %l[l_torn]\n\t"
		 ".org orch_jmp32_old + 0x100, 0xcc\n"
		 "orch_jmp32_torn2:\n\t"
		 "jmp %l[l_torn]\n\t"
		 ".org orch_jmp32_old + 0x140, 0xcc\n"
		 GLOBAL(orch_jmp32_new)
		 "jmp %l[l_new]\n"
		 GLOBAL(orch_jmp32_int3)
		 "jmp %l[l_int3]\n"
		 : : : "cc", "memory" : l_old, l_new, l_int3, l_torn);
l_old:
	return ORCH_OLD;
l_new:
	return ORCH_NEW;
l_int3:
	return ORCH_INT3;
l_torn:
	return ORCH_TORN;
}

/*
 * clc <-> stc: one byte, so there is no tail and only two sync rounds. The only
 * instruction of one byte that kernels emulate is RET, which goes to the address
 * on top of the stack. Kernels that take a handler go to orch_one_int3, which
 * drops that address itself.
 */
PASS enum orch_result orch_pass_one(void)
{
	asm goto(NEVER
		 "leaq orch_one_ret(%%rip), %%rax\n\t"
		 "pushq %%rax\n\t"
		 "jne orch_one_int3\n"
		 GLOBAL(orch_one_site)
		 ".byte 0xf8\n\t"
		 "leaq 8(%%rsp), %%rsp\n\t"
		 "jc %l[l_new]\n\t"
		 "jmp %l[l_old]\n"
		 GLOBAL(orch_one_int3)
		 "leaq 8(%%rsp), %%rsp\n"
		 GLOBAL(orch_one_ret)
		 "jmp %l[l_int3]\n"
		 : : : "cc", "memory", "rax" : l_old, l_new, l_int3);
l_old:
	return ORCH_OLD;
l_new:
	return ORCH_NEW;
l_int3:
	return ORCH_INT3;
}

/*
 * call <-> call. The functions are in landing.c. Each checks the stack to find
 * out whether it was called from here. If not, the result is ORCH_TORN (3).
 */
PASS enum orch_result orch_pass_call(void)
{
	register unsigned long stack asm("rbx");
	unsigned int result;

	asm volatile("movq %%rsp, %0\n"
		     GLOBAL(orch_call_site)
		     ".byte 0xe8\n\t"
		     ".long orch_call_old - (. + 4)\n\t"
		     ".globl orch_call_back\n"
		     "orch_call_back:\n\t"
		     "cmpq %%rsp, %0\n\t"
		     "je 1f\n\t"
		     "movl $3, %%eax\n"
		     "1:\n\t"
		     : "=&r" (stack), "=a" (result), ASM_CALL_CONSTRAINT
		     : : "cc", "memory");
	return result;
}

static struct orch_site *plain_site(enum orch_site_id id, const char *name, u8 *addr,
				    unsigned int len, enum orch_result (*pass)(void))
{
	struct orch_site *site = &orch_sites[id];

	site->name = name;
	site->addr = addr;
	site->len = len;
	site->pass = pass;
	memcpy(site->old, addr, len);
	return site;
}

static void jump_site(enum orch_site_id id, const char *name, u8 *addr, unsigned int len,
		      u8 *new, u8 *int3, enum orch_result (*pass)(void))
{
	struct orch_site *site = plain_site(id, name, addr, len, pass);

	site->handler = int3;
	site->target = int3;
	if (!orch_jump_to(site->new, len, addr, new) ||
	    !orch_jump_to(site->emulate, len, addr, int3)) {
		site->len = 0;
		site->why_not = "the landing pads are beyond the reach of a short jump";
	}
}

struct orch_site orch_sites[ORCH_SITES];

/* What a kernel does not emulate it must not be asked for: it has a BUG() for it. */
static void needs(struct orch_site *site, const char *insn, const char *why_not)
{
	if (orch_emulates(insn))
		return;
	site->len = 0;
	site->why_not = why_not;
}

#define NEEDS(id, insn, what)						\
	needs(&orch_sites[ORCH_SITE_##id], insn, "this kernel does not emulate " what)

const struct orch_site *orch_site(const char *name)
{
	int i;

	for (i = 0; i < ORCH_SITES; i++)
		if (!strcmp(orch_sites[i].name, name))
			return &orch_sites[i];
	return NULL;
}

void orch_sites_init(void)
{
	struct orch_site *site;

	jump_site(ORCH_SITE_NOP5, "nop5", orch_nop5_site, 5, orch_nop5_new, orch_nop5_int3,
		  orch_pass_nop5);
	jump_site(ORCH_SITE_LINE, "line", orch_line_site, 5, orch_line_new, orch_line_int3,
		  orch_pass_line);
	jump_site(ORCH_SITE_PAGE, "page", orch_page_site, 5, orch_page_new, orch_page_int3,
		  orch_pass_page);
	jump_site(ORCH_SITE_JMP32, "jmp32", orch_jmp32_site, 5, orch_jmp32_new, orch_jmp32_int3,
		  orch_pass_jmp32);
	jump_site(ORCH_SITE_NOP2, "nop2", orch_nop2_site, 2, orch_nop2_new, orch_nop2_int3,
		  orch_pass_nop2);
	jump_site(ORCH_SITE_JCC, "jcc", orch_jcc_site, 6, orch_jcc_new, orch_jcc_int3,
		  orch_pass_jcc);

	site = plain_site(ORCH_SITE_ONE, "one", orch_one_site, 1, orch_pass_one);
	site->handler = orch_one_int3;
	site->target = ORCH_EMULATES ? orch_one_ret : orch_one_int3;
	site->new[0] = 0xf9;
	site->emulate[0] = 0xc3;

	site = plain_site(ORCH_SITE_CALL, "call", orch_call_site, 5, orch_pass_call);
	site->handler = orch_call_handler;
	site->target = ORCH_EMULATES ? orch_call_int3 : orch_call_handler;
	orch_jump_to(site->new, 5, site->addr, orch_call_new);
	orch_jump_to(site->emulate, 5, site->addr, orch_call_int3);
	site->new[0] = 0xe8;
	site->emulate[0] = 0xe8;

	if (ORCH_EMULATES) {
		NEEDS(NOP5, "jmp32", "JMP");
		NEEDS(LINE, "jmp32", "JMP");
		NEEDS(PAGE, "jmp32", "JMP");
		NEEDS(JMP32, "jmp32", "JMP");
		NEEDS(NOP2, "jmp8", "a short JMP");
		NEEDS(ONE, "ret", "RET");
		NEEDS(CALL, "call", "CALL");
		NEEDS(JCC, "jcc", "conditional jumps");
	}
	/* 6.1 has the limit still, and patches conditional jumps all the same */
#if !ORCH_EMULATES && defined(ORCH_POKES_5) && !defined(ORCH_PATCHES_JCC)
	orch_sites[ORCH_SITE_JCC].len = 0;
	orch_sites[ORCH_SITE_JCC].why_not = "this kernel pokes at most five bytes";
#endif

	orch_sites[ORCH_SITE_KEY].name = "key";
	orch_key_site_init(&orch_sites[ORCH_SITE_KEY]);
	orch_sites[ORCH_SITE_STATIC_CALL].name = "static-call";
	orch_static_call_site_init(&orch_sites[ORCH_SITE_STATIC_CALL]);
}
