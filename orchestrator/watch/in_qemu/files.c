// SPDX-License-Identifier: GPL-2.0
/*
 * The files that the host gives as arguments: each is written through a mapping
 * that is shared, so that it is complete at any moment.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "files.h"

#define SLOTS	32768	/* of the ledger; a kernel with ftrace may trap at all its functions */
#define GROWTH	64	/* slots by which its file grows */
#define WINDOW	(1 << 20)	/* bytes of the log that are mapped */

struct control *control;
const char *conf_path;
static const char *control_path, *ledger_path, *log_path[2];
static struct slot *slots;
static int ledger_fd = -1;
static struct record *window;
static int log_fd = -1;
static uint64_t limit = 1024ull << 20;

void take_argument(const char *argument)
{
	const struct {
		const char *name;
		const char **path;
	} files[] = {
		{ "conf=", &conf_path }, { "control=", &control_path },
		{ "ledger=", &ledger_path }, { "log0=", &log_path[0] }, { "log1=", &log_path[1] },
	};

	for (size_t f = 0; f < sizeof(files) / sizeof(*files); f++)
		if (!strncmp(argument, files[f].name, strlen(files[f].name)))
			*files[f].path = strdup(argument + strlen(files[f].name));
	if (!strncmp(argument, "limit=", 6))	/* MiB of the log */
		limit = strtoull(argument + 6, NULL, 10) << 20;
}

/* A file that was given as an argument, or one that nobody else sees. */
static int opened(const char *path, int flags)
{
	return path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644) :
		      memfd_create("recorder", MFD_CLOEXEC);
}

/* A file that may grow to `size` bytes, mapped shared. */
static void *mapped(int fd, size_t size)
{
	void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return map == MAP_FAILED ? NULL : map;
}

static bool open_log(void)
{
	log_fd = opened(log_path[control->turned & 1], O_TRUNC);
	return log_fd >= 0;
}

bool open_files(void)
{
	int control_fd;

	ledger_fd = opened(ledger_path, O_TRUNC);
	control_fd = opened(control_path, 0);
	slots = mapped(ledger_fd, SLOTS * sizeof(*slots));
	control = mapped(control_fd, sizeof(*control));
	return slots && !ftruncate(ledger_fd, GROWTH * sizeof(*slots)) && control &&
	       !ftruncate(control_fd, sizeof(*control)) && open_log();
}

/* A place for one more record; NULL when there is none left. */
static struct record *room(void)
{
	const uint64_t each = WINDOW / sizeof(struct record);
	uint64_t at = control->records;

	if (control->lost)	/* all that follows is lost: the rest must be seamless */
		return NULL;
	if (at % each == 0) {
		uint64_t start = at * sizeof(struct record);

		if (window)
			munmap(window, WINDOW);
		window = NULL;
		/* Reserved first: writing to a hole that cannot be filled is a SIGBUS. */
		if (start + WINDOW > limit || posix_fallocate(log_fd, start, WINDOW))
			return NULL;
		window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED, log_fd, start);
		if (window == MAP_FAILED) {
			window = NULL;
			return NULL;
		}
	}
	return &window[at % each];
}

void turn_log(void)
{
	uint64_t records = control->records;

	if (window)
		munmap(window, WINDOW);
	window = NULL;
	close(log_fd);
	control->turned = control->turn;
	if (!open_log()) {
		control->lost++;
		return;
	}
	control->records = 0;
	__atomic_store_n(&control->previous, records, __ATOMIC_RELEASE);
}

/*
 * Nothing in the guest goes on meanwhile, as one thread runs all CPUs, and no
 * time passes. QEMU's main thread takes commands. One that stops the guest
 * takes effect at the end of the translated block, which has one instruction
 * if the host has asked QEMU for that.
 */
void wait_for_host(void)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	control->steps = 0;
	__atomic_store_n(&control->waits, control->waits + 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&control->let_go, __ATOMIC_ACQUIRE) != control->waits)
		nanosleep(&pause, NULL);
}

void emit(enum kind kind, unsigned int cpu, unsigned int flags, uint32_t number,
	  const uint64_t *words, int count)
{
	struct record *record = room();

	if (!record) {
		control->lost++;
		return;
	}
	*record = (struct record){ .kind = kind, .cpu = cpu, .flags = flags, .number = number };
	if (count)
		memcpy(record->word, words, count * sizeof(*words));
	__atomic_store_n(&control->records, control->records + 1, __ATOMIC_RELEASE);
	if (control->records == control->wait_at)
		wait_for_host();
}

struct slot *slot_of(uint64_t address)
{
	static struct slot *known[4 * SLOTS];
	static int count;
	unsigned int at = (address * 0x9e3779b97f4a7c15ull) >> 47;
	struct slot *slot;

	while (known[at] && known[at]->address != address)
		at = (at + 1) % (4 * SLOTS);
	if (known[at])
		return known[at];
	if (count < SLOTS && count % GROWTH == 0 &&
	    ftruncate(ledger_fd, (count + GROWTH) * sizeof(*slot)))
		count = SLOTS;
	slot = count < SLOTS ? &slots[count] : calloc(1, sizeof(*slot));
	if (slot)
		slot->address = address;
	if (count < SLOTS) {
		known[at] = slot;
		count++;
	}
	return slot;
}
