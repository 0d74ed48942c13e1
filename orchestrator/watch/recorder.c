// SPDX-License-Identifier: GPL-2.0
/*
 * The recorder: a TCG plugin that logs everything the guest does to its own
 * text, in the order in which it is executed: each write, each core that syncs
 * or serialises, each int3 and how its CPU went on. It changes nothing in the
 * guest. What is right or wrong is not known here; docs/recorder.md says what
 * is made of it.
 *
 * Only a few instructions get a callback, so nothing else runs any slower:
 * the functions named in `conf`, int3, instructions that serialise, and
 * the sites of the test module. All are found when they are translated, and a
 * site that is patched is translated anew for each of its contents.
 *
 * The order is total only while QEMU runs all CPUs in one thread.
 *
 * It has these files, each given as an argument of that name:
 *
 *   conf    what to watch, read at the start and when the host asks: one
 *           `NAME ADDRESS [NUMBER]` a line; see load() for the names
 *   control struct control: what the host asks for, and what was done
 *   log0, log1
 *           struct record, control.records of them in the one that is written,
 *           control.previous in the other; see turn()
 *   ledger  struct slot: int3 by address and CPU; address 0 ends the list
 *
 * All but the first are mapped shared. So they are complete at any moment, and
 * stay so when QEMU is killed. recorder.py reads them. The host gives names of
 * files that are in memory: a hole of a file on a full disk is a SIGBUS.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "qemu-plugin.h"

/* -- what is written */

#define CPUS		64
#define NO_CPU		255	/* before the per-CPU areas exist */
#define SLOTS		32768	/* of the ledger; a kernel with ftrace may trap at all its functions */
#define GROWTH		64	/* slots by which its file grows */
#define INT3		0xcc
#define EFLAGS_IF	0x200
#define INLINE		16	/* bytes of a write that are kept; of a longer one only a hash */

/* The layout of the log; RECORD in recorder.py is the same. Little endian. */
struct record {
	uint8_t kind;
	uint8_t cpu;
	uint16_t flags;
	uint32_t number;
	uint64_t word[7];
};

enum kind {
	/*
	 * A function that writes text was entered. number: length. words: address;
	 * 16 new bytes, 16 bytes before (of a longer write the FNV-1a hash of both);
	 * rsp; the CPUs online. F_MAPPED: the mapping through which the write before
	 * this one was made is still there. F_EXECUTED: it is in text of a module that
	 * was executed. F_STATE: the poke handler has something to look for, and if
	 * int3 is written, this address. F_PROBED: it is a byte where a kprobe is that
	 * its handler would find.
	 */
	WRITE = 1,
	/*
	 * Follows WRITE, but not while a single CPU boots. words: the first four of
	 * text_mutex; the current task; the CPUs in user mode; those that are idle.
	 */
	WRITER,
	/*
	 * Follows WRITER and FREED, up to twice. number: how many words of the stack
	 * may be return addresses.
	 */
	CALLERS,
	/* do_sync_core() was entered. words: rsp; where it returns to. F_STATE: as in WRITE. */
	SYNC,
	/*
	 * A CPU serialised for the first time since a WRITE, for the first time
	 * within do_sync_core(), or for the first time for its own sake. flags: how.
	 * words: rip.
	 */
	SERIALISE,
	/* int3 is executed. words: address; rsp. */
	TRAP,
	/*
	 * The iret that goes on after a TRAP. flags: bit h: handler h was entered;
	 * RETURNED_*: of the poke handler; CHANGED: another register than rip, rsp and
	 * rflags is not what it was. number: TRAPs of this CPU not gone on yet.
	 * words: address of the int3; rip, rsp and rflags popped; the word at the
	 * lower one of both rsp; rsp and rflags before.
	 */
	RESUME,
	/*
	 * Kernel text is not what it was, and nobody is known to have written it.
	 * Seen when the instruction is translated, or when the host asks for a look
	 * at the whole text. number: length. words: address; 16 bytes before; 16
	 * bytes now.
	 */
	CODE,
	/*
	 * Passes over a site by a CPU. flags: FIRST since a WRITE there, else their
	 * number. words: site; number.
	 */
	PASS,
	/* multi_cpu_stop() was entered. words: rdi. */
	STOPPER,
	/*
	 * text_mutex is released. words: its owner; the CPUs online; in user mode;
	 * idle. flags: F_MAPPED.
	 */
	UNLOCK,
	/*
	 * A CPU that has not serialised for its own sake since a WRITE changes to
	 * user mode, the kernel, or sleep. number: enum mode, what it is from now on.
	 */
	MODE,
	/*
	 * A branch of a static key: when jump_label_mutex is released by whoever
	 * switched the key, and all of them when the host asks for a look. words: the
	 * key; its count; where the branch is; its target; its flags (1: it is taken
	 * unless the key is on; 2: it is in init text; 4: there is none, although the
	 * key has a list of them there; 8: there is none, but whoever asks for it is
	 * about to switch the key, which counts as on already); 8 bytes that are there
	 * now.
	 */
	BRANCH,
	/*
	 * A call of a static call, or its trampoline: when static_call_mutex is
	 * released, or text_mutex if this one was asked for. So is the call of the
	 * tracer in ftrace_caller() and in trampolines. words: the key, 0 for one that
	 * was asked for; the function; where the call is; its flags (1: in tail
	 * position, or a trampoline; 2: in init text; 4: there is none, although the
	 * key has a list of them, whose address it is; 8: the trampoline passes other
	 * ops than those that it belongs to); 8 bytes that are there now.
	 */
	CALL,
	/*
	 * Somebody waits. number: 0: synchronize_rcu_tasks() was entered; 1:
	 * synchronize_rcu(), or what did the same before 5.0.
	 */
	GRACE,
	/*
	 * A task asks for a lock while it holds another one, for the first time in
	 * this order. number: the lock that it holds, by its number in `conf`. words:
	 * that of the other one; where it is asked for.
	 */
	ORDER,
	/*
	 * oops_begin() or panic() was entered by a CPU that has not gone on after a
	 * TRAP. words: address of the int3.
	 */
	DIES,
	/*
	 * flush_tlb_mm_range() was entered for the mm through which text is written.
	 * words: start and end of the range.
	 */
	FLUSH,
	/*
	 * A function was entered without a lock that its caller must have. number:
	 * the lock's in `conf`. words: the function; where it returns to.
	 */
	UNGUARDED,
	/*
	 * Functions that can be traced: when ftrace_lock is released those that are
	 * traced or were, and all when the host asks for a look. Those that are alike
	 * become one record. number: how many. words: what the first one calls, 0 for
	 * nothing; enum called; where that call is, or was; flags of its struct
	 * dyn_ftrace; 8 bytes that are there now; whether the tracer is on.
	 */
	TRACED,
	/*
	 * The next RESUME goes on elsewhere after a kprobe's int3, where it has not
	 * gone on before, or what is there has changed. words: address of the int3;
	 * rip popped; 16 bytes that are there.
	 */
	STEP,
	/*
	 * Code to which other text jumped or called is freed. number: 0: a slot of
	 * kprobes; 1: the trampoline of a tracer; 2: what belongs to a kprobe, with
	 * the address of the probe. words: its address. CALLERS follow.
	 */
	FREED,
	/*
	 * A CPU is about to load the mm through which text is written. flags: F_IRQS.
	 * words: the page table's entries of the text in it, all bits of both.
	 */
	LOADED,
};

/* What the call of a traced function calls. */
enum called { CALLS_FTRACE = 1, CALLS_FTRACE_REGS = 2, CALLS_TRAMPOLINE = 4, CALLS_GONE = 8 };

enum { F_IRQS = 1, F_EARLY = 2, F_MEMSET = 4, F_UNREADABLE = 8, F_MAPPED = 16,
       F_EXECUTED = 32, F_STATE = 64, F_PROBED = 128, F_FIRST = 1 };
enum {
	S_IRET = 1, S_CPUID, S_SERIALIZE, S_CONTROL, S_MSR, S_OTHER,
	S_IN_SYNC = 0x100, S_ON_PURPOSE = 0x200,
};
enum mode { M_KERNEL, M_USER, M_IDLE };
enum { RETURNED_ZERO = 0x100, RETURNED_NONZERO = 0x200, CHANGED = 0x400 };

struct control {
	/* the host's wishes: a new number is a new wish */
	uint32_t reload, turn, look;
	/* the number of the last one that was fulfilled */
	uint32_t reloaded, turned, looked;
	uint64_t records;
	uint64_t lost;	/* events since there was no room for a record; none follows */
	uint64_t previous;	/* records in the other file */
	/* nonzero while GDB has breakpoints: see passes() */
	uint64_t gdb;
	/* The host wants the guest to wait once there are so many records: see wait_for_host(). */
	uint64_t wait_at;
	uint64_t waits;		/* how often it has waited, or waits for the first time, ... */
	uint64_t let_go;	/* ... and how often the host let it go on */
	uint64_t hold;		/* nonzero: the guest also waits where it says so: see holds() */
	uint64_t single;	/* nonzero: `steps` are counted from now on */
	uint64_t steps;		/* instructions that began after the last wait, as far as they count */
};

struct slot {
	uint64_t address;
	uint64_t count[CPUS];
};

#define WINDOW	(1 << 20)	/* bytes of the log that are mapped */

static struct control *control;
static struct slot *slots;
static int ledger_fd = -1;
static struct record *window;
static int log_fd = -1;
static uint64_t limit = 1024ull << 20;
static const char *conf_path, *control_path, *ledger_path, *log_path[2];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;	/* for tcg,thread=multi */

/* A file that was given as an argument, or one that nobody else sees. */
static int opened(const char *path, int flags)
{
	return path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644) :
		      memfd_create("recorder", MFD_CLOEXEC);
}

