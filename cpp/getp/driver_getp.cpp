// Mode getp: a file of prompts in, a file of tokens out.
#include <algorithm>
#include <cstdio>

#include "core/log.h"
#include "core/parallel.h"
#include "getp/batch_job.h"
#include "getp/files.h"
#include "getp/output.h"
#include "getp/overwrite.h"
#include "io/hash.h"
#include "io/json.h"

namespace trivium::getp {

// Nothing that this job reads may be among what it writes.
void Job::check_files() const {
  const NamedFile output{"-o", options_.output};
  const std::vector<NamedFile> read = {{"-i", options_.inputs.front()},
                                       {"--verify", options_.verify},
                                       {"--tokenizer", options_.tokenizer},
                                       {"the model", options_.model}};
  check_not_overwritten(output, {".tmp", ".journal", ".part", ".part.tmp"}, read);
  if (options_.shards > 0 && !is_plain_target(options_.output))
    throw UsageError(concat("--shard with -o ", options_.output,
                            ", which is no file: merge needs the note that lies beside one; give -o FILE"));
  if (!options_.json) return;
  const NamedFile report{"--json", options_.json_path};
  check_not_overwritten(report, {".tmp"}, read);
  check_not_overwritten(report, {}, {output});
  const int fd = descriptor_of(report.path);
  if (fd >= 0 && fd == descriptor_of(output.path))
    throw UsageError(
        concat("-o ", output.path, " and --json=", report.path, " write to the same place: use --json=FILE"));
}

void Job::read_inputfile() {
  check_files();
  check_writable(options_.output);
  if (options_.json) check_writable(options_.json_path);
  if (!options_.verify.empty()) LineReader(options_.verify);  // must be readable
  output_kind_ = file_kind(options_.output);
  input_ = getp::read_inputfile(options_.inputs.front(), options_.limit);
  for (const std::string& warning : input_.warnings) warn(warning);
  if (options_.shards > 0) {
    part_ = {.config = "",
             .kind = output_kind_,
             .shard = options_.shard,
             .shards = options_.shards,
             .requests = static_cast<int64_t>(input_.items.size()),
             .lines = 0,
             .input_hash = input_hash(input_.items),
             .crc = 0};
    std::erase_if(input_.items,
                  [&](const InputItem& i) { return i.index % options_.shards != options_.shard; });
    part_.lines = static_cast<int64_t>(input_.items.size());
  }
  results_.resize(input_.items.size());
  hashes_.resize(input_.items.size());
}

void Job::open_journal() {
  const bool messages = std::any_of(input_.items.begin(), input_.items.end(),
                                    [](const InputItem& item) { return !item.messages.empty(); });
  const bool plain = is_plain_target(options_.output);
  // Beside the file itself: all names of one output share a journal, and its lock.
  const std::string path = real_target(options_.output) + ".journal";
  if (messages && options_.date.empty()) {
    // A job that is resumed on another day keeps the date its prompts were rendered with.
    options_.date = today();
    const std::string before = plain && !options_.restart ? Journal::peek_config(path) : "";
    if (!before.empty())
      if (const auto* date = io::parse_json_document(before, path).find("date"); date && date->string())
        options_.date = *date->string();
  }
  part_.config = job_config(*model_, options_, input_.kind, messages);
  if (!plain) return;
  journal_ = std::make_unique<Journal>(path, journal_config(part_.config, options_), options_.restart);
  if (journal_->dropped_bytes() > 0)
    warn(concat(path, ": dropped ", journal_->dropped_bytes(), " bytes that were not completely written"));
}

int64_t Job::most_positions() const {
  const int64_t most = model_->info().max_positions;
  return options_.steps > 0 ? std::min(options_.steps, most) : most;
}

// Tokenises all items; those without anything to compute get their results here. Returns the others.
std::vector<size_t> Job::make_requests(std::vector<Request>& requests) {
  std::vector<size_t> open;
  requests.resize(input_.items.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    cancel_->check();
    const InputItem& item = input_.items[i];
    Result& result = results_[i];
    result.finish_reason = FinishReason::error;
    try {
      requests[i] = make_request(*model_, item, options_);
    } catch (const InvalidArgument& error) {
      result.error = error.what();
      const bool named = result.error.find(concat("line ", item.line)) != std::string::npos;
      if (!named) result.error = concat("line ", item.line, ": ", result.error);
      // In a text job only --strict-utf8 and a missing tokenizer come here besides lines that are too long.
      if (input_.kind == FileKind::text && item.error.empty())
        throw InvalidArgument(concat(options_.inputs.front(), ": ", result.error));
      continue;
    }
    result.prompt_tokens = static_cast<int64_t>(requests[i].prompt.size());
    requests[i].want_text = output_kind_ == FileKind::jsonl;
    hashes_[i] = request_hash(requests[i]);
    if (requests[i].prompt.empty()) {
      ++empty_prompts_;
      if (input_.kind == FileKind::text)
        result.finish_reason = FinishReason::length;
      else
        result.error = concat("line ", item.line, ": the prompt is empty");
      continue;
    }
    if (result.prompt_tokens >= most_positions()) {
      ++long_prompts_;
      result.finish_reason = FinishReason::length;
      continue;
    }
    open.push_back(i);
  }
  if (empty_prompts_ > 0)
    warn(concat(empty_prompts_, " empty prompt", empty_prompts_ == 1 ? "" : "s", ": no output"));
  if (long_prompts_ > 0)
    warn(concat(long_prompts_, " prompt", long_prompts_ == 1 ? " has" : "s have", " ", most_positions(),
                " tokens or more (--steps): no output"));
  return open;
}

// Takes what the journal has out of `open`.
void Job::resume(std::vector<Request>& requests, std::vector<size_t>& open) {
  if (!journal_ || journal_->records().empty()) return;
  std::vector<int64_t> indices;
  for (const InputItem& item : input_.items) indices.push_back(item.index);
  std::vector<bool> done(input_.items.size());
  for (const JournalRecord& record : journal_->records()) {
    const auto at = std::lower_bound(indices.begin(), indices.end(), record.index);
    if (at == indices.end() || *at != record.index) continue;  // beyond --limit
    const auto i = static_cast<size_t>(at - indices.begin());
    if (hashes_[i] != record.request_hash)
      throw InvalidArgument(concat(journal_->path(), " belongs to another job: the request on line ",
                                   input_.items[i].line, " has changed; use --restart to drop its results"));
    Result& result = results_[i];
    result.tokens = record.tokens;
    result.finish_reason = record.finish_reason;
    result.completion_tokens = static_cast<int64_t>(record.tokens.size());
    if (requests[i].want_text && model_->tokenizer()) {
      StopText text(*model_->tokenizer(), requests[i].stop, requests[i].harmony);
      for (const int32_t id : record.tokens) {
        const auto& ids = requests[i].stop_ids;
        const bool stop_id = !requests[i].ignore_eos && std::find(ids.begin(), ids.end(), id) != ids.end();
        if (!stop_id) result.text += text.push(id);
      }
      result.text += text.finish();
      if (requests[i].harmony) result.analysis = text.analysis();
    }
    if (!done[i]) {
      ++report_.resumed_requests;
      report_.resumed_tokens += result.completion_tokens;
    }
    done[i] = true;
  }
  std::erase_if(open, [&](size_t i) { return done[i]; });
  if (!options_.quiet)
    std::fprintf(stderr, "resuming: %lld of %zu requests are in %s\n",
                 static_cast<long long>(report_.resumed_requests), input_.items.size(),
                 journal_->path().c_str());
}

void Job::on_result(size_t i, Result result) {
  const std::lock_guard lock(mutex_);
  if (result.finish_reason == FinishReason::error) {
    result.error = concat("line ", input_.items[i].line, ": ", result.error);
  } else if (result.finish_reason == FinishReason::cancelled) {
    return;
  } else if (journal_) {
    journal_->append({input_.items[i].index, hashes_[i], result.finish_reason, result.tokens});
  }
  ++report_.requests_done;
  results_[i] = std::move(result);
}

void Job::finish() {
  for (const Replica& replica : replicas_)
    report_.device += concat(report_.device.empty() ? "" : ",", replica.model->info().device);
  report_.precision = name_of(model_->info().precision);
  report_.kv = name_of(model_->state_kind(options_.kv_dtype.value_or(model_->default_kv_dtype())).dtype);
  replicas_.clear();
  model_.reset();
}

std::string Job::output_line(size_t i) const {
  return format_result(output_kind_, input_.items[i].custom_id, results_[i]) + "\n";
}

void Job::write_outputfile() {
  if (options_.shards > 0 && is_plain_target(options_.output)) {
    for (size_t i = 0; i < results_.size(); ++i) part_.crc = io::crc32c(output_line(i), part_.crc);
    write_part(options_.output, part_);
  }
  write_file(options_.output, [&](const Write& write) {
    for (size_t i = 0; i < results_.size(); ++i) write(output_line(i));
  });
  if (journal_) journal_->remove();
  journal_.reset();
}

int Job::report() {
  int64_t failed = 0;
  for (const Result& r : results_) {
    report_.prompt_tokens += r.prompt_tokens;
    report_.output_tokens += static_cast<int64_t>(r.tokens.size());
    if (r.finish_reason != FinishReason::error) continue;
    ++failed;
    if (output_kind_ == FileKind::text) warn(r.error);
  }
  report_.requests = static_cast<int64_t>(results_.size());
  report_.failed_requests = failed;
  report_.threads = num_threads();
  report_.seed = options_.sampling.seed;
  if (failed > 0) warn(concat(failed, " of ", results_.size(), " requests failed"));
  if (!options_.quiet) std::fputs(to_text(report_, options_.profile).c_str(), stderr);
  if (options_.json) {
    const std::string json = to_json(report_) + "\n";
    write_file(options_.json_path, [&](const Write& write) { write(json); });
  }
  // JSONL carries its errors; a text output cannot show that a line is empty because it failed.
  bool good = failed == 0 || output_kind_ == FileKind::jsonl;
  if (!options_.verify.empty()) {
    std::vector<int64_t> lines;
    for (const InputItem& item : input_.items) lines.push_back(item.index);
    const bool whole = options_.limit == 0 && options_.shards == 0;
    good &= verify(options_.verify, results_, lines, whole, options_.quiet);
  }
  return good ? kExitOk : kExitError;
}

std::string Job::kept_note() const {
  if (!journal_) return "";
  if (journal_->empty()) return "no request was completed";
  return concat("completed requests are kept in ", journal_->path(), "; the same command resumes");
}

int run_getp(const Options& options, const CancelToken& cancel) {
  Job job(options, cancel);
  try {
    job.read_inputfile();
    job.warm_up();
    job.inference();
    job.finish();
    job.write_outputfile();
  } catch (const Cancelled&) {
    const std::string note = job.kept_note();
    std::fprintf(stderr, "interrupted%s%s\n", note.empty() ? "" : "; ", one_line(note).c_str());
    throw;
  } catch (const IoError& error) {
    const std::string note = job.kept_note();
    throw IoError(note.empty() ? std::string(error.what()) : concat(error.what(), "; ", note));
  }
  return job.report();
}

}  // namespace trivium::getp
