// SIGINT and SIGTERM: the first cancels what runs, the second ends the process at once.
#pragma once

#include "core/cancel.h"

namespace trivium::getp {

// Once a process; `token` must live as long as it. Also ignores SIGPIPE and SIGXFSZ, so that writes
// report EPIPE and EFBIG.
void install_signal_handlers(CancelToken& token);
int received_signal();      // 0 when none came
int exit_code_of_signal();  // 130 or 143; 130 when none came

}  // namespace trivium::getp
