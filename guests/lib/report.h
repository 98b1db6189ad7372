/* What a guest says to the world: text on COM1, one line per check, and at the end one verdict.
 *
 *     PASS name          FAIL name          SKIP name: why
 *
 * The verdict is written to DEBUG_EXIT_PORT; hvemu (and QEMU with isa-debug-exit) then ends with status
 * (verdict << 1) | 1: 33 all passed, 35 something failed, 37 nothing could be checked. */
#pragma once
#include "cpu.h"

void print(const char *format, ...) __attribute__((format(printf, 1, 2)));     /* knows %s %d %u %x %c %% */
void report(const char *name, bool ok);
void report_skip(const char *name, const char *why);
void finish(void) __attribute__((noreturn));
