#define TRIVIUM_CPU_NS scalar
#include "cpu/level_kernels.h"
