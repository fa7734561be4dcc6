// tojson, as transformers has it: Python's json.dumps.
#include <algorithm>
#include <cmath>

#include "formats/jinja/text.h"
#include "formats/jinja/value.h"
#include "formats/utf8.h"

namespace pronghorn::jinja {
namespace {

class Writer {
 public:
  Writer(Budget& budget, const JsonStyle& style) : budget_(budget), style_(style) {}

  void write(const Value& value, int level) {
    budget_.step();
    if (const Text* text = value.text()) {
      write_text(text->bytes);
    } else if (value.is_none()) {
      out_ += "null";
    } else if (const bool* boolean = value.boolean()) {
      out_ += *boolean ? "true" : "false";
    } else if (const int64_t* integer = value.integer()) {
      out_ += std::to_string(*integer);
    } else if (const double* number = value.number()) {
      out_ += number_text(*number);
    } else if (const Dict* dict = value.dict()) {
      write_dict(*dict, level);
    } else if (const List* list = value.list();
               list != nullptr &&
               (list->type == List::Type::list || list->type == List::Type::tuple)) {
      write_items('[', ']', list->items.size(), level,
                  [&](size_t i) { write(list->items[i], level + 1); });
    } else {
      throw Failure(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
    }
  }

  std::string take() { return std::move(out_); }

 private:
  template <typename Item>
  void write_items(char open, char close, size_t count, int level, const Item& item) {
    out_ += open;
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out_ += style_.item_separator;
      new_line(level + 1);
      item(i);
    }
    if (count > 0) new_line(level);
    out_ += close;
  }

  void new_line(int level) {
    if (!style_.indent) return;
    budget_.bytes(1 + style_.indent->size() * static_cast<size_t>(level));
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += *style_.indent;
  }

  static std::string number_text(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
    return float_repr(number);
  }

  static std::string key_text(const Value& key) {
    if (key.text() != nullptr) return key.text()->bytes;
    if (key.is_none()) return "null";
    if (const bool* boolean = key.boolean()) return *boolean ? "true" : "false";
    if (const int64_t* integer = key.integer()) return std::to_string(*integer);
    if (const double* number = key.number()) return number_text(*number);
    throw Failure(
        fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
  }

  void write_dict(const Dict& dict, int level) {
    std::vector<size_t> order(dict.items.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return compare(budget_, dict.items[a].first, dict.items[b].first, "<") < 0;
      });
    }
    write_items('{', '}', order.size(), level, [&](size_t i) {
      const auto& [key, value] = dict.items[order[i]];
      write_text(key_text(key));
      out_ += style_.key_separator;
      write(value, level + 1);
    });
  }

  void write_text(std::string_view text) {
    budget_.bytes(text.size() + 2);
    out_ += '"';
    for (size_t at = 0; at < text.size();) {
      const char c = text[at];
      const auto byte = static_cast<unsigned char>(c);
      if (byte >= 0x80) {
        const size_t length = std::max<size_t>(1, utf8_character(text.substr(at, 4)));
        write_wide(text.substr(at, length));
        at += length;
        continue;
      }
      ++at;
      if (c == '"' || c == '\\') {
        (out_ += '\\') += c;
      } else if (c == '\n') {
        out_ += "\\n";
      } else if (c == '\r') {
        out_ += "\\r";
      } else if (c == '\t') {
        out_ += "\\t";
      } else if (c == '\b') {
        out_ += "\\b";
      } else if (c == '\f') {
        out_ += "\\f";
      } else if (byte < 0x20) {
        out_ += fmt::format("\\u{:04x}", byte);
      } else {
        out_ += c;
      }
    }
    out_ += '"';
  }

  void write_wide(std::string_view character) {
    if (!style_.ascii) {
      out_ += character;
      return;
    }
    const uint32_t code = decode_utf8(character);
    if (code < 0x10000) {
      out_ += fmt::format("\\u{:04x}", code);
    } else {
      out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((code - 0x10000) >> 10),
                          0xDC00 + ((code - 0x10000) & 0x3FF));
    }
  }

  Budget& budget_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(Budget& budget, const Value& value, const JsonStyle& style) {
  Writer writer(budget, style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace pronghorn::jinja
