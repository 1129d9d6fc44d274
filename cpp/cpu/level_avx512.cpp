#define TRIVIUM_CPU_NS avx512
#include "cpu/level_kernels.h"
