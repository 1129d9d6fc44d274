#include "io/tokenizer_pattern.h"

#include <array>
#include <bitset>
#include <vector>

#include "core/error.h"
#include "io/unicode.h"
#include "io/utf8.h"

namespace trivium::io {

const char* const kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// 0..127: ASCII. 128 + general category: any other code point, but for three that a pattern can tell from
// the rest of their category.
constexpr int kFirstCategory = 128;
constexpr int kNextLine = kFirstCategory + kNumCategories;  // U+0085, Cc but white space
constexpr int kLongS = kNextLine + 1;                       // U+017F, folds to s
constexpr int kKelvin = kNextLine + 2;                      // U+212A, folds to k
constexpr int kNumClassBytes = kNextLine + 3;

using ByteSet = std::bitset<kNumClassBytes>;

struct ClassTable {
  std::vector<uint8_t> of_code_point = std::vector<uint8_t>(0x110000);
  std::array<uint8_t, kNumClassBytes> category{};

  ClassTable() {
    for (size_t run = 0; run < kNumCategoryRuns; ++run) {
      const size_t first = kCategoryRuns[run] >> 8;
      const size_t last = run + 1 < kNumCategoryRuns ? kCategoryRuns[run + 1] >> 8 : of_code_point.size();
      const auto run_category = static_cast<uint8_t>(kCategoryRuns[run] & 0xFF);
      for (size_t c = first; c < last; ++c) {
        of_code_point[c] =
            static_cast<uint8_t>(c < 128 ? c : static_cast<size_t>(kFirstCategory) + run_category);
        if (c < 128) category[c] = run_category;
      }
    }
    for (int i = 0; i < kNumCategories; ++i)
      category[static_cast<size_t>(kFirstCategory + i)] = static_cast<uint8_t>(i);
    set_apart(0x85, kNextLine);
    set_apart(0x17F, kLongS);
    set_apart(0x212A, kKelvin);
  }

  void set_apart(size_t code_point, int byte) {
    category[static_cast<size_t>(byte)] = category[of_code_point[code_point]];
    of_code_point[code_point] = static_cast<uint8_t>(byte);
  }
};

const ClassTable& class_table() {
  static const ClassTable table;
  return table;
}

ByteSet category_set(std::string_view prefix) {  // "L": every category whose name begins with it
  ByteSet set;
  for (int b = 0; b < kNumClassBytes; ++b) {
    const auto index = static_cast<size_t>(b);
    set[index] =
        std::string_view(kCategoryNames[class_table().category[index]]).substr(0, prefix.size()) == prefix;
  }
  return set;
}

ByteSet white_space_set() {  // the White_Space property
  ByteSet set = category_set("Z");
  for (size_t b = 9; b <= 13; ++b) set.set(b);
  return set.set(kNextLine);
}

ByteSet fold_case(const ByteSet& set) {  // simple case folding of the ASCII letters in the set
  ByteSet folded = set;
  for (size_t upper = 'A'; upper <= 'Z'; ++upper) {
    const size_t lower = upper + 32;
    if (!set[upper] && !set[lower]) continue;
    folded.set(upper).set(lower);
    if (lower == 's') folded.set(kLongS);
    if (lower == 'k') folded.set(kKelvin);
  }
  return folded;
}

std::string hex_escape(size_t byte) {
  static constexpr char kHex[] = "0123456789abcdef";
  return std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
}

std::string set_source(const ByteSet& set) {
  if (set.none()) return "(?!)";
  std::string out = "[";
  for (size_t b = 0; b < set.size(); ++b) {
    if (!set[b]) continue;
    size_t last = b;
    while (last + 1 < set.size() && set[last + 1]) ++last;
    out += hex_escape(b);
    if (last > b) out += "-" + hex_escape(last);
    b = last;
  }
  return out + "]";
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& name) : in_(pattern), name_(name) {}

  std::string translate() {
    while (at_ < in_.size()) translate_next();
    if (!groups_.empty()) refuse(in_.size(), "an unclosed group");
    return std::move(out_);
  }

 private:
  struct Item {  // one literal or set
    ByteSet set;
    int literal = -1;  // its class byte, when it is a single character
    bool property = false;
  };

