#include "io/tokenizer.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <filesystem>

#include "core/error.h"
#include "io/mmap.h"
#include "io/nfc.h"
#include "io/tokenizer_files.h"
#include "io/tokenizer_split.h"
#include "io/utf8.h"

namespace trivium::io {

namespace {

constexpr int64_t kMaxFileBytes = 128 << 20;
constexpr size_t kMaxSpecialBytes = 512;
constexpr size_t kMaxTextBytes = size_t{1} << 31;

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerParts&& parts)
      : ordinary_(std::move(parts.ordinary)),
        specials_(std::move(parts.specials)),
        bpe_(ordinary_, parts.merges, parts.whole_pieces, parts.name),
        splitter_(parts.split_pattern, parts.name),
        nfc_(parts.nfc) {
    for (int32_t id = 0; id < specials_.size(); ++id) {
      if (specials_.has(id)) add_special(id, parts.name);
    }
    std::sort(special_lengths_.rbegin(), special_lengths_.rend());
    special_lengths_.erase(std::unique(special_lengths_.begin(), special_lengths_.end()),
                           special_lengths_.end());
  }

  std::vector<int32_t> encode(std::string_view bytes, const EncodeOptions& options) const override {
    TRIVIUM_CHECK(bytes.size() < kMaxTextBytes, "encode: text has ", bytes.size(),
                  " bytes, at most 2147483647 are accepted");
    if (options.strict_utf8) {
      const size_t invalid = find_invalid_utf8(bytes);
      TRIVIUM_CHECK(invalid == std::string_view::npos, "encode: invalid UTF-8 at byte ", invalid);
    }
    std::vector<int32_t> ids;
    ids.reserve(bytes.size() / 4 + 1);
    size_t from = 0;
    for (size_t at = 0; options.parse_special && at < bytes.size();) {
      const int32_t special = special_at(bytes, at);
      if (special < 0) {
        ++at;
        continue;
      }
      encode_ordinary(bytes.substr(from, at - from), ids);
      ids.push_back(special);
      at += specials_.bytes(special).size();
      from = at;
    }
    encode_ordinary(bytes.substr(from), ids);
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, bool with_specials) const override {
    std::string out;
    for (const int32_t id : ids) {
      if (with_specials || !specials_.has(id)) out += token_bytes(id);
    }
    return out;
  }

  std::string_view token_bytes(int32_t id) const override {
    return specials_.has(id) ? specials_.bytes(id) : ordinary_.bytes(id);
  }
  bool is_special(int32_t id) const override { return specials_.has(id); }
  std::optional<int32_t> special_id(std::string_view name) const override {
    const int32_t id = specials_.find(name);
    return id < 0 ? std::nullopt : std::optional(id);
  }
  int32_t vocab_size() const override { return std::max(ordinary_.size(), specials_.size()); }

 private:
  void add_special(int32_t id, const std::string& name) {
    const std::string_view text = specials_.bytes(id);
    const auto fail = [&](const auto&... why) {
      throw ModelFormatError(
          concat(name, ": special token \"", printable(text), "\" (id ", id, ") ", why...));
    };
    if (text.size() > kMaxSpecialBytes)
      fail("has ", text.size(), " bytes, at most ", kMaxSpecialBytes, " are accepted");
    if (ordinary_.has(id)) fail("has the id of ordinary token \"", printable(ordinary_.bytes(id)), "\"");
    if (const int32_t other = ordinary_.find(text); other >= 0) fail("is also ordinary token ", other);
    special_first_.set(static_cast<unsigned char>(text[0]));
    special_lengths_.push_back(text.size());
  }

  int32_t special_at(std::string_view text, size_t at) const {  // the longest one there, -1: none
    if (!special_first_[static_cast<unsigned char>(text[at])]) return -1;
    for (const size_t length : special_lengths_) {
      if (length > text.size() - at) continue;
      if (const int32_t id = specials_.find(text.substr(at, length)); id >= 0) return id;
    }
    return -1;
  }

  void encode_ordinary(std::string_view text, std::vector<int32_t>& ids) const {
    if (!nfc_) return encode_normalized(text, ids);
    encode_normalized(to_nfc(text), ids);
  }

  void encode_normalized(std::string_view text, std::vector<int32_t>& ids) const {
    Bpe::Scratch scratch;
    uint32_t begin = 0;
    for (const uint32_t end : splitter_.piece_ends(text)) {
      bpe_.encode(text.substr(begin, end - begin), scratch, ids);
      begin = end;
    }
  }

  Vocabulary ordinary_, specials_;
  Bpe bpe_;
  Splitter splitter_;
  bool nfc_;
  std::bitset<256> special_first_;       // first bytes of special tokens
  std::vector<size_t> special_lengths_;  // falling
};

struct Format {
  const char *kind, *ending;
};
constexpr Format kFormats[] = {{"json", ".json"}, {"tiktoken", ".tiktoken"}, {"bin", ".bin"}};

// The tokenizer file of a folder, empty when there is none.
std::string find_in_folder(const std::filesystem::path& folder) {
  std::error_code error;
  const auto is_there = [&](const std::filesystem::path& path) {
    return std::filesystem::exists(path, error);
  };
  if (is_there(folder / "tokenizer.json")) return (folder / "tokenizer.json").string();
  std::string ranks;  // the first by name, so that the choice does not depend on the file system
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string path = entry->path().string();
    if (entry->path().extension() == ".tiktoken" && (ranks.empty() || path < ranks)) ranks = path;
  }
  if (!ranks.empty()) return ranks;
  return is_there(folder / "tokenizer.bin") ? (folder / "tokenizer.bin").string() : std::string();
}

bool is_folder(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::from_bytes(std::string_view bytes, std::string_view kind,
                                                       const std::string& name) {
  if (kind == "json") return std::make_shared<BpeTokenizer>(read_tokenizer_json(bytes, name));
  if (kind == "tiktoken") return std::make_shared<BpeTokenizer>(read_tiktoken_ranks(bytes, name));
  TRIVIUM_CHECK(kind == "bin", "tokenizer kind is \"", printable(kind), "\", expected json, tiktoken or bin");
  return std::make_shared<BpeTokenizer>(read_tokenizer_bin(bytes, name));
}

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::string& folder_or_file) {
  const std::string path = is_folder(folder_or_file) ? find_in_folder(folder_or_file) : folder_or_file;
  if (path.empty()) {
    throw ModelFormatError(
        concat("no tokenizer.json, *.tiktoken or tokenizer.bin in \"", folder_or_file, "\""));
  }
  for (const Format& format : kFormats) {
    if (path.ends_with(format.ending))
      return from_bytes(read_small_file(path, kMaxFileBytes), format.kind, path);
  }
  throw ModelFormatError(concat("\"", path, "\" is not a folder or a .json, .tiktoken or .bin file"));
}

bool Tokenizer::present(const std::string& folder) {
  return is_folder(folder) && !find_in_folder(folder).empty();
}

std::string StreamDecoder::push(int32_t id) {
  if (!with_specials_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  const size_t held = incomplete_utf8_tail(pending_);
  std::string out = sanitize_utf8(std::string_view(pending_).substr(0, pending_.size() - held));
  pending_.erase(0, pending_.size() - held);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out = sanitize_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace trivium::io
