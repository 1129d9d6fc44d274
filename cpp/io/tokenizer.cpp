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

// Tokens that stand in text as they are.
class Literals {
 public:
  explicit Literals(Vocabulary&& tokens) : tokens_(std::move(tokens)) {
    for (int32_t id = 0; id < tokens_.size(); ++id)
      if (tokens_.has(id)) add(tokens_.bytes(id));
    std::sort(lengths_.rbegin(), lengths_.rend());
    lengths_.erase(std::unique(lengths_.begin(), lengths_.end()), lengths_.end());
  }

  const Vocabulary& tokens() const { return tokens_; }
  bool empty() const { return lengths_.empty(); }

  int32_t longest_at(std::string_view text, size_t at) const {  // -1: none
    const size_t left = text.size() - at;
    if (!begins_[pair_of(text[at], left > 1 ? text[at + 1] : '\0')]) return -1;
    for (const size_t length : lengths_) {
      if (length > left) continue;
      if (const int32_t id = tokens_.find(text.substr(at, length)); id >= 0) return id;
    }
    return -1;
  }

 private:
  static size_t pair_of(char first, char second) {
    return static_cast<size_t>(static_cast<unsigned char>(first)) << 8 | static_cast<unsigned char>(second);
  }

  void add(std::string_view token) {
    lengths_.push_back(token.size());
    if (token.size() > 1) begins_.set(pair_of(token[0], token[1]));
    for (int second = 0; token.size() == 1 && second < 256; ++second)
      begins_.set(pair_of(token[0], static_cast<char>(second)));
  }

  Vocabulary tokens_;
  std::bitset<1 << 16> begins_;  // by their first two bytes
  std::vector<size_t> lengths_;  // falling
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerParts&& parts)
      : ordinary_(std::move(parts.ordinary)),
        specials_(std::move(parts.specials)),
        added_(std::move(parts.added)),
        added_normalized_(std::move(parts.added_normalized)),
        prefix_(std::move(parts.prefix)),
        suffix_(std::move(parts.suffix)),
        bpe_(ordinary_, parts.merges, parts.whole_pieces, parts.name),
        splitter_(parts.split_pattern, parts.name),
        nfc_(parts.nfc) {
    check_specials(parts.name);
    check_added(added_.tokens(), parts.name);
    check_added(added_normalized_.tokens(), parts.name);
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
    if (options.add_special_tokens) ids = prefix_;
    const auto encode_rest = [&](std::string_view rest) { encode_text(rest, ids); };
    if (!options.parse_special) {
      cut_out(bytes, added_, nullptr, ids, encode_rest);
    } else {
      cut_out(bytes, specials_, &added_, ids, encode_rest);
    }
    if (options.add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, bool with_specials) const override {
    std::string out;
    for (const int32_t id : ids) {
      if (with_specials || !is_special(id)) out += token_bytes(id);
    }
    return out;
  }

  std::string_view token_bytes(int32_t id) const override {
    for (const Literals* literals : {&specials_, &added_, &added_normalized_})
      if (literals->tokens().has(id)) return literals->tokens().bytes(id);
    return ordinary_.bytes(id);
  }
  bool is_special(int32_t id) const override { return specials_.tokens().has(id); }
  std::optional<int32_t> special_id(std::string_view name) const override {
    const int32_t id = specials_.tokens().find(name);
    return id < 0 ? std::nullopt : std::optional(id);
  }
  int32_t vocab_size() const override {
    return std::max({ordinary_.size(), specials_.tokens().size(), added_.tokens().size(),
                     added_normalized_.tokens().size()});
  }

 private:
  void check_specials(const std::string& name) const {
    const Vocabulary& tokens = specials_.tokens();
    for (int32_t id = 0; id < tokens.size(); ++id) {
      if (!tokens.has(id)) continue;
      const std::string_view text = tokens.bytes(id);
      const auto fail = [&](const auto&... why) {
        throw ModelFormatError(
            concat(name, ": special token \"", printable(text), "\" (id ", id, ") ", why...));
      };
      if (text.size() > kMaxSpecialBytes)
        fail("has ", text.size(), " bytes, at most ", kMaxSpecialBytes, " are accepted");
      if (ordinary_.has(id)) fail("has the id of ordinary token \"", printable(ordinary_.bytes(id)), "\"");
      if (const int32_t other = ordinary_.find(text); other >= 0) fail("is also ordinary token ", other);
    }
  }

  // An added token may repeat what the merges can make, under its own id.
  void check_added(const Vocabulary& tokens, const std::string& name) const {
    for (int32_t id = 0; id < tokens.size(); ++id) {
      if (!tokens.has(id)) continue;
      const std::string_view text = tokens.bytes(id);
      const auto fail = [&](const auto&... why) {
        throw ModelFormatError(
            concat(name, ": added token \"", printable(text), "\" (id ", id, ") ", why...));
      };
      if (text.size() > kMaxSpecialBytes)
        fail("has ", text.size(), " bytes, at most ", kMaxSpecialBytes, " are accepted");
      for (const Vocabulary* others : {&ordinary_, &specials_.tokens(), &added_.tokens()})
        if (others != &tokens && others->has(id) && others->bytes(id) != text)
          fail("has the id of token \"", printable(others->bytes(id)), "\"");
    }
  }

  // Appends the tokens of `first`, and of `second` where those are longer, that stand in `text`, and calls
  // `rest` with what lies between them.
  template <class Rest>
  void cut_out(std::string_view text, const Literals& first, const Literals* second,
               std::vector<int32_t>& ids, const Rest& rest) const {
    size_t from = 0;
    const bool any = !first.empty() || (second && !second->empty());
    for (size_t at = 0; any && at < text.size();) {
      int32_t id = first.longest_at(text, at);
      if (second) {
        const int32_t other = second->longest_at(text, at);
        if (other >= 0 && (id < 0 || token_bytes(other).size() > token_bytes(id).size())) id = other;
      }
      if (id < 0) {
        ++at;
        continue;
      }
      rest(text.substr(from, at - from));
      ids.push_back(id);
      at += token_bytes(id).size();
      from = at;
    }
    rest(text.substr(from));
  }

  void encode_text(std::string_view text, std::vector<int32_t>& ids) const {
    const std::string normalized = nfc_ ? to_nfc(text) : std::string();
    cut_out(nfc_ ? normalized : text, added_normalized_, nullptr, ids,
            [&](std::string_view rest) { encode_normalized(rest, ids); });
  }

  void encode_normalized(std::string_view text, std::vector<int32_t>& ids) const {
    Bpe::Scratch scratch;
    uint32_t begin = 0;
    for (const uint32_t end : splitter_.piece_ends(text)) {
      bpe_.encode(text.substr(begin, end - begin), scratch, ids);
      begin = end;
    }
  }

  Vocabulary ordinary_;
  Literals specials_, added_, added_normalized_;
  std::vector<int32_t> prefix_, suffix_;
  Bpe bpe_;
  Splitter splitter_;
  bool nfc_;
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
