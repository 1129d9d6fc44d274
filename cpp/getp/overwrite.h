// Refuses a command line whose output would destroy one of its inputs.
#pragma once

#include <string>
#include <vector>

namespace trivium::getp {

struct NamedFile {
  std::string option;  // as the user wrote it: "-i"
  std::string path;    // "" when the option was not given
};

// Whether both name the same file, there or not; through links too. "-", devices and pipes equal nothing.
bool same_file(const std::string& a, const std::string& b);

// UsageError when writing `output` (the file itself, or `beside` it: the endings of what is kept there until
// it is whole) would replace one of `others`.
void check_not_overwritten(const NamedFile& output, const std::vector<std::string>& beside,
                           const std::vector<NamedFile>& others);

}  // namespace trivium::getp
