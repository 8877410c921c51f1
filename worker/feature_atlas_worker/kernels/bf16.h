/* bf16 numbers on processors with instructions for their products (AVX512-BF16): what pointwise_bf16.c and
 * winograd.h need. */
#ifndef FEATURE_ATLAS_BF16_H
#define FEATURE_ATLAS_BF16_H

#include "matrices.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

enum { GROUP = 16, PAIR = 2 }; /* numbers in a register of sums, and of the left matrix that one product takes */

typedef uint16_t number;
typedef __m512 group;
typedef __mmask16 some; /* of a group's numbers */

/* The first `left` of a group. */
INLINE some some_of(int64_t left) { return left >= GROUP ? 0xffff : (some)((1u << left) - 1); }

TARGET INLINE group load(const number *from, some wanted) {
    __m256i halves = _mm256_maskz_loadu_epi16(wanted, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

TARGET INLINE void store(number *to, group sums, some wanted) {
    _mm256_mask_storeu_epi16(to, wanted, (__m256i)_mm512_cvtneps_pbh(sums));
}

TARGET INLINE group above_zero(group sums) { return _mm512_max_ps(_mm512_setzero_ps(), sums); }

TARGET INLINE group sums_at(const float *from) { return _mm512_loadu_ps(from); }

/* sum [rows][columns] = left [rows, deep], rows `apart`, times right [deep / 2, columns * GROUP, 2].  Each sum goes
 * from the first number to the last, however many rows there are.  Meanwhile as much is fetched from `next` on. */
TARGET INLINE void product(const int rows, const int columns, const number *left, int64_t apart, const number *right,
                           int64_t deep, const number *next, group sum[ROWS][2]) {
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int n = 0; n < columns; n++) sum[r][n] = _mm512_setzero_ps();
    for (int64_t k = 0; k < deep; k += 2, right += 2 * columns * GROUP) {
        if (next) __builtin_prefetch(next + k * GROUP * 2);
        __m512bh column[2];
        UNROLLED for (int n = 0; n < columns; n++) column[n] = (__m512bh)_mm512_loadu_si512(right + 2 * n * GROUP);
        UNROLLED for (int r = 0; r < rows; r++) {
            int32_t both;
            memcpy(&both, left + r * apart + k, sizeof both);
            __m512bh pair = (__m512bh)_mm512_set1_epi32(both);
            KEEP(pair);
            UNROLLED for (int n = 0; n < columns; n++) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], pair, column[n]);
        }
    }
}

#endif
