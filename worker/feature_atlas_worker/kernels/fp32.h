/* fp32 numbers, on any processor: what winograd.h needs. */
#ifndef FEATURE_ATLAS_FP32_H
#define FEATURE_ATLAS_FP32_H

#include "matrices.h"

#define TARGET

enum { GROUP = VECTOR / 4, PAIR = 1 }; /* numbers in a register, and of the left matrix that one product takes */

typedef float number;
typedef float group __attribute__((vector_size(VECTOR)));
typedef int64_t some; /* of a group's numbers: how many */

INLINE some some_of(int64_t left) { return smaller(left, GROUP); }

INLINE group load(const number *from, some wanted) {
    group found = {0};
    if (wanted == GROUP)
        memcpy(&found, from, sizeof found);
    else
        for (int64_t i = 0; i < wanted; i++) found[i] = from[i];
    return found;
}

INLINE void store(number *to, group sums, some wanted) {
    if (wanted == GROUP)
        memcpy(to, &sums, sizeof sums);
    else
        for (int64_t i = 0; i < wanted; i++) to[i] = sums[i];
}

INLINE group above_zero(group sums) {
    typedef int32_t wholes __attribute__((vector_size(VECTOR)));
    return (group)((wholes)sums & ~(wholes)(sums < 0));
}

INLINE group sums_at(const float *from) { return load(from, GROUP); }

/* sum [rows][columns] = left [rows, deep], rows `apart`, times right [deep, columns * GROUP].  Each sum goes from the
 * first number to the last, however many rows there are. */
INLINE void product(const int rows, const int columns, const number *left, int64_t apart, const number *right,
                    int64_t deep, const number *next, group sum[ROWS][2]) {
    (void)next;
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int n = 0; n < columns; n++) sum[r][n] = (group){0};
    for (int64_t k = 0; k < deep; k++, right += columns * GROUP) {
        group column[2];
        UNROLLED for (int n = 0; n < columns; n++) column[n] = load(right + n * GROUP, GROUP);
        UNROLLED for (int r = 0; r < rows; r++) {
            group one = left[r * apart + k] - (group){0}; /* in every place: minus nothing changes no number */
            KEEP(one);
            UNROLLED for (int n = 0; n < columns; n++) sum[r][n] += one * column[n];
        }
    }
}

#endif
