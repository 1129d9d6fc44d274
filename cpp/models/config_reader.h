// Reading a model's config.json.
#pragma once

#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "io/json.h"

namespace trivium {

// Reads keys and collects what is wrong with them, so that one error shows everything.
class ConfigReader {
 public:
  ConfigReader(const io::JsonValue& json, std::string name) : json_(json), name_(std::move(name)) {}

  // The first of `keys` that is present.
  const io::JsonValue* find(std::initializer_list<const char*> keys) const {
    for (const char* key : keys)
      if (const io::JsonValue* value = json_.find(key)) return value;
    return nullptr;
  }

  int64_t integer(std::initializer_list<const char*> keys, std::optional<int64_t> fallback = {}) {
    const io::JsonValue* value = find(keys);
    if (!value) {
      if (!fallback) problem(concat("\"", *keys.begin(), "\" is missing"));
      return fallback.value_or(0);
    }
    if (!value->is_integer()) {
      problem(concat("\"", *keys.begin(), "\" is not an integer"));
      return fallback.value_or(0);
    }
    return value->integer();
  }

  double number(std::initializer_list<const char*> keys, double fallback) {
    const io::JsonValue* value = find(keys);
    if (!value) return fallback;
    if (!value->is_number()) {
      problem(concat("\"", *keys.begin(), "\" is not a number"));
      return fallback;
    }
    return value->number();
  }

  bool boolean(const char* key, bool fallback) {
    const io::JsonValue* value = find({key});
    if (!value) return fallback;
    if (!value->boolean()) problem(concat("\"", key, "\" is not true or false"));
    return value->boolean() ? *value->boolean() : fallback;
  }

  // A token id or a list of them; empty when absent.
  std::vector<int32_t> token_ids(const char* key) {
    std::vector<int32_t> ids;
    const auto add = [&](const io::JsonValue& id) {
      const bool good =
          id.is_integer() && id.integer() >= 0 && id.integer() <= std::numeric_limits<int32_t>::max();
      require(good, concat("\"", key, "\" is not a token id"));
      if (good) ids.push_back(static_cast<int32_t>(id.integer()));
    };
    const io::JsonValue* value = json_.find(key);
    if (value && value->array())
      for (const io::JsonValue& id : *value->array()) add(id);
    else if (value)
      add(*value);
    return ids;
  }

  // Whether low <= value <= high; else a problem.
  bool in_range(const char* key, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high,
            concat("\"", key, "\" is ", value, ", expected ", low, " to ", high));
    return low <= value && value <= high;
  }

  void positive(const char* key, double value) {
    require(std::isfinite(value) && value > 0,
            concat("\"", key, "\" is ", value, ", expected a positive number"));
  }

  void problem(const std::string& text) { problems_ += (problems_.empty() ? "" : "; ") + text; }
  void require(bool holds, const std::string& text) {
    if (!holds) problem(text);
  }
  void finish() const {
    if (!problems_.empty()) throw ModelFormatError(concat(name_, ": ", problems_));
  }

 private:
  const io::JsonValue& json_;
  std::string name_, problems_;
};

}  // namespace trivium
