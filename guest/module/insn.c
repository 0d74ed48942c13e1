// SPDX-License-Identifier: GPL-2.0
/*
 * Encoding of instructions.
 */
#include <linux/string.h>
#include "orch.h"

/**
 * orch_jump_to() - encode a jump of a given length
 * @insn: where to put the instruction
 * @len: 2 for JMP rel8, 5 for JMP rel32, 6 for JE rel32
 * @addr: address at which the instruction will be executed
 * @to: its target
 *
 * Return: false if @to is out of reach of a jump of that length.
 */
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
