/* What a step does to a picture's gradient, and to the spectrum that the picture is made of. */
#include "kernels.h"

/* The greatest magnitude. */
INLINE float peak_of(const float *values, int64_t count) {
    float peaks[LANES] = {0}, peak = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < LANES; k++) peaks[k] = fabsf(values[i + k]) > peaks[k] ? fabsf(values[i + k]) : peaks[k];
    for (; i < count; i++) peak = fabsf(values[i]) > peak ? fabsf(values[i]) : peak;
    for (int k = 0; k < LANES; k++) peak = peaks[k] > peak ? peaks[k] : peak;
    return peak;
}

/* The sum of squares of values / by. */
INLINE double squares_of(const float *values, float by, int64_t count) {
    double total = 0;
    int64_t i = 0;
    while (i + LANES <= count) {
        float sums[LANES] = {0};
        for (int n = 0; n < LANES && i + LANES <= count; n++, i += LANES)
            for (int k = 0; k < LANES; k++) sums[k] += (values[i + k] / by) * (values[i + k] / by);
        for (int k = 0; k < LANES; k++) total += sums[k];
    }
    for (; i < count; i++) total += (double)(values[i] / by) * (values[i] / by);
    return total;
}

/* Each image's gradient at unit root mean square, and its greatest magnitude; zeros stay zeros.  [B, count], [B] */
EXPORT int fa_unit_rms(const float *gradients, float *units, float *peaks, int64_t first, int64_t last, int64_t count) {
    for (int64_t image = first; image < last; image++) {
        const float *gradient = gradients + image * count;
        float *unit = units + image * count;
        float peak = peak_of(gradient, count), by = peak > 0 ? peak : 1;
        float rms = (float)sqrt(squares_of(gradient, by, count) / (double)count);
        peaks[image] = isnan(rms) ? NAN : peak;
        float over = rms > 0 ? rms : 1;
        for (int64_t i = 0; i < count; i++) unit[i] = gradient[i] / by / over;
    }
    return 0;
}

INLINE float sign(float of) { return (float)((of > 0) - (of < 0)); }

/* Back from a picture p = sigmoid(colour * planes): the gradient that comes, and `smooth` times total variation's, go
 * to the planes.  [B, 3, height, width] each, colour [3, 3] */
EXPORT int fa_picture_back(const float *gradients, const float *pictures, const float *colour, float *planes,
                           int64_t first, int64_t last, int64_t height, int64_t width, float smooth) {
    int64_t plane = height * width;
    float *rows = malloc((size_t)(3 * width) * sizeof(float));
    if (!rows) return 1;
    for (int64_t image = first; image < last; image++)
        for (int64_t y = 0; y < height; y++) {
            for (int c = 0; c < 3; c++) {
                int64_t at = image * 3 * plane + c * plane + y * width;
                const float *p = pictures + at, *g = gradients + at;
                const float *above = y ? p - width : p, *under = y + 1 < height ? p + width : p;
                float *row = rows + c * width;
                if (smooth != 0) {
                    for (int64_t x = 0; x < width; x++) row[x] = sign(p[x] - above[x]) + sign(p[x] - under[x]);
                    for (int64_t x = 1; x < width; x++) row[x] += sign(p[x] - p[x - 1]);
                    for (int64_t x = 0; x + 1 < width; x++) row[x] += sign(p[x] - p[x + 1]);
                    for (int64_t x = 0; x < width; x++) row[x] = g[x] + smooth * row[x];
                } else {
                    memcpy(row, g, (size_t)width * sizeof(float));
                }
                for (int64_t x = 0; x < width; x++) row[x] *= p[x] * (1 - p[x]);
            }
            for (int c = 0; c < 3; c++) {
                float *to = planes + image * 3 * plane + c * plane + y * width;
                for (int64_t x = 0; x < width; x++)
                    to[x] = colour[c] * rows[x] + colour[3 + c] * rows[width + x] + colour[6 + c] * rows[2 * width + x];
            }
        }
    free(rows);
    return 0;
}

/* Adam whose second moment is the mean over a band of frequencies, then the decay of fine ones.
 *
 * gradients, moments, spectra [B, 3, count]; seconds [B, count]; fineness [count]; band [count], members [bands]:
 * how many numbers, of three colours, share a band.  Adam's epsilon is 1e-8, outside the bias correction's root. */
EXPORT int fa_update(const float *gradients, float *moments, float *seconds, float *spectra, const int32_t *band,
                     const float *members, const float *fineness, int64_t first, int64_t last, int64_t count,
                     int64_t bands, float rate, float correction, float decay, float one, float two) {
    double *energies = malloc((size_t)bands * sizeof(double));
    float *means = malloc((size_t)bands * sizeof(float)), *squares = malloc((size_t)count * sizeof(float));
    int failed = !energies || !means || !squares;
    for (int64_t image = failed ? last : first; image < last; image++) {
        const float *gradient = gradients + image * 3 * count;
        float *second = seconds + image * count;
        for (int64_t i = 0; i < count; i++)
            squares[i] = gradient[i] * gradient[i] + gradient[count + i] * gradient[count + i] +
                         gradient[2 * count + i] * gradient[2 * count + i];
        memset(energies, 0, (size_t)bands * sizeof(double));
        for (int64_t i = 0; i < count; i++) energies[band[i]] += squares[i];
        for (int64_t b = 0; b < bands; b++) means[b] = (float)energies[b] / members[b];
        for (int64_t i = 0; i < count; i++) second[i] += (1 - two) * (means[band[i]] - second[i]);
        for (int64_t i = 0; i < count; i++) squares[i] = sqrtf(second[i]) / correction + 1e-8f;
        for (int c = 0; c < 3; c++) {
            const float *g = gradient + c * count;
            float *moment = moments + (image * 3 + c) * count, *spectrum = spectra + (image * 3 + c) * count;
            for (int64_t i = 0; i < count; i++) {
                moment[i] += (1 - one) * (g[i] - moment[i]);
                float kept = 1 - decay * fineness[i];
                spectrum[i] = (spectrum[i] - rate * moment[i] / squares[i]) * (kept > 0 ? kept : 0);
            }
        }
    }
    free(energies), free(means), free(squares);
    return failed;
}

/* What this was made of. */
EXPORT const char *fa_fingerprint(void) { return FINGERPRINT; }
