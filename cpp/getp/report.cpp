#include "getp/report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>

#include "core/error.h"
#include "getp/output.h"
#include "io/json.h"

namespace trivium::getp {

namespace {

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

int64_t peak_memory_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

double rate(int64_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

}  // namespace

double Report::tokens_per_second() const { return rate(scheduler.generated_tokens, inference_seconds); }

std::string to_text(const Report& r, bool profile) {
  const auto n = [](int64_t x) { return static_cast<long long>(x); };
  std::string text = format("requests: %lld (%lld failed, %lld resumed)\n", n(r.requests),
                            n(r.failed_requests), n(r.resumed_requests));
  text += format("tokens: %lld prompt, %lld generated (%lld resumed)\n", n(r.prompt_tokens),
                 n(r.output_tokens), n(r.resumed_tokens));
  text += format("warm-up: %.3f s (load %.3f s)\n", r.warm_up_seconds, r.load_seconds);
  text += format("inference: %.3f s\n", r.inference_seconds);
  text += format("throughput: %.1f tokens/s generated, %.1f tokens/s with prompts\n", r.tokens_per_second(),
                 rate(r.scheduler.generated_tokens + r.scheduler.prompt_tokens, r.inference_seconds));
  if (!profile) return text;
  text += format("profile: tokenise %.3f s, model %.3f s, sample %.3f s\n", r.tokenize_seconds,
                 r.scheduler.forward_seconds, r.scheduler.sample_seconds);
  return text + format("profile: %lld steps, %.1f tokens a step, %lld preemptions\n", n(r.scheduler.steps),
                       rate(r.scheduler.processed_tokens, static_cast<double>(r.scheduler.steps)),
                       n(r.scheduler.preemptions));
}

std::string to_json(const Report& r) {
  io::JsonWriter json;
  json.begin_object().key("requests").integer(r.requests).key("failed_requests").integer(r.failed_requests);
  json.key("resumed_requests").integer(r.resumed_requests).key("prompt_tokens").integer(r.prompt_tokens);
  json.key("generated_tokens")
      .integer(r.scheduler.generated_tokens)
      .key("output_tokens")
      .integer(r.output_tokens);
  json.key("resumed_tokens").integer(r.resumed_tokens).key("load_seconds").number(r.load_seconds);
  json.key("warm_up_seconds").number(r.warm_up_seconds).key("inference_seconds").number(r.inference_seconds);
  json.key("tokens_per_second").number(r.tokens_per_second());
  json.key("tokenize_seconds").number(r.tokenize_seconds);
  json.key("model_seconds").number(r.scheduler.forward_seconds);
  json.key("sample_seconds").number(r.scheduler.sample_seconds);
  json.key("steps").integer(r.scheduler.steps).key("processed_tokens").integer(r.scheduler.processed_tokens);
  json.key("preemptions").integer(r.scheduler.preemptions).key("batch_size").integer(r.batch_size);
  json.key("cache_bytes").integer(r.cache_bytes).key("peak_memory_bytes").integer(peak_memory_bytes());
  json.key("threads").integer(r.threads).key("seed").string(std::to_string(r.seed));
  json.key("device").string(r.device).key("precision").string(r.precision).key("kv").string(r.kv);
  return json.end_object().text();
}

bool verify(const std::string& expected, const std::vector<Result>& results,
            const std::vector<int64_t>& lines, bool whole, bool quiet) {
  int64_t count = 0, equal = 0;
  size_t next = 0;  // lines[] is sorted
  read_outputfile(expected, [&](int64_t k, const std::vector<int32_t>& want) {
    ++count;
    if (next == lines.size() || lines[next] != k) return;
    const std::vector<int32_t>& got = results[next++].tokens;
    const auto at = std::mismatch(got.begin(), got.end(), want.begin(), want.end());
    const bool same = at.first == got.end() && at.second == want.end();
    equal += same;
    if (quiet) return;
    const auto shown = [](auto it, const std::vector<int32_t>& ids) {
      return it == ids.end() ? std::string("the end") : std::to_string(*it);
    };
    std::string text = concat("verify line ", k + 1, ": ");
    if (same)
      text += concat("match, ", got.size(), " tokens");
    else
      text += concat("first difference at token ", at.first - got.begin(), ": got ", shown(at.first, got),
                     ", expected ", shown(at.second, want));
    std::fprintf(stderr, "%s\n", text.c_str());
  });
  const bool length = !whole || count == static_cast<int64_t>(lines.size());
  std::fprintf(stderr, "verify: %lld of %zu lines match%s\n", static_cast<long long>(equal), lines.size(),
               length ? "" : concat("; ", expected, " has ", count, " lines").c_str());
  return length && equal == static_cast<int64_t>(lines.size());
}

}  // namespace trivium::getp
