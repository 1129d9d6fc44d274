// Byte-level BPE tokenizers (tiktoken's o200k_harmony and files of the same kind).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trivium::io {

struct EncodeOptions {
  bool parse_special = false;  // true: special-token text becomes special ids. Never for user text.
  bool strict_utf8 = false;    // true: invalid UTF-8 is an InvalidArgument naming the byte offset
  // true: the ids that the tokenizer's template puts around a text (tokenizer.json's TemplateProcessing).
  bool add_special_tokens = false;
};

class Tokenizer {
 public:
  // A folder (tokenizer.json, else *.tiktoken, else tokenizer.bin) or one such file.
  static std::shared_ptr<const Tokenizer> load(const std::string& folder_or_file);
  // Whether `folder` holds one of those files.
  static bool present(const std::string& folder);
  // From bytes already read; `name` appears in messages. kind: "json", "tiktoken" or "bin".
  static std::shared_ptr<const Tokenizer> from_bytes(std::string_view bytes, std::string_view kind,
                                                     const std::string& name);

  virtual ~Tokenizer() = default;
  virtual std::vector<int32_t> encode(std::string_view bytes, const EncodeOptions& options = {}) const = 0;
  // Bytes of the ids; specials give their text only when `with_specials`. Ids without a token give "".
  // Not necessarily valid UTF-8.
  virtual std::string decode(std::span<const int32_t> ids, bool with_specials = false) const = 0;
  virtual std::string_view token_bytes(int32_t id) const = 0;  // empty when the id has no token
  virtual bool is_special(int32_t id) const = 0;
  virtual std::optional<int32_t> special_id(std::string_view name) const = 0;  // name: "<|end|>"
  virtual int32_t vocab_size() const = 0;                                      // largest id + 1
};

// Replaces ill-formed sequences by U+FFFD (WHATWG "maximal subpart" practice).
std::string sanitize_utf8(std::string_view bytes);

// Turns tokens into text piece by piece: holds back an incomplete UTF-8 tail; sanitised. The joined pieces
// equal sanitize_utf8 of the whole.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool with_specials = false)
      : tokenizer_(&tokenizer), with_specials_(with_specials) {}
  std::string push(int32_t id);
  std::string finish();  // U+FFFD for a tail that never completed

 private:
  const Tokenizer* tokenizer_;
  bool with_specials_;
  std::string pending_;
};

}  // namespace trivium::io
