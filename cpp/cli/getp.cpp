// The getp command: argument parsing only. Everything else is cpp/getp.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/registry.h"
#include "getp/driver.h"
#include "io/json.h"
#include "io/tokenizer.h"

namespace {

using trivium::concat;
using trivium::getp::Mode;
using trivium::getp::Options;

// Wrong use of the command line: one sentence, exit code 2.
struct UsageError {
  std::string message;
};

const std::vector<std::pair<std::string, Mode>> kModes = {
    {"generate", Mode::generate}, {"chat", Mode::chat},   {"getp", Mode::getp},
    {"decode", Mode::decode},     {"merge", Mode::merge}, {"doctor", Mode::doctor}};

const Mode* find_mode(const std::string& name) {
  for (const auto& [text, mode] : kModes)
    if (text == name) return &mode;
  return nullptr;
}

Mode parse_mode(const std::string& name) {
  if (const Mode* mode = find_mode(name)) return *mode;
  if (std::filesystem::exists(name))
    throw UsageError{concat("-m is the mode (generate, chat, getp, decode or merge), and \"", name,
                            "\" is a path: give the model without -m, or as --model ", name)};
  throw UsageError{concat("unknown mode \"", name, "\"; there are generate, chat, getp, decode and merge")};
}

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

int64_t parse_integer(const std::string& name, const std::string& text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = error == std::errc() && end == text.data() + text.size() && !text.empty();
  if (good && value >= min && value <= max) return value;
  throw UsageError{concat(name, " is \"", text, "\", expected an integer ",
                          max == kMaxInt64 && error != std::errc::result_out_of_range
                              ? concat("of ", min, " or more")
                              : concat("from ", min, " to ", max))};
}

uint64_t parse_seed(const std::string& text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error == std::errc() && end == text.data() + text.size()) return seed;
  throw UsageError{concat("--seed is \"", text, "\", expected an integer from 0 to ",
                          std::numeric_limits<uint64_t>::max())};
}

float parse_number(const std::string& name, const std::string& text, double max) {
  double value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = error == std::errc() && end == text.data() + text.size() && !text.empty();
  if (good && value >= 0 && value <= max && std::isfinite(static_cast<float>(value)))
    return static_cast<float>(value);
  throw UsageError{concat(name, " is \"", text, "\", expected a number ",
                          max < 1e300 ? concat("from 0 to ", max) : std::string("of 0 or more"))};
}

