/* Matrix products of bf16 numbers, summed in fp32, for processors with instructions for it (AVX512-BF16). */
#ifndef FEATURE_ATLAS_BF16_H
#define FEATURE_ATLAS_BF16_H

#include "kernels.h"

#if defined(__AVX512BW__)
#include <immintrin.h>

#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
/* Wholly, before registers are given out: what a loop's number chooses from is a register each. */
#define UNROLLED _Pragma("GCC unroll 16")

enum {
    GROUP = 16,        /* fp32 numbers in a register */
    STRIP = 2 * GROUP, /* columns of the right matrix that are done at once, in two registers */
    ROWS = 14,         /* rows of the left one whose sums fit into the registers: 2 * 14 of 32 */
};

BF16 INLINE __m512 widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* The first `left` of a group. */
INLINE __mmask16 group_of(int64_t left) { return left >= GROUP ? 0xffff : (__mmask16)((1u << left) - 1); }

/* Rows of `apart` bf16 numbers that are done at once: a multiple of 4 KB puts all of them in one place of the first
 * cache, which has room for eight lines there. */
INLINE int64_t rows_at_once(int64_t apart) { return apart % 2048 ? ROWS : 6; }

/* sum [rows][columns] = left [rows, deep], rows `apart`, times right [deep / 2, columns * GROUP, 2].  Each sum goes
 * from the first number to the last, however many rows there are.  Meanwhile as much is fetched from `next` on. */
BF16 INLINE void product(const int rows, const int columns, const uint16_t *left, int64_t apart, const uint16_t *right,
                         int64_t deep, const uint16_t *next, __m512 sum[ROWS][2]) {
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int n = 0; n < columns; n++) sum[r][n] = _mm512_setzero_ps();
    for (int64_t k = 0; k < deep; k += 2, right += 2 * columns * GROUP) {
        if (next) __builtin_prefetch(next + k * STRIP);
        __m512bh column[2];
        UNROLLED for (int n = 0; n < columns; n++) column[n] = (__m512bh)_mm512_loadu_si512(right + 2 * n * GROUP);
        UNROLLED for (int r = 0; r < rows; r++) {
            int32_t both;
            memcpy(&both, left + r * apart + k, sizeof both);
            __m512bh pair = (__m512bh)_mm512_set1_epi32(both);
            __asm__("" : "+v"(pair)); /* loaded once, not by each product */
            UNROLLED for (int n = 0; n < columns; n++) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], pair, column[n]);
        }
    }
}

/* A function for every number of rows, one or two registers of columns wide; a table of them: [columns - 1][rows]. */
#define FOR_ALL_ROWS(define, columns)                                                                                 \
    define(1, columns) define(2, columns) define(3, columns) define(4, columns) define(5, columns) define(6, columns) \
    define(7, columns) define(8, columns) define(9, columns) define(10, columns) define(11, columns)                  \
    define(12, columns) define(13, columns) define(14, columns)
#define NAMES_OF(name, columns)                                                                                       \
    {0, name##_1_##columns, name##_2_##columns, name##_3_##columns, name##_4_##columns, name##_5_##columns,           \
     name##_6_##columns, name##_7_##columns, name##_8_##columns, name##_9_##columns, name##_10_##columns,             \
     name##_11_##columns, name##_12_##columns, name##_13_##columns, name##_14_##columns}
#define TABLE(type, name, define)                                                                                     \
    FOR_ALL_ROWS(define, 1)                                                                                           \
    FOR_ALL_ROWS(define, 2)                                                                                           \
    static type *const name[2][ROWS + 1] = {NAMES_OF(name, 1), NAMES_OF(name, 2)};

#endif
#endif
