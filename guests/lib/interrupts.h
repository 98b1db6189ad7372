/* The interrupt descriptor table, and a table of C functions behind it.
 *
 * `ATTEMPT("instruction")` is the instrument of most lessons: it runs an instruction that is expected to fault,
 * and the fault handler notes what came and goes on behind it. */
#pragma once
#include "cpu.h"

/* What vectors.S and the CPU leave on the stack; esp and ss are there only if we came from ring 3. */
struct Frame {
    u32 edi, esi, ebp, unused, ebx, edx, ecx, eax;      /* PUSHA */
    u32 vector, error;                                  /* vectors.S; error is 0 where the CPU pushes none */
    u32 eip, cs, eflags, esp, ss;                       /* the CPU */
};
typedef void Handler(struct Frame *frame);

enum {
    DIVIDE_ERROR, DEBUG_EXCEPTION, NMI, BREAKPOINT, OVERFLOW, BOUND_RANGE, INVALID_OPCODE, DEVICE_NOT_AVAILABLE,
    DOUBLE_FAULT, COPROCESSOR_OVERRUN, INVALID_TSS, SEGMENT_NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT,
    ALIGNMENT_CHECK = 17
};

#define EFLAGS_FIXED 0x00000002
#define EFLAGS_TF 0x00000100
#define EFLAGS_IF 0x00000200
#define EFLAGS_NT 0x00004000

/* Gate types (SDM volume 3A, 6.11): an interrupt gate clears IF, a trap gate does not. */
#define INTERRUPT_GATE 0b10001110
#define TRAP_GATE 0b10001111
#define ABSENT_GATE 0b00001110
#define FROM_USER 0b01100000            /* DPL 3: `int n` in ring 3 may use it */

void load_interrupts(void);
void set_gate(u8 vector, u8 type);
void set_gate_target(u8 vector, u8 type, u16 selector, u32 offset);
void handle(u8 vector, Handler *handler);

/* The last exception that `note_exception` saw. */
struct Caught { u32 count, vector, error, eip, cr2; };
extern volatile struct Caught caught;
extern volatile u32 attempt_at, attempt_next;
Handler note_exception;                 /* writes `caught`, goes on at attempt_next */

/* `setup` must not fault; `instruction` may. EAX, ECX and EDX are theirs. */
#define ATTEMPT_AFTER(setup, instruction)                                                                            \
    do {                                                                                                             \
        caught.count = 0, caught.vector = ~0u, caught.error = ~0u;                                                   \
        asm volatile("movl $1f, attempt_at\n movl $2f, attempt_next\n" setup "\n1: " instruction "\n2:"              \
                     ::: "eax", "ecx", "edx", "cc", "memory");                                                       \
    } while (0)
#define ATTEMPT(instruction) ATTEMPT_AFTER("", instruction)

/* A fault leaves EIP at the instruction, so that it can be tried again; a trap leaves it behind (SDM 3A, 6.5). */
bool caught_fault(u32 vector, u32 error);
bool caught_trap(u32 vector);
