/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest of one page that tests an accelerator for what this project asks of it.
 * Each of two CPUs goes to 64-bit mode, runs over a hardware breakpoint, patches a
 * byte of code that is in use, takes the int3 that it wrote, and is woken from hlt by
 * the timer of its local APIC. CPU 0 goes first, then starts CPU 1 and waits for it.
 * See orchestrator/machine/accel.py for why it is not enough to start a machine.
 *
 * Loaded as the machine's firmware (-bios): 64 KiB below 4 GiB and below 1 MiB. Every
 * step that a CPU has passed is a letter on port 0xe9 (isa-debugcon): upper case from
 * CPU 0, lower case from CPU 1. At the end 0x2a is written to port 0xf4, from which
 * isa-debug-exit makes an exit status of 2 * 0x2a + 1 = 85. The last 8 bytes of the
 * image are the address of the breakpoint. -DROUNDS=N: number of int3 on each CPU.
 */
#define ROM	0xf0000		/* linear address of the first byte of this image */
#define IDT	0x1000
#define TABLES	0x2000		/* five pages: PML4, two PDPT, two PD */
#define SECOND	0x7000		/* 1 when CPU 1 has started, 2 when it is done */
#define STACK	0x8000		/* stack of CPU 0, which grows down; CPU 1 has the next page */
#define CODE	0xa000		/* the code that is patched, a page for each CPU */
#define KERNEL	(-0x80000000)	/* low memory once more, where Linux has its text */
#define APIC	0xfee00000
#define TICKS	3
#define TIMER	0x20		/* vectors; the IDT ends with SPURIOUS */
#define SPURIOUS 0x2f

/* Report a step. %r14b is 0x20 on CPU 1, which makes it lower case. */
.macro passed letter
	movb	$\letter, %al
	orb	%r14b, %al
	outb	%al, $0xe9
.endm

.macro gate vector, handler
	movl	$(ROM + \handler - _start), %eax
	movw	%ax, IDT + \vector * 16
	movw	$0x18, IDT + \vector * 16 + 2
	movw	$0x8e00, IDT + \vector * 16 + 4		/* a 64-bit interrupt gate */
	shrl	$16, %eax
	movw	%ax, IDT + \vector * 16 + 6
.endm

	.text
	.globl _start
_start:
	.code16
real:				/* CPU 1 starts here, at f000:0000 */
	cli
	lgdtl	%cs:(gdt_pointer - _start)
	movl	%cr0, %eax
	orl	$1, %eax		/* PE */
	movl	%eax, %cr0
	ljmpl	$0x08, $(ROM + protected - _start)

	.code32
protected:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$0x1b, %ecx		/* IA32_APIC_BASE: bit 8 is set on the first CPU */
	rdmsr
	testl	$0x100, %eax
	jz	1f
	movl	$IDT, %edi
	movl	$(STACK - IDT) / 4, %ecx
	xorl	%eax, %eax
	cld
	rep stosl
	/*
	 * The first 2 MiB are mapped twice, to themselves and to KERNEL, by one entry of
	 * the first PD; the local APIC is mapped to itself, uncached. Entries of 2 MiB:
	 * present, writable, large.
	 */
	movl	$TABLES + 0x1003, TABLES			/* from 0 */
	movl	$TABLES + 0x2003, TABLES + 511 * 8		/* the last 512 GiB */
	movl	$TABLES + 0x3003, TABLES + 0x1000		/* from 0 */
	movl	$TABLES + 0x4003, TABLES + 0x1000 + 3 * 8	/* from 3 GiB */
	movl	$TABLES + 0x3003, TABLES + 0x2000 + 510 * 8	/* from KERNEL */
	movl	$0x83, TABLES + 0x3000
	movl	$APIC + 0x9b, TABLES + 0x4000 + ((APIC >> 21) & 511) * 8
1:	movl	$TABLES, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax	/* PG */
	movl	%eax, %cr0
	ljmpl	$0x18, $(ROM + long_mode - _start)

	.code64
