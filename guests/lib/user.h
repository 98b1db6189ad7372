/* Into ring 3 and out of it again. */
#pragma once
#include "cpu.h"

/* Runs `entry` in ring 3 with the given stack and EFLAGS, until a handler in ring 0 calls leave_user(status);
 * returns that status. Not re-entrant: there is one kernel stack. */
u32 run_user(void (*entry)(void), void *stack_top, u32 eflags);
void leave_user(u32 status) __attribute__((noreturn));
