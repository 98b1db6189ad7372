/* One probe for each of the 18 sensitive instructions. A probe runs in ring 0 or in ring 3, executes its instruction
 * between two writes to POST_PORT, and says what it saw; it neither prints nor judges. */
#pragma once
#include "../lib/cpu.h"
#include "../lib/interrupts.h"

extern bool in_user_mode;               /* set before a probe is called: which selectors are its own */

/* `subject` is "" unless a probe asks about several things; selectors, addresses and the like are printed in hex. */
struct Seen { const char *subject, *name; u32 value; bool hexadecimal; };
extern struct Seen seen[16];
extern u32 seen_count;

void probe_sgdt(void);
void probe_sidt(void);
void probe_sldt(void);
void probe_smsw(void);
void probe_pushf(void);
void probe_popf(void);
void probe_lar(void);
void probe_lsl(void);
void probe_verr(void);
void probe_verw(void);
void probe_pop(void);
void probe_push(void);
void probe_call(void);
void probe_jmp(void);
void probe_int(void);
void probe_ret(void);
void probe_str(void);
void probe_mov(void);

/* In landings.S */
extern const char call_landing[], int_landing[], jmp_landing[], look_at_cs[];

Handler on_timer, on_spurious;
