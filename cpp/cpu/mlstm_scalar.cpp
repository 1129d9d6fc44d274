#define TRIVIUM_CPU_NS scalar
#include "cpu/levels.h"
#include "cpu/mlstm_level.h"
