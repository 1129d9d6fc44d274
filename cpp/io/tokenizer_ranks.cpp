// The two rank formats: tiktoken's text lines and the binary file of the gpt-oss C++ seed project.
#include <array>
#include <bit>
#include <charconv>
#include <cstring>

#include "core/error.h"
#include "io/tokenizer_files.h"
#include "io/tokenizer_pattern.h"

namespace trivium::io {

namespace {

constexpr int32_t kHarmonyRanks = 199998;  // ordinary tokens of o200k
constexpr int32_t kHarmonyVocab = 201088;  // with all special tokens
constexpr int32_t kFirstReserved = 200000;
constexpr float kSpecialScore = -1e30f;  // in tokenizer.bin

struct NamedSpecial {
  int32_t id;
  const char* text;
};
constexpr NamedSpecial kHarmonySpecials[] = {{199998, "<|startoftext|>"}, {199999, "<|endoftext|>"},
                                             {200002, "<|return|>"},      {200003, "<|constrain|>"},
                                             {200005, "<|channel|>"},     {200006, "<|start|>"},
                                             {200007, "<|end|>"},         {200008, "<|message|>"},
                                             {200012, "<|call|>"},        {200018, "<|endofprompt|>"}};

// A rank file has no special tokens. With o200k's ranks they get harmony's ids; after a smaller vocabulary
// (tests, demo models) the nine that harmony needs take the next ids in the same order.
void add_harmony_specials(TokenizerParts& parts) {
  if (parts.ordinary.size() != kHarmonyRanks) {
    int32_t id = parts.ordinary.size();
    for (size_t i = 0; i < 9; ++i) parts.specials.add(id++, kHarmonySpecials[i].text);
    return;
  }
  for (const NamedSpecial& special : kHarmonySpecials) parts.specials.add(special.id, special.text);
  for (int32_t id = kFirstReserved; id < kHarmonyVocab; ++id) {
    if (!parts.specials.has(id)) parts.specials.add(id, concat("<|reserved_", id, "|>"));
  }
}

std::array<int8_t, 256> make_base64_values() {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::array<int8_t, 256> values{};
  values.fill(-1);
  for (size_t i = 0; i < kDigits.size(); ++i)
    values[static_cast<unsigned char>(kDigits[i])] = static_cast<int8_t>(i);
  return values;
}

// Padded base64 (RFC 4648 section 4). False when it is not.
bool decode_base64(std::string_view text, std::string& bytes) {
  static const std::array<int8_t, 256> values = make_base64_values();
  bytes.clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool pad = i + padding >= text.size();
    const int8_t value = pad ? int8_t{0} : values[static_cast<unsigned char>(text[i])];
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    if (i % 4 == 3) {
      for (const int shift : {16, 8, 0})
        bytes += static_cast<char>(static_cast<unsigned char>(bits >> shift));
      bits = 0;
    }
  }
  bytes.resize(bytes.size() - padding);
  return true;
}

// Little-endian reader of tokenizer.bin.
class BinReader {
 public:
  BinReader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}
  bool done() const { return at_ == bytes_.size(); }
  size_t offset() const { return at_; }

  std::string_view take(size_t n, const char* what) {
    if (bytes_.size() - at_ < n) {
      throw ModelFormatError(concat(name_, ": the file ends at byte ", bytes_.size(), " inside the ", what,
                                    " that begins at byte ", at_, " and needs ", n, " bytes"));
    }
    at_ += n;
    return bytes_.substr(at_ - n, n);
  }

  template <class T>
  T read(const char* what) {
    static_assert(std::endian::native == std::endian::little);
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

 private:
  std::string_view bytes_;
  const std::string& name_;
  size_t at_ = 0;
};

}  // namespace

TokenizerParts read_tiktoken_ranks(std::string_view bytes, const std::string& name) {
  TokenizerParts parts(name);
  parts.split_pattern = kO200kPattern;
  std::string token;
  for (size_t line_number = 1; !bytes.empty(); ++line_number) {
    const size_t newline = bytes.find('\n');
    std::string_view line = bytes.substr(0, newline);
    bytes.remove_prefix(newline == std::string_view::npos ? bytes.size() : newline + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    const std::string_view rank_text = space == std::string_view::npos ? "" : line.substr(space + 1);
    int64_t rank = -1;
    const auto [end, error] = std::from_chars(rank_text.data(), rank_text.data() + rank_text.size(), rank);
    if (rank_text.empty() || error != std::errc() || end != rank_text.data() + rank_text.size() ||
        !decode_base64(line.substr(0, space), token)) {
      throw ModelFormatError(concat(name, ": line ", line_number, " (\"", printable(line),
                                    "\") is not a base64 token and its rank"));
    }
    parts.ordinary.add(rank, token);
  }
  if (parts.ordinary.size() > kMaxVocab - 9)
    throw ModelFormatError(name + ": no ids are left for the special tokens");
  add_harmony_specials(parts);
  return parts;
}

TokenizerParts read_tokenizer_bin(std::string_view bytes, const std::string& name) {
  TokenizerParts parts(name);
  parts.split_pattern = kO200kPattern;
  BinReader reader(bytes, name);
  const auto longest = reader.read<int32_t>("header");
  if (longest < 1)
    throw ModelFormatError(concat(name, ": the header says the longest token has ", longest, " bytes"));
  for (int64_t id = 0; !reader.done(); ++id) {
    const size_t begin = reader.offset();
    const auto score = reader.read<float>("record");
    const auto length = reader.read<int32_t>("record");
    if (length < 0 || length > longest) {
      throw ModelFormatError(concat(name, ": record ", id, " at byte ", begin, " has length ", length,
                                    ", expected 0 to ", longest));
    }
    const std::string_view token = reader.take(static_cast<size_t>(length), "token");
    if (score == kSpecialScore) {
      if (length > 0) parts.specials.add(id, token);  // an empty one is a hole
    } else if (score == static_cast<float>(id)) {
      parts.ordinary.add(id, token == "<0x00>" ? std::string_view("\0", 1) : token);
    } else {
      throw ModelFormatError(concat(name, ": record ", id, " at byte ", begin, " has score ", score,
                                    ", expected its rank ", id, " or -1e30 for a special token"));
    }
  }
  return parts;
}

}  // namespace trivium::io
