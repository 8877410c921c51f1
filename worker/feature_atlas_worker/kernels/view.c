/* What the network sees of a picture: one bilinear resampling, then a Gaussian blur; and the way back.
 *
 * Pixels are four floats side by side (three colours and nothing), so that one instruction moves a pixel.  A border of
 * one pixel around the source stands for everything outside.
 */
#include "kernels.h"

typedef float pixel __attribute__((vector_size(16)));

typedef struct {
    int64_t height, width;          /* of the picture */
    int64_t out_height, out_width;  /* of the view */
    int64_t reach;                  /* of the blur, in pixels; 0 for none */
    float fill;
} Geometry;

/* Room for one image. */
typedef struct {
    pixel *source;   /* [height + 2, width + 2] */
    pixel *rows;     /* [reach + out_height + reach, out_width] */
    pixel *line;     /* [reach + out_width + reach] */
    pixel *sums;     /* [out_width] */
    float *weights;  /* [reach + 1] */
    float *down;     /* [out_height]: what the weights inside add up to */
    float *across;   /* [out_width] */
    int32_t *place;  /* [out_width]: the first of four source pixels, or -1 */
    float *right;    /* [out_width]: shares of the pixels to the right and below */
    float *below;
} Room;

INLINE void *piece(char **memory, int64_t bytes) {
    void *found = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return found;
}

INLINE char *room_of(const Geometry *of, Room *room) {
    int64_t r = of->reach, w = of->out_width, h = of->out_height;
    int64_t sources = (of->height + 2) * (of->width + 2), rows = (h + 2 * r) * w, size = sizeof(pixel);
    int64_t total = (sources + rows + 2 * w + 2 * r) * size + (r + 1 + h + 4 * w) * 4 + 10 * 64;
    char *memory = NULL;
    if (posix_memalign((void **)&memory, 64, (size_t)total)) return NULL;
    char *next = memory;
    room->source = piece(&next, sources * size);
    room->rows = piece(&next, rows * size);
    room->line = piece(&next, (w + 2 * r) * size);
    room->sums = piece(&next, w * size);
    room->weights = piece(&next, (r + 1) * 4);
    room->down = piece(&next, h * 4);
    room->across = piece(&next, w * 4);
    room->place = piece(&next, w * 4);
    room->right = piece(&next, w * 4);
    room->below = piece(&next, w * 4);
    /* Nothing lies beyond the view's border; these are never written. */
    memset(room->rows, 0, (size_t)(r * w * size));
    memset(room->rows + (r + h) * w, 0, (size_t)(r * w * size));
    memset(room->line, 0, (size_t)(r * size));
    memset(room->line + r + w, 0, (size_t)(r * size));
    return memory;
}

INLINE void weigh(float *inside, const float *weights, int64_t reach, int64_t length) {
    for (int64_t i = 0; i < length; i++) {
        float sum = weights[0];
        for (int64_t d = 1; d <= reach; d++) sum += (i >= d ? weights[d] : 0) + (i + d < length ? weights[d] : 0);
        inside[i] = sum;
    }
}

INLINE void prepare_blur(const Geometry *of, Room *room, float sigma) {
    float least = sigma > 1e-2f ? sigma : 1e-2f;
    for (int64_t d = 0; d <= of->reach; d++) room->weights[d] = expf(-0.5f * ((float)d / least) * ((float)d / least));
    weigh(room->down, room->weights, of->reach, of->out_height);
    weigh(room->across, room->weights, of->reach, of->out_width);
}

/* out[i] = sum over d of weights[d] * (middle[i - d * step] + middle[i + d * step]) */
INLINE void sum_around(float *restrict out, const float *middle, const float *weights, int64_t reach, int64_t step,
                       int64_t count) {
    int64_t begin = 0;
    for (; begin + LANES <= count; begin += LANES) {
        const float *at = middle + begin;
        float sum[LANES];
        for (int i = 0; i < LANES; i++) sum[i] = at[i] * weights[0];
        for (int64_t d = 1; d <= reach; d++)
            for (int i = 0; i < LANES; i++) sum[i] += (at[i - d * step] + at[i + d * step]) * weights[d];
        for (int i = 0; i < LANES; i++) out[begin + i] = sum[i];
    }
    for (; begin < count; begin++) {
        float sum = middle[begin] * weights[0];
        for (int64_t d = 1; d <= reach; d++)
            sum += (middle[begin - d * step] + middle[begin + d * step]) * weights[d];
        out[begin] = sum;
    }
}

