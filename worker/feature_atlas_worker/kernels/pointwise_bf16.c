/* 1 x 1 convolutions of maps, [B, height, width, channels]: a product of matrices, with what follows it done before the
 * sums leave the registers.  Every pixel is summed up in the same order: the same bits in any batch.  Of bf16 numbers
 * only: of fp32 ones oneDNN is as fast.
 */
#include "kernels.h"

#if defined(__AVX512BW__)
#include "bf16.h"

enum {
    FEW = 600 * 1024,   /* bytes of weights that the second cache keeps from some pixels to the next */
    CACHE = 512 * 1024, /* where they are more, bytes of it for pixels that are gone through once per strip */
    STRIP = 2 * GROUP,  /* answers that are done at once */
};

typedef struct {
    int64_t channels, answers;  /* of the map, and of what comes out */
    int64_t pixel, line, image; /* numbers from a pixel that is looked at to the next one, to one in the next row that
                                   is looked at, and to one in the next image */
    int64_t width, height;      /* of what comes out */
    const float *bias;          /* [answers, up to a whole number of groups] */
    const number *added;        /* as what comes out, or nothing */
    int rectified;
} Job;

TARGET INLINE void finish(const Job *job, group sum, some wanted, group bias, number *outs, int64_t place) {
    sum += bias;
    if (job->added) sum += load(job->added + place, wanted);
    if (job->rectified) sum = above_zero(sum);
    store(outs + place, sum, wanted);
}

/* What will be written to and added, before there is anything to write. */
INLINE void fetch(const Job *job, number *outs, int64_t place) {
    __builtin_prefetch(outs + place, 1);
    if (job->added) __builtin_prefetch(job->added + place);
}

/* Some pixels' answers from channel n on; `place` is where the first one lies. */
typedef void Answer(const Job *job, const number *pixels, const number *weights, number *outs, int64_t place,
                    int64_t n);
#define ANSWER(count, columns)                                                                                        \
    TARGET static void answer_##count##_##columns(const Job *job, const number *pixels, const number *weights,        \
                                                  number *outs, int64_t place, int64_t n) {                           \
        group sum[ROWS][2], bias[2];                                                                                  \
        some wanted[2];                                                                                               \
        UNROLLED for (int p = 0; p < count; p++) fetch(job, outs, place + p * job->answers);                          \
        product(count, columns, pixels, job->pixel, weights, job->channels, n ? NULL : pixels + count * job->pixel,   \
                sum);                                                                                                 \
        UNROLLED for (int m = 0; m < columns; m++) {                                                                  \
            bias[m] = sums_at(job->bias + n + m * GROUP);                                                             \
            wanted[m] = some_of(job->answers - n - m * GROUP);                                                        \
        }                                                                                                             \
        UNROLLED for (int p = 0; p < count; p++)                                                                      \
            UNROLLED for (int m = 0; m < columns; m++)                                                                \
                finish(job, sum[p][m], wanted[m], bias[m], outs, place + p * job->answers + m * GROUP);               \
    }
TABLE(Answer, answer, ANSWER)

/* Pixels from number `begin` to `end` with a strip of weights, the answers from channel n on. */
static void strip(const Job *job, const number *maps, const number *weights, number *outs, int64_t begin,
                  int64_t end, int64_t n) {
    int64_t most = rows_at_once(job->pixel * (int64_t)sizeof(number)), columns = job->answers - n > GROUP ? 2 : 1;
    for (int64_t from = begin, count; from < end; from += count) {
        int64_t x = from % job->width, y = from / job->width % job->height, left = smaller(job->width - x, end - from);
        int64_t groups = (left + most - 1) / most, at = from / job->width / job->height * job->image;
        count = (left + groups - 1) / groups; /* 15 are 8 and 7 */
        answer[columns - 1][count](job, maps + at + y * job->line + x * job->pixel, weights, outs,
                                   from * job->answers + n, n);
    }
}

/* Maps to outs [B, height, width, answers], plus bias and where `adds` says so `added`, then where `rectified` says so
 * a ReLU.  `first` and `last` count pixels of outs; for the rest see Job; channels are even.  Weights: for every strip
 * of 32 answers (16 where no more are left) [channels / 2, 32, 2]. */
EXPORT int fa_pointwise_bf16(const number *maps, const number *weights, const float *bias, const number *added,
                             number *outs, int64_t first, int64_t last, int64_t channels, int64_t answers,
                             int64_t pixel, int64_t line, int64_t image, int64_t width, int64_t height, int adds,
                             int rectified) {
    const Job job = {channels, answers, pixel, line, image, width, height, bias, adds ? added : NULL, rectified};
    int64_t one = channels * (int64_t)sizeof(number), rows = rows_at_once(pixel * (int64_t)sizeof(number));
    int64_t most = answers * one <= FEW ? rows : larger(rows, CACHE / one), parts = (last - first + most - 1) / most;
    for (int64_t part = 0; part < parts; part++) {
        int64_t begin = first + (last - first) * part / parts, end = first + (last - first) * (part + 1) / parts;
        for (int64_t n = 0; n < answers; n += STRIP) strip(&job, maps, weights + n * channels, outs, begin, end, n);
    }
    return 0;
}

/* Whether there are products of bf16 numbers. */
EXPORT int fa_multiplies_half(void) { return 1; }

#else /* a processor without them */

EXPORT int fa_pointwise_bf16(void) { return 1; }

EXPORT int fa_multiplies_half(void) { return 0; }

#endif
