#include "formats/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <limits>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

constexpr uint64_t kLargestPickle = uint64_t{64} << 20;
constexpr size_t kMostValues = size_t{2} << 20;
constexpr size_t kMostItems = size_t{8} << 20;  // of all lists together
constexpr size_t kMaxDimensions = 32, kLongestKey = 100;
constexpr int kNewestProtocol = 5;

// How torch.save began a file before it wrote archives: a pickle of this number, protocol 2.
constexpr std::string_view kOldMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
                                     15);

enum class Kind : uint8_t {
  none,
  boolean,
  integer,
  real,
  text,
  tuple,
  list,
  dict,
  name,
  storage,
  tensor
};

// Every name that a pickle may speak of.
enum class Role : uint8_t { ordered_dict, rebuild_tensor, rebuild_parameter, storage_type };
struct KnownName {
  std::string_view name;
  Role role;
  std::string_view dtype = {};  // of a storage
};
constexpr KnownName kNames[] = {
    {"collections.OrderedDict", Role::ordered_dict},
    {"torch._utils._rebuild_tensor", Role::rebuild_tensor},
    {"torch._utils._rebuild_tensor_v2", Role::rebuild_tensor},
    {"torch._utils._rebuild_parameter", Role::rebuild_parameter},
    {"torch.FloatStorage", Role::storage_type, "F32"},
    {"torch.HalfStorage", Role::storage_type, "F16"},
    {"torch.BFloat16Storage", Role::storage_type, "BF16"},
    {"torch.DoubleStorage", Role::storage_type, "F64"},
    {"torch.LongStorage", Role::storage_type, "I64"},
    {"torch.IntStorage", Role::storage_type, "I32"},
    {"torch.ShortStorage", Role::storage_type, "I16"},
    {"torch.CharStorage", Role::storage_type, "I8"},
    {"torch.ByteStorage", Role::storage_type, "U8"},
    {"torch.BoolStorage", Role::storage_type, "BOOL"},
};

using ValueId = uint32_t;

// A value lives in a list of all values and names others by their places, so a pickle that contains
// itself or is nested a million times deep is no danger.
struct Value {
  Kind kind = Kind::none;
  int64_t integer = 0;          // also: the place in kNames, the number of elements of a storage
  std::string text = {};        // also: the key of a storage
  std::string_view dtype = {};  // of a storage
  std::vector<ValueId> items = {};  // of a dictionary: key, value, key, value..
};

struct TensorValue {
  ValueId storage = 0;
  int64_t offset = 0;
  std::vector<int64_t> shape, strides;
};

class PickleReader {
 public:
  PickleReader(std::span<const std::byte> bytes, std::string where)
      : bytes_(bytes), where_(std::move(where)) {}

  // Runs one pickle, from `place()` to its end; the value that it makes. Values of the pickles
  // before stay.
  ValueId read();
  size_t place() const { return place_; }

  const Value& value(ValueId id) const { return values_[id]; }
  const TensorValue& tensor(ValueId id) const {
    return tensors_[static_cast<size_t>(values_[id].integer)];
  }
  const std::deque<Value>& values() const { return values_; }

  // The value under a text in a dictionary.
  std::optional<ValueId> find(ValueId dict, std::string_view key) const;

 private:
  void step(uint8_t opcode, size_t at);
  void reduce(size_t at);
  void persistent(size_t at);
  void name(std::string_view module, std::string_view name, size_t at);
  ValueId ordered_dict(const Value& arguments, size_t at);
  ValueId rebuilt_tensor(const Value& arguments, size_t at);
  std::vector<int64_t> sizes(ValueId id, std::string_view what, size_t at) const;

  [[noreturn]] void refuse(size_t at, std::string_view problem) const {
    throw Error(fmt::format("{}: byte {}", where_, at), problem,
                "only tensors in dictionaries are read, and nothing is executed");
  }
  void check(bool condition, size_t at, std::string_view problem) const {
    if (!condition) refuse(at, problem);
  }

