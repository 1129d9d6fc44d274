// Model families by config.json model_type.
#include "models/model.h"
