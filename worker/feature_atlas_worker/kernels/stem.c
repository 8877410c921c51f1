/* A network's first convolution: three channels are too few for the libraries' kernels.
 *
 * Ahead, the columns of its kernel become channels; back, its rows do, and what they give is added up here.
 */
#include "kernels.h"

/* The bf16 pixels that the kernel's `columns` columns see, side by side, and zeros up to `channels`:
 * [B, height, width, 3] -> [B, height, out, channels] */
EXPORT int fa_columns(const uint16_t *pictures, uint16_t *maps, int64_t first, int64_t last, int64_t height,
                      int64_t width, int64_t out, int64_t columns, int64_t step, int64_t left, int64_t channels) {
    for (int64_t row = first * height; row < last * height; row++) {
        const uint16_t *from = pictures + row * width * 3;
        uint16_t *to = maps + row * out * channels;
        for (int64_t x = 0; x < out; x++, to += channels) {
            int64_t begin = x * step - left, skip = larger(0, -begin), end = smaller(columns, width - begin);
            memset(to, 0, (size_t)channels * sizeof *to);
            if (end > skip) memcpy(to + 3 * skip, from + 3 * (begin + skip), (size_t)(3 * (end - skip)) * sizeof *to);
        }
    }
    return 0;
}

#define SAME(number) (number)

/* One picture out of what each of the kernel's rows gives: [high, wide, rows * step * 3] -> [height, width, 3].  A row
 * of the map goes to every step-th row of the picture, its columns to `step` pixels each. */
#define GATHER(name, number, load)                                                                              \
    INLINE void name(const number *map, float *picture, float *sum, int64_t high, int64_t wide, int64_t rows,   \
                     int64_t step, int64_t top, int64_t left, int64_t height, int64_t width) {                  \
        int64_t few = 3 * step, known = larger(0, smaller(width, wide * step - left));                          \
        for (int64_t y = top; y < top + height; y++, picture += 3 * width) {                                    \
            memset(sum, 0, (size_t)(wide * few) * sizeof *sum);                                                 \
            for (int64_t i = y % step; i < rows && i <= y; i += step) {                                         \
                int64_t from = (y - i) / step;                                                                  \
                if (from >= high) continue;                                                                     \
                const number *at = map + (from * wide * rows + i) * few;                                        \
                for (int64_t x = 0; x < wide; x++, at += rows * few)                                            \
                    for (int64_t k = 0; k < few; k++) sum[x * few + k] += load(at[k]);                          \
            }                                                                                                   \
            memcpy(picture, sum + 3 * left, (size_t)(3 * known) * sizeof *sum);                                 \
            memset(picture + 3 * known, 0, (size_t)(3 * (width - known)) * sizeof *sum);                        \
        }                                                                                                       \
    }

GATHER(gather_half, uint16_t, from_half)
GATHER(gather_single, float, SAME)

/* [B, high, wide, rows * step * 3], fp32 or bf16, -> [B, height, width, 3], fp32, from (top, left) on; zeros where
 * nothing goes.  1 where there is no memory. */
EXPORT int fa_rows(const void *maps, float *pictures, int64_t first, int64_t last, int half, int64_t high,
                   int64_t wide, int64_t rows, int64_t step, int64_t top, int64_t left, int64_t height,
                   int64_t width) {
    float *sum = malloc((size_t)(wide * step * 3) * sizeof *sum);
    if (!sum) return 1;
    for (int64_t image = first; image < last; image++) {
        int64_t in = image * high * wide * rows * step * 3;
        const uint16_t *halves = (const uint16_t *)maps + in;
        const float *singles = (const float *)maps + in;
        float *picture = pictures + image * height * width * 3;
        /* A stride of two is what nearly all networks begin with. */
        if (half && step == 2)
            gather_half(halves, picture, sum, high, wide, rows, 2, top, left, height, width);
        else if (half)
            gather_half(halves, picture, sum, high, wide, rows, step, top, left, height, width);
        else
            gather_single(singles, picture, sum, high, wide, rows, step, top, left, height, width);
    }
    free(sum);
    return 0;
}
