#include "cuda/arch.h"

#include <sstream>
#include <vector>

namespace trivium {
namespace {

std::vector<std::string> words(std::string_view text) {
  std::istringstream in{std::string(text)};
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

struct Target {
  int major = 0, minor = 0;
  bool ptx = false, exact = false;
};

Target parse(std::string word) {
  Target t;
  if (word.starts_with("ptx")) {
    t.ptx = true;
    word.erase(0, 3);
  }
  if (word.ends_with('a')) {
    t.exact = true;
    word.pop_back();
  }
  const int number = std::stoi(word);
  t.major = number / 10;
  t.minor = number % 10;
  return t;
}

}  // namespace

bool cuda_arch_served(std::string_view archs, int major, int minor) {
  for (const auto& word : words(archs)) {
    const Target t = parse(word);
    const bool same = t.major == major && t.minor == minor;
    const bool later = t.major == major && t.minor <= minor;
    if (t.ptx ? (later || t.major < major) : (t.exact ? same : later)) return true;
  }
  return false;
}

std::string cuda_arch_names(std::string_view archs) {
  std::string names, ptx;
  for (const auto& word : words(archs)) {
    if (word.starts_with("ptx"))
      ptx = " and everything after sm_" + word.substr(3);
    else
      names += (names.empty() ? "sm_" : " sm_") + word;
  }
  return names + ptx;
}

bool hip_arch_served(std::string_view archs, std::string_view arch) {
  for (const auto& word : words(archs))
    if (word == arch) return true;
  return false;
}

std::string hip_arch_name(int version) {
  if (version <= 0) return "";
  const int stepping = version % 100;
  const char last = static_cast<char>(stepping < 10 ? '0' + stepping : 'a' + stepping - 10);
  return "gfx" + std::to_string(version / 10000) + std::to_string(version / 100 % 100) + last;
}

}  // namespace trivium
