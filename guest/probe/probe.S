/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest of one page that tests an accelerator: it goes from the reset vector to
 * 64-bit mode, takes an int3 through an IDT, and patches a byte of code that is in
 * use. Loaded as the machine's firmware (-bios), 64 KiB below 4 GiB and below 1 MiB.
 * On success it writes 0x2a to port 0xf4, from which QEMU's isa-debug-exit makes an
 * exit status of 2 * 0x2a + 1 = 85. Everything else is a failure. See
 * orchestrator/machine/accel.py for why it is not enough to start a virtual machine.
 */
#define ROM	0xf0000		/* linear address of the first byte of this image */
#define IDT	0x1000
#define TABLES	0x2000		/* three pages: PML4, PDPT, PD */
#define STACK	0x8000
#define SCRATCH	0x9000		/* the code that is patched */

	.text
	.globl _start
_start:
	.code16
real:
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
	movl	$IDT, %edi
	movl	$(STACK - IDT) / 4, %ecx
	xorl	%eax, %eax
	cld
	rep stosl
	/* The first 2 MiB, mapped to themselves by one large page: present, writable, large. */
	movl	$TABLES + 0x1003, TABLES
	movl	$TABLES + 0x2003, TABLES + 0x1000
	movl	$0x83, TABLES + 0x2000
	movl	$TABLES, %eax
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
	movl	$STACK, %esp
	/*
	 * A gate for vector 3: offset 15..0, selector, 64-bit interrupt gate, offset
	 * 31..16. The rest is zero.
	 */
	movl	$(ROM + int3_handler - _start), %eax
	movw	%ax, IDT + 3 * 16
	movw	$0x18, IDT + 3 * 16 + 2
	movw	$0x8e00, IDT + 3 * 16 + 4
	shrl	$16, %eax
	movw	%ax, IDT + 3 * 16 + 6
	lidt	(ROM + idt_pointer - _start)

	/*
	 * 1000 times: call "nop; ret", make it "int3; ret", call that, and make it
	 * "nop; ret" again.
	 */
	movw	$0xc390, SCRATCH
	movl	$SCRATCH, %esi
	movl	$1000, %ebp
	xorl	%r12d, %r12d		/* int3s taken */
1:	call	*%rsi
	movb	$0xcc, (%rsi)
	xorl	%eax, %eax
	cpuid				/* serialises: discards what the CPU has prefetched */
	call	*%rsi
	movb	$0x90, (%rsi)
	xorl	%eax, %eax
	cpuid
	decl	%ebp
	jnz	1b

	cmpl	$1000, %r12d
	jne	2f
	movb	$0x2a, %al
	outb	%al, $0xf4
2:	cli
	hlt
	jmp	2b

int3_handler:
	incl	%r12d
	iretq

	.balign 8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff	/* 0x08: 32-bit code */
	.quad	0x00cf92000000ffff	/* 0x10: data */
	.quad	0x00af9a000000ffff	/* 0x18: 64-bit code */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	ROM + gdt - _start
idt_pointer:
	.word	4 * 16 - 1
	.quad	IDT

	.org	0xfff0			/* the reset vector */
	.code16
	jmp	real
	.org	0x10000
