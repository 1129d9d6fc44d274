// How tokenizer.json writes byte strings as text.
#pragma once

#include <string>
#include <string_view>

namespace trivium::io {

// GPT-2's map of bytes to printable code points, inverted: 33-126, 161-172 and 174-255 stand for
// themselves, the other 68 bytes in rising order for U+0100 and up. False when a character stands for no
// byte.
bool undo_byte_map(std::string_view text, std::string& bytes);

}  // namespace trivium::io
