// What the command line asks for. cli/getp.cpp fills it in, the driver runs it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/harmony.h"
#include "io/safetensors.h"
#include "models/model.h"
#include "ops/sampling.h"

namespace trivium::getp {

enum class Mode { generate, chat, getp, decode, merge, doctor };

struct Options {
  Mode mode = Mode::generate;
  std::string model;
  std::vector<std::string> inputs;  // generate: the prompt; getp: the input file; merge: the parts
  std::string output;
  std::string tokenizer;  // empty: the model's own
  std::string system;     // chat: developer instructions
  std::string verify;     // getp: file of expected ids
  std::string date;       // of harmony's system message; empty: today

  std::string device = "auto";
  std::vector<int> devices;  // getp: one replica on each of these of the device's kind; empty: `device` alone
  Precision precision = Precision::automatic;
  std::optional<Dtype> kv_dtype;  // unset: follows the precision
  int64_t odd_window = 0;         // LoadOptions::odd_window
  io::LoadMode load = io::LoadMode::automatic;
  int threads = 0;  // 0: the default

  int64_t steps = 1024;  // prompt + generated; 0: the model's maximum
  bool steps_given = false;
  int64_t max_tokens = -1;  // generated; < 0: only steps counts
  ops::SamplingParams sampling = {.temperature = 0, .top_p = 0.9f, .top_k = 0, .min_p = 0, .seed = 0};
  bool ignore_eos = false;
  std::vector<std::string> stop;

  int batch_size = 0;             // 0: automatic
  int64_t step_tokens = 0;        // prompt tokens in one step; 0: as the device likes
  int64_t limit = 0;              // getp: only the first prompts; 0: all
  int64_t shard = 0, shards = 0;  // getp: requests k with k mod shards = shard; shards 0: not sharded
  bool restart = false;           // getp: drop an existing journal
  bool strict_utf8 = false;

  bool chat_template = false;  // generate: render the prompt as a chat
  bool show_reasoning = false;
  io::ReasoningEffort reasoning = io::ReasoningEffort::medium;
  int64_t decode_line = -1;  // decode: -1 for all

  bool quiet = false;
  bool no_progress = false;
  bool profile = false;
  bool json = false;
  std::string json_path = "-";  // of the report
};

}  // namespace trivium::getp
