/* Max pooling of maps whose channels lie side by side, [B, height, width, channels], in fp32 or bf16.
 *
 * A group of channels at once; the last group ends with the last channel, so that some channels are done twice.
 */
#include "kernels.h"

/* Places in a window at most. */
enum { PLACES = 256 };
/* Channels in a group of bf16 and of fp32 numbers; there must be as many. */
enum { HALVES = VECTOR / 2, SINGLES = VECTOR / 4 };

/* A register each: compilers make a mess of more. */
typedef int16_t shorts __attribute__((vector_size(VECTOR)));
typedef int32_t wholes __attribute__((vector_size(VECTOR)));
typedef float floats __attribute__((vector_size(VECTOR)));

typedef struct {
    int64_t height, width, channels, out_height, out_width;
    int64_t rows, columns;  /* of the window */
    int64_t down, across;   /* its stride */
    int64_t top, left;      /* padding */
    int rectified;
} Pool;

#define LOAD(vector, from) memcpy(&(vector), from, sizeof(vector))
#define STORE(to, vector) memcpy(to, &(vector), sizeof(vector))
#define CHOOSE(mask, one, other) (((mask) & (one)) | (~(mask) & (other)))

/* A whole number of the same order; what is no number is above all, and both zeros are one. */
INLINE shorts rank_of(shorts bits) {
    shorts rank = bits ^ (bits >> 15 & 0x7fff), none = (bits & 0x7fff) > 0x7f80;
    rank -= rank == -1;
    return CHOOSE(none, 0x7fff, rank);
}

/* The greatest of the window at (y, x), and which that was: as ATen's the first of equals. */
INLINE void greatest_half(const Pool *of, const uint16_t *map, int64_t y, int64_t x, uint16_t *out, int16_t *taps) {
    shorts best = (shorts){0} + INT16_MIN, which = {0};
    for (int64_t i = larger(0, -y); i < smaller(of->rows, of->height - y); i++)
        for (int64_t j = larger(0, -x); j < smaller(of->columns, of->width - x); j++) {
            shorts found, own = (shorts){0} + (int16_t)(i * of->columns + j);
            LOAD(found, map + ((y + i) * of->width + x + j) * of->channels);
            found = rank_of(found);
            shorts better = found > best;
            which = CHOOSE(better, own, which);
            best = CHOOSE(better, found, best);
        }
    /* Where the map is a ReLU's, nothing goes back to what is not above zero. */
    if (of->rectified) which |= best <= 0;
    best ^= best >> 15 & 0x7fff;
    STORE(out, best);
    STORE(taps, which);
}

INLINE void greatest_single(const Pool *of, const float *map, int64_t y, int64_t x, float *out, int32_t *taps) {
    floats best = (floats){0} - INFINITY;
    wholes which = (wholes){0} + (int32_t)(larger(0, -y) * of->columns + larger(0, -x));
    for (int64_t i = larger(0, -y); i < smaller(of->rows, of->height - y); i++)
        for (int64_t j = larger(0, -x); j < smaller(of->columns, of->width - x); j++) {
            floats found;
            wholes own = (wholes){0} + (int32_t)(i * of->columns + j);
            LOAD(found, map + ((y + i) * of->width + x + j) * of->channels);
            wholes better = (found > best) | (found != found);
            which = CHOOSE(better, own, which);
            best = (floats)CHOOSE(better, (wholes)found, (wholes)best);
        }
    if (of->rectified) which |= best <= 0;
    STORE(out, best);
    STORE(taps, which);
}

/* The windows that hold a place of the map: where their channels begin, and which of each the place is. */
typedef struct {
    int64_t begin[PLACES];
    int16_t tap[PLACES];
    int count;
} Windows;

INLINE void windows_of(const Pool *of, int64_t y, int64_t x, Windows *found) {
    int64_t first_y = y < of->rows ? 0 : (y - of->rows) / of->down + 1;
    int64_t first_x = x < of->columns ? 0 : (x - of->columns) / of->across + 1;
    found->count = 0;
    for (int64_t oy = first_y; oy < of->out_height && oy * of->down <= y; oy++)
        for (int64_t ox = first_x; ox < of->out_width && ox * of->across <= x; ox++) {
            found->begin[found->count] = (oy * of->out_width + ox) * of->channels;
            found->tap[found->count++] = (int16_t)((y - oy * of->down) * of->columns + x - ox * of->across);
        }
}

