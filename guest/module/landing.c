// SPDX-License-Identifier: GPL-2.0
/*
 * The functions that the call site calls. On entry the return address must be
 * the one behind the site, and the stack pointer 8 below the value that the
 * caller saved in rbx. Otherwise an int3 was handled wrongly. The landing then
 * restores the stack and returns with a changed rbx, from which the caller
 * knows that the pass was torn. (xchg, because objtool ignores it but refuses
 * to follow mov.)
 */
#define LANDING(name, result)				\
asm(".pushsection .text, \"ax\"\n"			\
    ".balign 16\n"					\
    ".globl " #name "\n"				\
    ".type " #name ", @function\n"			\
    #name ":\n\t"					\
    "leaq orch_call_back(%rip), %rax\n\t"		\
    "cmpq %rax, (%rsp)\n\t"				\
    "jne 1f\n\t"					\
    "leaq 8(%rsp), %rax\n\t"				\
    "cmpq %rax, %rbx\n\t"				\
    "jne 1f\n\t"					\
    "movl $" #result ", %eax\n\t"			\
    "ret\n\t"						\
    "int3\n"						\
    "1:\n\t"						\
    "xchgq %rbx, %rsp\n\t"				\
    "jmp orch_call_back\n\t"				\
    ".size " #name ", . - " #name "\n"			\
    ".popsection\n")

/* The numbers are those of enum orch_result. */
LANDING(orch_call_old, 0);
LANDING(orch_call_new, 1);
LANDING(orch_call_int3, 2);

/* For kernels that send a CPU to an address: does what the CALL would have done. */
asm(".pushsection .text, \"ax\"\n"
    ".balign 16\n"
    ".globl orch_call_handler\n"
    ".type orch_call_handler, @function\n"
    "orch_call_handler:\n\t"
    "leaq orch_call_back(%rip), %rax\n\t"
    "pushq %rax\n\t"
    "jmp orch_call_int3\n\t"
    ".size orch_call_handler, . - orch_call_handler\n"
    ".popsection\n");
