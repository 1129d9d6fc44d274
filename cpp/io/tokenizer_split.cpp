#include "io/tokenizer_split.h"

#include <pcre2.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "io/tokenizer_pattern.h"
#include "io/utf8.h"

namespace trivium::io {

namespace {

struct Pcre2Delete {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <class T>
using Pcre2 = std::unique_ptr<T, Pcre2Delete>;

// Most backtracking a match may do: the published patterns back up at most a few times over one run of
// equal characters, so a multiple of the text's length is enough for them.
constexpr uint32_t kBaseMatchLimit = 1'000'000, kMatchLimitPerByte = 16;
constexpr uint32_t kHeapLimitKb = 64 * 1024, kDepthLimit = 100'000;
constexpr size_t kJitStackBytes = 64 << 20;  // address space; pages are touched only when needed

// One class byte per code point (or ill-formed byte); widths, in bytes of text, only when not all are 1.
struct ClassText {
  std::string classes;
  std::vector<uint8_t> widths;
};

size_t ascii_prefix(std::string_view text) {
  size_t n = 0;
  for (uint64_t word; n + sizeof(word) <= text.size(); n += sizeof(word)) {
    std::memcpy(&word, text.data() + n, sizeof(word));
    if (word & 0x8080808080808080ull) break;
  }
  while (n < text.size() && static_cast<unsigned char>(text[n]) < 0x80) ++n;
  return n;
}

ClassText classify(std::string_view text) {
  ClassText out;
  const size_t ascii = ascii_prefix(text);
  out.classes.assign(text.substr(0, ascii));
  if (ascii == text.size()) return out;
  out.widths.assign(ascii, 1);
  out.classes.reserve(text.size());
  out.widths.reserve(text.size());
  for (size_t i = ascii; i < text.size();) {
    const Utf8Unit unit = decode_utf8(text, i);
    const int width = unit.code_point < 0 ? 1 : unit.length;
    out.classes += static_cast<char>(class_byte(unit.code_point));
    out.widths.push_back(static_cast<uint8_t>(width));
    i += static_cast<size_t>(width);
  }
  return out;
}

// Turns ascending positions in class text into byte offsets.
class OffsetWalker {
 public:
  explicit OffsetWalker(const ClassText& text) : text_(text) {}
  uint32_t byte_offset(size_t position) {
    if (text_.widths.empty()) return static_cast<uint32_t>(position);
    for (; at_ < position; ++at_) offset_ += text_.widths[at_];
    return offset_;
  }

 private:
  const ClassText& text_;
  size_t at_ = 0;
  uint32_t offset_ = 0;
};

}  // namespace

struct Splitter::Compiled {
  Pcre2<pcre2_code> code;
  bool jit = false;
};

Splitter::Splitter(std::string_view pattern, const std::string& name)
    : compiled_(std::make_unique<Compiled>()), name_(name) {
  if (pattern.empty() || pattern.size() > (64 << 10)) {
    throw ModelFormatError(
        concat(name, ": the split pattern has ", pattern.size(), " bytes, expected 1 to 65536"));
  }
  const std::string translated = translate_split_pattern(pattern, name);
  const Pcre2<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
  if (!context) throw OutOfMemory(name + ": out of memory while compiling the split pattern");
  pcre2_set_parens_nest_limit(context.get(), 200);
  int error = 0;
  size_t where = 0;
  compiled_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                      PCRE2_NEVER_UTF | PCRE2_NEVER_UCP | PCRE2_NEVER_BACKSLASH_C, &error,
                                      &where, context.get()));
  if (!compiled_->code) {
    char message[256] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    throw ModelFormatError(concat(name, ": the split pattern does not compile: ", message));
  }
  compiled_->jit = pcre2_jit_compile(compiled_->code.get(), PCRE2_JIT_COMPLETE) == 0;
}

Splitter::~Splitter() = default;

std::vector<uint32_t> Splitter::piece_ends(std::string_view text) const {
  std::vector<uint32_t> ends;
  if (text.empty()) return ends;
  const ClassText subject = classify(text);
  const size_t size = subject.classes.size();
  const auto* data = reinterpret_cast<PCRE2_SPTR>(subject.classes.data());
  const Pcre2<pcre2_match_data> match(pcre2_match_data_create(1, nullptr));
  const Pcre2<pcre2_match_context> context(pcre2_match_context_create(nullptr));
  if (!match || !context) throw OutOfMemory(name_ + ": out of memory while splitting text");
  const uint64_t limit = kBaseMatchLimit + uint64_t{kMatchLimitPerByte} * size;
  pcre2_set_match_limit(context.get(), static_cast<uint32_t>(std::min<uint64_t>(limit, UINT32_MAX)));
  pcre2_set_heap_limit(context.get(), kHeapLimitKb);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  Pcre2<pcre2_jit_stack> big_stack;  // made only when the 32 kB that PCRE2 takes by itself do not do

  const auto run = [&](size_t at) {
    return compiled_->jit
               ? pcre2_jit_match(compiled_->code.get(), data, size, at, 0, match.get(), context.get())
               : pcre2_match(compiled_->code.get(), data, size, at, 0, match.get(), context.get());
  };
  OffsetWalker walker(subject);
  ends.reserve(size / 4 + 1);
  for (size_t at = 0, piece = 0; piece < size;) {
    int rc = run(at);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !big_stack) {
      big_stack.reset(pcre2_jit_stack_create(64 << 10, kJitStackBytes, nullptr));
      if (!big_stack) throw OutOfMemory(name_ + ": out of memory while splitting text");
      pcre2_jit_stack_assign(context.get(), nullptr, big_stack.get());
      rc = run(at);
    }
    size_t begin = size, end = size;
    if (rc >= 0) {
      begin = pcre2_get_ovector_pointer(match.get())[0];
      end = pcre2_get_ovector_pointer(match.get())[1];
    } else if (rc != PCRE2_ERROR_NOMATCH) {
      throw InvalidArgument(concat(name_, ": the split pattern exceeds its match budget on this text (byte ",
                                   walker.byte_offset(piece), ", PCRE2 error ", rc, ")"));
    }
    if (end <= begin && begin < size) {  // an empty match splits nothing
      at = std::max(at, begin) + 1;
      if (at <= size) continue;
    }
    if (begin > piece) ends.push_back(walker.byte_offset(begin));
    if (end > begin) ends.push_back(walker.byte_offset(end));
    at = piece = end;
  }
  return ends;
}

}  // namespace trivium::io
