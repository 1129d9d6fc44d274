#include "getp/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace trivium::getp {

namespace {

std::atomic<CancelToken*> cancel_token{nullptr};
std::atomic<int> last_signal{0};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<CancelToken*>::is_always_lock_free);

extern "C" void on_signal(int signal_number) {
  if (last_signal.exchange(signal_number) != 0) ::_exit(128 + signal_number);
  if (CancelToken* token = cancel_token.load()) token->cancel();
}

}  // namespace

void install_signal_handlers(CancelToken& token) {
  cancel_token = &token;
  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigemptyset(&action.sa_mask);
  // No SA_RESTART: a read from the terminal must return so that chat can end.
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
}

int received_signal() { return last_signal.load(); }

int exit_code_of_signal() { return received_signal() == SIGTERM ? 143 : 130; }

}  // namespace trivium::getp
