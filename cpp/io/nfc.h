// Normalization Form C (Unicode Standard Annex 15), in the Unicode version of unicode_tables.cpp.
#pragma once

#include <string>
#include <string_view>

namespace trivium::io {

// `text` in NFC. Ill-formed bytes stay as they are, and nothing composes across them.
std::string to_nfc(std::string_view text);

}  // namespace trivium::io
