// Names of harmony's special tokens.
#pragma once

#include "io/tokenizer.h"

namespace trivium::io {

inline constexpr const char* kHarmonyStart = "<|start|>";
inline constexpr const char* kHarmonyMessage = "<|message|>";
inline constexpr const char* kHarmonyChannel = "<|channel|>";
inline constexpr const char* kHarmonyConstrain = "<|constrain|>";
inline constexpr const char* kHarmonyEnd = "<|end|>";
inline constexpr const char* kHarmonyReturn = "<|return|>";
inline constexpr const char* kHarmonyCall = "<|call|>";

// Id of a special token of harmony; InvalidArgument when the tokenizer has none of that name.
int32_t harmony_token(const Tokenizer& tokenizer, const char* name);

}  // namespace trivium::io