  [[noreturn]] void refuse(size_t at, const std::string& what) const {
    throw ModelFormatError(
        concat(name_, ": the split pattern has ", what, " at byte ", at, ", which is not supported"));
  }
  [[noreturn]] void refuse_quoted(size_t from, size_t to) const {
    refuse(from, "\"" + printable(in_.substr(from, to - from)) + "\"");
  }

  bool take(std::string_view text) {
    if (in_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }

  void translate_next() {
    const char c = in_[at_];
    switch (c) {
      case '(':
        return open_group();
      case ')':
        return close_group();
      case '[':
        return emit(parse_class());
      case '|':
        out_ += c;
        ++at_;
        return;
      case '*':
      case '+':
      case '?':
      case '{':
        return copy_quantifier();
      case '.':
        ++at_;
        return emit({.set = ~ByteSet().set('\n'), .literal = -1, .property = true});
      case '^':
      case '$':
        refuse_quoted(at_, at_ + 1);
      default:
        return emit(parse_item());
    }
  }

  void emit(const Item& item) {
    if (caseless_ && item.property) refuse(at_, "a property inside a case-insensitive group");
    out_ += set_source(caseless_ ? fold_case(item.set) : item.set);
    after_atom_ = true;
  }

  void open_group() {
    static constexpr std::string_view kSame[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    const size_t start = at_;
    if (groups_.size() >= 50) refuse(at_, "groups nested deeper than 50");
    groups_.push_back(caseless_);
    after_atom_ = false;
    for (const std::string_view opening : kSame) {
      if (take(opening)) {
        out_ += opening;
        return;
      }
    }
    if (take("(?i:")) {
      caseless_ = true;
    } else if (take("(?") || take("(*")) {
      refuse_quoted(start, at_ + 1);
    } else {
      ++at_;
    }
    out_ += "(?:";
  }

  void close_group() {
    if (groups_.empty()) refuse(at_, "\")\" without \"(\"");
    caseless_ = groups_.back();
    groups_.pop_back();
    out_ += in_[at_++];
    after_atom_ = true;
  }

  void copy_quantifier() {
    const size_t start = at_;
    if (!after_atom_) refuse_quoted(at_, at_ + 1);
    if (in_[at_++] == '{') skip_bounds(start);
    out_ += in_.substr(start, at_ - start);
    if (at_ < in_.size() && (in_[at_] == '+' || in_[at_] == '?')) out_ += in_[at_++];
    after_atom_ = false;
  }

  void skip_bounds(size_t start) {  // "m}", "m,}" or "m,n}" of at most three digits each
    const auto digits = [this] {
      size_t n = 0;
      for (; at_ < in_.size() && in_[at_] >= '0' && in_[at_] <= '9'; ++at_) ++n;
      return n;
    };
    size_t n = digits();
    const bool low_ok = n >= 1 && n <= 3;
    if (take(",")) n = digits();
    if (!low_ok || n > 3 || !take("}")) refuse_quoted(start, at_ + 1);
  }

  Item parse_class() {
    const size_t start = at_++;
    const bool negated = take("^");
    Item result;
    bool first = true;
    while (first || at_ >= in_.size() || in_[at_] != ']') {
      if (at_ >= in_.size()) refuse(start, "an unclosed \"[\"");
      const std::string_view rest = in_.substr(at_);
      if (rest[0] == '[' || rest[0] == ']' || rest.starts_with("&&") || rest.starts_with("~~") ||
          rest.starts_with("--")) {
        refuse_quoted(at_, at_ + 2);
      }
      add_class_item(result);
      first = false;
    }
    ++at_;
    if (caseless_) result.set = fold_case(result.set);
    if (negated) result.set.flip();
    return result;
  }

  void add_class_item(Item& result) {
    const size_t start = at_;
    const Item low = parse_item();
    result.property |= low.property;
    const bool range = at_ + 1 < in_.size() && in_[at_] == '-' && in_[at_ + 1] != ']';
    if (!range) {
      result.set |= low.set;
      return;
    }
    ++at_;
    if (in_[at_] == '[') refuse_quoted(start, at_ + 1);
    const Item high = parse_item();
    if (low.literal < 0 || low.literal > high.literal || high.literal > 127) refuse_quoted(start, at_);
    for (int b = low.literal; b <= high.literal; ++b) result.set.set(static_cast<size_t>(b));
  }

  static Item literal(int byte) { return {.set = ByteSet().set(static_cast<size_t>(byte)), .literal = byte}; }

  Item parse_item() {
    if (in_[at_] == '\\') return parse_escape();
    const auto byte = static_cast<unsigned char>(in_[at_]);
    if (byte > 127) refuse_quoted(at_, at_ + static_cast<size_t>(decode_utf8(in_, at_).length));
    ++at_;
    return literal(byte);
  }

  Item parse_escape() {
    const size_t start = at_++;
    if (at_ >= in_.size()) refuse(start, "a lone \"\\\"");
    const char c = in_[at_++];
    switch (c) {
      case 'n':
        return literal('\n');
      case 'r':
        return literal('\r');
      case 't':
        return literal('\t');
      case 'f':
        return literal('\f');
      case 's':
        return {.set = white_space_set(), .literal = -1, .property = true};
      case 'S':
        return {.set = ~white_space_set(), .literal = -1, .property = true};
      case 'd':
        return {.set = category_set("Nd"), .literal = -1, .property = true};
      case 'D':
        return {.set = ~category_set("Nd"), .literal = -1, .property = true};
      case 'p':
      case 'P':
        return parse_property(start, c == 'P');
      case 'x':
      case 'u':
        return parse_code_point(start);
      default:
        break;
    }
    const bool punctuation =
        c > 32 && c < 127 && !(c >= '0' && c <= '9') && !((c | 32) >= 'a' && (c | 32) <= 'z');
    if (!punctuation && c != ' ') refuse_quoted(start, at_);
    return literal(c);
  }

  Item parse_property(size_t start, bool negated) {
    std::string_view category = in_.substr(at_, 1);
    if (take("{")) {
      if (take("^")) negated = !negated;
      const size_t close = in_.find('}', at_);
      if (close == std::string_view::npos) refuse(start, "an unclosed \"{\"");
      category = in_.substr(at_, close - at_);
      at_ = close + 1;
    } else {
      at_ += category.size();
    }
    const ByteSet set = category_set(category);
    if (category.empty() || category.size() > 2 || set.none()) refuse_quoted(start, at_);
    return {.set = negated ? ~set : set, .literal = -1, .property = true};
  }

  Item parse_code_point(size_t start) {  // \xHH \x{H..} \uHHHH; beyond ASCII only those with their own class
    const bool braces = in_[at_ - 1] == 'x' && take("{");
    const size_t wanted = braces ? 6 : in_[at_ - 1] == 'x' ? 2 : 4;
    int value = 0;
    size_t digits = 0;
    for (; digits < wanted && at_ < in_.size(); ++digits, ++at_) {
      const char c = in_[at_];
      const char lower = static_cast<char>(c | 32);
      if (c >= '0' && c <= '9')
        value = value * 16 + (c - '0');
      else if (lower >= 'a' && lower <= 'f')
        value = value * 16 + (lower - 'a' + 10);
      else
        break;
    }
    const bool complete = braces ? digits > 0 && take("}") : digits == wanted;
    const int byte = complete && value < 0x110000 ? class_byte(value) : kFirstCategory;
    if (!complete || (byte >= kFirstCategory && byte < kNextLine)) refuse_quoted(start, at_);
    return literal(byte);
  }

  std::string_view in_;
  const std::string& name_;
  std::string out_;
  size_t at_ = 0;
  bool caseless_ = false, after_atom_ = false;
  std::vector<bool> groups_;  // case sensitivity outside each open group
};

}  // namespace

uint8_t class_byte(int32_t code_point) {
  static constexpr auto kIllFormed =
      static_cast<uint8_t>(kFirstCategory + static_cast<int>(GeneralCategory::So));
  return code_point < 0 ? kIllFormed : class_table().of_code_point[static_cast<size_t>(code_point)];
}

std::string translate_split_pattern(std::string_view pattern, const std::string& name) {
  return Translator(pattern, name).translate();
}

}  // namespace trivium::io