static bool open_log(void)
{
	log_fd = opened(log_path[control->turned & 1], O_TRUNC);
	return log_fd >= 0;
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

/* Go on in the other file, so that the host can have this one and its disk space. */
static void turn(void)
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
static void wait_for_host(void)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	control->steps = 0;
	__atomic_store_n(&control->waits, control->waits + 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&control->let_go, __ATOMIC_ACQUIRE) != control->waits)
		nanosleep(&pause, NULL);
}

static void emit(enum kind kind, unsigned int cpu, unsigned int flags, uint32_t number,
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

/* -- the guest's registers and memory */

enum reg {
	RAX, RDX, RCX, RSI, RDI, RBX, RBP, R8, R9, R10, R11, R12, R13, R14, R15, GENERAL,
	RSP = GENERAL, EFLAGS, GS_BASE, K_GS_BASE, CR3, REGISTERS
};
static const char *const reg_names[REGISTERS] = {
	"rax", "rdx", "rcx", "rsi", "rdi", "rbx", "rbp", "r8", "r9", "r10", "r11", "r12",
	"r13", "r14", "r15", "rsp", "eflags", "gs_base", "k_gs_base", "cr3",
};
static struct qemu_plugin_register *reg_handle[REGISTERS];
static GByteArray *scratch;

static void find_registers(void)
{
	GArray *all = qemu_plugin_get_registers();
	qemu_plugin_reg_descriptor *one = all ? (qemu_plugin_reg_descriptor *)all->data : NULL;

	for (unsigned int i = 0; all && i < all->len; i++)
		for (int r = 0; r < REGISTERS; r++)
			if (!strcmp(one[i].name, reg_names[r]))
				reg_handle[r] = one[i].handle;
}

static uint64_t reg(enum reg which)
{
	uint64_t value = 0;

	g_byte_array_set_size(scratch, 0);
	if (!reg_handle[which] || !qemu_plugin_read_register(reg_handle[which], scratch))
		return 0;
	memcpy(&value, scratch->data, scratch->len < 8 ? scratch->len : 8);
	return value;
}

static bool memory(uint64_t address, void *to, size_t length)
{
	if (!length || !qemu_plugin_read_memory_vaddr(address, scratch, length) || scratch->len < length)
		return false;
	memcpy(to, scratch->data, length);
	return true;
}

static uint64_t quad(uint64_t address)
{
	uint64_t value = 0;

	return memory(address, &value, 8) ? value : 0;
}

/* -- what to watch */

enum point {
	P_NONE, P_WRITE, P_EARLY, P_SYNC, P_STOPPER, P_UNLOCK, P_SITE,
	P_KEY, P_STATIC_CALL, P_TRANSFORM, P_TRACER, P_TASKS, P_FREED, P_SLOT, P_LOCK,
	P_CPUS_LOCK, P_CPUS_UNLOCK, P_END, P_DIES, P_FLUSH, P_GUARDED,
	P_RCU, P_REMOVED, P_LOAD,
	P_ENTRY, P_POKE, P_KPROBE, P_FTRACE,	/* handlers: bit 0, 1, 2, 3 of RESUME */
	P_RETURN, P_SECOND,
};

struct watched {
	uint64_t address;
	enum point point;
	uint64_t number;
	uint64_t passes[CPUS];	/* of a site, by CPU, since the last write to it */
	uint64_t entered;	/* CPUs that have executed this, but not yet what follows */
	struct watched *first;	/* P_SECOND: what it follows */
	bool has_second;
};

#define TABLE	4096	/* power of two */
static struct watched *table[TABLE];
static int watched_count;
static struct watched *sites[256];
static int site_count;

/* Addresses of data, 0 where the kernel has none. */
static uint64_t text_mutex, per_cpu_offset, online_mask, current_task, memset_function;
static uint64_t text_start, text_end;
static uint64_t jump_label_mutex, jump_table, jump_table_end;
static uint64_t static_call_mutex, call_sites, call_sites_end;
static uint64_t patching_flag, patching_refs, patching_refs_percpu;
static uint64_t patching_address, patching_array;
static uint64_t poking_mm, poking_addr, page_offset_base, init_top_pgt;
static uint64_t ftrace_lock, ftrace_pages, ftrace_enabled, ftrace_disabled, ftrace_ops_list;
static uint64_t ftrace_caller, ftrace_regs_caller, ftrace_call, ftrace_regs_call;
static uint64_t ftrace_ops, ftrace_regs_ops;
static uint64_t kprobe_table;

static struct watched **place_of(uint64_t address)
{
	unsigned int at = (address * 0x9e3779b97f4a7c15ull) >> 52;

	while (table[at] && table[at]->address != address)
		at = (at + 1) % TABLE;
	return &table[at];
}

static struct watched *watched_at(uint64_t address)
{
	struct watched *here = *place_of(address);

	return here && here->point != P_NONE ? here : NULL;
}

static struct watched *watch(uint64_t address, enum point point, uint64_t number)
{
	struct watched **place = place_of(address);

	if (!*place && watched_count < TABLE / 2) {
		*place = calloc(1, sizeof(**place));
		if (*place)
			watched_count++;
	}
	if (*place)
		**place = (struct watched){ .address = address, .point = point, .number = number };
	return *place;
}

/* -- text, as it was last translated */

/*
 * For each byte between text_start and text_end: what it was, and what a write
 * that has begun makes of it. Of both only what was touched takes memory.
 */
enum { SEEN = 1, WRITTEN = 2 };
static uint8_t *text_now, *text_next, *text_state;

static void shadow_text(void)
{
	static uint64_t start, end;
	size_t size = text_end - text_start;

	if (start == text_start && end == text_end)
		return;
	if (text_now)
		munmap(text_now, 3 * (end - start));
	text_now = NULL;
	start = text_start;
	end = text_end;
	if (end <= start || size > 256 << 20)
		return;
	text_now = mmap(NULL, 3 * size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (text_now == MAP_FAILED)
		text_now = NULL;
	text_next = text_now + size;
	text_state = text_next + size;
}

static void shadow_write(uint64_t address, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; text_now && i < length; i++) {
		uint64_t at = address + i - text_start;

		if (address + i < text_start || address + i >= text_end)
			continue;
		if (text_state[at] & WRITTEN)	/* that write is over, as writers exclude each other */
			text_now[at] = text_next[at];
		text_next[at] = bytes[i];
		text_state[at] |= WRITTEN;
	}
}

static bool looked;	/* at the whole text, once it was settled: before that it is the boot's */

/* Text as it is now, a few bytes. Those that nobody has written become a CODE. */
static void shadow_check(uint64_t address, const uint8_t *bytes, size_t length)
{
	uint64_t at = address - text_start, words[5] = { address };
	uint8_t *before = (uint8_t *)&words[1], *now = (uint8_t *)&words[3];
	bool differs = false;

	if (!text_now || address < text_start || address + length > text_end)
		return;
	for (size_t i = 0; i < length; i++, at++) {
		bool same = !(text_state[at] & SEEN) || text_now[at] == bytes[i];

		before[i] = text_now[at];
		now[i] = bytes[i];
		if ((text_state[at] & WRITTEN) && text_next[at] == bytes[i]) {
			text_state[at] &= ~WRITTEN;
			same = true;
		}
		differs |= !same;
		text_now[at] = bytes[i];
		text_state[at] |= SEEN;
	}
	if (differs && looked)
		emit(CODE, NO_CPU, 0, length, words, 5);
}

static void look_at_text(void)
{
	uint8_t page[4096];

	for (uint64_t address = text_start; text_now && address < text_end; address += sizeof(page)) {
		size_t size = text_end - address < sizeof(page) ? text_end - address : sizeof(page);

		if (!memory(address, page, size))
			continue;
		for (size_t at = 0; at < size; at += INLINE)
			shadow_check(address + at, page + at, size - at < INLINE ? size - at : INLINE);
	}
	looked = true;
}

/* -- which CPU */

static uint64_t gs_of[CPUS];

static unsigned int find_gs(uint64_t gs)
{
	static unsigned int last;

	if (gs_of[last] == gs)
		return last;
	for (unsigned int cpu = 0; cpu < CPUS; cpu++)
		if (gs_of[cpu] == gs)
			return last = cpu;
	return NO_CPU;
}

/*
 * In the kernel gs_base is __per_cpu_offset[cpu]. Just before it goes back to
 * user mode that is in k_gs_base. QEMU's own number of the CPU is wrong with
 * one thread: it is that of the CPU for which the block was translated.
 */
static unsigned int cpu_now(void)
{
	uint64_t gs = reg(GS_BASE), kernel_gs;
	unsigned int cpu;

	if (!per_cpu_offset)	/* built without CONFIG_SMP */
		return 0;
	cpu = gs >> 63 ? find_gs(gs) : NO_CPU;
	if (cpu != NO_CPU)
		return cpu;
	kernel_gs = reg(K_GS_BASE);
	cpu = kernel_gs >> 63 ? find_gs(kernel_gs) : NO_CPU;
	if (cpu == NO_CPU && (gs >> 63 || kernel_gs >> 63) &&
	    memory(per_cpu_offset, gs_of, sizeof(gs_of)))
		cpu = find_gs(gs >> 63 ? gs : kernel_gs);
	return cpu;
}

/* Whether there is a call before `address`: of a function (e8), or by a register (ff d0 to d7). */
static bool behind_call(uint64_t address)
{
	uint8_t code[5];

	return address >> 31 == 0x1ffffffff && memory(address - 5, code, 5) &&
	       (code[0] == 0xe8 || (code[3] == 0xff && (code[4] & 0xf8) == 0xd0));
}

static uint64_t fnv1a(const uint8_t *bytes, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3ull;
	return hash;
}

/* -- text of modules that was executed */

#define MODULES_START	0xffffffffa0000000ull	/* where it is if nothing moves it */
#define MODULES_SIZE	0x5f000000ull

static uint8_t *executed;	/* a bit for each address at which an instruction begins */

static void note_executed(uint64_t address)
{
	uint64_t at = address - MODULES_START;

	if (at >= MODULES_SIZE)
		return;
	if (!executed) {
		executed = mmap(NULL, MODULES_SIZE / 8, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		executed = executed == MAP_FAILED ? NULL : executed;
	}
	if (executed)
		executed[at / 8] |= 1 << (at % 8);
}

static bool was_executed(uint64_t address, uint64_t length)
{
	for (uint64_t at = address - MODULES_START, i = 0; i < length && i < INLINE; i++)
		if (executed && at + i < MODULES_SIZE && (executed[(at + i) / 8] >> ((at + i) % 8) & 1))
			return true;
	return false;
}

/*
 * Something else may get this place. How much of it is not known, so
 * all that is behind it is forgotten as well.
 */
static void on_freed(uint64_t address)
{
	uint64_t at = address - MODULES_START;

	if (executed && at < MODULES_SIZE)
		madvise(executed + ((at / 8) & ~4095ull), MODULES_SIZE / 8 - ((at / 8) & ~4095ull),
			MADV_DONTNEED);
}

/* -- what the poke handler looks for */

static bool is_patching(void)
{
	uint64_t gs = reg(GS_BASE);
	uint32_t value = 0;
	uint8_t flag = 0;

	if (patching_flag && memory(patching_flag, &flag, 1))
		return flag;
	if (patching_refs)	/* struct bp_patching_desc: vec, nr_entries, refs */
		return memory(patching_refs + 12, &value, 4) && value;
	return patching_refs_percpu && gs >> 63 && memory(gs + patching_refs_percpu, &value, 4) && value;
}

#define POKES		256	/* TEXT_POKE_ARRAY_MAX */

/* struct text_poke_loc, since 5.8 */
struct poke {
	int32_t address;	/* from _stext */
	uint8_t rest[12];
};

/* Whether the handler has been given this address. */
static bool has_poke(uint64_t address)
{
	uint64_t vector = patching_refs ? quad(patching_refs) : patching_array;
	uint64_t count = patching_refs ? patching_refs + 8 : patching_array + POKES * sizeof(struct poke);
	static struct poke pokes[POKES];
	uint32_t number;

	if (patching_address)
		return quad(patching_address) == address + 1;
	if (!vector || !memory(count, &number, 4) || number > POKES ||
	    !memory(vector, pokes, number * sizeof(*pokes)))
		return false;
	for (uint32_t i = 0; i < number; i++)
		if (text_start + pokes[i].address == address)
			return true;
	return false;
}

/*
 * Whether the handler looks for int3 at the site that is written to. Its
 * addresses count once one of them was found where we look for them.
 */
static bool is_patching_here(uint64_t address, const uint8_t *bytes, uint64_t length)
{
	static bool found;
	bool begins = length == 1 && bytes[0] == INT3;

	if (!is_patching())
		return false;
	if (!begins || !found)
		found |= has_poke(address) || has_poke(address - 1);
	return !begins || !found || has_poke(address);
}

#define PROBE_LISTS	64	/* KPROBE_TABLE_SIZE */
#define PROBES		1024	/* in one list, at most */
enum { KP_ADDRESS = 40 };	/* struct kprobe: hlist, list, nmissed, addr */

/* Whether a kprobe's handler would find one at this address. */
static bool is_probed(uint64_t address)
{
	uint64_t lists[PROBE_LISTS];

	if (!kprobe_table || !memory(kprobe_table, lists, sizeof(lists)))
		return false;
	for (int i = 0; i < PROBE_LISTS; i++)
		for (int n = 0; n < PROBES && lists[i]; n++, lists[i] = quad(lists[i]))
			if (quad(lists[i] + KP_ADDRESS) == address)
				return true;
	return false;
}

/* -- locks, and in which order they are taken */

#define LOCKS		16
#define HOLDERS		64
#define FRAME_WORDS	16
#define HOTPLUG		0	/* the number of the lock of CPU hotplug, which is no mutex */

static uint64_t lock_address[LOCKS];
static uint32_t order_seen[LOCKS];
static struct holder {
	uint64_t task;
	uint32_t held;
	uint64_t rsp, frames;	/* where it asked for HOTPLUG */
	unsigned int depth;	/* how often it has, for it may have it several times */
} holders[HOLDERS];

static void forget_mutexes(void)
{
	memset(lock_address, 0, sizeof(lock_address));
}

static bool no_holder;	/* once there was no room for another one */

static unsigned int number_of_lock(uint64_t mutex)
{
	for (unsigned int i = 1; i < LOCKS && mutex; i++)
		if (lock_address[i] == mutex)
			return i;
	return LOCKS;
}

static uint64_t task_now(void)
{
	uint64_t gs = reg(GS_BASE);

	return current_task && gs >> 63 ? quad(gs + current_task) : 0;
}

static struct holder *holder_now(bool wanted)
{
	uint64_t task = task_now();
	struct holder *free = NULL;

	for (int i = 0; i < HOLDERS && task; i++) {
		if (holders[i].held && holders[i].task == task)
			return &holders[i];
		if (!holders[i].held && !free)
			free = &holders[i];
	}
	if (wanted && free)
		*free = (struct holder){ .task = task };
	no_holder |= wanted && task && !free;
	return wanted ? free : NULL;
}

/* The return addresses in a part of the stack, which change when its functions have returned. */
static uint64_t frames(uint64_t rsp)
{
	uint64_t stack[FRAME_WORDS];
	size_t count = 0;

	if (!memory(rsp, stack, sizeof(stack)))
		return 0;
	for (int i = 0; i < FRAME_WORDS; i++)
		if (behind_call(stack[i]))
			stack[count++] = stack[i];
	return fnv1a((uint8_t *)stack, count * sizeof(*stack));
}

/* Whether the task still has the lock: its release goes unseen where that is inlined. */
static bool still_held(const struct holder *holder, unsigned int lock)
{
	if (lock == HOTPLUG)
		return frames(holder->rsp) == holder->frames;
	return (quad(lock_address[lock]) & ~7ull) == holder->task;	/* its owner, since 4.10 */
}

static bool has_lock(uint64_t task, unsigned int lock)
{
	struct holder *holder = holder_now(false);
	uint64_t mutex[16];

	/* Of the lock of CPU hotplug only what was asked for is known, if there was room for it. */
	if (lock == HOTPLUG)
		return no_holder || (holder && holder->held & 1);
	if (!memory(lock_address[lock], mutex, sizeof(mutex)))
		return true;
	for (int at = 0; at < 16; at++)	/* PREEMPT_RT has the owner behind a lock, of any size */
		if ((mutex[at] & ~7ull) == task)
			return true;
	return false;
}

/* A function is entered by the current task, which must have some locks. */
static void on_guarded(unsigned int cpu, const struct watched *here, uint64_t rsp)
{
	uint64_t task = task_now(), words[2] = { here->address, quad(rsp) };

	for (unsigned int lock = 0; lock < LOCKS && task; lock++)
		if (here->number >> lock & 1 && lock_address[lock] && !has_lock(task, lock))
			emit(UNGUARDED, cpu, 0, lock, words, 2);
}

/* A lock is asked for. */
static void on_lock(unsigned int cpu, unsigned int lock, uint64_t rsp)
{
	struct holder *holder = holder_now(true);
	uint64_t words[2] = { lock, quad(rsp) };

	if (!holder)
		return;
	for (unsigned int held = 0; held < LOCKS; held++) {
		if (!(holder->held >> held & 1) || held == lock)
			continue;
		if (order_seen[held] >> lock & 1)
			continue;
		if (still_held(holder, held)) {
			order_seen[held] |= 1u << lock;
			emit(ORDER, cpu, 0, held, words, 2);
		} else {
			holder->held &= ~(1u << held);
			holder->depth = held == HOTPLUG ? 0 : holder->depth;
		}
	}
	holder->held |= 1u << lock;
	if (lock == HOTPLUG) {
		holder->depth++;
		holder->rsp = rsp + 8;
		holder->frames = frames(rsp + 8);
	}
}

static void on_unlock(unsigned int lock)
{
	struct holder *holder = lock < LOCKS ? holder_now(false) : NULL;

	if (!holder || (lock == HOTPLUG && holder->depth && --holder->depth))
		return;
	holder->held &= ~(1u << lock);
}

/* -- the host's wishes */

static qemu_plugin_id_t plugin_id;
static void look_at_branches(void);
static void look_at_calls(void);
static void look_at_traced(bool all);

/* Read the configuration, in place of the one that was read before. */
static void load(void)
{
	static const struct {
		const char *name;
		enum point point;
	} points[] = {
		{ "write", P_WRITE }, { "early", P_EARLY }, { "sync", P_SYNC },
		{ "stopper", P_STOPPER }, { "unlock", P_UNLOCK }, { "site", P_SITE },
		{ "entry", P_ENTRY }, { "poke", P_POKE }, { "kprobe", P_KPROBE },
		{ "ftrace", P_FTRACE }, { "key", P_KEY }, { "static_call", P_STATIC_CALL },
		{ "transform", P_TRANSFORM }, { "tracer", P_TRACER }, { "tasks", P_TASKS }, { "freed", P_FREED },
		{ "slot", P_SLOT },
		{ "lock", P_LOCK }, { "cpus_lock", P_CPUS_LOCK }, { "cpus_unlock", P_CPUS_UNLOCK },
		{ "end", P_END }, { "dies", P_DIES }, { "flush", P_FLUSH },
		{ "guarded", P_GUARDED }, { "rcu", P_RCU }, { "removed", P_REMOVED },
		{ "load", P_LOAD },
	};
	const struct {
		const char *name;
		uint64_t *value;
	} values[] = {
		{ "text_mutex", &text_mutex }, { "per_cpu_offset", &per_cpu_offset },
		{ "online_mask", &online_mask }, { "current_task", &current_task },
		{ "memset", &memset_function }, { "text_start", &text_start },
		{ "text_end", &text_end }, { "jump_label_mutex", &jump_label_mutex },
		{ "jump_table", &jump_table }, { "jump_table_end", &jump_table_end },
		{ "static_call_mutex", &static_call_mutex }, { "call_sites", &call_sites },
		{ "call_sites_end", &call_sites_end }, { "patching_flag", &patching_flag },
		{ "patching_refs", &patching_refs }, { "patching_refs_percpu", &patching_refs_percpu },
		{ "patching_address", &patching_address }, { "patching_array", &patching_array },
		{ "poking_mm", &poking_mm }, { "poking_addr", &poking_addr },
		{ "page_offset_base", &page_offset_base }, { "init_top_pgt", &init_top_pgt },
		{ "ftrace_lock", &ftrace_lock }, { "ftrace_pages", &ftrace_pages },
		{ "ftrace_enabled", &ftrace_enabled }, { "ftrace_disabled", &ftrace_disabled },
		{ "ftrace_ops_list", &ftrace_ops_list }, { "ftrace_caller", &ftrace_caller },
		{ "ftrace_regs_caller", &ftrace_regs_caller }, { "ftrace_call", &ftrace_call },
		{ "ftrace_regs_call", &ftrace_regs_call }, { "ftrace_ops", &ftrace_ops },
		{ "ftrace_regs_ops", &ftrace_regs_ops }, { "kprobe_table", &kprobe_table },
	};
	unsigned long long address, number;
	char line[256], name[64];
	FILE *file = conf_path ? fopen(conf_path, "re") : NULL;

	for (size_t i = 0; i < TABLE; i++)
		if (table[i])	/* code that is translated already may still point to it */
			table[i]->point = P_NONE;
	site_count = 0;
	forget_mutexes();

	while (file && fgets(line, sizeof(line), file)) {
		number = 0;
		if (sscanf(line, "%63s %llx %llx", name, &address, &number) < 2)
			continue;
		for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++)
			if (!strcmp(name, values[i].name))
				*values[i].value = address;
		if (!strcmp(name, "mutex") && number < LOCKS)
			lock_address[number] = address;
		for (size_t i = 0; i < sizeof(points) / sizeof(*points); i++) {
			struct watched *one;

			if (strcmp(name, points[i].name) ||
			    (points[i].point == P_SITE && watched_at(address)))
				continue;
			one = watch(address, points[i].point, number);
			if (one && points[i].point == P_SITE && site_count < 256)
				sites[site_count++] = one;
		}
	}
	if (file)
		fclose(file);
	shadow_text();
}

static bool look(void)
{
	if (jump_label_mutex && quad(jump_label_mutex))
		return false;
	look_at_text();
	look_at_branches();
	look_at_calls();
	if (ftrace_lock && !quad(ftrace_lock))
		look_at_traced(true);
	return true;
}

static void heed(void)
{
	if (control->reload != control->reloaded) {
		load();
		control->reloaded = control->reload;
		/* What is watched from now on may have been translated without a callback. */
		translate_anew(plugin_id);
	}
	/* Not in the middle of a poke. */
	if (control->turn != control->turned && !(text_mutex && quad(text_mutex)))
		turn();
	if (control->look != control->looked && look())
		control->looked = control->look;
}

/* -- what is seen: writes */

#define LONGEST		4096	/* of a write that is read */
#define STACK_WORDS	64
#define CALLERS_KEPT	7

static uint64_t round_number;	/* WRITEs so far */
static uint64_t sync_count;	/* SYNCs so far */
static uint64_t in_user, in_idle;	/* CPUs; see set_mode() */

static void emit_callers(unsigned int cpu, uint64_t rsp)
{
	uint64_t stack[STACK_WORDS], found[2 * CALLERS_KEPT];
	int count = 0, words = STACK_WORDS;

	if (!memory(rsp, stack, sizeof(stack))) {	/* its top may be nearer */
		words = (0x1000 - (rsp & 0xfff)) / 8;
		words = words < STACK_WORDS ? words : STACK_WORDS;
		if (!memory(rsp, stack, words * 8))
			return;
	}
	for (int i = 0; i < words && count < 2 * CALLERS_KEPT; i++)
		if (behind_call(stack[i]))
			found[count++] = stack[i];
	for (int i = 0; i < count; i += CALLERS_KEPT) {
		int part = count - i < CALLERS_KEPT ? count - i : CALLERS_KEPT;

		emit(CALLERS, cpu, 0, part, &found[i], part);
	}
}

static uint64_t cpus_online(void)
{
	return online_mask ? quad(online_mask) : 1;
}

/* -- the mapping through which text is written, since 5.1 (use_temporary_mm()) */

#define DIRECT_MAP	0xffff888000000000ull	/* where the kernel maps all memory if nothing moves it */
#define PRESENT		1
#define LARGE		0x80
#define ADDRESS_BITS	0xffffffffff000ull
#define MM_SIZE		0x200	/* bytes of struct mm_struct among which `pgd` is */

/* The page table of poking_mm, which shares the kernel's half with all others; 0 if not found. */
static uint64_t find_pgd(uint64_t map)
{
	static uint64_t mm, pgd;
	uint64_t words[MM_SIZE / 8], kernel = quad(init_top_pgt + 511 * 8);

	if (mm == quad(poking_mm))
		return pgd;
	mm = quad(poking_mm);
	pgd = 0;
	if (!mm || !kernel || !memory(mm, words, sizeof(words)))
		return 0;
	for (int i = 0; i < MM_SIZE / 8 && !pgd; i++)
		if (!(words[i] & 0xfff) && words[i] - map < 1ull << 46 &&
		    quad(words[i] + 511 * 8) == kernel)
			pgd = words[i];
	return pgd;
}

static uint64_t direct_map(void)
{
	return page_offset_base ? quad(page_offset_base) : DIRECT_MAP;
}

static uint64_t poking_table(void)
{
	return poking_mm && poking_addr && init_top_pgt ? find_pgd(direct_map()) : 0;
}

/* The entry in a page table of poking_mm; 0 if there is none. */
static uint64_t mapping(uint64_t table)
{
	uint64_t entry = 0, at = table ? quad(poking_addr) : 0;

	for (int shift = 39; table && shift >= 12; shift -= 9) {
		entry = quad(table + (at >> shift & 511) * 8);
		/* Text that crosses into another page has two mappings, side by side. */
		if (shift == 12 && (at >> 12 & 511) != 511)
			entry |= quad(table + ((at >> 12 & 511) + 1) * 8);
		if (!(entry & PRESENT) || (entry & LARGE && shift > 12))
			return 0;
		table = direct_map() + (entry & ADDRESS_BITS);
	}
	return table ? entry : 0;
}

static bool still_mapped(void)
{
	uint64_t table = poking_table();

	/* Or it is still loaded. */
	return (table && (reg(CR3) & ADDRESS_BITS) == table - direct_map()) || mapping(table);
}

static void flush_passes(uint64_t address, uint64_t length)
{
	for (int i = 0; i < site_count; i++) {
		struct watched *site = sites[i];

		if (address >= site->address + site->number || address + length <= site->address)
			continue;
		for (unsigned int cpu = 0; cpu < CPUS; cpu++) {
			uint64_t words[2] = { site->address, site->passes[cpu] };

			if (words[1])
				emit(PASS, cpu, 0, 0, words, 2);
			site->passes[cpu] = 0;
		}
	}
}

/*
 * Whether this is the last write once more: a CPU that GDB had stopped enters
 * the function twice. Nothing was written in between, and nobody has synced.
 */
static bool same_write(unsigned int cpu, uint64_t length, const uint64_t *words)
{
	static struct { uint64_t round, syncs, cpu, length, words[6]; } last;
	bool same = control->gdb && last.round == round_number && last.syncs == sync_count &&
		    last.cpu == cpu && last.length == length &&
		    !memcmp(last.words, words, sizeof(last.words));

	if (!same) {
		last.round = round_number + 1;
		last.syncs = sync_count;
		last.cpu = cpu;
		last.length = length;
		memcpy(last.words, words, sizeof(last.words));
	}
	return same;
}

/*
 * (address, source, length), and before them, in __text_poke() since 6.1, a
 * function that copies: text_poke_memcpy() or text_poke_memset(). The third
 * argument tells, as a length is no pointer.
 */
static void on_write(unsigned int cpu, uint64_t rsp, bool early)
{
	static uint8_t bytes[LONGEST];
	uint64_t arg[4] = { reg(RDI), reg(RSI), reg(RDX), reg(RCX) };
	bool with_function = arg[2] >> 63;
	uint64_t address = arg[with_function], source = arg[1 + with_function];
	uint64_t length = arg[2 + with_function];
	uint64_t words[7] = { address, 0, 0, 0, 0, rsp, 0 };
	size_t kept = length < LONGEST ? length : LONGEST;
	unsigned int flags = (reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0) | (early ? F_EARLY : 0) |
			     (still_mapped() ? F_MAPPED : 0) |
			     (was_executed(address, length) ? F_EXECUTED : 0);
	uint64_t gs = reg(GS_BASE), mutex[7] = { 0 };

	/* What follows the write as well: a tail that is written later is compared to it. */
	if (length > INLINE)
		words[3] = memory(address, bytes, kept) ? fnv1a(bytes, kept) : 0;
	else if (!memory(address, &words[3], INLINE))
		memory(address, &words[3], length);
	if (with_function && arg[0] == memset_function) {
		flags |= F_MEMSET;
		if (memory(source, bytes, 1))
			memset(bytes, bytes[0], kept);
		else
			flags |= F_UNREADABLE;
	} else if (!memory(source, bytes, kept)) {
		flags |= F_UNREADABLE;
	}
	if (length <= INLINE)
		memcpy(&words[1], bytes, flags & F_UNREADABLE ? 0 : kept);
	else
		words[1] = fnv1a(bytes, kept);
	if (is_patching_here(address, bytes, length))
		flags |= F_STATE;
	if (length == 1 && is_probed(address))
		flags |= F_PROBED;
	words[6] = cpus_online();
	if (same_write(cpu, length, words))
		return;
	flush_passes(address, length);
	if (!(flags & F_UNREADABLE))
		shadow_write(address, bytes, kept);
	emit(WRITE, cpu, flags, length, words, 7);
	round_number++;
	if (!(words[6] & (words[6] - 1)) && !looked)	/* boot; nobody else could execute it */
		return;
	if (text_mutex)
		memory(text_mutex, mutex, 4 * sizeof(*mutex));
	mutex[4] = current_task && gs >> 63 ? quad(gs + current_task) : 0;
	mutex[5] = in_user;
	mutex[6] = in_idle;
	emit(WRITER, cpu, 0, 0, mutex, 7);
	emit_callers(cpu, rsp);
}

/* -- what is seen: cores that sync and serialise */

#define SYNC_FRAME	256	/* bytes that do_sync_core() takes of the stack, at most */

static struct {
	uint64_t round;		/* since which this CPU is known to have serialised */
	uint64_t round_in_sync;	/* the same, within do_sync_core() */
	uint64_t sync_rsp;	/* where do_sync_core() was entered, since the last WRITE */
	uint64_t sync_round;
	uint64_t round_on_purpose;	/* since which it has serialised, and for its own sake */
	uint64_t mode_round;	/* since which `modes` of MODE were emitted */
	unsigned int modes;
} core[CPUS];

#define MODES	4	/* MODEs of a CPU after one WRITE, at most */

static void set_mode(unsigned int cpu, enum mode mode)
{
	uint64_t bit = 1ull << cpu;
	enum mode before = in_user & bit ? M_USER : in_idle & bit ? M_IDLE : M_KERNEL;

	if (mode == before)
		return;
	in_user = mode == M_USER ? in_user | bit : in_user & ~bit;
	in_idle = mode == M_IDLE ? in_idle | bit : in_idle & ~bit;
	if (core[cpu].mode_round != round_number) {
		core[cpu].mode_round = round_number;
		core[cpu].modes = 0;
	}
	if (core[cpu].round_on_purpose != round_number && core[cpu].modes++ < MODES)
		emit(MODE, cpu, 0, mode, NULL, 0);
}

static void on_sync(unsigned int cpu, uint64_t rsp)
{
	uint64_t words[2] = { rsp, quad(rsp) };

	sync_count++;
	emit(SYNC, cpu, (reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0) | (is_patching() ? F_STATE : 0), 0,
	     words, 2);
	if (cpu < CPUS) {
		core[cpu].sync_rsp = rsp;
		core[cpu].sync_round = round_number;
	}
}

/*
 * Whether a CPU with this rsp is within do_sync_core(), as far as that shows
 * without seeing it return.
 */
static bool in_sync_core(unsigned int cpu, uint64_t rsp)
{
	return core[cpu].sync_round == round_number && rsp <= core[cpu].sync_rsp &&
	       core[cpu].sync_rsp - rsp <= SYNC_FRAME;
}

static void resume(unsigned int cpu);

/*
 * MSRs that wrmsr writes without serialising (SDM, volume 3, "Serializing
 * Instructions"; APM for the last).
 */
static bool quiet_msr(uint32_t msr)
{
	return msr == 0x48 || msr == 0x49 || msr == 0x6e0 || msr == 0x6e1 ||
	       (msr >= 0x800 && msr <= 0x8ff) || (msr >= 0xc0000100 && msr <= 0xc0000102);
}

/*
 * Whether the instruction is there to serialise: an iret to what follows it, or
 * one that nothing but a sync needs. Other irets return from an interrupt, and
 * the kernel moves to cr3 and writes MSRs for reasons of its own.
 */
static bool is_on_purpose(unsigned int how, uint64_t address, uint64_t rsp)
{
	if (how == S_IRET)
		return quad(rsp) == address + 2;	/* 48 cf */
	return how == S_CPUID || how == S_SERIALIZE;
}

static void serialises(unsigned int vcpu, void *data)
{
	uint64_t where = (uintptr_t)data, address = where | 0xffff000000000000ull, rsp;
	unsigned int how = (where >> 48) & 0xff, cpu;
	bool in_sync, on_purpose, first;

	/* The pointer has the address in its lower 48 bits, and above them how. */
	(void)vcpu;
	pthread_mutex_lock(&lock);
	heed();
	cpu = cpu_now();
	if (cpu < CPUS && !(how == S_MSR && quiet_msr(reg(RCX)))) {
		rsp = reg(RSP);
		on_purpose = is_on_purpose(how, address, rsp);
		in_sync = in_sync_core(cpu, rsp);
		if (how == S_IRET && !on_purpose) {
			resume(cpu);
			if (in_idle >> cpu & 1)	/* from the interrupt that woke it */
				set_mode(cpu, M_KERNEL);
		}
		first = core[cpu].round != round_number ||
			(in_sync && core[cpu].round_in_sync != round_number) ||
			(on_purpose && core[cpu].round_on_purpose != round_number);
		core[cpu].round = round_number;
		if (in_sync)
			core[cpu].round_in_sync = round_number;
		if (on_purpose)
			core[cpu].round_on_purpose = round_number;
		if (first)
			emit(SERIALISE, cpu, how | (in_sync ? S_IN_SYNC : 0) | (on_purpose ? S_ON_PURPOSE : 0),
			     0, &address, 1);
	}
	pthread_mutex_unlock(&lock);
}

/* hlt, mwait: the CPU sleeps. swapgs: it comes from user mode, or is about to go there. */
static void changes_mode(unsigned int vcpu, void *sleeps)
{
	unsigned int cpu;

	(void)vcpu;
	pthread_mutex_lock(&lock);
	heed();
	cpu = cpu_now();
	if (cpu < CPUS)
		set_mode(cpu, sleeps ? M_IDLE : reg(GS_BASE) >> 63 ? M_USER : M_KERNEL);
	pthread_mutex_unlock(&lock);
}

enum { SWAPGS = 1, SLEEP };

/* Whether the instruction is one that changes_mode() is for. */
static int how_changing_mode(const uint8_t *code, size_t length)
{
	if (length == 1 && code[0] == 0xf4)
		return SLEEP;
	if (length == 3 && code[0] == 0x0f && code[1] == 0x01)
		return code[2] == 0xf8 ? SWAPGS : code[2] == 0xc9 ? SLEEP : 0;
	return 0;
}

/*
 * How the instruction serialises, 0 if it does not. Of those that Intel's SDM
 * and AMD's APM both name.
 */
static unsigned int how_serialising(const uint8_t *code, size_t length)
{
	size_t at = 0;
	uint8_t modrm;

	while (at < length && ((code[at] & 0xf0) == 0x40 || code[at] == 0x66 || code[at] == 0xf2 ||
			       code[at] == 0xf3))
		at++;
	if (at < length && code[at] == 0xcf)
		return S_IRET;
	if (at + 1 >= length || code[at] != 0x0f)
		return 0;
	modrm = at + 2 < length ? code[at + 2] : 0;
	switch (code[at + 1]) {
	case 0x00:	/* lldt, ltr */
		return (modrm >> 3 & 7) == 2 || (modrm >> 3 & 7) == 3 ? S_OTHER : 0;
	case 0x01:
		if (modrm == 0xe8)
			return S_SERIALIZE;
		if (modrm >> 6 == 3)
			return 0;
		/* lgdt, lidt, invlpg */
		return (modrm >> 3 & 7) == 2 || (modrm >> 3 & 7) == 3 || (modrm >> 3 & 7) == 7 ? S_OTHER : 0;
	case 0x08:	/* invd */
	case 0x09:	/* wbinvd */
	case 0x23:	/* mov to a debug register */
	case 0xaa:	/* rsm */
		return S_OTHER;
	case 0x22:	/* mov to a control register; cr8 does not serialise */
		return (at && (code[at - 1] & 0xf4) == 0x44) ? 0 : S_CONTROL;
	case 0x30:
		return S_MSR;
	case 0xa2:
		return S_CPUID;
	}
	return 0;
}

/* -- what is seen: int3, and how its CPU goes on */

#define DEPTH		8
#define STEPS		256	/* that are remembered */
#define DIE_INT3	2	/* enum die_val in arch/x86/include/asm/kdebug.h */
enum { PT_IP = 0x80, PT_FLAGS = 0x90, PT_SP = 0x98 };	/* struct pt_regs, the same since 2.6 */

struct trap {
	uint64_t address, regs, sp, flags;
	uint64_t registers;	/* a hash of all but rsp */
	unsigned int seen;	/* the flags of RESUME */
};

static struct {
	struct trap trap[DEPTH];
	int depth;
} trapped[CPUS];

static uint64_t registers(void)
{
	uint64_t all[GENERAL];

	for (int which = 0; which < GENERAL; which++)
		all[which] = reg(which);
	return fnv1a((uint8_t *)all, sizeof(all));
}

static void executes_int3(unsigned int vcpu, void *data)
{
	struct slot *slot = data;
	uint64_t words[2] = { slot->address };
	unsigned int cpu;

	(void)vcpu;
	pthread_mutex_lock(&lock);
	heed();
	cpu = cpu_now();
	words[1] = reg(RSP);
	__atomic_fetch_add(&slot->count[cpu < CPUS ? cpu : 0], 1, __ATOMIC_RELAXED);
	emit(TRAP, cpu, reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0, 0, words, 2);
	if (cpu < CPUS) {
		if (trapped[cpu].depth == DEPTH) {	/* those at the bottom never came back */
			memmove(&trapped[cpu].trap[0], &trapped[cpu].trap[1], (DEPTH - 1) * sizeof(struct trap));
			trapped[cpu].depth--;
		}
		trapped[cpu].trap[trapped[cpu].depth++] = (struct trap){
			.address = slot->address,
			.registers = registers(),
		};
	}
	pthread_mutex_unlock(&lock);
}

/*
 * A handler is entered: with pt_regs in rdi, or as a die notifier:
 * (block, DIE_INT3, struct die_args *).
 */
static void on_handler(unsigned int cpu, enum point point, bool notifier)
{
	struct trap *top;
	uint64_t regs;

	if (cpu >= CPUS || !trapped[cpu].depth || (notifier && reg(RSI) != DIE_INT3))
		return;
	regs = notifier ? quad(reg(RDX)) : reg(RDI);
	top = &trapped[cpu].trap[trapped[cpu].depth - 1];
	if (!top->regs) {
		if (quad(regs + PT_IP) != top->address + 1)
			return;
		top->regs = regs;
		top->sp = quad(regs + PT_SP);
		top->flags = quad(regs + PT_FLAGS);
	}
	if (top->regs == regs)
		top->seen |= 1 << (point - P_ENTRY);
}

static void on_return(unsigned int cpu, enum point handler)
{
	if (cpu < CPUS && trapped[cpu].depth && handler == P_POKE)
		trapped[cpu].trap[trapped[cpu].depth - 1].seen |=
			(uint32_t)reg(RAX) ? RETURNED_NONZERO : RETURNED_ZERO;
}

/* Where a CPU goes on after the int3 of a kprobe: most often in a copy of the instruction. */
static void steps_to(unsigned int cpu, uint64_t probe, uint64_t to)
{
	static uint64_t seen[STEPS][4];
	uint64_t words[4] = { probe, to };
	uint64_t *last = seen[fnv1a((uint8_t *)words, 2 * sizeof(*words)) % STEPS];

	if (to - probe < INLINE || !memory(to, &words[2], INLINE) || !memcmp(last, words, sizeof(words)))
		return;
	memcpy(last, words, sizeof(words));
	emit(STEP, cpu, 0, 0, words, 4);
}

/* At an iret: whether it is the one by which this CPU goes on after an int3. */
static void resume(unsigned int cpu)
{
	uint64_t frame[5], rsp;
	int at = trapped[cpu].depth - 1;

	if (at < 0)
		return;
	rsp = reg(RSP);
	while (at >= 0 && trapped[cpu].trap[at].regs + PT_IP != rsp)
		at--;
	if (at < 0 || !memory(rsp, frame, sizeof(frame)))
		return;
	struct trap *trap = &trapped[cpu].trap[at];
	uint64_t lower = frame[3] < trap->sp ? frame[3] : trap->sp;
	uint64_t words[7] = {
		trap->address, frame[0], frame[3], frame[2], quad(lower), trap->sp, trap->flags,
	};

	trapped[cpu].depth = at;
	if (trap->registers != registers())
		trap->seen |= CHANGED;
	if (trap->seen & 1 << (P_KPROBE - P_ENTRY))
		steps_to(cpu, trap->address, frame[0]);
	emit(RESUME, cpu, trap->seen, at, words, 7);
}

/* -- what is seen: keys and static calls that are switched, and all of their sites */

#define PENDING		64
#define ENTRIES		8192	/* of one key, at most; and links of its list */
#define LINKS		64
enum { LINKED = 2, DIRECT = 1, INIT = 2, GONE = 4, EARLY = 8, OTHER_OPS = 8 };

/* What a task has asked for, until it releases the mutex. */
static struct pending {
	uint64_t what, task, function;
	enum point point;
	unsigned int flags;
} pending[PENDING];

static void ask_for(enum point point, uint64_t what, uint64_t function, unsigned int flags)
{
	uint64_t task = task_now();
	struct pending *free = NULL;

	for (int i = 0; i < PENDING; i++) {
		struct pending *one = &pending[i];

		/* A task switches one thing at a time; what it had nothing to do for is over. */
		if (one->point == point && one->task == task && (point != P_TRANSFORM || one->what == what))
			*one = (struct pending){ 0 };
		if (!one->point && !free)
			free = one;
	}
	if (free)
		*free = (struct pending){ what, task, function, point, flags };
}

/* struct jump_entry with relative addresses, since 4.19. Returns whether it belongs to the key. */
static bool branch(uint64_t entry, uint64_t key, bool all)
{
	uint64_t words[6] = { 0 };
	struct {
		int32_t code, target;
		int64_t key;
	} raw;

	if (!memory(entry, &raw, sizeof(raw)))
		return false;
	words[0] = entry + 8 + raw.key;
	words[4] = words[0] & 3;
	words[0] &= ~3ull;
	if (!all && words[0] != key)
		return false;
	words[1] = (uint32_t)quad(words[0]);
	words[2] = entry + raw.code;
	words[3] = entry + 4 + raw.target;
	if (!memory(words[2], &words[5], 8))
		words[4] |= INIT;	/* freed */
	emit(BRANCH, NO_CPU, 0, 0, words, 6);
	return true;
}

/* Whether the table is one of such entries: all of its code is near the kernel's text. */
static bool has_branches(void)
{
	int32_t raw[4];

	if (!jump_table || jump_table_end <= jump_table || !text_start)
		return false;
	for (uint64_t entry = jump_table;
	     entry < jump_table_end && entry < jump_table + 8 * 16; entry += 16)
		if (!memory(entry, raw, 16) || entry + raw[0] - text_start > 64 << 20 ||
		    entry + 4 + raw[1] - text_start > 64 << 20)
			return false;
	return true;
}

static void look_at_branches(void)
{
	if (has_branches())
		for (uint64_t entry = jump_table; entry < jump_table_end; entry += 16)
			branch(entry, 0, true);
}

static void branches_of(uint64_t entry, uint64_t key, bool known)
{
	uint64_t words[6] = { key, 0, entry, 0, GONE, 0 };

	/* The first one is the key's, or it belongs to a module that is no longer there. */
	if (entry && (known || !branch(entry, key, false)))
		emit(BRANCH, NO_CPU, 0, 0, words, 6);
	else
		for (int i = 1; i < ENTRIES && entry && entry + 16 * i != jump_table_end; i++)
			if (!branch(entry + 16 * i, key, false))
				return;
}

static void key_was_switched(uint64_t key)
{
	uint64_t type = quad(key + 8), link[2], seen[LINKS] = { 0 };

	if (!has_branches())
		return;
	if (!(type & LINKED)) {
		branches_of(type & ~3ull, key, false);
		return;
	}
	type &= ~3ull;
	/* struct static_key_mod: next, entries, mod */
	for (int i = 0; i < LINKS && type && memory(type, link, sizeof(link)); i++, type = link[0]) {
		bool known = false;

		for (int earlier = 0; earlier < i; earlier++)
			known |= link[1] && seen[earlier] == link[1];
		seen[i] = link[1];
		branches_of(link[1], key, known);
	}
}

/* The branches of a key are about to be switched: until then it counts as off, or as neither. */
static void key_is_switched(uint64_t key, uint64_t caller)
{
	uint64_t words[6] = { key, (uint32_t)quad(key), caller, 0, EARLY, 0 };

	if ((int32_t)words[1] > 0)
		emit(BRANCH, NO_CPU, 0, 0, words, 6);
}

static void emit_call(uint64_t key, uint64_t function, uint64_t site, unsigned int flags)
{
	uint64_t words[5] = { key, function, site, flags };

	if (memory(site, &words[4], 8))
		emit(CALL, NO_CPU, 0, 0, words, 5);
}

/* struct static_call_site: both members relative. */
static void calls_of(uint64_t entry, uint64_t key, uint64_t function)
{
	int32_t raw[2];

	for (int i = 0; i < ENTRIES && entry && entry != call_sites_end; i++, entry += 8) {
		if (!memory(entry, raw, sizeof(raw)) || ((entry + 4 + raw[1]) & ~3ull) != key)
			return;
		emit_call(key, function, entry + raw[0], (entry + 4 + raw[1]) & 3);
	}
}

/* Whether the first of these calls of a key, which lie side by side, is the key's. */
static bool is_call_of(uint64_t entry, uint64_t key)
{
	int32_t raw[2];

	return memory(entry, raw, sizeof(raw)) && ((entry + 4 + raw[1]) & ~3ull) == key;
}

/* Calls that a key still has, of a module that is no longer there. */
static void calls_gone(uint64_t key)
{
	uint64_t at = quad(key + 8), link[3];	/* struct static_call_mod: next, mod, sites */

	if (at & DIRECT)
		return;
	for (int i = 0; i < ENTRIES && at && memory(at, link, sizeof(link)); i++, at = link[0]) {
		uint64_t words[5] = { key, 0, link[2], GONE, 0 };

		if (link[1] && link[2] && !is_call_of(link[2], key))
			emit(CALL, NO_CPU, 0, 0, words, 5);
	}
}

/* Of all calls of the kernel itself. */
static void look_at_calls(void)
{
	uint64_t last = 0;
	int32_t raw[2];

	for (uint64_t entry = call_sites; entry && entry < call_sites_end; entry += 8) {
		uint64_t key = entry + 4;

		if (!memory(entry, raw, sizeof(raw)))
			continue;
		key = (key + raw[1]) & ~3ull;
		emit_call(key, quad(key), entry + raw[0], (entry + 4 + raw[1]) & 3);
		if (key != last)
			calls_gone(last = key);
	}
}

static void call_was_switched(uint64_t key)
{
	uint64_t words[2], link[3];

	if (!memory(key, words, sizeof(words)))
		return;
	if (words[1] & DIRECT) {
		calls_of(words[1] & ~1ull, key, words[0]);
		return;
	}
	for (int i = 0; i < ENTRIES && words[1] && memory(words[1], link, sizeof(link)); i++) {
		calls_of(link[2], key, words[0]);	/* struct static_call_mod: next, mod, sites */
		words[1] = link[0];
	}
}

/* -- what is seen: functions that can be traced */

#define PAGES		65536
#define PAGE_RECORDS	262144
#define KINDS		32
#define OPS		256
#define TRAMPOLINES	64
#define OPS_WORDS	80	/* of struct ftrace_ops among which `trampoline` is */
#define KERNEL_START	0xffffffff80000000ull
#define TRACED_FLAGS	0xfde7ffffull	/* all but DISABLED, and what was: TOUCHED, MODIFIED */

struct dyn_ftrace {
	uint64_t ip, flags;
};

/* Whether `mov DISTANCE(%rip), %rdx` at this address loads another value. */
static bool loads_other(uint64_t address, uint64_t value)
{
	uint8_t code[7];
	int32_t distance;

	if (!memory(address, code, sizeof(code)) || memcmp(code, "\x48\x8b\x15", 3))
		return false;
	memcpy(&distance, code + 3, sizeof(distance));
	return quad(address + sizeof(code) + distance) != value;
}

/*
 * A trampoline is a copy of ftrace_caller() or ftrace_regs_caller(). It calls
 * what the ops has for a function, and passes the ops.
 */
static void call_in_trampoline(uint64_t trampoline, uint64_t ops)
{
	const uint64_t from[][3] = {
		{ ftrace_caller, ftrace_call, ftrace_ops },
		{ ftrace_regs_caller, ftrace_regs_call, ftrace_regs_ops },
	};

	for (int i = 0; i < 2; i++) {
		uint64_t moved = trampoline - from[i][0];

		if (!from[i][0] || !from[i][1] || quad(trampoline) != quad(from[i][0]) ||
		    quad(trampoline + 8) != quad(from[i][0] + 8))
			continue;
		emit_call(0, quad(ops), from[i][1] + moved,
			  from[i][2] && loads_other(from[i][2] + moved, ops) ? OTHER_OPS : 0);
	}
}

static uint64_t trampolines[TRAMPOLINES];	/* those that were called */

static bool is_known_trampoline(uint64_t address)
{
	for (int i = 0; i < TRAMPOLINES; i++)
		if (trampolines[i] == address)
			return true;
	return false;
}

static void note_trampoline(uint64_t address)
{
	static unsigned int next;

	if (!is_known_trampoline(address))
		trampolines[next++ % TRAMPOLINES] = address;
}

/* Whether a registered ops has this trampoline. */
static bool is_trampoline(uint64_t address)
{
	uint64_t ops = quad(ftrace_ops_list);

	/* struct ftrace_ops: func, next, ...; ftrace_list_end has no next */
	for (int i = 0; i < OPS && ops; i++, ops = quad(ops + 8)) {
		for (int word = 3; word < OPS_WORDS; word++) {
			if (quad(ops + 8 * word) != address)
				continue;
			call_in_trampoline(address, ops);
			note_trampoline(address);
			return true;
		}
	}
	return false;
}

static enum called what_is(uint64_t called)
{
	uint64_t regs_caller = ftrace_regs_caller ? ftrace_regs_caller : ftrace_caller;

	if (!called)
		return 0;
	return (called == ftrace_caller ? CALLS_FTRACE : 0) |
	       (called == regs_caller ? CALLS_FTRACE_REGS : 0) |
	       (is_trampoline(called) ? CALLS_TRAMPOLINE : 0);
}

/* Records that are alike. */
static struct alike {
	uint64_t words[6];
	uint32_t number;
} alike[KINDS];
static int alike_count;

static void emit_alike(void)
{
	for (int i = 0; i < alike_count; i++)
		emit(TRACED, NO_CPU, 0, alike[i].number, alike[i].words, 6);
	alike_count = 0;
}

static void traced(const struct dyn_ftrace *record, bool on, bool all)
{
	uint64_t words[6] = { 0, CALLS_GONE, record->ip, record->flags, 0, on };
	const uint64_t low = 0xffffffffffull;	/* five bytes */
	uint8_t code[8];
	int32_t distance;

	if (!memory(record->ip, code, sizeof(code))) {
		if (all)
			emit(TRACED, NO_CPU, 0, 1, words, 6);
		return;
	}
	memcpy(&words[4], code, sizeof(code));
	memcpy(&distance, code + 1, sizeof(distance));
	if (code[0] == 0xe8)
		words[0] = record->ip + 5 + distance;
	for (int i = 0; i < alike_count; i++) {
		const uint64_t *other = alike[i].words;

		if (other[0] == words[0] && other[3] == words[3] &&
		    (words[0] || !((other[4] ^ words[4]) & low))) {
			alike[i].number++;
			return;
		}
	}
	if (alike_count == KINDS)
		emit_alike();
	words[1] = what_is(words[0]);
	memcpy(alike[alike_count].words, words, sizeof(words));
	alike[alike_count++].number = 1;
}

/* Whether the function at `address` was traced at the last look; from now on, it is if `now`. */
static bool was_traced(uint64_t address, bool now)
{
	static uint8_t *seen;	/* a bit for each address */
	uint64_t at = address - KERNEL_START, size = -KERNEL_START / 8;
	bool before;

	if (!seen) {
		seen = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		seen = seen == MAP_FAILED ? NULL : seen;
	}
	if (!seen || at / 8 >= size)
		return true;
	before = seen[at / 8] >> (at % 8) & 1;
	if (before != now)
		seen[at / 8] ^= 1 << (at % 8);
	return before;
}

static void look_at_traced(bool all)
{
	static struct dyn_ftrace records[PAGE_RECORDS];
	struct {
		uint64_t next, records;
		uint32_t count, order;
	} page;
	uint64_t at = ftrace_pages ? quad(ftrace_pages) : 0;
	bool on = ftrace_enabled && (uint32_t)quad(ftrace_enabled);

	if (ftrace_disabled && (uint32_t)quad(ftrace_disabled))	/* by a fault of its own */
		return;
	for (int i = 0; i < PAGES && at && memory(at, &page, sizeof(page)); i++, at = page.next) {
		if (page.count > PAGE_RECORDS ||
		    !memory(page.records, records, page.count * sizeof(*records)))
			continue;
		for (uint32_t n = 0; n < page.count; n++) {
			bool now = records[n].flags & TRACED_FLAGS;

			if (was_traced(records[n].ip, now) || now || all)
				traced(&records[n], on, all);
		}
	}
	emit_alike();
}

/* A mutex is about to be released: what did its owner switch? */
static void on_released(uint64_t mutex)
{
	uint64_t task = task_now();

	if (mutex == ftrace_lock)
		look_at_traced(false);
	for (int i = 0; i < PENDING; i++) {
		struct pending one = pending[i];

		if (!one.point || one.task != task)
			continue;
		if (one.point == P_KEY && mutex == jump_label_mutex)
			key_was_switched(one.what);
		else if (one.point == P_STATIC_CALL && mutex == static_call_mutex)
			call_was_switched(one.what);
		else if (one.point == P_TRANSFORM && mutex == text_mutex)
			emit_call(0, one.function, one.what, one.flags);
		else
			continue;
		pending[i].point = P_NONE;
	}
}

/* -- what is seen: the rest */

static void on_site(struct watched *site, unsigned int cpu)
{
	uint64_t words[2] = { site->address, 1 };

	if (cpu < CPUS && !site->passes[cpu]++)
		emit(PASS, cpu, F_FIRST, 0, words, 2);
}

static void emit_freed(unsigned int cpu, uint64_t address, uint32_t what, uint64_t rsp)
{
	emit(FREED, cpu, 0, what, &address, 1);
	emit_callers(cpu, rsp);
}

/* rsp: as it was when the function was entered. */
static void at_point(struct watched *here, unsigned int cpu, uint64_t rsp)
{
	uint64_t words[4];

	switch (here->point) {
	case P_NONE:
		break;
	case P_WRITE:
	case P_EARLY:
		on_write(cpu, rsp, here->point == P_EARLY);
		break;
	case P_SYNC:
		on_sync(cpu, rsp);
		break;
	case P_STOPPER:
		words[0] = reg(RDI);
		emit(STOPPER, cpu, 0, 0, words, 1);
		break;
	case P_UNLOCK:
		on_released(reg(RDI));
		on_unlock(number_of_lock(reg(RDI)));
		if (reg(RDI) != text_mutex)
			break;
		words[0] = quad(text_mutex);
		words[1] = cpus_online();
		words[2] = in_user;
		words[3] = in_idle;
		emit(UNLOCK, cpu, still_mapped() ? F_MAPPED : 0, 0, words, 4);
		break;
	case P_GUARDED:
		on_guarded(cpu, here, rsp);
		break;
	case P_KEY:
		on_guarded(cpu, here, rsp);
		if (here->number >> LOCKS & 1)
			key_is_switched(reg(RDI), quad(rsp));
		ask_for(P_KEY, reg(RDI), 0, 0);
		break;
	case P_STATIC_CALL:	/* now, as the kernel may die of what is no longer there */
		calls_gone(reg(RDI));
		ask_for(here->point, reg(RDI), 0, 0);
		break;
	case P_TRANSFORM:	/* (site, tramp, func, tail) */
		on_guarded(cpu, here, rsp);
		if (reg(RSI))
			ask_for(P_TRANSFORM, reg(RSI), reg(RDX), 1);
		if (reg(RDI) && call_sites_end)
			ask_for(P_TRANSFORM, reg(RDI), reg(RDX), reg(RCX) & 1);
		break;
	case P_TRACER:	/* (function) */
		if (ftrace_call)
			ask_for(P_TRANSFORM, ftrace_call, reg(RDI), 0);
		if (ftrace_regs_call)
			ask_for(P_TRANSFORM, ftrace_regs_call, reg(RDI), 0);
		break;
	case P_END:	/* the guest resets the machine: nobody can ask for a look any more */
		if (look())
			control->looked = ++control->look;
		break;
	case P_DIES:
		if (cpu >= CPUS || !trapped[cpu].depth)
			break;
		words[0] = trapped[cpu].trap[trapped[cpu].depth - 1].address;
		emit(DIES, cpu, 0, 0, words, 1);
		break;
	case P_FLUSH:
		words[0] = reg(RSI);
		words[1] = reg(RDX);
		if (poking_mm && reg(RDI) == quad(poking_mm))
			emit(FLUSH, cpu, 0, 0, words, 2);
		break;
	case P_TASKS:
	case P_RCU:
		emit(GRACE, cpu, 0, here->point == P_RCU, NULL, 0);
		break;
	case P_REMOVED:	/* (kprobe) */
		emit_freed(cpu, quad(reg(RDI) + KP_ADDRESS), 2, rsp);
		break;
	case P_LOAD:	/* (previous, next, task) */
		if (!poking_mm || reg(RSI) != quad(poking_mm))
			break;
		words[0] = mapping(poking_table());
		emit(LOADED, cpu, reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0, 0, words, 1);
		break;
	case P_FREED:
		on_freed(reg(RDI));
		if (reg(RDI) && is_known_trampoline(reg(RDI)))
			emit_freed(cpu, reg(RDI), 1, rsp);
		break;
	case P_SLOT:	/* (cache, slot, dirty) */
		emit_freed(cpu, reg(RSI), 0, rsp);
		break;
	case P_LOCK:
		on_lock(cpu, number_of_lock(reg(RDI)), rsp);
		break;
	case P_CPUS_LOCK:
		on_lock(cpu, HOTPLUG, rsp);
		break;
	case P_CPUS_UNLOCK:
		on_unlock(HOTPLUG);
		break;
	case P_SITE:
		on_site(here, cpu);
		break;
	case P_RETURN:
		on_return(cpu, here->number);
		break;
	default:
		on_handler(cpu, here->point, here->number);
	}
}

/*
 * GDB's agent sends a CPU that stops at a breakpoint on to the next
 * instruction, so that QEMU does not execute the first. So there are callbacks
 * on both, and the second one counts if the first was left out. rsp is other
 * only if the first is a push.
 */
static void passes(unsigned int vcpu, void *data)
{
	struct watched *here = data, *first = here->point == P_SECOND ? here->first : here;
	unsigned int cpu;
	uint64_t bit;

	(void)vcpu;
	if (here->point == P_SECOND && !control->gdb && !first->entered)
		return;
	/* Both are called for every other mutex as well. */
	if ((first->point == P_UNLOCK || first->point == P_LOCK) && number_of_lock(reg(RDI)) == LOCKS)
		return;
	pthread_mutex_lock(&lock);
	heed();
	cpu = cpu_now();
	bit = 1ull << (cpu % CPUS);
	if (here == first) {
		/* GDB steps a CPU once more if another one stopped meanwhile. */
		if (!control->gdb || !(here->entered & bit))
			at_point(here, cpu, reg(RSP));
		here->entered = control->gdb ? here->entered | bit : here->entered & ~bit;
	} else {
		if (!(first->entered & bit) && control->gdb)
			at_point(first, cpu, reg(RSP) + here->number);
		first->entered &= ~bit;
	}
	pthread_mutex_unlock(&lock);
}

/* Whether this is a function, whose second instruction is watched as well. */
static bool has_entry(const struct watched *point)
{
	return point->point != P_SITE && point->point < P_RETURN;
}

/* The first instruction of a watched function: watch the one after it as well. */
static void watch_second(struct watched *first, const uint8_t *code, size_t length)
{
	uint64_t next = first->address + length;
	bool push = (length == 1 && (code[0] & 0xf8) == 0x50) ||
		    (length == 2 && code[0] == 0x41 && (code[1] & 0xf8) == 0x50);
	struct watched *second;
	int32_t distance;

	if (first->has_second)
		return;
	first->has_second = true;
	if (code[0] == 0xe9 && length == 5) {
		memcpy(&distance, code + 1, 4);
		next += distance;
	} else if (code[0] == 0xeb && length == 2) {
		next += (int8_t)code[1];
	}
	if (watched_at(next))
		return;
	second = watch(next, P_SECOND, push ? 8 : 0);
	if (second)
		second->first = first;
}

/*
 * A block begins shortly behind a watched function's first instruction, which
 * was never translated because GDB has a breakpoint there: then it begins with
 * the second.
 */
static void find_second(uint64_t start)
{
	uint8_t code[INLINE];

	for (size_t length = 1; length < INLINE; length++) {
		struct watched *first = watched_at(start - length);

		if (first && has_entry(first) && memory(first->address, code, length))
			watch_second(first, code, length);
	}
}

/* The slot of an int3 in the ledger, or one that is not in it when that is full. */
static struct slot *slot_of(uint64_t address)
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

/*
 * NOPs by which the guest says that nothing is under way, and that it has left
 * that place: the loop in guest/module/plan.c.
 */
static const uint8_t hold_here[] = { 0x0f, 0x1f, 0x84, 0x00, 'h', 'o', 'l', 'd' };
static const uint8_t left[] = { 0x0f, 0x1f, 0x84, 0x00, 'l', 'e', 'f', 't' };

static void holds(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	if (control->hold)
		wait_for_host();
}

static void counts_step(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	control->steps++;
}

/* -- QEMU's main thread */

/*
 * Once all CPUs are idle, QEMU's main thread has guest time leap to the next
 * timer (icount_start_warp_timer() in accel/tcg/icount-common.c). It looks
 * whenever it wakes up, and at each timer it does. A CPU counts as idle from
 * its HLT on, but the instructions before it are accounted for a moment later.
 * Were the main thread to look in between, time would leap too far, by as much
 * as the host has it. So no CPU becomes idle before the main thread sleeps:
 * then nothing wakes it up but the CPUs' thread, when all is accounted for.
 */
static int main_stat = -1;	/* /proc/self/task/TID/stat */
#define MAIN_SECONDS	10	/* more than any host keeps a thread waiting */

static void find_main_thread(void)
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

static void before_idle(unsigned int vcpu, void *data)
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

static void instruction(struct qemu_plugin_insn *insn)
{
	uint64_t address = qemu_plugin_insn_vaddr(insn);
	uint8_t code[INLINE] = { 0 };
	struct watched *here;
	unsigned int how;
	size_t length = qemu_plugin_insn_data(insn, code, sizeof(code));

	if (how_changing_mode(code, length) == SLEEP)	/* firmware's, too */
		qemu_plugin_register_vcpu_insn_exec_cb(insn, before_idle, QEMU_PLUGIN_CB_NO_REGS, NULL);
	if (!(address >> 63))	/* the upper half is the kernel's */
		return;
	shadow_check(address, code, length);
	if (length == sizeof(hold_here) && !memcmp(code, hold_here, length))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, holds, QEMU_PLUGIN_CB_NO_REGS, NULL);
	if (length == sizeof(left) && !memcmp(code, left, length) && !control->single)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, counts_step, QEMU_PLUGIN_CB_NO_REGS, NULL);
	note_executed(address);
	here = watched_at(address);
	if (here)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, passes, QEMU_PLUGIN_CB_R_REGS, here);
	if (here && has_entry(here))
		watch_second(here, code, length);
	if (length && code[0] == INT3) {
		struct slot *slot = slot_of(address);

		if (slot)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, executes_int3, QEMU_PLUGIN_CB_R_REGS, slot);
	} else if ((how = how_serialising(code, length))) {
		uint64_t where = (address & 0xffffffffffffull) | (uint64_t)how << 48;

		qemu_plugin_register_vcpu_insn_exec_cb(insn, serialises, QEMU_PLUGIN_CB_R_REGS,
						       (void *)(uintptr_t)where);
	} else if ((how = how_changing_mode(code, length))) {
		qemu_plugin_register_vcpu_insn_exec_cb(insn, changes_mode, QEMU_PLUGIN_CB_R_REGS,
						       (void *)(uintptr_t)(how == SLEEP));
	} else if (length == 5 && code[0] == 0xe8) {
		int32_t distance;

		memcpy(&distance, code + 1, 4);
		here = watched_at(address + 5 + distance);
		if (here && here->point >= P_ENTRY && here->point < P_RETURN && !watched_at(address + 5))
			watch(address + 5, P_RETURN, here->point);
	}
}

