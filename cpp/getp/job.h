// A batch job: from input items to requests, what identifies the job in its journal, and the parts that
// sharded jobs leave for merge.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "getp/input.h"
#include "getp/options.h"
#include "getp/request.h"
#include "getp/session.h"

namespace trivium::getp {

// Stop ids of batch jobs: the model's without <|call|>, so that counts compare with the seed's. Found by
// name; the tokenizer may be null (then id 200012 of o200k_harmony counts as <|call|>).
std::vector<int32_t> batch_stop_ids(const Model& model);

std::string today();  // "2025-06-28", local time
io::HarmonyOptions harmony_options(const Options& options);
io::HarmonyMessage make_message(const std::string& role, const std::string& content);
void apply_limits(const Options& options, Request& request);  // steps, tokens, sampling, stop strings

// Tokenises the item. A bad item throws InvalidArgument; an empty prompt gives a request with an empty
// prompt.
Request make_request(const Model& model, const InputItem& item, const Options& options);

// A bound on prompt + generated tokens of any item, without tokenising: no token is shorter than a byte.
int64_t longest_length(const std::vector<InputItem>& items, const Options& options, int64_t max_positions);

// Hash of everything in a request that decides its tokens.
uint64_t request_hash(const Request& request);

// Everything outside the requests that decides the tokens, as a JSON object: weights, tokenizer, device kind,
// CPU level, precision, KV type, sampling, limits, stop ids, kind of input, build. Shards of one job share
// it.
std::string job_config(const Model& model, const Options& options, FileKind kind, bool has_messages);
// The same with the shard, for the journal.
std::string journal_config(const std::string& job_config, const Options& options);

// What `OUT.part` beside a shard's output says.
struct Part {
  std::string config;              // job_config()
  FileKind kind = FileKind::text;  // of the output
  int64_t shard = 0, shards = 1;
  int64_t requests = 0;     // of the whole job
  int64_t lines = 0;        // in this output
  uint64_t input_hash = 0;  // of the whole input
  uint32_t crc = 0;         // crc32c of the output file
};

uint64_t input_hash(const std::vector<InputItem>& items);
void write_part(const std::string& output, const Part& part);
// Joins the outputs of all shards in the order of the input. InvalidArgument when they do not belong together
// or one is missing or changed.
void merge_parts(const std::vector<std::string>& outputs, const std::string& merged);

}  // namespace trivium::getp
