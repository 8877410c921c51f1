/* 3 x 3 convolutions of maps [B, height, width, channels], by minimal filtering, F(2 x 2, 3 x 3): 16 products for four
 * answers instead of 36 (Winograd 1980; Lavin and Gray 2016).  For the numbers of bf16.h or fp32.h, as WINOGRAD.
 *
 * A tile of 4 x 4 pixels is transformed to 16 points, each point's channels are multiplied with its weights, and the 16
 * products are transformed to 2 x 2 answers.  All sums are fp32.  Every tile is summed up in the same order, whatever
 * lies beside it: the same bits in any batch.
 */
enum {
    POINTS = 16,        /* of a tile */
    MOST = 112,         /* tiles that are transformed at once */
    CACHE = 256 * 1024, /* bytes of the second cache for what they are transformed to */
    STRIP = 2 * GROUP,  /* answers' channels for which the products are kept at once */
};

typedef struct {
    int64_t height, width, channels, top, left; /* of the map, and its padding */
    int64_t pixel;                              /* numbers from one of its pixels to the next */
    int64_t deep;                               /* its channels, up to a whole number of groups */
    int64_t high, wide, answers;                /* of what comes out: height, width, channels */
    int64_t down, across;                       /* its tiles */
    const float *bias;                          /* [answers, up to a whole number of groups] */
    const number *added;                        /* as what comes out, or nothing */
    int rectified;
} Job;

/* The products of one point: tiles [deep] with its weights, to sums [.., STRIP]. */
typedef void Multiply(const number *tiles, const number *weights, float *sums, int64_t deep);
#define MULTIPLY(count, columns)                                                                                      \
    TARGET static void multiply_##count##_##columns(const number *tiles, const number *weights, float *sums,          \
                                                    int64_t deep) {                                                   \
        group sum[ROWS][2];                                                                                           \
        product(count, columns, tiles, deep, weights, deep, NULL, sum);                                               \
        UNROLLED for (int t = 0; t < count; t++)                                                                      \
            UNROLLED for (int n = 0; n < columns; n++) memcpy(sums + t * STRIP + n * GROUP, &sum[t][n], sizeof(group));\
    }
TABLE(Multiply, multiply, MULTIPLY)

/* Four pixels one above the other, transformed downwards; outside the map lie zeros. */
TARGET INLINE void downwards(const Job *job, const number *const rows[4], int64_t x, some wanted, group out[4]) {
    group pixel[4];
    for (int i = 0; i < 4; i++)
        pixel[i] = rows[i] && x >= 0 && x < job->width
                       ? load(rows[i] + x * job->pixel, wanted)
                       : (group){0};
    out[0] = pixel[0] - pixel[2];
    out[1] = pixel[1] + pixel[2];
    out[2] = pixel[2] - pixel[1];
    out[3] = pixel[1] - pixel[3];
}

/* `count` tiles of one row of an image's tiles, from (y, x) of the map on, to points [POINTS, .., deep], `plane`
 * apart. */
TARGET static void transform(const Job *job, const number *image, int64_t y, int64_t x, int64_t count, number *points,
                           int64_t plane) {
    for (int64_t c = 0; c < job->deep; c += GROUP) {
        some wanted = some_of(job->channels - c);
        const number *rows[4];
        for (int i = 0; i < 4; i++)
            rows[i] = y + i >= 0 && y + i < job->height ? image + (y + i) * job->width * job->pixel + c : NULL;
        group column[4][4];  /* a tile's last two are the next one's first */
        downwards(job, rows, x, wanted, column[2]);
        downwards(job, rows, x + 1, wanted, column[3]);
        number *to = points + c;
        for (int64_t t = 1; t <= count; t++, to += job->deep) {
            for (int i = 0; i < 4; i++) column[0][i] = column[2][i], column[1][i] = column[3][i];
            downwards(job, rows, x + 2 * t, wanted, column[2]);
            downwards(job, rows, x + 2 * t + 1, wanted, column[3]);
            for (int i = 0; i < 4; i++) {
                group found[4] = {column[0][i] - column[2][i], column[1][i] + column[2][i],
                                   column[2][i] - column[1][i], column[1][i] - column[3][i]};
                for (int j = 0; j < 4; j++)
                    store(to + (4 * i + j) * plane, found[j], some_of(GROUP));
            }
        }
    }
}

