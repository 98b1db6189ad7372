/* A guest that only computes: no interrupts, no devices until the end. What it costs under a technique is what that
 * technique costs *code*; the checksum says that nothing was computed differently. "loops=N" makes it longer. */
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "../lib/string.h"

#define SIEVE_SIZE 20000

/* Byte stores all over 20 KiB, short loops. */
static u32 sieve(void)
{
    static u8 composite[SIEVE_SIZE];
    memset(composite, 0, sizeof composite);
    u32 primes = 0;
    for (u32 i = 2; i < SIEVE_SIZE; i++) {
        if (composite[i])
            continue;
        primes++;
        for (u32 j = i + i; j < SIEVE_SIZE; j += i)
            composite[j] = 1;
    }
    return primes;
}

/* Loads, shifts and a data-dependent branch per bit (IEEE 802.3 polynomial, reflected). */
static u32 crc32(u32 crc, const u8 *data, u32 size)
{
    crc = ~crc;
    for (u32 i = 0; i < size; i++) {
        crc ^= data[i];
        for (u32 bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
    }
    return ~crc;
}

/* Registers only: multiply, rotate, xor. */
static u32 mix(u32 x, u32 rounds)
{
    while (rounds--) {
        x *= 0x9E3779B1;
        x = (x << 13 | x >> 19) ^ 0x85EBCA6B;
    }
    return x;
}

/* Calls and returns, direct and recursive. */
static __attribute__((noinline)) u32 fibonacci(u32 n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

/* Calls through a table: a translator cannot chain these. */
static u32 add_one(u32 x) { return x + 1; }
static u32 times_three(u32 x) { return x * 3; }
static u32 rotate(u32 x) { return x << 7 | x >> 25; }
static u32 flip(u32 x) { return ~x; }
static u32 (*const volatile operations[4])(u32) = { add_one, times_three, rotate, flip };

static u32 interpret(u32 x, u32 steps)
{
    for (u32 i = 0; i < steps; i++)
        x = operations[(x ^ i) & 3](x);
    return x;
}

void main(const struct Multiboot *information)
{
    u32 loops = option(command_line(information), "loops", 1);
    u32 checksum = 0;
    for (u32 i = 0; i < loops; i++) {
        u32 results[4] = { sieve(), mix(i + 1, 20000), fibonacci(16), interpret(i + 1, 5000) };
        checksum = crc32(checksum, (const u8 *)results, sizeof results);
        u8 text[2048];
        for (u32 j = 0; j < sizeof text; j++)
            text[j] = (u8)(j * 7 + i);
        checksum = crc32(checksum, text, sizeof text);
    }
    print("loops %u checksum 0x%x\n", loops, checksum);

    report("sieve", sieve() == 2262);
    report("crc32", crc32(0, (const u8 *)"123456789", 9) == 0xCBF43926);
    report("calls", fibonacci(20) == 6765);
    report("checksum", loops != 1 || checksum == 0x027851B4);
}