  std::span<const std::byte> take(uint64_t count) {
    check(count <= bytes_.size() - place_, place_, "the pickle ends too early");
    place_ += count;
    return bytes_.subspan(place_ - count, count);
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string text(uint64_t count) {
    const auto part = take(count);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  std::string line();

  ValueId add(Value value) {
    check(values_.size() < kMostValues, place_, fmt::format("more than {} values", kMostValues));
    count_items(value.items.size());
    values_.push_back(std::move(value));
    return static_cast<ValueId>(values_.size() - 1);
  }
  // A list that is copied again and again must end somewhere.
  void count_items(size_t count) {
    items_ += count;
    check(items_ <= kMostItems, place_, fmt::format("more than {} items of lists", kMostItems));
  }
  void push(Value value) { stack_.push_back(add(std::move(value))); }
  ValueId pop(size_t at) {
    check(stack_.size() > (marks_.empty() ? 0 : marks_.back()), at, "takes from an empty stack");
    const ValueId top = stack_.back();
    stack_.pop_back();
    return top;
  }
  // What lies above the newest mark.
  std::vector<ValueId> pop_to_mark(size_t at) {
    check(!marks_.empty(), at, "there is no mark on the stack");
    const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<ValueId> items(first, stack_.end());
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return items;
  }
  Value& top(Kind kind, size_t at, std::string_view what) {
    check(
        stack_.size() > (marks_.empty() ? 0 : marks_.back()) && values_[stack_.back()].kind == kind,
        at, fmt::format("needs {} on the stack", what));
    return values_[stack_.back()];
  }
  void remember(uint64_t key) { memo_[key] = stack_.empty() ? pop(place_) : stack_.back(); }
  void recall(uint64_t key, size_t at) {
    const auto found = memo_.find(key);
    check(found != memo_.end(), at, fmt::format("nothing was remembered as {}", key));
    stack_.push_back(found->second);
  }

  std::span<const std::byte> bytes_;
  std::string where_;
  size_t place_ = 0;
  std::deque<Value> values_;  // so that references outlive additions
  size_t items_ = 0;
  std::vector<TensorValue> tensors_;
  std::vector<ValueId> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, ValueId> memo_;
};

ValueId PickleReader::read() {
  stack_.clear();
  marks_.clear();
  memo_.clear();
  while (true) {
    const size_t at = place_;
    const auto opcode = number<uint8_t>();
    if (opcode == '.') {
      check(marks_.empty() && stack_.size() == 1, at, "ends with more or less than one value");
      return stack_.back();
    }
    step(opcode, at);
  }
}

std::string PickleReader::line() {
  const auto rest = bytes_.subspan(place_);
  const auto end = std::ranges::find(rest, std::byte{'\n'});
  check(end != rest.end(), place_, "the pickle ends in a name");
  std::string found = text(static_cast<uint64_t>(end - rest.begin()));
  take(1);
  return found;
}

// Opcodes by their letters in Lib/pickletools.py.
void PickleReader::step(uint8_t opcode, size_t at) {
  const auto tuple = [&](size_t count) {
    Value value{.kind = Kind::tuple};
    for (size_t i = 0; i < count; ++i) value.items.push_back(pop(at));
    std::ranges::reverse(value.items);
    push(std::move(value));
  };
  const auto string = [&](uint64_t count) { push({.kind = Kind::text, .text = text(count)}); };
  const auto integer = [&](int64_t value) { push({.kind = Kind::integer, .integer = value}); };
  const auto append = [&](Kind kind, const std::vector<ValueId>& items, std::string_view what) {
    check(kind != Kind::dict || items.size() % 2 == 0, at, "a key without a value");
    count_items(items.size());
    auto& list = top(kind, at, what).items;
    list.insert(list.end(), items.begin(), items.end());
  };
  switch (opcode) {
    case 0x80: {  // PROTO
      const int version = number<uint8_t>();
      return check(version <= kNewestProtocol, at, fmt::format("protocol {}", version));
    }
    case 0x95:  // FRAME
      take(sizeof(uint64_t));
      return;
    case '(':  // MARK
      return marks_.push_back(stack_.size());
    case 'N':
      return push({});
    case 0x88:  // NEWTRUE
      return push({.kind = Kind::boolean, .integer = 1});
    case 0x89:  // NEWFALSE
      return push({.kind = Kind::boolean});
    case 'K':
      return integer(number<uint8_t>());
    case 'M':
      return integer(number<uint16_t>());
    case 'J':
      return integer(number<int32_t>());
    case 0x8a: {  // LONG1
      const auto part = take(number<uint8_t>());
      check(part.size() <= sizeof(int64_t), at, fmt::format("a number of {} bytes", part.size()));
      uint64_t bits = 0;
      if (!part.empty() && (part.back() & std::byte{0x80}) != std::byte{0}) bits = ~uint64_t{0};
      for (size_t i = part.size(); i-- > 0;) bits = bits << 8 | static_cast<uint64_t>(part[i]);
      return integer(static_cast<int64_t>(bits));
    }
    case 'G':  // BINFLOAT: no tensor depends on one
      take(sizeof(double));
      return push({.kind = Kind::real});
    case 'X':
      return string(number<uint32_t>());
    case 0x8c:  // SHORT_BINUNICODE
      return string(number<uint8_t>());
    case 0x8d:  // BINUNICODE8
      return string(number<uint64_t>());
    case 'U':
      return string(number<uint8_t>());
    case '}':
      return push({.kind = Kind::dict});
    case ']':
      return push({.kind = Kind::list});
    case ')':
      return tuple(0);
    case 0x85:  // TUPLE1
    case 0x86:
    case 0x87:
      return tuple(opcode - 0x84u);
    case 't':
      return push({.kind = Kind::tuple, .items = pop_to_mark(at)});
    case 'a':
      return append(Kind::list, {pop(at)}, "a list");
    case 'e':
      return append(Kind::list, pop_to_mark(at), "a list");
    case 's': {
      const ValueId value = pop(at), key = pop(at);
      return append(Kind::dict, {key, value}, "a dictionary");
    }
    case 'u':
      return append(Kind::dict, pop_to_mark(at), "a dictionary");
    case 'q':
      return remember(number<uint8_t>());
    case 'r':
      return remember(number<uint32_t>());
    case 0x94:  // MEMOIZE
      return remember(memo_.size());
    case 'h':
      return recall(number<uint8_t>(), at);
    case 'j':
      return recall(number<uint32_t>(), at);
    case 'c': {
      const std::string module = line();
      return name(module, line(), at);
    }
    case 0x93: {  // STACK_GLOBAL
      const ValueId second = pop(at), first = pop(at);
      check(values_[first].kind == Kind::text && values_[second].kind == Kind::text, at,
            "a name that is no text");
      return name(std::string(values_[first].text), std::string(values_[second].text), at);
    }
    case 'R':
      return reduce(at);
    case 'b':  // BUILD gives attributes to an object; those of a dictionary of tensors say nothing
      pop(at);
      top(Kind::dict, at, "a dictionary");
      return;
    case 'Q':
      return persistent(at);
    default:
      refuse(at, fmt::format("opcode 0x{:02x}{} is refused", opcode,
                             opcode > 0x20 && opcode < 0x7f
                                 ? fmt::format(" '{}'", static_cast<char>(opcode))
                                 : ""));
  }
}

void PickleReader::name(std::string_view module, std::string_view name, size_t at) {
  const std::string whole = fmt::format("{}.{}", module, name);
  const auto* known = std::ranges::find(kNames, whole, &KnownName::name);
  check(known != std::end(kNames), at, fmt::format("the name {} is refused", quote(whole)));
  push({.kind = Kind::name, .integer = known - std::begin(kNames)});
}

void PickleReader::reduce(size_t at) {
  const ValueId arguments_id = pop(at), function_id = pop(at);
  check(values_[function_id].kind == Kind::name && values_[arguments_id].kind == Kind::tuple, at,
        "calls what is no function");
  const Value& arguments = values_[arguments_id];
  switch (kNames[values_[function_id].integer].role) {
    case Role::ordered_dict:
      return stack_.push_back(ordered_dict(arguments, at));
    case Role::rebuild_tensor:
      return stack_.push_back(rebuilt_tensor(arguments, at));
    case Role::rebuild_parameter:
      check(!arguments.items.empty() && values_[arguments.items[0]].kind == Kind::tensor, at,
            "a parameter without its tensor");
      return stack_.push_back(arguments.items[0]);
    case Role::storage_type:
      refuse(at, "calls a type of storage");
  }
}

// OrderedDict() or OrderedDict([[key, value], ..]), as Python 2 wrote it.
ValueId PickleReader::ordered_dict(const Value& arguments, size_t at) {
  Value dict{.kind = Kind::dict};
  check(arguments.items.size() <= 1, at, "a dictionary of several arguments");
  if (!arguments.items.empty()) {
    const Value& pairs = values_[arguments.items[0]];
    check(pairs.kind == Kind::list, at, "a dictionary of what is no list");
    for (const ValueId id : pairs.items) {
      const Value& pair = values_[id];
      check((pair.kind == Kind::list || pair.kind == Kind::tuple) && pair.items.size() == 2, at,
            "a dictionary of what are no pairs");
      dict.items.insert(dict.items.end(), pair.items.begin(), pair.items.end());
    }
  }
  return add(std::move(dict));
}

std::vector<int64_t> PickleReader::sizes(ValueId id, std::string_view what, size_t at) const {
  const Value& tuple = values_[id];
  check(tuple.kind == Kind::tuple && tuple.items.size() <= kMaxDimensions, at,
        fmt::format("{} that is no tuple of at most {} numbers", what, kMaxDimensions));
  std::vector<int64_t> numbers;
  for (const ValueId item : tuple.items) {
    const Value& number = values_[item];
    check(number.kind == Kind::integer && number.integer >= 0, at,
          fmt::format("{} with what is no size", what));
    numbers.push_back(number.integer);
  }
  return numbers;
}

// (storage, offset, shape, strides, requires_grad, hooks)
ValueId PickleReader::rebuilt_tensor(const Value& arguments, size_t at) {
  const auto& items = arguments.items;
  check(items.size() >= 4 && values_[items[0]].kind == Kind::storage &&
            values_[items[1]].kind == Kind::integer && values_[items[1]].integer >= 0,
        at, "a tensor of the wrong arguments");
  TensorValue tensor{items[0], values_[items[1]].integer, sizes(items[2], "a shape", at),
                     sizes(items[3], "a list of strides", at)};
  check(tensor.shape.size() == tensor.strides.size(), at, "a tensor with fewer strides than axes");
  tensors_.push_back(std::move(tensor));
  return add({.kind = Kind::tensor, .integer = std::ssize(tensors_) - 1});
}

// ("storage", type, key, device, elements[, view])
void PickleReader::persistent(size_t at) {
  const Value& id = values_[pop(at)];
  const auto is = [&](size_t i, Kind kind) {
    return i < id.items.size() && values_[id.items[i]].kind == kind;
  };
  check(id.kind == Kind::tuple && is(0, Kind::text) && values_[id.items[0]].text == "storage" &&
            is(1, Kind::name) && is(2, Kind::text) && is(4, Kind::integer) &&
            (id.items.size() == 5 || (id.items.size() == 6 && is(5, Kind::none))),
        at, "a reference to something else than a storage");
  const KnownName& type = kNames[values_[id.items[1]].integer];
  check(type.role == Role::storage_type, at, "a storage of no known type");
  check(values_[id.items[2]].text.size() <= kLongestKey, at, "a storage whose key is too long");
  Value storage{.kind = Kind::storage,
                .integer = values_[id.items[4]].integer,
                .text = values_[id.items[2]].text,
                .dtype = type.dtype};
  check(storage.integer >= 0, at, "a storage of a negative size");
  push(std::move(storage));
}

std::optional<ValueId> PickleReader::find(ValueId dict, std::string_view key) const {
  const std::vector<ValueId>& items = values_[dict].items;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    const Value& name = values_[items[i]];
    if (name.kind == Kind::text && name.text == key) return items[i + 1];
  }
  return {};
}

bool holds_tensors(const PickleReader& pickle, ValueId dict) {
  const Value& value = pickle.value(dict);
  if (value.kind != Kind::dict) return false;
  return std::ranges::any_of(value.items,
                             [&](ValueId item) { return pickle.value(item).kind == Kind::tensor; });
}

// The dictionary of tensors in what a file holds.
ValueId tensors_of(const PickleReader& pickle, ValueId root, const std::string& where) {
  if (holds_tensors(pickle, root)) return root;
  if (pickle.value(root).kind == Kind::dict) {
    for (const char* key : {"state_dict", "model_state_dict", "model", "module"}) {
      const std::optional<ValueId> inner = pickle.find(root, key);
      if (inner && holds_tensors(pickle, *inner)) return *inner;
    }
  }
  throw Error(where, "holds no dictionary of tensors");
}

// Where the bytes of storages are.
class Storages {
 public:
  virtual ~Storages() = default;
  virtual ZipBytes read(const std::string& key) = 0;
};

class ArchivedStorages : public Storages {
 public:
  ArchivedStorages(ZipArchive& archive, std::string prefix)
      : archive_(archive), prefix_(std::move(prefix)) {}
  ZipBytes read(const std::string& key) override { return archive_.read(prefix_ + key); }