/* bf16 in the upper half of fp32, to nearest, ties to even. */
INLINE wholes rounded(floats of) {
    wholes bits = (wholes)of, none = of != of;
    return CHOOSE(none, 0x7fc00000, bits + 0x7fff + (bits >> 16 & 1));
}

/* What comes back to one place of the map: the sum over the windows in which it was the greatest. */
INLINE void gathered_half(const Windows *in, const uint16_t *gradient, const int16_t *taps, uint16_t *to) {
    const int32_t upper = (int32_t)0xffff0000;
    floats even = {0}, odd = {0};  /* two bf16 numbers lie in every 32 bits */
    for (int i = 0; i < in->count; i++) {
        shorts which, found;
        LOAD(which, taps + in->begin[i]);
        LOAD(found, gradient + in->begin[i]);
        wholes both = (wholes)(found & (which == in->tap[i]));
        even += (floats)(both << 16);
        odd += (floats)(both & upper);
    }
    wholes sums = (rounded(even) >> 16 & 0xffff) | (rounded(odd) & upper);
    STORE(to, sums);
}

INLINE void gathered_single(const Windows *in, const float *gradient, const int32_t *taps, float *to) {
    floats sum = {0};
    for (int i = 0; i < in->count; i++) {
        wholes which, found;
        LOAD(which, taps + in->begin[i]);
        LOAD(found, gradient + in->begin[i]);
        sum += (floats)(found & (which == in->tap[i]));
    }
    STORE(to, sum);
}

#define EVERY(size, begin) \
    for (int64_t group = 0, begin = 0; group < of->channels; group += size, begin = smaller(group, of->channels - size))

#define MAPS(kind, number, tap, size)                                                                       \
    INLINE void map_greatest_##kind(const Pool *of, const number *map, number *out, tap *taps) {            \
        for (int64_t y = 0; y < of->out_height; y++)                                                        \
            for (int64_t x = 0; x < of->out_width; x++, out += of->channels, taps += of->channels)          \
                EVERY(size, begin)                                                                          \
        greatest_##kind(of, map + begin, y * of->down - of->top, x * of->across - of->left, out + begin,    \
                        taps + begin);                                                                      \
    }                                                                                                       \
    INLINE void map_gathered_##kind(const Pool *of, const number *gradient, const tap *taps, number *map) { \
        Windows in;                                                                                         \
        for (int64_t y = of->top; y < of->top + of->height; y++)                                            \
            for (int64_t x = of->left; x < of->left + of->width; x++, map += of->channels) {                \
                windows_of(of, y, x, &in);                                                                  \
                EVERY(size, begin) gathered_##kind(&in, gradient + begin, taps + begin, map + begin);       \
            }                                                                                               \
    }

MAPS(half, uint16_t, int16_t, HALVES)
MAPS(single, float, int32_t, SINGLES)

#define GEOMETRY                                                                                            \
    int64_t height, int64_t width, int64_t channels, int64_t out_height, int64_t out_width, int64_t rows,   \
        int64_t columns, int64_t down, int64_t across, int64_t top, int64_t left, int rectified
#define POOL {height, width, channels, out_height, out_width, rows, columns, down, across, top, left, rectified}

/* The greatest of every window, and which of it that was: maps [B, height, width, channels], outs and taps
 * [B, out_height, out_width, channels].  Taps are int16 beside bf16, int32 beside fp32. */
EXPORT int fa_pool(const void *maps, void *outs, void *taps, int64_t first, int64_t last, int half, GEOMETRY) {
    const Pool of = POOL;
    for (int64_t image = first; image < last; image++) {
        int64_t in = image * height * width * channels, out = image * out_height * out_width * channels;
        if (half)
            map_greatest_half(&of, (const uint16_t *)maps + in, (uint16_t *)outs + out, (int16_t *)taps + out);
        else
            map_greatest_single(&of, (const float *)maps + in, (float *)outs + out, (int32_t *)taps + out);
    }
    return 0;
}

EXPORT int fa_pool_back(const void *gradients, const void *taps, void *maps, int64_t first, int64_t last, int half,
                        GEOMETRY) {
    const Pool of = POOL;
    for (int64_t image = first; image < last; image++) {
        int64_t in = image * height * width * channels, out = image * out_height * out_width * channels;
        if (half)
            map_gathered_half(&of, (const uint16_t *)gradients + out, (const int16_t *)taps + out,
                              (uint16_t *)maps + in);
        else
            map_gathered_single(&of, (const float *)gradients + out, (const int32_t *)taps + out, (float *)maps + in);
    }
    return 0;
}
