// Golden inputs and float64 results, written by tests/data/make_golden.py (safetensors files).
#pragma once

#include <string>
#include <vector>

#include "io/safetensors.h"
#include "support/backend.h"

namespace trivium::testing {

class Golden {
 public:
  explicit Golden(const std::string& name)
      : archive_(
            io::TensorArchive::open(std::string(TRIVIUM_TEST_DATA) + "/golden/" + name + ".safetensors")) {}
  bool has(const std::string& name) const { return archive_->contains(name); }
  Tensor host(const std::string& name) const { return archive_->tensor(name); }
  Tensor device(const std::string& name) const { return host(name).to(test_device()); }
  std::vector<double> doubles(const std::string& name) const { return doubles_of(host(name)); }
  int64_t number(const std::string& name) const { return host(name).data_as<int64_t>()[0]; }

 private:
  std::shared_ptr<io::TensorArchive> archive_;
};

}  // namespace trivium::testing
