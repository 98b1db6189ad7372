/* Strings and memory, as far as guests need them. */
#pragma once
#include "cpu.h"

void *memcpy(void *to, const void *from, unsigned long size);
void *memset(void *to, int value, unsigned long size);
void *memmove(void *to, const void *from, unsigned long size);
int memcmp(const void *a, const void *b, unsigned long size);
bool strings_equal(const char *a, const char *b);

/* The number after "name=" on the command line, or `otherwise`. */
u32 option(const char *command_line, const char *name, u32 otherwise);
