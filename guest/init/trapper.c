// SPDX-License-Identifier: GPL-2.0-only
/*
 * trapper FILE: execute int3 on every CPU for as long as FILE exists. Each int3
 * must cause exactly one SIGTRAP, with the address behind it.
 *
 * There is one process per CPU. The last line of output is the result. The exit
 * status is 0 if each int3 was delivered, 1 if one was not, 3 if int3 could not be
 * executed on every CPU.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

/*
 * Low enough that the poker gets its turn when an emulator runs all CPUs in one
 * thread.
 */
#define BURST		10
#define PAUSE_US	5000

#define COULD_NOT	3	/* exit status: nothing was shown */

struct count {
	long executed;
	long delivered;
	long misplaced;	/* delivered with a wrong address */
	pid_t pid;
};

static volatile struct count *mine;	/* of this process */
extern char behind_int3[];

static void trapped(int signal, siginfo_t *info, void *context)
{
	ucontext_t *ucontext = context;

	(void)signal;
	(void)info;
	mine->delivered++;
	if (ucontext->uc_mcontext.gregs[REG_RIP] != (greg_t)behind_int3)
		mine->misplaced++;
}

static void __attribute__((noinline, noclone)) trap(void)
{
	asm volatile("int3\n"
		     ".globl behind_int3\n"
		     "behind_int3:" : : : "memory");
}

static void child(int cpu, const char *file)
{
	struct sigaction action = { .sa_sigaction = trapped, .sa_flags = SA_SIGINFO };
	cpu_set_t one;
	int i;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one) || sigaction(SIGTRAP, &action, NULL))
		_exit(COULD_NOT);
	do {
		for (i = 0; i < BURST; i++) {
			mine->executed++;
			trap();
		}
		usleep(PAUSE_US);
	} while (!access(file, F_OK));
	_exit(0);
}

static int judge(int cpu, int status, const volatile struct count *count)
{
	/* Out of memory: nobody else kills with that signal. */
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return COULD_NOT;
	if (WIFSIGNALED(status)) {
		printf("after %ld int3 in user mode on CPU %d the program was killed by signal %d\n",
		       count->executed, cpu, WTERMSIG(status));
		return 1;
	}
	if (WEXITSTATUS(status))
		return WEXITSTATUS(status);
	if (count->executed == count->delivered && !count->misplaced)
		return 0;
	printf("%ld int3 in user mode on CPU %d: %ld became SIGTRAP, %ld with a wrong address\n",
	       count->executed, cpu, count->delivered, count->misplaced);
	return 1;
}

int main(int argc, char **argv)
{
	volatile struct count *counts;
	int cpu, outcome, status, result = 0, cpus = 0;
	long executed = 0;
	cpu_set_t set;

	if (argc != 2 || sched_getaffinity(0, sizeof(set), &set))
		return COULD_NOT;
	counts = mmap(NULL, CPU_SETSIZE * sizeof(*counts), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED)
		return COULD_NOT;
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &set))
			continue;
		mine = &counts[cpu];
		mine->pid = fork();
		if (!mine->pid)
			child(cpu, argv[1]);
	}
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!counts[cpu].pid)
			continue;
		if (counts[cpu].pid < 0 || waitpid(counts[cpu].pid, &status, 0) < 0)
			outcome = COULD_NOT;
		else
			outcome = judge(cpu, status, &counts[cpu]);
		if (outcome && result != 1)
			result = outcome;
		executed += counts[cpu].executed;
		cpus++;
	}
	if (!result)
		printf("%ld int3 in user mode on %d CPUs, each delivered\n", executed, cpus);
	if (result == COULD_NOT)
		puts("int3 in user mode could not be executed on every CPU");
	return result;
}
