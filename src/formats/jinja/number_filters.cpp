// Filters of numbers.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "formats/jinja/filters.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

Value absolute(Engine&, const Value& value, Given) {
  const auto integer = whole(value);
  if (integer && *integer >= 0) return *integer;
  if (value.number() != nullptr) return std::abs(*value.number());
  if (!integer) {
    value.must_be_defined();
    throw Failure(fmt::format("bad operand type for abs(): '{}'", type_name(value)));
  }
  return negative(value);
}

Value file_size(Engine& engine, const Value& value, Given given) {
  const auto given_size = real(value);
  if (!given_size) throw Failure("filesizeformat needs a number");
  const bool binary = flag(given[0]);
  const double base = binary ? 1024 : 1000, size = *given_size;
  if (size == 1) return make_text(engine.budget, "1 Byte");
  if (size < base) return make_text(engine.budget, fmt::format("{:.0f} Bytes", std::trunc(size)));
  constexpr std::string_view kPrefixes = "kMGTPEZY";
  double unit = base;
  for (size_t i = 0; i < kPrefixes.size(); ++i) {
    if (size < unit * base || i + 1 == kPrefixes.size()) {
      const std::string prefix =
          binary ? fmt::format("{}i", i == 0 ? 'K' : kPrefixes[i]) : std::string(1, kPrefixes[i]);
      return make_text(engine.budget, fmt::format("{:.1f} {}B", size / unit, prefix));
    }
    unit *= base;
  }
  return Value();
}

// float() of Python; nothing for what is no number.
std::optional<double> parse_real(std::string_view text) {
  std::string digits;
  for (const char c : strip(text)) {
    if (c != '_') digits += c;
  }
  const bool plus = digits.starts_with('+');
  double result = 0;
  const char* const begin = digits.data() + (plus ? 1 : 0);
  const char* const end = digits.data() + digits.size();
  const auto [stop, code] = std::from_chars(begin, end, result);
  if (code == std::errc::invalid_argument || stop != end || begin == end) return {};
  return result;
}

std::optional<int64_t> parse_whole(std::string_view text, int64_t base) {
  std::string digits;
  for (const char c : strip(text)) {
    if (c != '_') digits += c;
  }
  const bool minus = digits.starts_with('-');
  if (minus || digits.starts_with('+')) digits.erase(0, 1);
  const auto prefixed = [&](int64_t of, char letter) {
    if ((base != of && base != 0) || digits.size() < 2 || digits[0] != '0') return;
    if (digits[1] != letter && digits[1] != letter - 32) return;
    digits.erase(0, 2);
    base = of;
  };
  prefixed(16, 'x');
  prefixed(8, 'o');
  prefixed(2, 'b');
  if (base == 0) base = 10;
  if (base < 2 || base > 36 || digits.starts_with('-')) return {};
  int64_t result = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, code] = std::from_chars(digits.data(), end, result, static_cast<int>(base));
  if (code != std::errc() || stop != end) return {};
  return minus ? -result : result;
}

std::optional<int64_t> truncated(double value) {
  if (!(std::abs(value) < 9.2e18)) return {};
  return static_cast<int64_t>(value);
}

Value to_whole(Engine&, const Value& value, Given given) {
  value.must_be_defined();
  std::optional<int64_t> result = whole(value);
  if (value.number() != nullptr) result = truncated(*value.number());
  if (value.text() != nullptr) {
    result = parse_whole(value.text()->bytes, number(given[1], 10));
    const auto fraction = parse_real(value.text()->bytes);
    if (!result && fraction) result = truncated(*fraction);
  }
  if (result) return *result;
  return given[0] == nullptr ? Value(int64_t{0}) : *given[0];
}

Value to_real(Engine&, const Value& value, Given given) {
  value.must_be_defined();
  std::optional<double> result = real(value);
  if (value.text() != nullptr) result = parse_real(value.text()->bytes);
  if (result) return *result;
  return given[0] == nullptr ? Value(0.0) : *given[0];
}

Value rounded(Engine&, const Value& value, Given given) {
  value.must_be_defined();
  const auto input = real(value);
  if (!input)
    throw Failure(fmt::format("type {} doesn't define __round__ method", type_name(value)));
  const int64_t precision = number(given[0], 0);
  const std::string method =
      given[1] == nullptr || given[1]->text() == nullptr ? "common" : given[1]->text()->bytes;
  if (method != "common" && method != "ceil" && method != "floor") {
    throw Failure("method must be common, ceil or floor");
  }
  if (method == "common") {
    if (whole(value) && precision >= 0) return *whole(value);
    if (precision > 300 || precision < -300) return *input;
    if (precision < 0) {
      const double unit = std::pow(10.0, static_cast<double>(-precision));
      const double result = std::nearbyint(*input / unit) * unit;
      return whole(value) ? Value(static_cast<int64_t>(result)) : Value(result);
    }
    // As many correctly rounded decimals, read back.
    return std::strtod(fmt::format("{:.{}f}", *input, precision).c_str(), nullptr);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  return (method == "ceil" ? std::ceil(*input * unit) : std::floor(*input * unit)) / unit;
}

constexpr Filter kFilters[] = {
    {"abs", "", 0, absolute},
    {"filesizeformat", "binary", 0, file_size},
    {"float", "default", 0, to_real},
    {"int", "default base", 0, to_whole},
    {"round", "precision method", 0, rounded},
};

}  // namespace

std::span<const Filter> number_filters() { return kFilters; }

}  // namespace pronghorn::jinja
