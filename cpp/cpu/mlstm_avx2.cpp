#define TRIVIUM_CPU_NS avx2
#include "cpu/levels.h"
#include "cpu/mlstm_level.h"
