/* Products of matrices whose sums, fp32, stay in registers; the left one's numbers are fp32, or bf16 (bf16.h). */
#ifndef FEATURE_ATLAS_MATRICES_H
#define FEATURE_ATLAS_MATRICES_H

#include "kernels.h"

/* Wholly, before registers are given out: what a loop's number chooses from is a register each. */
#define UNROLLED _Pragma("GCC unroll 16")
/* Loaded once, not by each product. */
#if defined(__x86_64__)
#define KEEP(vector) __asm__("" : "+v"(vector))
#else
#define KEEP(vector) (void)(vector)
#endif

/* Rows of the left matrix whose sums fit into the registers beside a row of the right one, which has two columns of a
 * register each: 2 * 14 of 32, or 2 * 6 of 16.
 *
 * TABLE: a function for every number of rows, one or two registers of columns wide, as `define` gives it: in a table,
 * [columns - 1][rows]. */
#if defined(__AVX512BW__) || !defined(__x86_64__)
enum { ROWS = 14 };
#define FOR_ALL_ROWS(define, columns)                                                                                 \
    define(1, columns) define(2, columns) define(3, columns) define(4, columns) define(5, columns) define(6, columns) \
    define(7, columns) define(8, columns) define(9, columns) define(10, columns) define(11, columns)                  \
    define(12, columns) define(13, columns) define(14, columns)
#define NAMES_OF(name, columns)                                                                                       \
    {0, name##_1_##columns, name##_2_##columns, name##_3_##columns, name##_4_##columns, name##_5_##columns,           \
     name##_6_##columns, name##_7_##columns, name##_8_##columns, name##_9_##columns, name##_10_##columns,             \
     name##_11_##columns, name##_12_##columns, name##_13_##columns, name##_14_##columns}
#else
enum { ROWS = 6 };
#define FOR_ALL_ROWS(define, columns)                                                                                 \
    define(1, columns) define(2, columns) define(3, columns) define(4, columns) define(5, columns) define(6, columns)
#define NAMES_OF(name, columns)                                                                                       \
    {0, name##_1_##columns, name##_2_##columns, name##_3_##columns, name##_4_##columns, name##_5_##columns,           \
     name##_6_##columns}
#endif
#define TABLE(type, name, define)                                                                                     \
    FOR_ALL_ROWS(define, 1)                                                                                           \
    FOR_ALL_ROWS(define, 2)                                                                                           \
    static type *const name[2][ROWS + 1] = {NAMES_OF(name, 1), NAMES_OF(name, 2)};

/* Rows, so many bytes apart, that are done at once: a multiple of 4 KB puts all of them in one place of the first
 * cache, which has room for eight lines there. */
INLINE int64_t rows_at_once(int64_t apart) { return apart % 4096 ? ROWS : 6; }

#endif