/* Where the pixels of one row of the view come from; as grid_sample with align_corners=False. */
INLINE void look_up(const Geometry *of, Room *room, const float *theta, int64_t y) {
    int64_t w = of->out_width, h = of->out_height;
    float row = (float)(2 * y + 1 - h) / (float)h, width = (float)of->width, height = (float)of->height;
    float start_x = theta[2] + theta[1] * row, start_y = theta[5] + theta[4] * row;
    for (int64_t x = 0; x < w; x++) {
        float column = (float)(int32_t)(2 * x + 1 - w) / (float)w;
        float at_x = (start_x + theta[0] * column + 1) * (0.5f * width) - 0.5f;
        float at_y = (start_y + theta[3] * column + 1) * (0.5f * height) - 0.5f;
        /* Everything farther out is as far as this. */
        at_x = at_x > -2 ? (at_x < width + 1 ? at_x : width + 1) : -2;
        at_y = at_y > -2 ? (at_y < height + 1 ? at_y : height + 1) : -2;
        float left = floorf(at_x), top = floorf(at_y);
        int32_t i = (int32_t)left, j = (int32_t)top;
        int32_t inside = (i >= -1) & (j >= -1) & (i < (int32_t)of->width) & (j < (int32_t)of->height);
        room->right[x] = at_x - left;
        room->below[x] = at_y - top;
        room->place[x] = inside ? (j + 1) * (int32_t)(of->width + 2) + i + 1 : -1;
    }
}

INLINE void take(const Geometry *of, const Room *room, pixel *restrict row) {
    const pixel fill = {of->fill, of->fill, of->fill, 0};
    int64_t next = of->width + 2;
    for (int64_t x = 0; x < of->out_width; x++) {
        if (room->place[x] < 0) {
            row[x] = fill;
            continue;
        }
        const pixel *at = room->source + room->place[x];
        float u = room->right[x], v = room->below[x];
        pixel upper = at[0] * (1 - u) + at[1] * u, lower = at[next] * (1 - u) + at[next + 1] * u;
        row[x] = upper * (1 - v) + lower * v + fill;
    }
}

INLINE void give(const Geometry *of, const Room *room, const pixel *row) {
    int64_t next = of->width + 2;
    for (int64_t x = 0; x < of->out_width; x++) {
        if (room->place[x] < 0) continue;
        pixel *at = room->source + room->place[x];
        float u = room->right[x], v = room->below[x];
        pixel lower = row[x] * v, upper = row[x] * (1 - v);
        at[0] += upper * (1 - u);
        at[1] += upper * u;
        at[next] += lower * (1 - u);
        at[next + 1] += lower * u;
    }
}

/* Row `y` of the view, blurred but not divided by what its weights add up to, in `sums`. */
INLINE void blur_row(const Geometry *of, Room *room, int64_t y) {
    int64_t w = of->out_width, r = of->reach;
    sum_around((float *)(room->line + r), (const float *)(room->rows + (r + y) * w), room->weights, r, 4 * w, 4 * w);
    sum_around((float *)room->sums, (const float *)(room->line + r), room->weights, r, 4, 4 * w);
}

/* [3, height, width] -> [out_height, out_width, 3] */
static void view_one(const Geometry *of, Room *room, const float *picture, const float *theta, float sigma,
                     float *view) {
    int64_t h = of->height, w = of->width, plane = h * w, out_w = of->out_width, r = of->reach;
    memset(room->source, 0, (size_t)((h + 2) * (w + 2)) * sizeof(pixel));
    for (int64_t y = 0; y < h; y++) {
        const float *from = picture + y * w;
        pixel *row = room->source + (y + 1) * (w + 2) + 1;
        /* Zero outside is exact for the shifted picture, whatever the fill. */
        for (int64_t x = 0; x < w; x++)
            row[x] = (pixel){from[x] - of->fill, from[plane + x] - of->fill, from[2 * plane + x] - of->fill, 0};
    }
    for (int64_t y = 0; y < of->out_height; y++) {
        look_up(of, room, theta, y);
        take(of, room, room->rows + (r + y) * out_w);
    }
    if (r) prepare_blur(of, room, sigma);
    for (int64_t y = 0; y < of->out_height; y++) {
        const pixel *row = r ? room->sums : room->rows + y * out_w;
        float *to = view + 3 * y * out_w;
        if (r) blur_row(of, room, y);
        for (int64_t x = 0; x < out_w; x++) {
            pixel out = r ? row[x] / (room->down[y] * room->across[x]) : row[x];
            for (int c = 0; c < 3; c++) to[3 * x + c] = out[c];
        }
    }
}

