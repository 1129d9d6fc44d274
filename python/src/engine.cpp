// Model loading and generation: _core.Engine, wrapped by trivium/models.py.
#include <pybind11/stl.h>

#include <chrono>

#include "bindings.h"
#include "getp/session.h"
#include "interrupt.h"

namespace trivium::python {
namespace {

using getp::Engine;
using getp::Request;
using getp::Result;
using Clock = std::chrono::steady_clock;

// Calls a Python function at most ten times a second, and always when `last`. Runs on helper threads.
class Progress {
 public:
  explicit Progress(const py::object& function) : function_(function) {}

  bool wanted() const { return !function_.is_none(); }

  template <class... Args>
  void report(bool last, Args... args) {
    const auto now = Clock::now();
    if (!last && now - previous_ < std::chrono::milliseconds(100)) return;
    previous_ = now;
    const py::gil_scoped_acquire gil;
    function_(args...);
  }

 private:
  const py::object& function_;
  Clock::time_point previous_{};
};

std::shared_ptr<Engine> load(const std::string& path, const std::string& device, const std::string& precision,
                             const std::optional<std::string>& tokenizer, bool check_weights, int batch_size,
                             const std::optional<std::string>& kv_dtype, const py::object& on_progress) {
  CancelToken cancel;
  Progress progress(on_progress);
  std::shared_ptr<Engine> engine;
  run_interruptible(cancel, [&] {
    LoadOptions options{.device = parse_device(device),
                        .precision = parse_precision(precision),
                        .tokenizer_path = tokenizer.value_or(""),
                        .check_weights = check_weights,
                        .on_progress = {},
                        .cancel = &cancel};
    int64_t bytes = 0;
    if (progress.wanted())
      options.on_progress = [&](int64_t done, int64_t total) {
        bytes = total;
        if (done < total) progress.report(false, done, total);
      };
    getp::EngineOptions engine_options;
    engine_options.batch_size = batch_size;
    if (kv_dtype) engine_options.kv_dtype = parse_dtype(*kv_dtype);
    engine = std::make_shared<Engine>(load_model(path, options), engine_options);
    if (progress.wanted()) progress.report(true, bytes, bytes);
  });
  return engine;
}

std::vector<Result> generate(Engine& engine, const std::vector<Request>& requests,
                             const py::object& on_progress) {
  CancelToken cancel;
  Progress progress(on_progress);
  getp::GenerateCallbacks callbacks;
  if (progress.wanted())
    callbacks.on_progress = [&progress](const getp::EngineProgress& p) {
      progress.report(p.requests_done == p.requests, p.requests_done, p.requests, p.generated_tokens);
    };
  std::vector<Result> results;
  run_interruptible(cancel, [&] { results = engine.generate(requests, callbacks, &cancel); });
  return results;
}

Tensor logits(Engine& engine, const std::vector<int32_t>& ids) {
  CancelToken cancel;
  Tensor out;
  run_interruptible(cancel, [&] { out = getp::all_logits(engine.model(), ids, &cancel); });
  return out;
}

std::optional<getp::StreamPiece> next_piece(getp::TokenStream& stream) {
  CancelToken cancel;
  std::optional<getp::StreamPiece> piece;
  run_interruptible(cancel, [&] { piece = stream.next(&cancel); });
  return piece;
}

py::dict info(const Engine& engine) {
  const ModelInfo& m = engine.model().info();
  py::dict out;
  out["model_type"] = m.model_type;
  out["path"] = m.path;
  out["vocab_size"] = m.vocab_size;
  out["max_positions"] = m.max_positions;
  out["stop_ids"] = m.stop_ids;
  out["precision"] = name_of(m.precision);
  out["device"] = to_string(m.device);
  out["weight_bytes"] = m.weight_bytes;
  out["config_json"] = m.config_json;
  return out;
}

Request ids_request(const Engine& engine, std::vector<int32_t> prompt) {
  Request request;
  request.prompt = std::move(prompt);
  request.stop_ids = engine.model().info().stop_ids;
  return request;
}

io::ReasoningEffort parse_reasoning(const std::string& name) {
  if (name == "low") return io::ReasoningEffort::low;
  if (name == "medium") return io::ReasoningEffort::medium;
  if (name == "high") return io::ReasoningEffort::high;
  throw InvalidArgument(concat("reasoning is \"", printable(name), "\"; expected low, medium or high"));
}

void register_requests(py::module_& m) {
  py::class_<Request>(m, "Request", "Prompt ids and how to continue them.")
      .def(py::init<>())
      .def_readwrite("prompt", &Request::prompt)
      .def_readwrite("max_tokens", &Request::max_tokens)
      .def_readwrite("stop_ids", &Request::stop_ids)
      .def_readwrite("stop", &Request::stop)
      .def_readwrite("ignore_eos", &Request::ignore_eos)
      .def(
          "set_sampling",
          [](Request& r, float temperature, float top_p, int32_t top_k, float min_p, uint64_t seed) {
            r.sampling = {
                .temperature = temperature, .top_p = top_p, .top_k = top_k, .min_p = min_p, .seed = seed};
          },
          py::arg("temperature"), py::arg("top_p"), py::arg("top_k"), py::arg("min_p"), py::arg("seed"));
  py::class_<Result>(m, "Result")
      .def_readonly("tokens", &Result::tokens)
      .def_property_readonly("text", [](const Result& r) { return r.text; })
      .def_property_readonly("finish_reason", [](const Result& r) { return getp::name_of(r.finish_reason); })
      .def_readonly("prompt_tokens", &Result::prompt_tokens)
      .def_readonly("error", &Result::error);
  py::class_<io::HarmonyMessage>(m, "HarmonyMessage")
      .def(py::init<>())
      .def_readwrite("role", &io::HarmonyMessage::role)
      .def_readwrite("content", &io::HarmonyMessage::content)
      .def_readwrite("channel", &io::HarmonyMessage::channel)
      .def_readwrite("recipient", &io::HarmonyMessage::recipient)
      .def_readwrite("content_type", &io::HarmonyMessage::content_type)
      .def_readwrite("incomplete", &io::HarmonyMessage::incomplete);
  py::class_<getp::ChatReply>(m, "ChatReply")
      .def_readonly("text", &getp::ChatReply::text)
      .def_readonly("analysis", &getp::ChatReply::analysis)
      .def_readonly("messages", &getp::ChatReply::messages);
}

void register_stream(py::module_& m) {
  py::class_<getp::TokenStream>(m, "TokenStream")
      .def(
          "next",
          [](getp::TokenStream& s) -> std::optional<std::pair<int32_t, std::string>> {
            if (const auto piece = next_piece(s)) return std::pair{piece->token, piece->text};
            return std::nullopt;
          },
          "(token, text), token -1 for text held back until the end; None when the stream ended.")
      .def_property_readonly("result", &getp::TokenStream::result, py::return_value_policy::copy);
}

}  // namespace

void register_engine(py::module_& m) {
  register_interrupts();
  register_requests(m);
  register_stream(m);
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine",
                                              "A loaded model that generates; see trivium.Model.")
      .def("generate", generate, py::arg("requests"), py::arg("on_progress") = py::none())
      .def("stream", &Engine::stream, py::arg("request"), py::keep_alive<0, 1>(), release())
      .def("check", &Engine::check, py::arg("request"), release())
      .def("release_states", &Engine::release_states, release())
      .def("logits", logits, py::arg("ids"))
      .def("ids_request", ids_request, py::arg("ids"))
      .def(
          "text_request",
          [](const Engine& e, const py::bytes& text) {
            const std::string_view view = text;
            const py::gil_scoped_release nogil;
            return getp::text_request(e.model(), view);
          },
          py::arg("text"))
      .def(
          "chat_request",
          [](const Engine& e, const std::vector<io::HarmonyMessage>& messages, const std::string& reasoning,
             const std::string& date) {
            return getp::chat_request(
                e.model(), messages,
                {.reasoning = parse_reasoning(reasoning), .current_date = date, .tools = {}});
          },
          py::arg("messages"), py::arg("reasoning"), py::arg("current_date"), release())
      .def(
          "parse_chat_reply",
          [](const Engine& e, const std::vector<int32_t>& generated, const std::vector<std::string>& stop) {
            return getp::parse_chat_reply(e.model(), generated, stop);
          },
          py::arg("generated"), py::arg("stop"), release())
      .def_property_readonly(
          "tokenizer",
          [](const Engine& e) { return std::const_pointer_cast<io::Tokenizer>(e.model().tokenizer()); },
          "None when the folder has none.")
      .def_property_readonly("info", info);
  m.def("load", load, py::arg("path"), py::kw_only(), py::arg("device"), py::arg("precision"),
        py::arg("tokenizer"), py::arg("check_weights"), py::arg("batch_size"), py::arg("kv_dtype"),
        py::arg("on_progress"));
}

}  // namespace trivium::python