 private:
  ZipArchive& archive_;
  std::string prefix_;
};

// In the old form the storages follow the pickles, each after its number of elements, in the order
// of a list of keys.
class AppendedStorages : public Storages {
 public:
  AppendedStorages(std::span<const std::byte> bytes, const PickleReader& pickle, ValueId keys,
                   const std::string& where)
      : where_(where) {
    std::map<std::string, int64_t> element_bytes;
    for (const Value& value : pickle.values()) {
      if (value.kind == Kind::storage) {
        element_bytes[value.text] = safetensors_dtype_bytes(value.dtype);
      }
    }
    require(pickle.value(keys).kind == Kind::list, where, "no list of storages");
    size_t place = pickle.place();
    for (const ValueId id : pickle.value(keys).items) {
      const std::string& key = pickle.value(id).text;
      const auto element = element_bytes.find(key);
      require(element != element_bytes.end(), where, "a storage {} that no tensor has", quote(key));
      uint64_t count = 0;
      require(bytes.size() - place >= sizeof(count), where, "ends before the storage {}",
              quote(key));
      std::memcpy(&count, bytes.data() + place, sizeof(count));
      place += sizeof(count);
      const auto width = static_cast<uint64_t>(element->second);
      require(count <= (bytes.size() - place) / width, where,
              "a storage {} of {} elements leaves the file", quote(key), count);
      parts_[key] = bytes.subspan(place, count * width);
      place += count * width;
    }
  }
  ZipBytes read(const std::string& key) override {
    const auto found = parts_.find(key);
    require(found != parts_.end(), where_, "no storage {}", quote(key));
    return {found->second, nullptr};
  }

