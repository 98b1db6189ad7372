/* One inline function per instruction that C has no word for. Nothing here reads EFLAGS or a segment register:
 * those instructions lie, silently, to a kernel that a VMM has moved to ring 1 (Popek and Goldberg's sensitive ones). */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef _Bool bool;
#define true 1
#define false 0

/* Ports */
static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" :: "a"(value), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" :: "a"(value), "Nd"(port) : "memory"); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" :: "a"(value), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory"); return value; }
static inline u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory"); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory"); return value; }

/* Interrupt flag and idling */
static inline void cli(void) { asm volatile("cli" ::: "memory"); }
static inline void sti(void) { asm volatile("sti" ::: "memory"); }
/* STI takes effect after the *next* instruction, so no interrupt can slip in between and be slept through. */
static inline void wait_for_interrupt(void) { asm volatile("sti; hlt; cli" ::: "memory"); }

/* Control registers */
#define CR0_MP 0x00000002
#define CR0_TS 0x00000008
#define CR0_WP 0x00010000
#define CR0_AM 0x00040000
#define CR0_PG 0x80000000
#define CR4_PSE 0x00000010
#define CR4_PAE 0x00000020
#define CONTROL_REGISTER(n)                                                                                          \
    static inline u32 read_cr##n(void) { u32 value; asm volatile("movl %%cr" #n ", %0" : "=r"(value) :: "memory"); return value; } \
    static inline void write_cr##n(u32 value) { asm volatile("movl %0, %%cr" #n :: "r"(value) : "memory"); }
CONTROL_REGISTER(0)
CONTROL_REGISTER(2)
CONTROL_REGISTER(3)
CONTROL_REGISTER(4)
static inline void clts(void) { asm volatile("clts"); }
static inline void invlpg(u32 address) { asm volatile("invlpg (%0)" :: "r"(address) : "memory"); }
static inline u32 read_dr6(void) { u32 value; asm volatile("movl %%dr6, %0" : "=r"(value)); return value; }
static inline void write_dr6(u32 value) { asm volatile("movl %0, %%dr6" :: "r"(value)); }

/* Model-specific registers */
#define MSR_APIC_BASE 0x0000001B
#define MSR_SYSENTER_CS 0x00000174
#define MSR_SYSENTER_ESP 0x00000175
#define MSR_SYSENTER_EIP 0x00000176
#define MSR_EFER 0xC0000080
#define EFER_NXE 0x00000800
static inline u64 rdmsr(u32 number) { u64 value; asm volatile("rdmsr" : "=A"(value) : "c"(number)); return value; }
static inline void wrmsr(u32 number, u64 value) { asm volatile("wrmsr" :: "c"(number), "A"(value) : "memory"); }

/* What the CPU is (SDM volume 2A, CPUID) */
struct Cpuid { u32 eax, ebx, ecx, edx; };
static inline struct Cpuid cpuid(u32 leaf)
{
    struct Cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}
#define CPUID_EDX_PSE (1u << 3)
#define CPUID_EDX_TSC (1u << 4)
#define CPUID_EDX_PAE (1u << 6)
#define CPUID_EDX_APIC (1u << 9)
#define CPUID_EDX_SEP (1u << 11)
#define CPUID_EXTENDED_EDX_NX (1u << 20)
static inline bool cpu_has(u32 edx_bit) { return cpuid(1).edx & edx_bit; }
static inline bool cpu_has_nx(void)
{
    return cpuid(0x80000000).eax >= 0x80000001 && cpuid(0x80000001).edx & CPUID_EXTENDED_EDX_NX;
}
static inline u64 rdtsc(void) { u64 value; asm volatile("rdtsc" : "=A"(value) :: "memory"); return value; }

/* Memory as a device or a page table sees it: every access happens, in order. */
static inline u32 read32(u32 address) { return *(volatile u32 *)address; }
static inline void write32(u32 address, u32 value) { *(volatile u32 *)address = value; }
static inline u8 read8(u32 address) { return *(volatile u8 *)address; }
static inline void write8(u32 address, u8 value) { *(volatile u8 *)address = value; }
