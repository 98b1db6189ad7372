/* Fills the IDT with 256 gates to vectors.S and sends what arrives to a C function. */
#include "interrupts.h"
#include "report.h"
#include "segments.h"

extern char vectors[256][16];

static u64 idt[256];
static Handler *handlers[256];
volatile struct Caught caught;
volatile u32 attempt_at, attempt_next;

void set_gate_target(u8 vector, u8 type, u16 selector, u32 offset)
{
    idt[vector] = (u64)(offset & 0xFFFF) | (u64)selector << 16 | (u64)type << 40 | (u64)(offset >> 16) << 48;
}

void set_gate(u8 vector, u8 type)
{
    set_gate_target(vector, type, KERNEL_CODE, (u32)vectors[vector]);
}

void handle(u8 vector, Handler *handler)
{
    handlers[vector] = handler;
}

void load_interrupts(void)
{
    for (u32 vector = 0; vector < 256; vector++)
        set_gate(vector, INTERRUPT_GATE);
    struct { u16 limit; u32 base; } __attribute__((packed)) idtr = { sizeof idt - 1, (u32)idt };
    asm volatile("lidt %0" :: "m"(idtr) : "memory");
}

/* Called by vectors.S. */
void dispatch(struct Frame *frame)
{
    Handler *handler = handlers[(u8)frame->vector];
    if (handler) {
        handler(frame);
        return;
    }
    print("unexpected vector %u, error code 0x%x, at EIP 0x%x, CR2 0x%x\n",
          frame->vector, frame->error, frame->eip, read_cr2());
    report("no unexpected exceptions", false);
    finish();
}

void note_exception(struct Frame *frame)
{
    caught.count++;
    caught.vector = frame->vector;
    caught.error = frame->error;
    caught.eip = frame->eip;
    if (frame->vector == PAGE_FAULT)
        caught.cr2 = read_cr2();
    frame->eip = attempt_next;
}

bool caught_fault(u32 vector, u32 error)
{
    return caught.count == 1 && caught.vector == vector && caught.error == error && caught.eip == attempt_at;
}

bool caught_trap(u32 vector)
{
    return caught.count == 1 && caught.vector == vector && caught.error == 0 && caught.eip == attempt_next;
}