 private:
  std::string where_;
  std::map<std::string, std::span<const std::byte>> parts_;
};

// The rows of `shape` from places of `from` that are `strides` elements apart.
void copy_strided(const TensorValue& tensor, const std::byte* from, size_t width, std::byte* to) {
  std::vector<int64_t> index(tensor.shape.size(), 0);
  int64_t place = tensor.offset;
  while (true) {
    std::memcpy(to, from + static_cast<size_t>(place) * width, width);
    to += width;
    size_t axis = index.size();
    while (axis > 0) {
      --axis;
      // Nothing is stepped over that is not there: an axis of one may have any stride.
      if (index[axis] + 1 < tensor.shape[axis]) {
        place += tensor.strides[axis];
        ++index[axis];
        break;
      }
      place -= tensor.strides[axis] * index[axis];
      index[axis] = 0;
      if (axis == 0) return;
    }
    if (index.empty()) return;
  }
}

// Makes entries of tensors, whose sizes it checks.
class EntryMaker {
 public:
  EntryMaker(std::shared_ptr<const MappedFile> file, const PickleReader& pickle, Storages& storages)
      : file_(std::move(file)), pickle_(pickle), storages_(storages) {}

  SafetensorsEntry make(ValueId id, const std::string& where) {
    const TensorValue& tensor = pickle_.tensor(id);
    const Value& storage = pickle_.value(tensor.storage);
    auto found = read_.find(storage.text);
    if (found == read_.end()) {
      found = read_.emplace(storage.text, storages_.read(storage.text)).first;
    }
    const ZipBytes& source = found->second;
    const int64_t width = safetensors_dtype_bytes(storage.dtype);
    require(storage.integer <= std::numeric_limits<int64_t>::max() / width &&
                static_cast<uint64_t>(storage.integer * width) == source.bytes.size(),
            where, "a storage of {} x {} has {} bytes", storage.integer, storage.dtype,
            source.bytes.size());

    SafetensorsEntry entry;
    entry.dtype = storage.dtype;
    entry.shape = tensor.shape;
    const int64_t elements = check(tensor, storage.integer, where);
    const auto bytes = static_cast<size_t>(elements * width);
    if (is_contiguous(tensor)) {
      entry.bytes = source.bytes.subspan(static_cast<size_t>(tensor.offset * width), bytes);
      entry.owner = source.owner;
      if (source.owner == nullptr) entry.file = file_;
      return entry;
    }
    copied_ += bytes;
    require(copied_ <= 2 * file_->bytes().size(), where,
            "its tensors and others are views that would take more than twice the file");
    const auto copy = std::make_shared<std::vector<std::byte>>(bytes);
    if (elements > 0) {
      copy_strided(tensor, source.bytes.data(), static_cast<size_t>(width), copy->data());
    }
    entry.bytes = *copy;
    entry.owner = copy;
    return entry;
  }

