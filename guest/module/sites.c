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
#include "orch.h"

u8 orch_never;

#define NEVER	"cmpb $0, orch_never(%%rip)\n\t"
#define GLOBAL(name)	".globl " #name "\n" #name ":\n\t"
#define PASS	static noinline notrace __attribute__((noclone, aligned(64)))

extern u8 orch_nop5_site[], orch_nop5_new[], orch_nop5_int3[];
extern u8 orch_jmp32_site[], orch_jmp32_new[], orch_jmp32_int3[];
extern u8 orch_nop2_site[], orch_nop2_new[], orch_nop2_int3[];
extern u8 orch_one_site[], orch_one_ret[], orch_one_int3[];

/* A NOP that becomes a jump to the pad behind it, and back. */
#define DEFINE_NOP_SITE(name, nop)						\
PASS enum orch_result orch_pass_##name(void)					\
{										\
	asm goto(NEVER								\
		 "jne orch_" #name "_new\n\t"					\
		 "jne orch_" #name "_int3\n"					\
		 GLOBAL(orch_##name##_site)					\
		 ".byte " nop "\n\t"						\
		 "jmp %l[l_old]\n"						\
		 GLOBAL(orch_##name##_new)					\
		 "jmp %l[l_new]\n"						\
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
DEFINE_NOP_SITE(nop5, "0x0f, 0x1f, 0x44, 0x00, 0x00")
DEFINE_NOP_SITE(nop2, "0x66, 0x90")

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

/* @insn of @len bytes at @addr becomes a jump to @to; a short one for 2. */
static bool jump_to(u8 *insn, unsigned int len, const u8 *addr, const u8 *to)
{
	s32 disp = to - (addr + len);

	if (len == 2) {
		insn[0] = 0xeb;
		insn[1] = disp;
		return disp == (s8)disp;
	}
	insn[0] = 0xe9;
	memcpy(insn + 1, &disp, sizeof(disp));
	return true;
}

static void plain_site(enum orch_site_id id, const char *name, u8 *addr, unsigned int len,
		       u8 *new, u8 *int3, enum orch_result (*pass)(void))
{
	struct orch_site *site = &orch_sites[id];

	site->name = name;
	site->addr = addr;
	site->len = len;
	site->pass = pass;
	site->handler = int3;
	site->target = int3;
	memcpy(site->old, addr, len);
	if (!jump_to(site->new, len, addr, new) || !jump_to(site->emulate, len, addr, int3)) {
		site->len = 0;
		site->why_not = "the compiler put its landing pads out of a short jump's reach";
	}
}

struct orch_site orch_sites[ORCH_SITES];

void orch_sites_init(void)
{
	struct orch_site *one = &orch_sites[ORCH_SITE_ONE];
	struct orch_site *key = &orch_sites[ORCH_SITE_KEY];

	plain_site(ORCH_SITE_NOP5, "nop5", orch_nop5_site, 5, orch_nop5_new, orch_nop5_int3,
		   orch_pass_nop5);
	plain_site(ORCH_SITE_JMP32, "jmp32", orch_jmp32_site, 5, orch_jmp32_new, orch_jmp32_int3,
		   orch_pass_jmp32);
	plain_site(ORCH_SITE_NOP2, "nop2", orch_nop2_site, 2, orch_nop2_new, orch_nop2_int3,
		   orch_pass_nop2);

	one->name = "one";
	one->addr = orch_one_site;
	one->len = 1;
	one->pass = orch_pass_one;
	one->handler = orch_one_int3;
#if defined(ORCH_SMP_TEXT_POKE) || defined(ORCH_EMULATE)
	one->target = orch_one_ret;
#else
	one->target = orch_one_int3;
#endif
	one->old[0] = 0xf8;
	one->new[0] = 0xf9;
	one->emulate[0] = 0xc3;

	key->name = "key";
	key->pass = orch_pass_key;
	orch_key_site_init(key);
	if (key->len && (!key->handler ||
			 !jump_to(key->emulate, key->len, key->addr, key->handler))) {
		key->len = 0;
		key->why_not = "the compiler put its landing pad out of a short jump's reach";
	}
}
