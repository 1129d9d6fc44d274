// A batch job of mode getp: what it holds and its stages in order.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "getp/driver.h"
#include "getp/input.h"
#include "getp/job.h"
#include "getp/journal.h"
#include "getp/memory.h"
#include "getp/progress.h"
#include "getp/report.h"
#include "getp/scheduler.h"

namespace trivium::getp {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Job {
 public:
  Job(Options options, const CancelToken& cancel) : options_(std::move(options)), cancel_(&cancel) {}

  void read_inputfile();
  void warm_up();
  void inference();
  void finish();
  void write_outputfile();
  int report();
  std::string kept_note() const;

 private:
  struct Replica {  // the model on one device
    std::shared_ptr<Model> model;
    std::unique_ptr<Scheduler> scheduler;
  };

  void check_files() const;
  void open_journal();
  MemoryPlan plan(const Model& model, int batch_size, int64_t reserved_bytes) const;
  void plan_before_loading(Device device);
  void make_scheduler(Replica& replica, int batch_size);
  void run(Replica& replica, std::vector<Request>& requests, Progress& progress);
  void run_all(std::vector<Request>& requests, Progress& progress);
  int64_t most_positions() const;
  std::vector<size_t> make_requests(std::vector<Request>& requests);
  void resume(std::vector<Request>& requests, std::vector<size_t>& open);
  void on_result(size_t item, Result result);
  std::string output_line(size_t item) const;

  Options options_;
  const CancelToken* cancel_;
  InputFile input_;  // this shard's items after read_inputfile()
  FileKind output_kind_ = FileKind::text;
  Part part_;
  size_t replica_count_ = 1;
  std::vector<Replica> replicas_;
  std::shared_ptr<Model> model_;  // any replica's
  std::vector<uint64_t> hashes_;
  int64_t empty_prompts_ = 0, long_prompts_ = 0;

  std::mutex mutex_;  // of what replicas share while they run
  std::unique_ptr<Journal> journal_;
  std::vector<Result> results_;  // of input_.items
  std::deque<size_t> queue_;     // items no replica has taken yet
  int64_t generated_tokens_ = 0;
  bool stopping_ = false;  // a replica has failed
  Report report_;
};

}  // namespace trivium::getp
