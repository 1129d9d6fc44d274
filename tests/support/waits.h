// How often the host has waited for the emulated device.
#pragma once

#include <dlfcn.h>

#include "core/registry.h"
#include "support/backend.h"

namespace trivium::testing {

// The module's own count.
inline int64_t device_waits() {
  Dl_info module{};
  dladdr(reinterpret_cast<void*>(runtime(test_device()).stream_synchronize), &module);
  void* library = dlopen(module.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  void* found = library ? dlsym(library, "trivium_emu_waits") : nullptr;
  if (library) dlclose(library);
  if (!found) throw Error("the emulator does not count its waits");
  return reinterpret_cast<int64_t (*)()>(found)();
}

}  // namespace trivium::testing
