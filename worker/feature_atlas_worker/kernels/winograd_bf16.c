#include "kernels.h"

#if defined(__AVX512BW__)
#include "bf16.h"

#define WINOGRAD fa_winograd_bf16
#include "winograd.h"

#else /* a processor without such products */

EXPORT int fa_winograd_bf16(void) { return 1; }

#endif
