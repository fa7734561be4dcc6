// Arithmetic, Python's.
#include <cmath>
#include <limits>

#include "formats/jinja/engine.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

[[noreturn]] void unsupported(std::string_view symbol, const Value& a, const Value& b) {
  throw Failure(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", symbol,
                            type_name(a), type_name(b)));
}

[[noreturn]] void too_large() { throw Failure("an integer beyond 64 bits"); }

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) throw Failure("integer division or modulo by zero");
  if (b == -1) {
    if (a == std::numeric_limits<int64_t>::min()) too_large();
    return -a;
  }
  return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

Value power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) throw Failure("0.0 cannot be raised to a negative power");
    return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) too_large();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) too_large();
  }
  return result;
}

Value whole_arithmetic(char op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case '+':
      if (__builtin_add_overflow(a, b, &result)) too_large();
      return result;
    case '-':
      if (__builtin_sub_overflow(a, b, &result)) too_large();
      return result;
    case '*':
      if (__builtin_mul_overflow(a, b, &result)) too_large();
      return result;
    case '/':
      if (b == 0) throw Failure("division by zero");
      return static_cast<double>(a) / static_cast<double>(b);
    case 'f':
      return floor_divide(a, b);
    case '%':
      if (b == -1) return int64_t{0};
      return a - floor_divide(a, b) * b;
    default:
      return power(a, b);
  }
}

Value real_arithmetic(char op, double a, double b) {
  switch (op) {
    case '+':
      return a + b;
    case '-':
      return a - b;
    case '*':
      return a * b;
    case '/':
      if (b == 0) throw Failure("float division by zero");
      return a / b;
    case 'f':
      if (b == 0) throw Failure("float floor division by zero");
      return std::floor(a / b);
    case '%': {
      if (b == 0) throw Failure("float modulo");
      double rest = std::fmod(a, b);
      if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
      return rest;
    }
    default:
      return std::pow(a, b);
  }
}

// A text or list `count` times.
Value repeated(Engine& engine, const Value& value, int64_t count) {
  const auto times = static_cast<size_t>(std::max<int64_t>(0, count));
  const auto check = [&](size_t size) {
    size_t total = 0;
    if (__builtin_mul_overflow(size, times, &total)) {
      total = static_cast<size_t>(std::numeric_limits<int64_t>::max() / 4);
    }
    engine.budget.bytes(total);
  };
  if (const Text* text = value.text()) {
    check(text->bytes.size());
    std::string out;
    if (text->bytes.empty()) return value;
    for (size_t i = 0; i < times; ++i) out += text->bytes;
    return Value(std::move(out), text->safe);
  }
  const List& list = *value.list();
  check(list.items.size() * sizeof(Value));
  std::vector<Value> items;
  if (list.items.empty()) return value;
  for (size_t i = 0; i < times; ++i)
    items.insert(items.end(), list.items.begin(), list.items.end());
  return make_list(engine.budget, std::move(items), list.type);
}

bool can_repeat(const Value& value) {
  const List* list = value.list();
  return value.text() != nullptr ||
         (list != nullptr && (list->type == List::Type::list || list->type == List::Type::tuple));
}

}  // namespace

Value add(Engine& engine, const Value& a, const Value& b) {
  const Text *x = a.text(), *y = b.text();
  if (x != nullptr && y != nullptr) {
    engine.budget.bytes(x->bytes.size() + y->bytes.size());
    if (x->safe == y->safe) return Value(x->bytes + y->bytes, x->safe);
    return x->safe ? Value(x->bytes + escape_html(y->bytes), true)
                   : Value(escape_html(x->bytes) + y->bytes, true);
  }
  const List *p = a.list(), *q = b.list();
  if (p != nullptr && q != nullptr && p->type == q->type &&
      (p->type == List::Type::list || p->type == List::Type::tuple)) {
    std::vector<Value> items;
    engine.budget.bytes((p->items.size() + q->items.size()) * sizeof(Value));
    items.reserve(p->items.size() + q->items.size());
    items.insert(items.end(), p->items.begin(), p->items.end());
    items.insert(items.end(), q->items.begin(), q->items.end());
    return make_list(engine.budget, std::move(items), p->type);
  }
  return arithmetic(engine, "+", a, b);
}

Value arithmetic(Engine& engine, std::string_view symbol, const Value& a, const Value& b) {
  a.must_be_defined();
  if (symbol == "%" && a.text() != nullptr) {
    return Value(format_percent(engine, a.text()->bytes, b), a.text()->safe);
  }
  b.must_be_defined();
  const char op = symbol == "//" ? 'f' : symbol == "**" ? 'p' : symbol[0];
  if (whole(a) && whole(b)) return whole_arithmetic(op, *whole(a), *whole(b));
  if (real(a) && real(b)) return real_arithmetic(op, *real(a), *real(b));
  if (op == '*' && whole(b) && can_repeat(a)) return repeated(engine, a, *whole(b));
  if (op == '*' && whole(a) && can_repeat(b)) return repeated(engine, b, *whole(a));
  if (op == '+' && a.text() != nullptr) {
    throw Failure(fmt::format("can only concatenate str (not \"{}\") to str", type_name(b)));
  }
  if (op == '+' && a.list() != nullptr && can_repeat(a)) {
    throw Failure(
        fmt::format("can only concatenate {0} (not \"{1}\") to {0}", type_name(a), type_name(b)));
  }
  unsupported(symbol == "**" ? "** or pow()" : symbol, a, b);
}

Value negative(const Value& value) {
  value.must_be_defined();
  if (const auto number = whole(value)) {
    if (*number == std::numeric_limits<int64_t>::min()) too_large();
    return -*number;
  }
  if (const double* number = value.number()) return -*number;
  throw Failure(fmt::format("bad operand type for unary -: '{}'", type_name(value)));
}

}  // namespace pronghorn::jinja
