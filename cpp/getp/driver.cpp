#include "getp/driver.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/parallel.h"
#include "core/registry.h"
#include "getp/files.h"
#include "getp/job.h"
#include "getp/memory.h"
#include "getp/progress.h"
#include "getp/signals.h"

namespace trivium::getp {

namespace {

CancelToken cancel_token;  // for the signal handlers, which outlive every mode

int run_mode(const Options& options) {
  switch (options.mode) {
    case Mode::generate:
      return run_generate(options, cancel_token);
    case Mode::chat:
      return run_chat(options, cancel_token);
    case Mode::getp:
      return run_getp(options, cancel_token);
    case Mode::decode:
      return run_decode(options);
    case Mode::merge:
      return run_merge(options);
    case Mode::doctor:
      return run_doctor(options);
  }
  return kExitUsage;
}

// A file that is opened must not become descriptor 0, 1 or 2: what is printed would go into it. A closed one
// is filled with something that can be neither read nor written, as before.
void fill_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
      throw IoError(concat("descriptor ", fd, " is closed and /dev/null cannot be opened in its place"));
}

// After an interrupt the shell's prompt starts on a line of its own.
void end_terminal_line(const Options& options) {
  const bool streams = options.mode == Mode::generate || options.mode == Mode::chat;
  if (!streams || ::isatty(STDOUT_FILENO) != 1) return;
  [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, "\n", 1);
}

int fail(int code, const char* message) {
  std::fprintf(stderr, "getp: %s\n", one_line(message).c_str());  // a path may hold a line feed
  return code;
}

}  // namespace

void print(std::string_view text) { write_all(STDOUT_FILENO, text, "standard output"); }

std::vector<Device> chosen_devices(const Options& options) {
  Device first;
  try {
    first = parse_device(options.device);
  } catch (const InvalidArgument& error) {
    throw UsageError(error.what());
  }
  if (options.devices.empty()) return {first};
  if (options.mode != Mode::getp && options.devices.size() > 1)
    throw UsageError("--devices with more than one device is for -m getp");
  if (options.device.find(':') != std::string::npos)
    throw UsageError(
        concat("--device ", options.device, " names one device; with --devices give its kind only"));
  std::vector<Device> devices;
  for (const int index : options.devices)
    devices.push_back(parse_device(concat(name_of(first.kind), ":", index)));
  return devices;
}

LoadOptions load_options(const Options& options, Device device, const CancelToken& cancel) {
  LoadOptions load;
  load.device = device;
  load.precision = options.precision;  // auto: the model's family decides
  load.tokenizer_path = options.tokenizer;
  load.load_mode = options.load;
  load.odd_window = options.odd_window;
  load.cancel = &cancel;
  return load;
}

std::string device_line(const Options& options, const std::vector<Device>& devices,
                        const CancelToken& cancel) {
  const auto model = describe_model(options.model, load_options(options, devices.front(), cancel));
  std::string what;
  for (const Device device : devices) {
    what += concat(what.empty() ? "" : ", ", device);
    if (device.kind == DeviceKind::cpu) {
      what += concat(" (", cpu_level(), ", ", num_threads(), num_threads() == 1 ? " thread)" : " threads)");
    } else {
      const DeviceProperties p = device_properties(device);
      what += concat(" (", p.name, ", ", p.arch, ", ", format_bytes(p.free_bytes), " free)");
    }
  }
  const StateKind state = model->state_kind(options.kv_dtype.value_or(model->default_kv_dtype()));
  return concat("device: ", what, ", precision ", name_of(model->info().precision), ", ", state.name, ' ',
                state.dtype);
}

void announce(const Options& options, const std::vector<Device>& devices, const CancelToken& cancel) {
  if (options.threads > 0) set_num_threads(options.threads);
  std::fprintf(stderr, "%s\n", device_line(options, devices, cancel).c_str());
}

std::shared_ptr<Model> load(const Options& options, Device device, const CancelToken& cancel,
                            bool fingerprint) {
  LoadOptions load = load_options(options, device, cancel);
  const bool shown = !options.quiet && !options.no_progress;
  std::optional<LoadProgress> progress(std::in_place, concat("loading onto ", device), shown);
  load.on_progress = [&](int64_t done, int64_t total) { progress->update(done, total); };
  load.fingerprint = fingerprint;
  bool hashing = false;
  load.on_hash_progress = [&](int64_t done, int64_t total) {
    if (!std::exchange(hashing, true)) progress.emplace("hashing the weights for the journal", shown);
    progress->update(done, total);
  };
  return load_model(options.model, load);
}

std::shared_ptr<Model> load(const Options& options, const CancelToken& cancel) {
  const std::vector<Device> devices = chosen_devices(options);
  announce(options, devices, cancel);
  return load(options, devices.front(), cancel);
}

int run(const Options& options) {
  install_signal_handlers(cancel_token);
  try {
    fill_standard_descriptors();
    return run_mode(options);
  } catch (const Cancelled&) {
    end_terminal_line(options);
    return exit_code_of_signal();
  } catch (const UsageError& error) {
    return fail(kExitUsage, error.what());
  } catch (const IoError& error) {
    return fail(kExitIo, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kExitError, "out of memory");
  } catch (const std::exception& error) {
    return fail(kExitError, error.what());
  }
}

}  // namespace trivium::getp
