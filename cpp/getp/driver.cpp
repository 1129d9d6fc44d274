#include "getp/driver.h"

#include <unistd.h>

#include <cstdio>

#include "core/error.h"
#include "core/parallel.h"
#include "core/registry.h"
#include "getp/files.h"
#include "getp/job.h"
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

int fail(int code, const char* message) {
  std::fprintf(stderr, "getp: %s\n", message);
  return code;
}

}  // namespace

void print(std::string_view text) { write_all(STDOUT_FILENO, text, "standard output"); }

std::shared_ptr<Model> load(const Options& options, const CancelToken& cancel) {
  if (options.threads > 0) set_num_threads(options.threads);
  LoadOptions load_options;
  try {
    load_options.device = parse_device(options.device);
  } catch (const InvalidArgument& error) {
    throw UsageError(error.what());
  }
  load_options.precision = options.precision;
  if (options.precision == Precision::automatic && load_options.device.kind == DeviceKind::cpu)
    load_options.precision = cpu_has_bf16_dot() ? Precision::bfloat16 : Precision::float32;
  load_options.tokenizer_path = options.tokenizer;
  load_options.load_mode = options.load;
  load_options.odd_window = options.odd_window;
  load_options.cancel = &cancel;
  const std::string precision = name_of(load_options.precision);
  std::string what = concat(load_options.device);
  if (load_options.device.kind == DeviceKind::cpu)
    what += concat(" (", cpu_level(), ", ", num_threads(), num_threads() == 1 ? " thread)" : " threads)");
  std::fprintf(stderr, "device: %s, precision %s, kv %s\n", what.c_str(), precision.c_str(),
               options.kv_dtype ? name_of(*options.kv_dtype) : precision.c_str());
  return load_model(options.model, load_options);
}

int run(const Options& options) {
  install_signal_handlers(cancel_token);
  try {
    return run_mode(options);
  } catch (const Cancelled&) {
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