// The option's environment variable: --batch-size reads TRIVIUM_BATCH_SIZE.
std::string env_name(const std::string& names) {
  const std::string long_names = names.substr(names.find("--") + 2);
  std::string name = "TRIVIUM_" + long_names.substr(0, long_names.find(','));
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

class Parser {
 public:
  explicit Parser(Options& options) : options_(options) {
    app_.set_help_flag("-h,--help", "Print this help and exit");
    app_.allow_extras();
    app_.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    add_files();
    add_generation();
    add_machine();
    add_jobs();
  }

  // Returns an exit code when there is nothing to run, -1 otherwise.
  int parse(std::vector<std::string> args);

 private:
  void integer(const char* names, int64_t min, int64_t max, const char* help,
               std::function<void(int64_t)> set) {
    text(names, help, [=](const std::string& value) {
      set(parse_integer(long_name(names), value, min, max));
    })->type_name("N");
  }
  void number(const char* names, double max, const char* help, float& target) {
    text(names, help, [=, &target](const std::string& value) {
      target = parse_number(long_name(names), value, max);
    })->type_name("X");
  }
  CLI::Option* text(const char* names, const char* help, std::function<void(const std::string&)> set) {
    return app_.add_option_function<std::string>(names, std::move(set), help)->envname(env_name(names));
  }
  static std::string long_name(const std::string& names) { return names.substr(names.find("--")); }

  void add_files();
  void add_generation();
  void add_machine();
  void add_jobs();
  void take_positionals(const std::vector<std::string>& positionals);
  void check_complete() const;
  [[noreturn]] void unknown_option(const std::string& arg) const;

  Options& options_;
  CLI::App app_{
      "Runs language models: one prompt (generate), a conversation (chat) or a file of prompts (getp).\n"
      "  getp MODEL -i \"Once upon\"                        generate, streamed to stdout\n"
      "  getp chat MODEL                                  a conversation\n"
      "  getp getp MODEL -i prompts.txt -o ids.txt        a batch; .jsonl files for more control\n"
      "  getp decode MODEL -i ids.txt                     ids to text\n"
      "  getp merge -i part0 part1 -o ids.txt             joins the outputs of --shard\n"
      "Options read TRIVIUM_* variables too, e.g. TRIVIUM_BATCH_SIZE for --batch-size.",
      "getp"};
  std::string mode_;
  bool doctor_ = false, version_ = false, kv16_ = false, kv32_ = false;
  std::string json_;
  bool line_given_ = false;
};

void Parser::add_files() {
  app_.add_option("-m,--mode", mode_, "generate, chat, getp, decode or merge")->type_name("MODE");
  app_.add_option("-M,--model", options_.model, "Model folder or file (also as the first argument)")
      ->type_name("PATH");
  app_.add_option("-i,--input,--prompt", options_.inputs,
                  "The prompt, or the input file of getp and decode; - is stdin")
      ->expected(1)
      ->allow_extra_args(false)  // what follows the value is the model
      ->type_name("TEXT|FILE");
  app_.add_option("-o,--output", options_.output, "Output file of getp and merge; - is stdout")
      ->type_name("FILE");
  text("-z,--tokenizer", "Tokenizer file or folder, instead of the model's",
       [this](const std::string& v) { options_.tokenizer = v; });
  text("-v,--verify", "Compare the output with this file of token ids",
       [this](const std::string& v) { options_.verify = v; });
}

void Parser::add_generation() {
  integer("-n,--steps", 0, kMaxInt64, "Most positions, prompt + generated; 0 is the model's maximum [1024]",
          [this](int64_t n) {
            options_.steps = n;
            options_.steps_given = true;
          });
  integer("--max-tokens", 0, kMaxInt64, "Most generated tokens",
          [this](int64_t n) { options_.max_tokens = n; });
  number("-T,--temperature", 1e301, "0 picks the most likely token [0]", options_.sampling.temperature);
  number("-p,--top-p", 1, "Nucleus sampling [0.9]", options_.sampling.top_p);
  integer("--top-k", 0, kMaxInt, "Only the K most likely tokens; 0 is off [0]",
          [this](int64_t n) { options_.sampling.top_k = static_cast<int32_t>(n); });
  number("--min-p", 1, "Only tokens this likely relative to the first; 0 is off [0]",
         options_.sampling.min_p);
  text("-s,--seed", "Seed of sampling [0]", [this](const std::string& value) {
    options_.sampling.seed = parse_seed(value);
  })->type_name("N");
  app_.add_option("--stop", options_.stop, "Stop before this text (may be repeated)")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app_.add_flag("--ignore-eos", options_.ignore_eos, "Do not stop at stop tokens");
  text("-y,--system", "Developer instructions for chats",
       [this](const std::string& v) { options_.system = v; });
  text("--reasoning", "low, medium or high [medium]", [this](const std::string& v) {
    if (v == "low")
      options_.reasoning = trivium::io::ReasoningEffort::low;
    else if (v == "medium")
      options_.reasoning = trivium::io::ReasoningEffort::medium;
    else if (v == "high")
      options_.reasoning = trivium::io::ReasoningEffort::high;
    else
      throw UsageError{concat("--reasoning is \"", v, "\", expected low, medium or high")};
  });
  text("--date", "Date in the system message of chats, YYYY-MM-DD [today]",
       [this](const std::string& v) { options_.date = v; });
  app_.add_flag("--chat-template", options_.chat_template,
                "generate: render the prompt as a chat, print the final channel");
  app_.add_flag("--show-reasoning", options_.show_reasoning, "chats: show the analysis channel too");
  app_.add_flag("--strict-utf8", options_.strict_utf8, "Refuse prompts that are not valid UTF-8");
}

void Parser::add_machine() {
  text("--device", "auto, cpu, cuda, cuda:1, hip:0 [auto]",
       [this](const std::string& v) { options_.device = v; });
  text("--devices", "getp: several devices of one kind, e.g. 0,1: each runs a copy of the model",
       [this](const std::string& v) {
         options_.devices.clear();
         for (size_t at = 0; at <= v.size();) {
           const size_t comma = std::min(v.find(',', at), v.size());
           const auto index = static_cast<int>(parse_integer("--devices", v.substr(at, comma - at), 0, 4095));
           if (std::count(options_.devices.begin(), options_.devices.end(), index) > 0)
             throw UsageError{concat("--devices names ", index, " twice")};
           options_.devices.push_back(index);
           at = comma + 1;
         }
       })
      ->type_name("I,J,...");
  text("--precision", "auto, float32 or bfloat16 [auto]", [this](const std::string& v) {
    try {
      options_.precision = trivium::parse_precision(v);
    } catch (const trivium::Error& error) {
      throw UsageError{error.what()};
    }
  });
  integer("--threads", 1, 1024, "CPU threads", [this](int64_t n) { options_.threads = static_cast<int>(n); });
  integer("--window,--odd_win", 0, kMaxInt64,
          "Window of the full-attention layers too; changes results; 0 is none [0]",
          [this](int64_t n) { options_.odd_window = n; });
  app_.add_flag("--kv16", kv16_, "Cache keys and values as bfloat16");
  app_.add_flag("--kv32", kv32_, "Cache keys and values as float32");
  text("--load", "How weights are read: auto, mmap or read [auto]", [this](const std::string& v) {
    if (v == "auto")
      options_.load = trivium::io::LoadMode::automatic;
    else if (v == "mmap")
      options_.load = trivium::io::LoadMode::mmap;
    else if (v == "read")
      options_.load = trivium::io::LoadMode::read;
    else
      throw UsageError{concat("--load is \"", v, "\", expected auto, mmap or read")};
  });
}

void Parser::add_jobs() {
  text("-b,--batch-size", "Sequences at once; auto sizes it from memory [auto]",
       [this](const std::string& v) {
         options_.batch_size = v == "auto" ? 0 : static_cast<int>(parse_integer("--batch-size", v, 1, 65536));
       })
      ->type_name("N|auto");
  integer("--step-tokens", 1, 1 << 20, "Prompt tokens in one step [256, 2048 on a GPU]",
          [this](int64_t n) { options_.step_tokens = n; });
  integer("-t,--limit", 0, kMaxInt64, "getp: only the first N prompts; 0 is all [0]",
          [this](int64_t n) { options_.limit = n; });
  text("--shard", "getp: i/n does the requests k with k mod n = i", [this](const std::string& v) {
    const size_t slash = v.find('/');
    if (slash == std::string::npos)
      throw UsageError{concat("--shard is \"", v, "\", expected i/n, e.g. 0/4")};
    options_.shards = parse_integer("the n of --shard i/n", v.substr(slash + 1), 1, 1 << 20);
    options_.shard = parse_integer("the i of --shard i/n", v.substr(0, slash), 0, options_.shards - 1);
  })->type_name("I/N");
  app_.add_flag("--restart", options_.restart, "getp: drop the journal of an earlier run");
  app_.add_flag("--json{-}", json_, "Report as JSON to stdout, or --json=FILE")->type_name("[FILE]");
  text("-f", "1 adds times per stage to the report, as --profile", [this](const std::string& v) {
    options_.profile = parse_integer("-f", v, 0, 1) == 1;
  })->envname("");
  app_.add_flag("--profile", options_.profile, "Times per stage in the report");
  app_.add_flag("-q,--quiet", options_.quiet, "Only errors and warnings");
  app_.add_flag("--no-progress", options_.no_progress, "No progress line");
  app_.add_flag("--doctor", doctor_, "Print what this machine offers and exit");
  app_.add_flag("--version", version_, "Print the version and exit");
}

// Edits (insert, delete, replace a character) between two words.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

void Parser::unknown_option(const std::string& arg) const {
  const std::string name = arg.substr(0, arg.find('='));
  std::string best;
  size_t distance = 4;
  if (name.starts_with("--"))
    for (const CLI::Option* option : app_.get_options())
      for (const std::string& known : option->get_lnames())
        if (const size_t d = edit_distance(name.substr(2), known); d < distance) {
          distance = d;
          best = known;
        }
  throw UsageError{
      concat("unknown option ", name, best.empty() ? "" : concat("; did you mean --", best, "?"))};
}

// MODEL; decode also takes the number of a line; merge its parts.
void Parser::take_positionals(const std::vector<std::string>& positionals) {
  for (const std::string& arg : positionals) {
    int64_t line = 0;
    const auto [end, error] = std::from_chars(arg.data(), arg.data() + arg.size(), line);
    if (options_.mode == Mode::decode && error == std::errc() && end == arg.data() + arg.size() &&
        !line_given_) {
      options_.decode_line = parse_integer("the line to decode", arg, -1, kMaxInt64);
      line_given_ = true;
    } else if (arg.size() > 1 && arg.starts_with('-')) {
      unknown_option(arg);
    } else if (options_.mode == Mode::merge) {
      options_.inputs.push_back(arg);
    } else if (options_.model.empty()) {
      options_.model = arg;
    } else {
      throw UsageError{concat("unexpected argument \"", arg, "\": the model is \"", options_.model, "\"")};
    }
  }
}

void Parser::check_complete() const {
  const Mode mode = options_.mode;
  if (mode == Mode::doctor) return;
  if (mode == Mode::decode && options_.model.empty() && options_.tokenizer.empty())
    throw UsageError{"decode needs a tokenizer: give -z FILE or a model folder"};
  for (const std::string& stop : options_.stop)
    if (stop.empty() || trivium::io::sanitize_utf8(stop) != stop)
      throw UsageError{concat("--stop is \"", trivium::printable(stop), "\", expected a text",
                              stop.empty() ? " of at least one character" : " in valid UTF-8")};
  if (options_.model.empty() && mode != Mode::decode && mode != Mode::merge)
    throw UsageError{"no model given: name its folder, e.g. getp gpt-oss-20b -i \"Hello\" (getp --help)"};
  if (options_.inputs.empty() && mode != Mode::chat)
    throw UsageError{mode == Mode::generate ? "generate needs a prompt: -i TEXT, or -i - for stdin"
                     : mode == Mode::merge  ? "merge needs the parts: -i PART0 PART1 ..."
                                            : "-i FILE is missing"};
  if (options_.output.empty() && (mode == Mode::getp || mode == Mode::merge))
    throw UsageError{"-o FILE is missing (- is stdout)"};
  if (mode == Mode::getp && options_.output == "-" && options_.json && options_.json_path == "-")
    throw UsageError{"-o - and --json both write to stdout: use --json=FILE"};
}

int Parser::parse(std::vector<std::string> args) {
  // `getp chat MODEL` is `getp -m chat MODEL`.
  if (!args.empty() && find_mode(args.front())) args.insert(args.begin(), "-m");
  for (size_t i = 0; i + 1 < args.size(); ++i)
    if ((args[i] == "-m" || args[i] == "--mode") && args[i + 1] == "merge")
      app_.get_option("--input")
          ->expected(1, 1 << 20)
          ->allow_extra_args(true)
          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  std::reverse(args.begin(), args.end());  // CLI11 takes them from the back
  try {
    app_.parse(args);
  } catch (const CLI::CallForHelp&) {
    std::fputs(app_.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& error) {
    throw UsageError{error.what()};
  }
  if (version_) {
    std::printf("trivium %s (%s)\n", TRIVIUM_VERSION, trivium::build_id());
    return 0;
  }
  if (!mode_.empty()) options_.mode = parse_mode(mode_);
  if (doctor_) options_.mode = Mode::doctor;
  take_positionals(app_.remaining());
  if (kv16_ && kv32_) throw UsageError{"--kv16 and --kv32 exclude each other"};
  if (kv16_) options_.kv_dtype = trivium::Dtype::bf16;
  if (kv32_) options_.kv_dtype = trivium::Dtype::f32;
  options_.json = !json_.empty();
  if (options_.json) options_.json_path = json_;
  check_complete();
  return -1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  try {
    Parser parser(options);
    if (const int code = parser.parse({argv + 1, argv + argc}); code >= 0) return code;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "getp: %s\n", trivium::one_line(error.message).c_str());
    return trivium::getp::kExitUsage;
  }
  return trivium::getp::run(options);
}