 private:
  // The number of elements of a tensor that lies within its storage.
  static int64_t check(const TensorValue& tensor, int64_t available, const std::string& where) {
    int64_t elements = 1, last = tensor.offset;
    bool overflow = false;
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      int64_t reach = 0;
      overflow |= __builtin_mul_overflow(elements, tensor.shape[i], &elements);
      overflow |= __builtin_mul_overflow(std::max<int64_t>(0, tensor.shape[i] - 1),
                                         tensor.strides[i], &reach);
      overflow |= __builtin_add_overflow(last, reach, &last);
    }
    const bool empty = !overflow && elements == 0;
    require(!overflow && elements <= available &&
                (empty ? tensor.offset <= available : last < available),
            where, "shape [{}] with strides [{}] from {} on leaves a storage of {} elements",
            fmt::join(tensor.shape, ", "), fmt::join(tensor.strides, ", "), tensor.offset,
            available);
    return elements;
  }

  static bool is_contiguous(const TensorValue& tensor) {
    if (std::ranges::count(tensor.shape, 0) > 0) return true;
    int64_t expected = 1;
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
      expected *= tensor.shape[i];
    }
    return true;
  }

  std::shared_ptr<const MappedFile> file_;
  const PickleReader& pickle_;
  Storages& storages_;
  std::map<std::string, ZipBytes> read_;
  size_t copied_ = 0;
};

