// SPDX-License-Identifier: GPL-2.0-only
#include <linux/kernel.h>

int text_poke_bp(void)
{
	int phases = 3;

	return phases;
}

int text_poke_sync(void)
{
	return ROUNDS;
}
