// What may be written to a terminal.
#pragma once

#include <string>

namespace trivium::getp {

// Whether `fd` is a terminal that understands escape sequences: not TERM=dumb.
bool is_terminal(int fd);
// The same, and colours are wanted: NO_COLOR (no-color.org) is unset or empty.
bool takes_colour(int fd);

// `text`, cut to what one line of the terminal shows: a line that wraps cannot be rewritten. ASCII only.
std::string fit_to_width(std::string text, int fd);

}  // namespace trivium::getp
