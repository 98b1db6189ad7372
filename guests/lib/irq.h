/* The interrupt plumbing of the PC: two 8259s and the 8254. Lines 0-15 become vectors 0x20-0x2F. */
#pragma once
#include "cpu.h"

#define IRQ_VECTOR 0x20

void remap_pics(void);                  /* everything masked afterwards */
void unmask_irq(u32 line);
void mask_irq(u32 line);
void end_of_interrupt(u32 line);
void start_pit(u32 hertz);              /* channel 0, rate generator */
