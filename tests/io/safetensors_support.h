// Small weight files for tests: a folder that cleans up after itself, and files made byte by byte.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "core/error.h"
#include "io/safetensors.h"

namespace trivium::io {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "trivium-io-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path(const std::string& name = "") const { return name.empty() ? path_ : path_ + "/" + name; }
  std::string write(const std::string& name, std::string_view bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }

 private:
  std::string path_;
};

inline std::string read_back(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string with_length(std::string_view header, uint64_t length) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file.append(header);
}

inline std::string make_file(std::string_view header, std::string_view data = "") {
  return with_length(header, header.size()).append(data);
}

// What a ModelFormatError says; fails the test on any other outcome but success, which gives "".
inline std::string model_error(const std::function<void()>& work) {
  try {
    work();
  } catch (const ModelFormatError& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 600u) << message;
    return message;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "not a ModelFormatError: " << error.what();
  }
  return "";
}

inline std::string open_error(const std::string& path, LoadMode mode = LoadMode::automatic) {
  return model_error([&] { TensorArchive::open(path, mode); });
}

inline bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace trivium::io
