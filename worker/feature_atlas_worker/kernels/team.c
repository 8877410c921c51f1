/* A convolution shared by the threads that PyTorch's own operations run on: between those, other threads would have to
 * wait for a core, for OpenMP's stay awake for a while. */
#include "kernels.h"

/* fa_pointwise_bf16 and its like. */
typedef int Kernel(const void *, const void *, const void *, const void *, void *, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int64_t, int64_t, int64_t, int64_t, int, int);
/* OpenMP's, as compilers call it: `work` by some threads at once. */
typedef void Parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    Kernel *kernel;
    const void *in[4];
    void *out;
    int64_t count, parts, next; /* of what the kernel counts; parts to do, and the next one that nobody has begun */
    int64_t numbers[7];
    int flags[2], failed;
} Task;

static void work(void *data) {
    Task *of = data;
    for (int64_t part; (part = __atomic_fetch_add(&of->next, 1, __ATOMIC_RELAXED)) < of->parts;) {
        const int64_t *n = of->numbers, first = of->count * part / of->parts, last = of->count * (part + 1) / of->parts;
        if (of->kernel(of->in[0], of->in[1], of->in[2], of->in[3], of->out, first, last, n[0], n[1], n[2], n[3], n[4],
                       n[5], n[6], of->flags[0], of->flags[1]))
            __atomic_store_n(&of->failed, 1, __ATOMIC_RELAXED);
    }
}

/* A kernel over `count` of what it counts, in so many parts.  1 where one of them has failed. */
EXPORT int fa_team(Parallel *parallel, Kernel *kernel, const void *maps, const void *weights, const void *bias,
                   const void *added, void *outs, int64_t parts, int64_t count, int64_t a, int64_t b, int64_t c,
                   int64_t d, int64_t e, int64_t f, int64_t g, int adds, int rectified) {
    Task task = {kernel, {maps, weights, bias, added}, outs, count, parts, 0, {a, b, c, d, e, f, g}, {adds, rectified},
                 0};
    parallel(work, &task, (unsigned)parts, 0);
    return task.failed;
}
