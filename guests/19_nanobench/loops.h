/* Addresses that loops.S must know as numbers (operations.h has them for C). */
#pragma once
#define ABSENT 0x40001000
