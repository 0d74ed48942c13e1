// SPDX-License-Identifier: GPL-2.0
/*
 * The plain sites: instructions that nobody but us patches.
 *
 * Each lies in a function whose only content is the site and the ways out of
 * it, as asm goto labels, so that the compiler knows every way out and no
 * register is live across the site. The conditional jumps before a site are
 * never taken (orch_never is 0 for ever); they show objtool that the landing
 * pads can be reached.
 */
#include <linux/compiler.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"

u8 orch_never;

#define NEVER	"cmpb $0, orch_never(%%rip)\n\t"
#define GLOBAL(name)	".globl " #name "\n" #name ":\n\t"
#define PASS	static noinline notrace __attribute__((noclone, aligned(64)))

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
 * A NOP that becomes a jump to a pad, and back. The comparison before it leaves
 * the zero flag set, for a jump that asks for it. The pad is 11 bytes behind, or
 * 245 before the end of the NOP, as the first byte of the NOP and the rest of
 * that jump are ud2 then (0f 0b): who executes it says so at once, and writes
 * nowhere.
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

/* nop5 <-> jmp32 and nop2 <-> jmp8: what jump labels do (two bytes since 5.15). */
DEFINE_NOP_SITE(nop5, "0x0f, 0x1f, 0x44, 0x00, 0x00", "", PAD_BEHIND(nop5))
DEFINE_NOP_SITE(nop2, "0x66, 0x90", "", PAD_BEHIND(nop2))

/*
 * jne <-> je, with the zero flag set. Conditional jumps of six bytes are patched
 * since 6.3 (static calls that are tail calls) into each other only: 6.1 takes
 * the 0x0f before them for granted (text_poke_bp_batch()).
 */
DEFINE_NOP_SITE(jcc, "0x0f, 0x85\n\t.long orch_jcc_int3 - (. + 4)", "", PAD_BEHIND(jcc))

/*
 * The first byte is the last one of a cache line, or three of the five are on
 * one page and two on the next: each with its own write, and no write in both
 * is atomic. On both pages each byte changes, so that none can be missed.
 */
DEFINE_NOP_SITE(line, "0x0f, 0x1f, 0x44, 0x00, 0x00",
		"jmp orch_line_site\n\t.balign 64, 0xcc\n\t.skip 63, 0xcc\n", PAD_BEHIND(line))
DEFINE_NOP_SITE(page, "0x0f, 0x1f, 0x44, 0x00, 0x00",
		"jmp orch_page_site\n\t.balign 4096, 0xcc\n\t.skip 4093 - 240, 0xcc\n" PAD_BEFORE(page), "")

/*
 * jmp32 <-> jmp32 with displacements 0x140 and 0x280: the first byte is the
 * same, so a CPU that sees some bytes of the one and some of the other lands at
 * 0x180 or 0x240, where it is told from both. The only site at which a torn
 * instruction is counted rather than crashed on.
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
 * clc <-> stc: one byte, so there is no tail and there are two rounds. The one
 * instruction of one byte that kernels emulate is RET: it goes to the address
 * that lies on the stack. Kernels that take a handler go to orch_one_int3,
 * which drops that address itself.
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
 * call <-> call. The functions are in landing.c; each finds out whether it was
 * called from here, and says torn where the stack does not look like that.
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

/* @insn of @len bytes at @addr becomes a jump to @to; a short one for 2, a conditional one for 6. */
bool orch_jump_to(u8 *insn, unsigned int len, const u8 *addr, const u8 *to)
{
	s32 disp = to - (addr + len);

	if (len == 2) {
		insn[0] = 0xeb;
		insn[1] = disp;
		return disp == (s8)disp;
	}
	if (len == 6) {
		*insn++ = 0x0f;
		*insn++ = 0x84;
	} else {
		*insn++ = 0xe9;
	}
	memcpy(insn, &disp, sizeof(disp));
	return true;
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
		site->why_not = "the compiler put its landing pads out of a short jump's reach";
	}
}

struct orch_site orch_sites[ORCH_SITES];

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

#if !defined(ORCH_EMULATES_JCC) && (ORCH_EMULATES || defined(ORCH_POKES_5))
	orch_sites[ORCH_SITE_JCC].len = 0;
	orch_sites[ORCH_SITE_JCC].why_not = "this kernel does not patch conditional jumps";
#endif

	orch_sites[ORCH_SITE_KEY].name = "key";
	orch_key_site_init(&orch_sites[ORCH_SITE_KEY]);
	orch_sites[ORCH_SITE_STATIC_CALL].name = "static-call";
	orch_static_call_site_init(&orch_sites[ORCH_SITE_STATIC_CALL]);
}
