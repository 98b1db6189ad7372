/* 8259 and 8254 programming (Intel 8259A and 8254 data sheets). */
#include "irq.h"
#include "../abi/machine_map.h"

#define COMMAND 0
#define DATA 1

void remap_pics(void)
{
    /* ICW1: edge triggered, cascaded, ICW4 follows */
    outb(PIC_MASTER + COMMAND, 0b00010001);
    outb(PIC_SLAVE + COMMAND, 0b00010001);
    /* ICW2: vectors, away from the CPU's own exceptions */
    outb(PIC_MASTER + DATA, IRQ_VECTOR);
    outb(PIC_SLAVE + DATA, IRQ_VECTOR + 8);
    /* ICW3: where the slave hangs */
    outb(PIC_MASTER + DATA, 1 << IRQ_CASCADE);
    outb(PIC_SLAVE + DATA, IRQ_CASCADE);
    /* ICW4: 8086 mode, explicit end of interrupt */
    outb(PIC_MASTER + DATA, 0b00000001);
    outb(PIC_SLAVE + DATA, 0b00000001);
    /* OCW1: mask everything */
    outb(PIC_MASTER + DATA, 0xFF);
    outb(PIC_SLAVE + DATA, 0xFF);
}

void unmask_irq(u32 line)
{
    u16 pic = line < 8 ? PIC_MASTER : PIC_SLAVE;
    outb(pic + DATA, inb(pic + DATA) & ~(1 << (line & 7)));
    if (line >= 8)
        unmask_irq(IRQ_CASCADE);
}

void mask_irq(u32 line)
{
    u16 pic = line < 8 ? PIC_MASTER : PIC_SLAVE;
    outb(pic + DATA, inb(pic + DATA) | 1 << (line & 7));
}

void end_of_interrupt(u32 line)
{
    /* OCW2: non-specific end of interrupt, to the slave first */
    if (line >= 8)
        outb(PIC_SLAVE + COMMAND, 0b00100000);
    outb(PIC_MASTER + COMMAND, 0b00100000);
}

void start_pit(u32 hertz)
{
    u32 divisor = PIT_HZ / hertz;
    /* channel 0, low then high byte, mode 2 (rate generator), binary */
    outb(PIT_BASE + 3, 0b00110100);
    outb(PIT_BASE + 0, divisor & 0xFF);
    outb(PIT_BASE + 0, divisor >> 8);
}