long_mode:
	movl	$0x1b, %ecx
	rdmsr
	xorl	%r14d, %r14d
	movl	$STACK, %esp
	movl	$CODE, %edi		/* where the code is written */
	movl	$APIC, %r15d
	testl	$0x100, %eax
	jz	second

first:
	/* The old interrupt controllers run after a reset, and so does the PIT: mask both. */
	movb	$0xff, %al
	outb	%al, $0x21
	outb	%al, $0xa1
	gate	3, int3_handler
	gate	TIMER, timer_handler
	gate	SPURIOUS, spurious_handler
	call	steps
	movl	$0xc4500, 0x300(%r15)	/* INIT to all others */
	movl	$10, %ebp		/* ms */
	call	wait
	movl	$0xc4600 | ROM >> 12, 0x300(%r15)	/* start all others at ROM */
	movl	$1, %ebp
	call	wait
	cmpl	$0, SECOND		/* a CPU may need it twice */
	jne	2f
	movl	$0xc4600 | ROM >> 12, 0x300(%r15)
2:	pause
	cmpl	$2, SECOND
	jne	2b
	movb	$0x2a, %al
	outb	%al, $0xf4
3:	cli
	hlt
	jmp	3b

second:
	movb	$0x20, %r14b
	addl	$0x1000, %esp
	addl	$0x1000, %edi
	movl	$1, SECOND
	call	steps
	movl	$2, SECOND
	jmp	3b

steps:
	lidt	(ROM + idt_pointer - _start)
	passed	'L'
breakpoint:
	nop				/* the client of the gdbstub sends the CPU past it */
	passed	'B'

	/*
	 * "nop; ret" is called, becomes "int3; ret", is called, and becomes "nop; ret"
	 * again. It is written to another address than it runs at, as Linux does it.
	 */
	leaq	KERNEL(%rdi), %rsi
	movw	$0xc390, (%rdi)
	movl	$ROUNDS, %ebp
	xorl	%r12d, %r12d		/* int3 taken */
1:	call	*%rsi
	movb	$0xcc, (%rdi)
	xorl	%eax, %eax
	cpuid				/* serialises: what the CPU has prefetched is gone */
	call	*%rsi
	movb	$0x90, (%rdi)
	xorl	%eax, %eax
	cpuid
	decl	%ebp
	jnz	1b
	cmpl	$ROUNDS, %r12d
	jne	3b
	passed	'I'

	movl	$0x100 | SPURIOUS, 0xf0(%r15)	/* enable the local APIC */
	movl	$TICKS, %ebp
	call	wait
	passed	'T'
	ret

/* Sleep for %ebp ms. QEMU's and KVM's APIC timers count nanoseconds. */
wait:
	xorl	%r13d, %r13d		/* interrupts taken */
	movl	$0xb, 0x3e0(%r15)	/* divide by 1 */
	movl	$0x20000 | TIMER, 0x320(%r15)	/* again and again */
	movl	$1000000, 0x380(%r15)
1:	sti
	hlt
	cli
	cmpl	%ebp, %r13d
	jb	1b
	movl	$0x10000, 0x320(%r15)	/* masked */
	ret

int3_handler:
	incl	%r12d
	iretq

timer_handler:
	incl	%r13d
	movl	$0, 0xb0(%r15)		/* end of interrupt */
spurious_handler:
	iretq

	.balign 8
	/*
	 * The accessed bits are set, because a CPU that finds one clear writes it back. KVM
	 * has to emulate a write to ROM, and some never get beyond it.
	 */
gdt:	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08: 32-bit code */
	.quad	0x00cf93000000ffff	/* 0x10: data */
	.quad	0x00af9b000000ffff	/* 0x18: 64-bit code */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	ROM + gdt - _start
idt_pointer:
	.word	(SPURIOUS + 1) * 16 - 1
	.quad	IDT

	.org	0xfff0			/* the reset vector */
	.code16
	jmp	real
	.org	0xfff8
	.quad	ROM + breakpoint - _start
