/* 1 x 1 convolutions of bf16 maps, [B, height, width, channels]: a product of matrices, with what follows it done
 * before the sums leave the registers.  Every pixel is summed up in the same order: the same bits in any batch. */
#include "bf16.h"

#if defined(__AVX512BW__)

enum {
    FEW = 600 * 1024,   /* bytes of weights that the second cache keeps from some pixels to the next */
    CACHE = 512 * 1024, /* where they are more, bytes of it for pixels that are gone through once per strip */
};

typedef struct {
    int64_t channels, answers;  /* of the map, and of what comes out */
    int64_t pixel, line, image; /* numbers from a pixel that is looked at to the next one, to one in the next row that
                                   is looked at, and to one in the next image */
    int64_t width, height;      /* of what comes out */
    const float *bias;          /* [answers, up to a whole number of groups] */
    const uint16_t *added;      /* as what comes out, or nothing */
    int rectified;
} Job;

BF16 INLINE void finish(const Job *job, __m512 sum, __mmask16 mask, __m512 bias, uint16_t *outs, int64_t place) {
    sum += bias;
    if (job->added) sum += widened(_mm256_maskz_loadu_epi16(mask, job->added + place));
    if (job->rectified) sum = _mm512_max_ps(_mm512_setzero_ps(), sum);
    _mm256_mask_storeu_epi16(outs + place, mask, (__m256i)_mm512_cvtneps_pbh(sum));
}

/* What will be written to and added, before there is anything to write. */
INLINE void fetch(const Job *job, uint16_t *outs, int64_t place) {
    __builtin_prefetch(outs + place, 1);
    if (job->added) __builtin_prefetch(job->added + place);
}

/* Some pixels' answers from channel n on; `place` is where the first one lies. */
typedef void Answer(const Job *job, const uint16_t *pixels, const uint16_t *weights, uint16_t *outs, int64_t place,
                    int64_t n);
#define ANSWER(count, columns)                                                                                        \
    BF16 static void answer_##count##_##columns(const Job *job, const uint16_t *pixels, const uint16_t *weights,      \
                                                uint16_t *outs, int64_t place, int64_t n) {                           \
        __m512 sum[ROWS][2], bias[2];                                                                                 \
        __mmask16 mask[2];                                                                                            \
        UNROLLED for (int p = 0; p < count; p++) fetch(job, outs, place + p * job->answers);                          \
        product(count, columns, pixels, job->pixel, weights, job->channels, n ? NULL : pixels + count * job->pixel,   \
                sum);                                                                                                 \
        UNROLLED for (int m = 0; m < columns; m++) {                                                                  \
            bias[m] = _mm512_loadu_ps(job->bias + n + m * GROUP);                                                     \
            mask[m] = group_of(job->answers - n - m * GROUP);                                                         \
        }                                                                                                             \
        UNROLLED for (int p = 0; p < count; p++)                                                                      \
            UNROLLED for (int m = 0; m < columns; m++)                                                                \
                finish(job, sum[p][m], mask[m], bias[m], outs, place + p * job->answers + m * GROUP);                 \
    }
TABLE(Answer, answer, ANSWER)

/* Whether there are products of bf16 numbers, here and in winograd.c. */
EXPORT int fa_multiplies_half(void) { return 1; }

/* Pixels from number `begin` to `end` with a strip of weights, the answers from channel n on. */
static void strip(const Job *job, const uint16_t *maps, const uint16_t *weights, uint16_t *outs, int64_t begin,
                  int64_t end, int64_t n) {
    int64_t most = rows_at_once(job->pixel), columns = job->answers - n > GROUP ? 2 : 1;
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
EXPORT int fa_pointwise(const uint16_t *maps, const uint16_t *weights, const float *bias, const uint16_t *added,
                        uint16_t *outs, int64_t first, int64_t last, int64_t channels, int64_t answers, int64_t pixel,
                        int64_t line, int64_t image, int64_t width, int64_t height, int adds, int rectified) {
    const Job job = {channels, answers, pixel, line, image, width, height, bias, adds ? added : NULL, rectified};
    int64_t one = channels * (int64_t)sizeof(uint16_t), rows = rows_at_once(pixel);
    int64_t most = answers * one <= FEW ? rows : larger(rows, CACHE / one), parts = (last - first + most - 1) / most;
    for (int64_t part = 0; part < parts; part++) {
        int64_t begin = first + (last - first) * part / parts, end = first + (last - first) * (part + 1) / parts;
        for (int64_t n = 0; n < answers; n += STRIP) strip(&job, maps, weights + n * channels, outs, begin, end, n);
    }
    return 0;
}

#else

EXPORT int fa_multiplies_half(void) { return 0; }

EXPORT int fa_pointwise(void) { return 1; }

#endif
