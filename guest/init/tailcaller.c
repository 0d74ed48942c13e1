// SPDX-License-Identifier: GPL-2.0-only
/*
 * tailcaller FILE: have BPF's jumps patched for as long as FILE exists, while every
 * CPU executes them.
 *
 * A program ends with a tail call of what is in a map, at an index that is known
 * when it is compiled. So the kernel makes that a jump, and patches it whenever
 * the map changes (since 5.5, prog_array_map_poke_run() in kernel/bpf/arraymap.c).
 *
 * There is one process per CPU that executes the program. The last line of output
 * is the result. The exit status is 0 if each jump went where the map said, 1 if
 * one did not, 3 if that could not be shown, 4 if the kernel has no such jumps.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define JIT		"/proc/sys/net/core/bpf_jit_enable"
#define CALLED		2	/* programs that are called */
#define NOTHING		0	/* what the program returns if nothing is called */
#define REPEAT		20	/* runs of the program at a time */
#define PAUSE_US	1000	/* the poker must get its turn if all CPUs have one thread */

#define COULD_NOT	3	/* exit statuses */
#define LACKS		4

static int map, caller, called[CALLED];

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(__NR_bpf, command, attr, sizeof(*attr));
}

static int load(const struct bpf_insn *code, unsigned int count)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = count;
	attr.license = (uintptr_t)"GPL";
	return bpf(BPF_PROG_LOAD, &attr);
}

static int load_called(int value)
{
	const struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = value },
		{ .code = BPF_JMP | BPF_EXIT },
	};

	return load(code, sizeof(code) / sizeof(*code));
}

static int load_caller(void)
{
	const struct bpf_insn code[] = {
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 2,
		  .src_reg = BPF_PSEUDO_MAP_FD, .imm = map },
		{ 0 },		/* the upper half of that number */
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = 0 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_tail_call },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = NOTHING },
		{ .code = BPF_JMP | BPF_EXIT },
	};

	return load(code, sizeof(code) / sizeof(*code));
}

/* Returns what the program returned, or -1. */
static int run_caller(void)
{
	static char packet[64];
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = caller;
	attr.test.data_in = (uintptr_t)packet;
	attr.test.data_size_in = sizeof(packet);
	attr.test.repeat = REPEAT;
	return bpf(BPF_PROG_TEST_RUN, &attr) ? -1 : (int)attr.test.retval;
}

/* Put the program that returns `value` into the map, or take out what is there. */
static int set(int value)
{
	uint32_t key = 0, fd = value == NOTHING ? 0 : (uint32_t)called[value - 1];
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = map;
	attr.key = (uintptr_t)&key;
	if (value == NOTHING)
		return bpf(BPF_MAP_DELETE_ELEM, &attr);
	attr.value = (uintptr_t)&fd;
	return bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

static const char *has_jit(void)
{
	FILE *file = fopen(JIT, "r+");
	int on = 0;

	if (!file)
		return "no JIT of BPF";
	if (fscanf(file, "%d", &on) != 1 || !on) {
		rewind(file);
		fputs("1\n", file);
	}
	fclose(file);
	return NULL;
}

/* Returns what the kernel lacks, or NULL. */
static const char *prepare(void)
{
	const char *lacks = has_jit();
	union bpf_attr attr;

	if (lacks)
		return lacks;
	memset(&attr, 0, sizeof(attr));
	attr.map_type = BPF_MAP_TYPE_PROG_ARRAY;
	attr.key_size = sizeof(uint32_t);
	attr.value_size = sizeof(uint32_t);
	attr.max_entries = 1;
	map = bpf(BPF_MAP_CREATE, &attr);
	if (map < 0)
		return "no BPF for programs like this one";
	for (int i = 0; i < CALLED; i++)
		called[i] = load_called(i + 1);
	caller = load_caller();
	if (called[0] < 0 || called[1] < 0 || caller < 0 || run_caller() != NOTHING)
		return "no tail calls of BPF";
	return NULL;
}

static volatile sig_atomic_t over;

static void end(int signal)
{
	(void)signal;
	over = 1;
}

static void child(int cpu, volatile long *runs)
{
	cpu_set_t one;
	int value;

	signal(SIGTERM, end);
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		_exit(COULD_NOT);
	while (!over) {
		value = run_caller();
		if (value > CALLED)
			_exit(1);
		*runs += value >= 0 ? REPEAT : 0;
		usleep(PAUSE_US);
	}
	_exit(0);
}

/* Returns the exit status; says what is wrong. */
static int poke(const char *file, long *pokes)
{
	static const int values[] = { 1, 2, NOTHING, 2, 1, NOTHING };
	int now;

	do {
		for (unsigned int i = 0; i < sizeof(values) / sizeof(*values); i++) {
			if (set(values[i])) {
				printf("the map of programs cannot be set: %s\n",
				       strerror(errno));
				return COULD_NOT;
			}
			++*pokes;
			now = run_caller();
			if (now >= 0 && now != values[i]) {
				printf("program %d was called after the map was set to %d\n",
				       now, values[i]);
				return 1;
			}
		}
		usleep(PAUSE_US);
	} while (!access(file, F_OK));
	return 0;
}

static int judge(int status, int cpu)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
		printf("CPU %d called something else than what was in the map\n", cpu);
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	printf("on CPU %d the program was killed by signal %d\n", cpu, WTERMSIG(status));
	return WTERMSIG(status) == SIGKILL ? COULD_NOT : 1;	/* out of memory */
}

int main(int argc, char **argv)
{
	pid_t pids[CPU_SETSIZE] = { 0 };
	volatile long *runs;
	const char *lacks;
	long pokes = 0, total = 0;
	int status, result;
	cpu_set_t set;

	if (argc != 2 || sched_getaffinity(0, sizeof(set), &set))
		return COULD_NOT;
	runs = mmap(NULL, CPU_SETSIZE * sizeof(*runs), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (runs == MAP_FAILED)
		return COULD_NOT;
	lacks = prepare();
	if (lacks) {
		printf("this kernel has %s\n", lacks);
		return LACKS;
	}
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &set))
			continue;
		pids[cpu] = fork();
		if (!pids[cpu])
			child(cpu, &runs[cpu]);
	}
	result = poke(argv[1], &pokes);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		int outcome = COULD_NOT;

		if (!pids[cpu])
			continue;
		if (pids[cpu] > 0 && !kill(pids[cpu], SIGTERM) &&
		    waitpid(pids[cpu], &status, 0) > 0)
			outcome = judge(status, cpu);
		if (outcome && result != 1)
			result = outcome;
		total += runs[cpu];
	}
	if (!result)
		printf("%ld changes of the map during %ld runs of the program\n", pokes, total);
	return result;
}
