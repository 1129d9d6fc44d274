#include "getp/overwrite.h"

#include <sys/stat.h>

#include <filesystem>

#include "getp/driver.h"
#include "getp/files.h"

namespace trivium::getp {

bool same_file(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty() || !is_plain_target(a) || !is_plain_target(b)) return false;
  struct stat of_a {
  }, of_b{};
  const bool has_a = ::stat(a.c_str(), &of_a) == 0, has_b = ::stat(b.c_str(), &of_b) == 0;
  if (has_a != has_b) return false;
  if (has_a) return of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
  std::error_code error;
  return std::filesystem::weakly_canonical(real_target(a), error) ==
         std::filesystem::weakly_canonical(real_target(b), error);
}

void check_not_overwritten(const NamedFile& output, const std::vector<std::string>& beside,
                           const std::vector<NamedFile>& others) {
  if (!is_plain_target(output.path)) return;
  for (const NamedFile& other : others) {
    if (same_file(output.path, other.path))
      throw UsageError(concat(output.option, " and ", other.option, " are both ", other.path,
                              ", which would be overwritten; choose another ", output.option));
    for (const std::string& ending : beside)
      if (same_file(real_target(output.path) + ending, other.path))
        throw UsageError(concat(output.option, " ", output.path, " overwrites ", other.path, ", which ",
                                other.option, " names; choose another ", output.option));
  }
}

}  // namespace trivium::getp