/* The answers of `count` tiles from number `tile` on, a group of channels from `n` on, out of the products. */
TARGET static void answer(const Job *job, const float *sums, int64_t plane, int64_t tile, int64_t count, int64_t n,
                        number *out) {
    int64_t column = tile % job->across, row = tile / job->across % job->down, image = tile / job->across / job->down;
    some wanted = some_of(job->answers - n);
    group bias = sums_at(job->bias + n);
    for (int64_t t = 0; t < count; t++, sums += STRIP) {
        group above[2][4];
        for (int j = 0; j < 4; j++) {
            group sum[4];
            for (int i = 0; i < 4; i++) sum[i] = sums_at(sums + (4 * i + j) * plane);
            above[0][j] = sum[0] + sum[1] + sum[2];
            above[1][j] = sum[1] - sum[2] - sum[3];
        }
        for (int i = 0; i < 2; i++) {
            number *line = out + (image * job->high + 2 * row + i) * job->wide * job->answers + n;
            const number *other = job->added ? job->added + (line - out) : NULL;
            for (int j = 0; j < 2; j++) {
                if (2 * row + i >= job->high || 2 * column + j >= job->wide) continue;
                int64_t place = (2 * column + j) * job->answers;
                group found = bias + (j ? above[i][1] - above[i][2] - above[i][3]
                                         : above[i][0] + above[i][1] + above[i][2]);
                if (other) found += load(other + place, wanted);
                if (job->rectified) found = above_zero(found);
                store(line + place, found, wanted);
            }
        }
        if (++column < job->across) continue;
        column = 0;
        if (++row == job->down) row = 0, image++;
    }
}

/* Some tiles, from number `tile` on, of all images' in a row. */
static void tiles(const Job *job, const number *maps, const number *weights, number *out, int64_t tile,
                  int64_t count, number *points, float *sums) {
    int64_t plane = count * job->deep, place = count * STRIP;
    for (int64_t t = tile, most; t < tile + count; t += most) {
        int64_t row = t / job->across, x = t % job->across;
        most = smaller(job->across - x, tile + count - t);
        transform(job, maps + row / job->down * job->height * job->width * job->pixel,
                  2 * (row % job->down) - job->top, 2 * x - job->left, most, points + (t - tile) * job->deep, plane);
    }
    int64_t rows = rows_at_once(job->deep * (int64_t)sizeof(number)), groups = (count + rows - 1) / rows;
    for (int64_t n = 0; n < job->answers; n += STRIP) {
        int columns = job->answers - n > GROUP ? 2 : 1;
        for (int p = 0; p < POINTS; p++, weights += job->deep * columns * GROUP)
            for (int64_t i = 0; i < groups; i++) {
                int64_t from = count * i / groups, to = count * (i + 1) / groups;
                multiply[columns - 1][to - from](points + p * plane + from * job->deep, weights,
                                                 sums + p * place + from * STRIP, job->deep);
            }
        for (int m = 0; m < columns; m++) answer(job, sums + m * GROUP, place, tile, count, n + m * GROUP, out);
    }
}

/* Maps [B, height, width, channels], `pixel` numbers from one pixel to the next, to outs [B, high, wide, answers], plus
 * bias and where `adds` says so `added`, then where `rectified` says so a ReLU.  `first` and `last` count tiles of
 * 2 x 2 answers through all images.  Weights: for every strip of answers' channels (one group where no more are left)
 * [16 points, channels / PAIR, STRIP, PAIR], channels and answers up to whole groups.  1 where there is no memory. */
EXPORT int WINOGRAD(const number *maps, const number *weights, const float *bias, const number *added, number *outs,
                    int64_t first, int64_t last, int64_t height, int64_t width, int64_t channels, int64_t pixel,
                    int64_t answers, int64_t top, int64_t left, int adds, int rectified) {
    Job job = {.height = height, .width = width, .channels = channels, .top = top, .left = left, .pixel = pixel,
               .deep = (channels + GROUP - 1) / GROUP * GROUP, .high = height + 2 * top - 2,
               .wide = width + 2 * left - 2, .answers = answers, .bias = bias, .added = adds ? added : NULL,
               .rectified = rectified};
    job.down = (job.high + 1) / 2, job.across = (job.wide + 1) / 2;
    int64_t fit = CACHE / (POINTS * job.deep * (int64_t)sizeof(number)) / ROWS * ROWS;
    int64_t most = larger(1, smaller(last - first, larger(ROWS, smaller(MOST, fit))));
    number *points = aligned_alloc(VECTOR, (size_t)(POINTS * most * job.deep) * sizeof *points);
    float *sums = aligned_alloc(VECTOR, (size_t)(POINTS * most * STRIP) * sizeof *sums);
    if (points && sums)
        for (int64_t part = 0, parts = (last - first + most - 1) / most; part < parts; part++) {
            int64_t from = first + (last - first) * part / parts, to = first + (last - first) * (part + 1) / parts;
            tiles(&job, maps, weights, outs, from, to - from, points, sums);
        }
    free(points);
    free(sums);
    return !(points && sums);
}