static void translated(struct qemu_plugin_tb *tb)
{
	pthread_mutex_lock(&lock);
	if (!reg_handle[RSP])
		find_registers();
	heed();
	if (control->gdb)
		find_second(qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0)));
	for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (control->single)	/* before the others, which may wait */
			qemu_plugin_register_vcpu_insn_exec_cb(insn, counts_step, QEMU_PLUGIN_CB_NO_REGS, NULL);
		instruction(insn);
	}
	pthread_mutex_unlock(&lock);
}

/* A file that may grow to `size` bytes, mapped shared. */
static void *mapped(int fd, size_t size)
{
	void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return map == MAP_FAILED ? NULL : map;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
			       int argc, char **argv)
{
	const struct {
		const char *name;
		const char **path;
	} files[] = {
		{ "conf=", &conf_path }, { "control=", &control_path },
		{ "ledger=", &ledger_path }, { "log0=", &log_path[0] }, { "log1=", &log_path[1] },
	};
	int control_fd;

	(void)info;
	for (int i = 0; i < argc; i++) {
		for (size_t f = 0; f < sizeof(files) / sizeof(*files); f++)
			if (!strncmp(argv[i], files[f].name, strlen(files[f].name)))
				*files[f].path = strdup(argv[i] + strlen(files[f].name));
		if (!strncmp(argv[i], "limit=", 6))	/* MiB of the log */
			limit = strtoull(argv[i] + 6, NULL, 10) << 20;
	}
	scratch = g_byte_array_new();
	ledger_fd = opened(ledger_path, O_TRUNC);
	control_fd = opened(control_path, 0);
	slots = mapped(ledger_fd, SLOTS * sizeof(*slots));
	control = mapped(control_fd, sizeof(*control));
	if (!slots || ftruncate(ledger_fd, GROWTH * sizeof(*slots)) || !control ||
	    ftruncate(control_fd, sizeof(*control)) || !open_log()) {
		fprintf(stderr, "recorder: cannot write to the files given as arguments\n");
		return -1;
	}
	plugin_id = id;
	find_main_thread();
	load();
	register_translated(id);
	return 0;
}