/* [out_height, out_width, 3] -> [3, height, width] */
static void view_back_one(const Geometry *of, Room *room, const float *gradient, const float *theta, float sigma,
                          float *picture) {
    int64_t h = of->height, w = of->width, plane = h * w, out_w = of->out_width, r = of->reach;
    memset(room->source, 0, (size_t)((h + 2) * (w + 2)) * sizeof(pixel));
    if (r) prepare_blur(of, room, sigma);
    for (int64_t y = 0; y < of->out_height; y++) {
        const float *from = gradient + 3 * y * out_w;
        pixel *row = room->rows + (r + y) * out_w;
        for (int64_t x = 0; x < out_w; x++) {
            row[x] = (pixel){from[3 * x], from[3 * x + 1], from[3 * x + 2], 0};
            if (r) row[x] /= room->down[y] * room->across[x];
        }
    }
    for (int64_t y = 0; y < of->out_height; y++) {
        look_up(of, room, theta, y);
        if (r) blur_row(of, room, y);
        give(of, room, r ? room->sums : room->rows + y * out_w);
    }
    for (int64_t y = 0; y < h; y++) {
        const pixel *row = room->source + (y + 1) * (w + 2) + 1;
        for (int64_t x = 0; x < w; x++)
            for (int c = 0; c < 3; c++) picture[c * plane + y * w + x] = row[x][c];
    }
}

/* Images first to last - 1 of a batch, `taken` numbers each, one after the other; 1 where there is no memory. */
static int every(void (*one)(const Geometry *, Room *, const float *, const float *, float, float *), const float *from,
                 int64_t taken, const float *thetas, const float *sigmas, float *to, int64_t given, int64_t first,
                 int64_t last, const Geometry *of) {
    Room room;
    char *memory = room_of(of, &room);
    if (!memory) return 1;
    for (int64_t i = first; i < last; i++)
        one(of, &room, from + i * taken, thetas + i * 6, sigmas[i], to + i * given);
    free(memory);
    return 0;
}

EXPORT int fa_view(const float *pictures, const float *thetas, const float *sigmas, float *views, int64_t first,
                   int64_t last, int64_t height, int64_t width, int64_t out_height, int64_t out_width, int64_t reach,
                   float fill) {
    Geometry of = {height, width, out_height, out_width, reach, fill};
    int64_t picture = 3 * height * width, view = 3 * out_height * out_width;
    return every(view_one, pictures, picture, thetas, sigmas, views, view, first, last, &of);
}

EXPORT int fa_view_back(const float *gradients, const float *thetas, const float *sigmas, float *pictures, int64_t first,
                        int64_t last, int64_t height, int64_t width, int64_t out_height, int64_t out_width,
                        int64_t reach, float fill) {
    Geometry of = {height, width, out_height, out_width, reach, fill};
    int64_t picture = 3 * height * width, view = 3 * out_height * out_width;
    return every(view_back_one, gradients, view, thetas, sigmas, pictures, picture, first, last, &of);
}

/* (picture - mean) / std, colours side by side: [B, 3, plane], or [B, plane, 3] where `beside`, -> [B, plane, 3].  With
 * a mean of zero it is the way back, too. */
EXPORT int fa_normalise(const float *pictures, float *out, const float *mean, const float *std, int64_t first,
                        int64_t last, int64_t plane, int beside) {
    for (int64_t image = first; image < last; image++) {
        const float *from = pictures + image * 3 * plane;
        float *to = out + image * 3 * plane;
        for (int64_t i = 0; i < plane; i++)
            for (int c = 0; c < 3; c++)
                to[3 * i + c] = ((beside ? from[3 * i + c] : from[c * plane + i]) - mean[c]) / std[c];
    }
    return 0;
}
