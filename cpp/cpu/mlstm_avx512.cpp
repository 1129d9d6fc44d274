#define TRIVIUM_CPU_NS avx512
#include "cpu/levels.h"
#include "cpu/mlstm_level.h"
