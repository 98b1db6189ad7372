/* The four functions that a C compiler may call without being asked, and one to compare strings. */
#include "string.h"

void *memcpy(void *to, const void *from, unsigned long size)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) :: "memory");
    return start;
}

void *memset(void *to, int value, unsigned long size)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void *memmove(void *to, const void *from, unsigned long size)
{
    char *t = to;
    const char *f = from;
    if (t <= f)
        return memcpy(to, from, size);
    while (size--)
        t[size] = f[size];
    return to;
}

int memcmp(const void *a, const void *b, unsigned long size)
{
    const unsigned char *x = a, *y = b;
    for (; size; size--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

bool strings_equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

u32 option(const char *command_line, const char *name, u32 otherwise)
{
    for (const char *p = command_line; *p; p++) {
        const char *n = name;
        const char *q = p;
        while (*n && *q == *n)
            q++, n++;
        if (*n || *q != '=' || (p != command_line && p[-1] != ' '))
            continue;
        u32 value = 0;
        for (q++; *q >= '0' && *q <= '9'; q++)
            value = value * 10 + (*q - '0');
        return value;
    }
    return otherwise;
}
