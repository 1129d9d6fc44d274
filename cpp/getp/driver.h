// getp's modes. run() prints, writes files and returns the exit code; it throws nothing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "core/error.h"
#include "getp/options.h"

namespace trivium::getp {

// Wrong use of the command line that only shows at run time.
class UsageError : public InvalidArgument {
 public:
  using InvalidArgument::InvalidArgument;
};

inline constexpr int kExitOk = 0, kExitError = 1, kExitUsage = 2, kExitIo = 74;

int run(const Options& options);

// One mode each; they throw, run() turns that into a sentence and an exit code.
int run_generate(const Options& options, const CancelToken& cancel);
int run_chat(const Options& options, const CancelToken& cancel);
int run_getp(const Options& options, const CancelToken& cancel);
int run_decode(const Options& options);
int run_merge(const Options& options);
int run_doctor(const Options& options);

// What --doctor prints.
std::string doctor_report();

// The devices the options ask for, at least one. UsageError for an unknown name or --devices where only one
// can be used; DeviceError when one cannot be had.
std::vector<Device> chosen_devices(const Options& options);

// What load_model() gets for `device`.
LoadOptions load_options(const Options& options, Device device, const CancelToken& cancel);

// "device: cpu (avx2, 2 threads), precision float32, kv float32": what the model's family makes of the
// options, from its files' headers alone.
std::string device_line(const Options& options, const std::vector<Device>& devices,
                        const CancelToken& cancel);
// Sets the threads and prints the device line.
void announce(const Options& options, const std::vector<Device>& devices, const CancelToken& cancel);

// Loads onto one device, with progress; `fingerprint` as in LoadOptions.
std::shared_ptr<Model> load(const Options& options, Device device, const CancelToken& cancel,
                            bool fingerprint = false);
// The same for modes that use one device: announces it first.
std::shared_ptr<Model> load(const Options& options, const CancelToken& cancel);

// Checked write to stdout, flushed.
void print(std::string_view text);

}  // namespace trivium::getp
