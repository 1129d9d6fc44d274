// What every model folder holds beside its weights.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "models/model.h"

namespace trivium {

// eos_token_id of generation_config.json, or `fallback` when that does not give one.
std::vector<int32_t> stop_ids_of(const std::string& folder, std::vector<int32_t> fallback,
                                 int64_t vocab_size);

// The tokenizer the options name, else that of the first folder that has one; null when there is none.
std::shared_ptr<const io::Tokenizer> tokenizer_of(const std::vector<std::string>& folders, int64_t vocab_size,
                                                  const LoadOptions& options);

// What `auto` means for a family that runs in either: bfloat16 where the device multiplies it.
Precision resolve(Precision precision, Device device);

// What all families say of a model alike: everything but sizes and stops. To be asked last: the fingerprint,
// if it is wanted, reads all files.
ModelInfo info_of(const char* model_type, const std::string& path, const std::string& config_text,
                  const io::TensorArchive& archive, Precision precision, const LoadOptions& options);

// OutOfMemory when `bytes` of weights do not fit on a GPU; to be asked before anything is uploaded.
void check_weights_fit(const std::string& path, int64_t bytes, Device device);

}  // namespace trivium
