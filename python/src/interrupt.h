// Long calls that Ctrl-C can stop.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>

#include "core/cancel.h"

namespace trivium::python {

// Runs work() in a helper thread while the calling thread, without the GIL, looks for Python signals every
// 20 ms. A signal handler's exception (KeyboardInterrupt) cancels `cancel`, and is raised once work() has
// returned; otherwise whatever work() threw is. Call with the GIL held.
void run_interruptible(CancelToken& cancel, const std::function<void()>& work);

// Cancels all runs and waits until they have returned; later runs are refused. For interpreter exit, when
// daemon threads may still generate.
void register_interrupts();

}  // namespace trivium::python
