// Where exceptions end at a backend's edge; part of the core and of every backend library.
#include <new>

#include "core/backend.h"

namespace trivium {
namespace {

thread_local std::string t_guard_message;

}  // namespace

Status guard(void (*fn)(void*), void* context) noexcept {
  try {
    fn(context);
    return Status::ok;
  } catch (const InvalidArgument& e) {
    t_guard_message = e.what();
    return Status::invalid_argument;
  } catch (const DeviceError& e) {
    t_guard_message = e.what();
    return Status::device_error;
  } catch (const OutOfMemory& e) {
    t_guard_message = e.what();
    return Status::out_of_memory;
  } catch (const NotImplemented& e) {
    t_guard_message = e.what();
    return Status::not_implemented;
  } catch (const std::bad_alloc&) {
    t_guard_message = "out of host memory";
    return Status::out_of_memory;
  } catch (const std::exception& e) {
    t_guard_message = e.what();
    return Status::error;
  }
}

const char* guard_message() { return t_guard_message.c_str(); }

}  // namespace trivium
