// The append-only record of completed requests beside getp's output file. Layout (little-endian):
//   magic[8]  then records { u32 bytes, u32 crc32c(bytes field and payload), payload }
// The first payload is the job's configuration as JSON; the others are { i64 index, u64 request hash, u8
// finish reason, u32 count, i32 tokens[count] }. Whatever follows the first damaged record is dropped: a
// crash tears the tail.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "getp/request.h"

namespace trivium::getp {

struct JournalRecord {
  int64_t index = 0;          // of the request in the input file
  uint64_t request_hash = 0;  // of everything that decides its tokens (job.h)
  FinishReason finish_reason = FinishReason::stop;
  std::vector<int32_t> tokens;

  friend bool operator==(const JournalRecord&, const JournalRecord&) = default;
};

class Journal {
 public:
  // Opens or creates `path` and locks it until destruction. `config` is a JSON object: when the file was
  // written with another one, and holds records, this throws InvalidArgument that names what differs, unless
  // `restart`, which starts anew. IoError when it cannot be had, or another process holds the lock.
  Journal(const std::string& path, const std::string& config, bool restart);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<JournalRecord>& records() const { return records_; }  // as found on opening
  bool empty() const { return empty_; }                                   // no record, old or new
  int64_t dropped_bytes() const { return dropped_bytes_; }                // of a torn tail

  void append(const JournalRecord& record);  // survives a crash of the process at once
  void sync_if_due();                        // and of the machine: syncs when the last time was 2 s ago
  void sync();
  void remove();  // the job is done

  // The configuration an existing journal was started with; empty when there is none to be read.
  static std::string peek_config(const std::string& path);

 private:
  void open_and_lock();
  void load(const std::string& config, bool restart);
  void start(const std::string& config);

  std::string path_;
  int fd_ = -1;
  std::vector<JournalRecord> records_;
  int64_t dropped_bytes_ = 0;
  bool dirty_ = false;  // written to since the last sync
  bool empty_ = true;   // no record yet: the file is not worth keeping
  std::chrono::steady_clock::time_point synced_;
};

}  // namespace trivium::getp
