#include "fp32.h"

#define WINOGRAD fa_winograd_fp32
#include "winograd.h"

/* Numbers in a register, which the layout of weights depends on. */
EXPORT int fa_group(void) { return GROUP; }