using Entries = std::map<std::string, SafetensorsEntry, std::less<>>;

Entries entries_of(const std::shared_ptr<const MappedFile>& file, const PickleReader& pickle,
                   ValueId root, Storages& storages, const std::string& where) {
  Entries entries;
  EntryMaker maker(file, pickle, storages);
  const auto& items = pickle.value(tensors_of(pickle, root, where)).items;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    const Value& key = pickle.value(items[i]);
    if (key.kind != Kind::text || pickle.value(items[i + 1]).kind != Kind::tensor) continue;
    entries[key.text] =
        maker.make(items[i + 1], fmt::format("{}: tensor {}", where, quote(key.text)));
  }
  return entries;
}

Entries read_archive(const std::shared_ptr<const MappedFile>& file, const std::string& where) {
  constexpr std::string_view kPickle = "data.pkl";
  ZipArchive archive(file, where);
  std::optional<std::string> prefix;  // "model/"
  for (const auto& item : archive.entries()) {
    const std::string& name = item.first;
    if (name == kPickle || name.ends_with("/data.pkl")) {
      require(!prefix, where, "holds two pickles");
      prefix = name.substr(0, name.size() - kPickle.size());
    }
  }
  require(prefix.has_value(), where, "is an archive, but not one of torch.save: no data.pkl");
  if (archive.has(*prefix + "byteorder")) {
    const ZipBytes order = archive.read(*prefix + "byteorder");
    const std::string_view text(reinterpret_cast<const char*>(order.bytes.data()),
                                order.bytes.size());
    require(text == "little", where, "byte order {}, not 'little'", quote(text));
  }
  const ZipBytes bytes = archive.read(*prefix + std::string(kPickle));
  require(bytes.bytes.size() <= kLargestPickle, where, "a pickle of {} bytes, more than {}",
          bytes.bytes.size(), kLargestPickle);
  PickleReader pickle(bytes.bytes, where + ": data.pkl");
  const ValueId root = pickle.read();
  ArchivedStorages storages(archive, *prefix + "data/");
  return entries_of(file, pickle, root, storages, where);
}

Entries read_old_form(const std::shared_ptr<const MappedFile>& file, const std::string& where) {
  PickleReader pickle(file->bytes().subspan(kOldMagic.size()), where);
  pickle.read();  // the version of the form
  const std::optional<ValueId> order = pickle.find(pickle.read(), "little_endian");
  require(order && pickle.value(*order).integer == 1, where, "not little endian");
  const ValueId root = pickle.read();
  const ValueId keys = pickle.read();
  AppendedStorages storages(file->bytes().subspan(kOldMagic.size()), pickle, keys, where);
  return entries_of(file, pickle, root, storages, where);
}

}  // namespace

TorchFile::TorchFile(const std::filesystem::path& path) {
  const std::string where = path.string();
  const auto file = std::make_shared<MappedFile>(path);
  const auto bytes = file->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (ZipArchive::is_archive(bytes)) {
    entries_ = read_archive(file, where);
  } else if (text.starts_with(kOldMagic)) {
    entries_ = read_old_form(file, where);
  } else {
    throw Error(where, "is not a file of torch.save");
  }
}

}  // namespace pronghorn
