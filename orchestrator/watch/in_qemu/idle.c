// SPDX-License-Identifier: GPL-2.0
/*
 * Once all CPUs are idle, QEMU's main thread has guest time leap to the next
 * timer (icount_start_warp_timer() in accel/tcg/icount-common.c). It looks
 * whenever it wakes up, and at each timer it does. A CPU counts as idle from
 * its HLT on, but the instructions before it are accounted for a moment later.
 * Were the main thread to look in between, time would leap too far, by as much
 * as the host has it. So no CPU becomes idle before the main thread sleeps:
 * then nothing wakes it up but the CPUs' thread, when all is accounted for.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "idle.h"

static int main_stat = -1;	/* /proc/self/task/TID/stat */
#define MAIN_SECONDS	10	/* more than any host keeps a thread waiting */

void find_main_thread(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", (long)syscall(SYS_gettid));
	main_stat = open(path, O_RDONLY | O_CLOEXEC);
}

static bool main_thread_sleeps(void)
{
	char text[64];	/* "TID (name of at most 15 bytes) state ..." */
	ssize_t size = pread(main_stat, text, sizeof(text) - 1, 0);
	const char *name_end;

	if (size <= 0)
		return true;
	text[size] = 0;
	name_end = strrchr(text, ')');
	return !name_end || name_end[1] != ' ' || name_end[2] == 'S';
}

void before_idle(unsigned int vcpu, void *data)
{
	const struct timespec pause = { .tv_nsec = 20000 };
	time_t end = 0;
	struct timespec now;

	(void)vcpu;
	(void)data;
	while (!main_thread_sleeps()) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (!end)
			end = now.tv_sec + MAIN_SECONDS;
		if (now.tv_sec > end)
			return;
		nanosleep(&pause, NULL);
	}
}
