/* The interface of Xen to 32-bit paravirtual guests, as far as we use it: numbers and layouts of Xen's public headers
 * (xen.h, arch-x86/xen-x86_32.h, event_channel.h, sched.h, physdev.h, memory.h, io/console.h, io/xs_wire.h, elfnote.h).
 * An MFN is the number of a page of the real machine; ours are pages of a memory that only looks contiguous. */
#pragma once

/* Segments that are there before we are: flat up to where the hypervisor begins. */
#define RING1_CODE 0xE019
#define RING1_DATA 0xE021
#define RING3_CODE 0xE02B
#define RING3_DATA 0xE033               /* ring 1 may use it as well */

/* Notes in the image, for the loader */
#define NOTE_ENTRY 1
#define NOTE_HYPERCALL_PAGE 2
#define NOTE_VIRT_BASE 3
#define NOTE_PADDR_OFFSET 4
#define NOTE_XEN_VERSION 5
#define NOTE_GUEST_OS 6
#define NOTE_LOADER 8
#define NOTE_PAE_MODE 9
#define NOTE_FEATURES 10

#ifndef __ASSEMBLER__
#include "../lib/cpu.h"

enum { SET_TRAP_TABLE = 0, MMU_UPDATE = 1, STACK_SWITCH = 3, SET_CALLBACKS = 4, MEMORY_OP = 12, MULTICALL = 13,
       UPDATE_VA_MAPPING = 14, SET_TIMER_OP = 15, XEN_VERSION = 17, MMUEXT_OP = 26, SCHED_OP = 29,
       EVENT_CHANNEL_OP = 32, PHYSDEV_OP = 33 };
enum { EXT_PIN_L3_TABLE = 2, EXT_UNPIN_TABLE = 4, EXT_NEW_BASEPTR = 5, EXT_TLB_FLUSH_LOCAL = 6, EXT_INVLPG_LOCAL = 7 };
enum { MEMORY_DECREASE = 1, MEMORY_POPULATE = 6 };
enum { SCHED_YIELD = 0, SCHED_BLOCK = 1, SCHED_SHUTDOWN = 2 };
enum { EVENT_BIND_VIRQ = 1, EVENT_SEND = 4, EVENT_UNMASK = 9 };
#define PHYSDEV_SET_IOPL 6
#define VIRQ_TIMER 0
#define MYSELF 0x7FF0                   /* as the number of a domain */
#define NOWHERE 0xFFFFFFFFu             /* in mfn_list: we have no such page now */
#define MAPPING_INVLPG 2                /* flag of UPDATE_VA_MAPPING: forget the old one, on this CPU */
#define TRAP_MASKS_EVENTS 4             /* flag of a trap; the lowest two bits are its DPL */

struct TrapInfo { u8 vector, flags; u16 cs; u32 address; };
struct MmuUpdate { u64 entry, value; };                 /* machine address of an entry of eight bytes */
struct MmuExtended { u32 command, operand, count; };    /* operand: an MFN or a linear address */
struct Call { u32 number, result, arguments[6]; };      /* of a multicall */
struct Reservation { u32 list, count, order, flags; u16 domain; };      /* list: of MFNs to give, of pages to get */

struct StartInfo {
    char magic[32];
    u32 page_count;
    u32 shared_info;                    /* machine address */
    u32 flags;
    u32 store_mfn, store_port;
    u32 console_mfn, console_port;
    u32 top_table;                      /* address */
    u32 table_pages;
    u32 mfn_list;                       /* address of u32[page_count] */
    u32 module, module_length;
    char command_line[1024];
};

struct TimeInfo {                       /* ns = system_time + ((TSC - timestamp) << shift) * multiplier / 2^32 */
    u32 version, unused;                /* odd while it changes */
    u64 timestamp, system_time;
    u32 multiplier;
    signed char shift;
    u8 flags, unused_too[2];
};
struct VcpuInfo {
    u8 pending, mask;                   /* an event waits; none may come */
    u16 unused;
    u32 pending_words;
    u32 cr2, unused_too[5];
    struct TimeInfo time;
};
struct SharedInfo {
    struct VcpuInfo vcpu[32];
    u32 pending[32], mask[32];          /* a bit per port */
    u32 wall_version, wall_seconds, wall_nanoseconds;
};

#define CONSOLE_OUT 2048
struct Console {
    char in[1024], out[CONSOLE_OUT];
    u32 in_taken, in_put, out_taken, out_put;
};

enum { STORE_READ = 2, STORE_WATCH = 4, STORE_WRITE = 11, STORE_WATCH_EVENT = 15 };
#define STORE_RING 1024
struct Store {
    char requests[STORE_RING], answers[STORE_RING];
    u32 request_taken, request_put, answer_taken, answer_put;
};
struct StoreHeader { u32 type, number, transaction, length; };  /* so many bytes follow */
#endif
