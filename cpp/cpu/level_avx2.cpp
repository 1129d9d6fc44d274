#define TRIVIUM_CPU_NS avx2
#include "cpu/level_kernels.h"
