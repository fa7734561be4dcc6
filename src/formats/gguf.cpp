#include "formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <numeric>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "formats/split_files.h"

namespace pronghorn {
namespace {

static_assert(std::endian::native == std::endian::little, "formats are little endian");

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kOldestVersion = 2, kNewestVersion = 3;
constexpr uint64_t kDefaultAlignment = 32, kMostAlignment = uint64_t{1} << 20;
// Far above any real file; they bound what a hostile one can make us allocate.
constexpr uint64_t kMostKeys = 1 << 16, kMostTensors = 1 << 18, kMostParts = 1 << 12;
constexpr uint32_t kMostSizes = 4;
constexpr int kMostNesting = 4;
constexpr const char* kAlignmentKey = "general.alignment";

constexpr GgufTensorType kTypes[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},    {42, "Q2_0", 64, 18}};

// Bytes of a value of this kind; 0 for texts and arrays, which say theirs.
constexpr uint64_t kind_bytes(GgufKind kind) {
  switch (kind) {
    case GgufKind::u8:
    case GgufKind::i8:
    case GgufKind::boolean:
      return 1;
    case GgufKind::u16:
    case GgufKind::i16:
      return 2;
    case GgufKind::u32:
    case GgufKind::i32:
    case GgufKind::f32:
      return 4;
    case GgufKind::u64:
    case GgufKind::i64:
    case GgufKind::f64:
      return 8;
    case GgufKind::string:
    case GgufKind::array:
      break;
  }
  return 0;
}

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Walks over the bytes of a file; whatever would leave them is an Error.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& where)
      : bytes_(bytes), where_(where) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    require(count <= left(), where_, "{} at byte {} takes {} bytes, {} are left in the file", what,
            position_, count, left());
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }

  template <typename T>
  T number(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
  }

  std::string_view text(std::string_view what) {
    const auto length = number<uint64_t>(what);
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  GgufKind kind(std::string_view what) {
    const auto id = number<uint32_t>(what);
    require(id <= static_cast<uint32_t>(GgufKind::f64), where_, "{}: no value type {}", what, id);
    return static_cast<GgufKind>(id);
  }

  // A number that counts things of at least `least` bytes each.
  uint64_t count(std::string_view what, uint64_t least, uint64_t most) {
    const auto value = number<uint64_t>(what);
    require(value <= most && value <= left() / least, where_, "{} is {}, {}", what, value,
            value > most ? fmt::format("more than {}", most)
                         : fmt::format("too many for the {} bytes that follow", left()));
    return value;
  }

  GgufValue value(GgufKind kind, const std::string& what, int nesting = 0) {
    if (const uint64_t bytes = kind_bytes(kind)) return {kind, kind, 1, take(bytes, what)};
    if (kind == GgufKind::string) {
      const std::string_view value = text(what);
      return {kind, kind, 1, std::as_bytes(std::span(value))};
    }
    require(nesting < kMostNesting, where_, "{}: arrays nested more than {} deep", what,
            kMostNesting);
    const GgufKind element = this->kind(what);
    constexpr uint64_t kLeastText = 8, kLeastArray = 12;
    const uint64_t size = kind_bytes(element);
    const uint64_t least = size != 0                     ? size
                           : element == GgufKind::string ? kLeastText
                                                         : kLeastArray;
    const uint64_t elements = count(what + ": number of elements", least, UINT64_MAX);
    const uint64_t begin = position_;
    if (size != 0) {
      take(elements * size, what);
    } else {
      for (uint64_t i = 0; i < elements; ++i) value(element, what, nesting + 1);
    }
    return {kind, element, elements, bytes_.subspan(begin, position_ - begin)};
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
  const std::string& where_;
};

std::optional<int64_t> integer_at(GgufKind kind, const std::byte* at) {
  switch (kind) {
    case GgufKind::u8:
      return load<uint8_t>(at);
    case GgufKind::i8:
      return load<int8_t>(at);
    case GgufKind::u16:
      return load<uint16_t>(at);
    case GgufKind::i16:
      return load<int16_t>(at);
    case GgufKind::u32:
      return load<uint32_t>(at);
    case GgufKind::i32:
      return load<int32_t>(at);
    case GgufKind::i64:
      return load<int64_t>(at);
    case GgufKind::u64: {
      const auto value = load<uint64_t>(at);
      if (value > static_cast<uint64_t>(INT64_MAX)) return {};
      return static_cast<int64_t>(value);
    }
    default:
      return {};
  }
}

std::optional<double> number_at(GgufKind kind, const std::byte* at) {
  if (kind == GgufKind::f32) return static_cast<double>(load<float>(at));
  if (kind == GgufKind::f64) return load<double>(at);
  if (const auto value = integer_at(kind, at)) return static_cast<double>(*value);
  return {};
}

// All elements of an array through `one`, or nothing if one of them is nothing.
template <typename T, typename One>
std::optional<std::vector<T>> all_of(const GgufValue& value, One&& one) {
  const uint64_t size = kind_bytes(value.element());
  if (value.kind() != GgufKind::array || (size == 0 && value.count() > 0)) return {};
  std::vector<T> all;
  all.reserve(value.count());
  for (uint64_t i = 0; i < value.count(); ++i) {
    const auto element = one(value.element(), value.bytes().data() + i * size);
    if (!element) return {};
    all.push_back(static_cast<T>(*element));
  }
  return all;
}

GgufValue owning(GgufKind kind, GgufKind element, uint64_t count, std::string bytes) {
  const auto owner = std::make_shared<const std::string>(std::move(bytes));
  return {kind, element, count, std::as_bytes(std::span(*owner)), owner};
}

template <typename T>
std::string bytes_of(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

template <typename T>
std::string bytes_of(T value) {
  return bytes_of(std::span<const T>(&value, 1));
}

template <typename T>
GgufValue one(GgufKind kind, T value) {
  return owning(kind, kind, 1, bytes_of(value));
}

std::string text_bytes(std::string_view text) {
  return bytes_of(static_cast<uint64_t>(text.size())).append(text);
}

uint64_t aligned(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

uint64_t alignment_of(const GgufMetadata& metadata) {
  const auto value = static_cast<uint64_t>(
      metadata.integer(kAlignmentKey, kDefaultAlignment, 1, static_cast<int64_t>(kMostAlignment)));
  require(std::has_single_bit(value), metadata.path(kAlignmentKey), "{} is not a power of two",
          value);
  return value;
}

// The bytes of a tensor, or Error for sizes that no tensor can have.
uint64_t tensor_bytes(std::span<const int64_t> shape, const GgufTensorType& type,
                      std::string_view where) {
  int64_t elements = 1, bytes = 0;
  bool possible = true;
  for (const int64_t size : shape) {
    possible = possible && size > 0 && !__builtin_mul_overflow(elements, size, &elements);
  }
  possible = possible && !__builtin_mul_overflow(elements / type.block, type.block_bytes, &bytes);
  require(possible, where, "impossible shape [{}]", fmt::join(shape, ", "));
  const int64_t row = shape.empty() ? 1 : shape.back();
  require(row % type.block == 0, where, "rows of {} are not whole blocks of {} ({})", row,
          type.block, type.name);
  return static_cast<uint64_t>(bytes);
}

// NAME-00002-of-00005.gguf
struct SplitName {
  std::string prefix;  // "NAME"
  uint64_t number = 1, count = 1;
};

std::optional<SplitName> split_name(const std::string& file) {
  constexpr std::string_view kShape = "-#####-of-#####.gguf";
  if (file.size() <= kShape.size()) return {};
  const size_t begin = file.size() - kShape.size();
  SplitName name{file.substr(0, begin), 0, 0};
  for (size_t i = 0; i < kShape.size(); ++i) {
    const char c = file[begin + i];
    if (kShape[i] != '#') {
      if (c != kShape[i]) return {};
      continue;
    }
    if (c < '0' || c > '9') return {};
    uint64_t& value = i < 7 ? name.number : name.count;
    value = 10 * value + static_cast<uint64_t>(c - '0');
  }
  return name;
}

std::string part_name(const SplitName& name, uint64_t number) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", name.prefix, number, name.count);
}

// What comes before a file's keys: magic word, version, number of tensors and of keys.
constexpr uint64_t kFixedBytes = 24;

std::string keys_of(const GgufMetadata& metadata) {
  std::string bytes;
  for (const auto& [key, value] : metadata.all()) {
    bytes += text_bytes(key) + bytes_of(value.kind());
    if (value.kind() == GgufKind::array) {
      bytes += bytes_of(value.element()) + bytes_of(value.count());
    } else if (value.kind() == GgufKind::string) {
      bytes += bytes_of(static_cast<uint64_t>(value.bytes().size()));
    }
    bytes += bytes_of(value.bytes());
  }
  return bytes;
}

// What a file says of a tensor before the tensors' bytes.
std::string entry_of(const GgufTensorToWrite& tensor, uint64_t offset) {
  std::string bytes =
      text_bytes(tensor.name) + bytes_of(static_cast<uint32_t>(tensor.shape.size()));
  for (size_t d = tensor.shape.size(); d-- > 0;) bytes += bytes_of(tensor.shape[d]);
  return bytes + bytes_of(tensor.type->id) + bytes_of(offset);
}

// The bytes of each tensor. Throws Error for tensors that no model can have.
std::vector<uint64_t> checked_sizes(std::span<const GgufTensorToWrite> tensors,
                                    const std::string& where) {
  std::set<std::string_view> seen;
  std::vector<uint64_t> sizes;
  for (const GgufTensorToWrite& tensor : tensors) {
    const std::string what = fmt::format("{}: tensor {}", where, quote(tensor.name));
    require(seen.insert(tensor.name).second, what, "occurs twice");
    require(tensor.shape.size() <= kMostSizes, what, "{} dimensions, more than {}",
            tensor.shape.size(), kMostSizes);
    sizes.push_back(tensor_bytes(tensor.shape, *tensor.type, what));
  }
  return sizes;
}

void write_to(AtomicFile& file, const GgufMetadata& metadata,
              std::span<const GgufTensorToWrite> tensors, std::span<const uint64_t> sizes,
              const std::string& where) {
  const uint64_t alignment = alignment_of(metadata);
  std::string header(kMagic);
  header += bytes_of(kNewestVersion);
  header += bytes_of(static_cast<uint64_t>(tensors.size()));
  header += bytes_of(static_cast<uint64_t>(metadata.all().size()));
  header += keys_of(metadata);
  uint64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    header += entry_of(tensors[i], offset);
    offset = aligned(offset + sizes[i], alignment);
  }
  header.append(aligned(header.size(), alignment) - header.size(), '\0');
  file.write(header);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensorToWrite::Bytes bytes = tensors[i].bytes();
    require(bytes.bytes.size() == sizes[i], fmt::format("{}: tensor '{}'", where, tensors[i].name),
            "{} bytes where its shape says {}", bytes.bytes.size(), sizes[i]);
    constexpr uint64_t kPiece = uint64_t{1} << 22;  // so that the file's buffer stays small
    for (uint64_t done = 0; done < sizes[i]; done += kPiece) {
      file.write(bytes.bytes.data() + done, std::min(kPiece, sizes[i] - done));
    }
    file.write(std::string(aligned(sizes[i], alignment) - sizes[i], '\0'));
  }
}

void write_whole(const std::filesystem::path& path, const GgufMetadata& metadata,
                 std::span<const GgufTensorToWrite> tensors, std::span<const uint64_t> sizes) {
  const std::string where = path.string();
  require(!split_name(path.filename().string()) || metadata.has("split.count"), where,
          "is a name for a part of a model, and this is a whole one (name it otherwise)");
  AtomicFile file(path);
  write_to(file, metadata, tensors, sizes, where);
  file.commit();
}

// Where parts of at most `most` bytes end, in the order of the tensors: each has one at least.
std::vector<size_t> ends_of_parts(const GgufMetadata& first, const GgufMetadata& others,
                                  std::span<const GgufTensorToWrite> tensors,
                                  std::span<const uint64_t> sizes, uint64_t most) {
  const uint64_t alignment = alignment_of(first), other_keys = keys_of(others).size();
  std::vector<size_t> ends;
  size_t begin = 0;
  uint64_t header = kFixedBytes + keys_of(first).size(), data = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t entry = entry_of(tensors[i], 0).size(), bytes = aligned(sizes[i], alignment);
    if (i > begin && aligned(header + entry, alignment) + data + bytes > most) {
      ends.push_back(i);
      begin = i;
      header = kFixedBytes + other_keys;
      data = 0;
    }
    header += entry;
    data += bytes;
  }
  ends.push_back(tensors.size());
  return ends;
}

}  // namespace

const GgufTensorType* find_gguf_type(uint32_t id) {
  const auto* found = std::ranges::find(kTypes, id, &GgufTensorType::id);
  return found == std::end(kTypes) ? nullptr : found;
}

const GgufTensorType* find_gguf_type(std::string_view name) {
  const auto* found = std::ranges::find(kTypes, name, &GgufTensorType::name);
  return found == std::end(kTypes) ? nullptr : found;
}

std::string_view gguf_kind_name(GgufKind kind) {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(kind)];
}

GgufValue GgufValue::text(std::string_view value) {
  return owning(GgufKind::string, GgufKind::string, 1, std::string(value));
}
GgufValue GgufValue::u32(uint32_t value) { return one(GgufKind::u32, value); }
GgufValue GgufValue::u16(uint16_t value) { return one(GgufKind::u16, value); }
GgufValue GgufValue::i32(int32_t value) { return one(GgufKind::i32, value); }
GgufValue GgufValue::f32(float value) { return one(GgufKind::f32, value); }
GgufValue GgufValue::boolean(bool value) {
  return one(GgufKind::boolean, static_cast<uint8_t>(value));
}
GgufValue GgufValue::texts(std::span<const std::string> values) {
  std::string bytes;
  for (const std::string& value : values) bytes += text_bytes(value);
  return owning(GgufKind::array, GgufKind::string, values.size(), std::move(bytes));
}
GgufValue GgufValue::i32s(std::span<const int32_t> values) {
  return owning(GgufKind::array, GgufKind::i32, values.size(), bytes_of(values));
}
GgufValue GgufValue::f32s(std::span<const float> values) {
  return owning(GgufKind::array, GgufKind::f32, values.size(), bytes_of(values));
}
GgufValue GgufValue::booleans(const std::vector<bool>& values) {
  std::string bytes;
  for (const bool value : values) bytes += static_cast<char>(value);
  return owning(GgufKind::array, GgufKind::boolean, values.size(), std::move(bytes));
}

std::optional<int64_t> GgufValue::as_integer() const { return integer_at(kind_, bytes_.data()); }

std::optional<double> GgufValue::as_number() const { return number_at(kind_, bytes_.data()); }

std::optional<bool> GgufValue::as_boolean() const {
  if (kind_ != GgufKind::boolean) return {};
  return load<uint8_t>(bytes_.data()) != 0;
}

std::optional<std::string_view> GgufValue::as_text() const {
  if (kind_ != GgufKind::string) return {};
  return std::string_view(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
}

std::optional<std::vector<int64_t>> GgufValue::as_integers() const {
  return all_of<int64_t>(*this, [](GgufKind kind, const std::byte* at) -> std::optional<int64_t> {
    if (kind == GgufKind::boolean) return load<uint8_t>(at) != 0;  // patterns of layers
    return integer_at(kind, at);
  });
}

std::optional<std::vector<float>> GgufValue::as_numbers() const {
  return all_of<float>(*this, number_at);
}

std::optional<std::vector<std::string_view>> GgufValue::as_texts() const {
  if (kind_ != GgufKind::array || (element_ != GgufKind::string && count_ > 0)) return {};
  std::vector<std::string_view> all;
  all.reserve(count_);
  const std::byte* at = bytes_.data();
  for (uint64_t i = 0; i < count_; ++i) {
    const auto length = load<uint64_t>(at);
    at += sizeof(length);
    all.emplace_back(reinterpret_cast<const char*>(at), length);
    at += length;
  }
  return all;
}

std::string GgufValue::description() const {
  if (kind_ == GgufKind::array) {
    return fmt::format("array of {} {}", count_, gguf_kind_name(element_));
  }
  if (const auto text = as_text()) return fmt::format("string {}", quote(*text));
  if (const auto truth = as_boolean()) return fmt::format("bool {}", *truth);
  if (const auto whole = as_integer()) return fmt::format("{} {}", gguf_kind_name(kind_), *whole);
  if (kind_ == GgufKind::u64) return fmt::format("u64 {}", load<uint64_t>(bytes_.data()));
  return fmt::format("{} {}", gguf_kind_name(kind_), as_number().value_or(0));
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

std::string GgufMetadata::path(std::string_view key) const {
  return fmt::format("{}: key {}", where_, quote(key));
}

void GgufMetadata::refuse(std::string_view key, std::string_view wanted) const {
  const GgufValue* value = find(key);
  if (value == nullptr) throw Error(path(key), fmt::format("is missing ({} is wanted)", wanted));
  throw Error(path(key), fmt::format("is {} where {} is wanted", value->description(), wanted));
}

int64_t GgufMetadata::integer(std::string_view key, std::optional<int64_t> fallback,
                              int64_t minimum, int64_t maximum) const {
  const GgufValue* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const auto whole = value == nullptr ? std::nullopt : value->as_integer();
  if (!whole) refuse(key, "a whole number");
  require(*whole >= minimum && *whole <= maximum, path(key), "{} is not between {} and {}", *whole,
          minimum, maximum);
  return *whole;
}

double GgufMetadata::number(std::string_view key, std::optional<double> fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const auto number = value == nullptr ? std::nullopt : value->as_number();
  if (!number) refuse(key, "a number");
  return *number;
}

bool GgufMetadata::boolean(std::string_view key, std::optional<bool> fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const auto truth = value == nullptr ? std::nullopt : value->as_boolean();
  if (!truth) refuse(key, "true or false");
  return *truth;
}

std::string_view GgufMetadata::text(std::string_view key,
                                    std::optional<std::string_view> fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const auto text = value == nullptr ? std::nullopt : value->as_text();
  if (!text) refuse(key, "a text");
  return *text;
}

std::vector<int64_t> GgufMetadata::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  auto all = value->as_integers();
  if (!all) refuse(key, "an array of whole numbers");
  return std::move(*all);
}

std::vector<float> GgufMetadata::numbers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  auto all = value->as_numbers();
  if (!all) refuse(key, "an array of numbers");
  return std::move(*all);
}

std::vector<std::string_view> GgufMetadata::texts(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  auto all = value->as_texts();
  if (!all) refuse(key, "an array of texts");
  return std::move(*all);
}

void GgufMetadata::set(std::string_view key, GgufValue value) {
  values_.insert_or_assign(std::string(key), std::move(value));
}

int64_t GgufTensor::elements() const {
  return std::accumulate(sizes.begin(), sizes.begin() + rank, int64_t{1}, std::multiplies<>());
}

GgufFile::GgufFile(const std::filesystem::path& path) : path_(path), metadata_(path.string()) {
  const std::optional<SplitName> split = split_name(path.filename().string());
  if (!split) {
    read_part(path, 0, 1);
  } else {
    require(split->count >= 1 && split->count <= kMostParts && split->number >= 1 &&
                split->number <= split->count,
            path.string(), "part {} of {} cannot be", split->number, split->count);
    path_ = path.parent_path() / part_name(*split, 1);
    metadata_ = GgufMetadata(path_.string());
    std::vector<std::filesystem::path> parts;
    for (uint64_t i = 1; i <= split->count; ++i) {
      parts.push_back(path.parent_path() / part_name(*split, i));
    }
    std::error_code none;
    const auto there = [&](const auto& part) { return std::filesystem::exists(part, none); };
    if (std::ranges::any_of(parts, there)) require_parts(parts);  // else the path is wrong
    for (size_t i = 0; i < parts.size(); ++i) read_part(parts[i], i, parts.size());
  }
  std::ranges::sort(tensors_, {}, &GgufTensor::name);
  const auto twice = std::ranges::adjacent_find(tensors_, {}, &GgufTensor::name);
  require(twice == tensors_.end(), path_.string(), "two tensors are named {}",
          twice == tensors_.end() ? "" : quote(twice->name));
}

void GgufFile::read_part(const std::filesystem::path& path, size_t part, size_t parts) {
  const std::string where = path.string();
  files_.push_back(std::make_shared<MappedFile>(path));
  const std::span<const std::byte> bytes = files_.back()->bytes();
  Reader reader(bytes, where);
  const auto magic = reader.take(kMagic.size(), "the magic word");
  require(std::memcmp(magic.data(), kMagic.data(), kMagic.size()) == 0, where,
          "is not a GGUF file (it begins with bytes {:02x})",
          fmt::join(std::span(reinterpret_cast<const uint8_t*>(magic.data()), magic.size()), " "));
  const auto version = reader.number<uint32_t>("the version");
  require((version & 0xffff) != 0, where, "is a big-endian file, which is not supported");
  require(version >= kOldestVersion && version <= kNewestVersion, where,
          "GGUF version {} is not supported ({} and {} are)", version, kOldestVersion,
          kNewestVersion);
  constexpr uint64_t kLeastTensor = 24, kLeastKey = 13;
  const uint64_t tensors = reader.count("the number of tensors", kLeastTensor, kMostTensors);
  const uint64_t keys = reader.count("the number of keys", kLeastKey, kMostKeys);

  GgufMetadata metadata(where);
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string_view key = reader.text(fmt::format("the name of key {}", i));
    const std::string what = fmt::format("key {}", quote(key));
    require(!metadata.has(key), where, "{} occurs twice", what);
    const GgufKind kind = reader.kind(what);
    metadata.set(key, reader.value(kind, what));
  }
  if (parts > 1 || metadata.has("split.count")) {
    // A part that has been renamed would be read as a whole model.
    const int64_t number = metadata.integer("split.no", 0),
                  count = metadata.integer("split.count", 1);
    require(count <= 1 || parts > 1, where,
            "is part {} of {}, which its name must say (NAME-00001-of-{:05}.gguf)", number + 1,
            count, count);
    require(parts == 1 ||
                (count == static_cast<int64_t>(parts) && number == static_cast<int64_t>(part)),
            where, "says that it is part {} of {}, its name part {} of {}", number + 1, count,
            part + 1, parts);
  }

  const size_t first = tensors_.size();
  tensors_.reserve(first + tensors);
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < tensors; ++i) {
    GgufTensor tensor;
    tensor.part = part;
    tensor.name = reader.text(fmt::format("the name of tensor {}", i));
    const std::string what = fmt::format("{}: tensor {}", where, quote(tensor.name));
    const auto rank = reader.number<uint32_t>("the number of a tensor's dimensions");
    require(rank <= kMostSizes, what, "{} dimensions, more than {}", rank, kMostSizes);
    tensor.rank = static_cast<int>(rank);
    for (uint32_t d = rank; d-- > 0;) {
      const auto size = reader.number<uint64_t>("a size of a tensor");
      require(size > 0 && size <= static_cast<uint64_t>(INT64_MAX), what, "impossible size {}",
              size);
      tensor.sizes[d] = static_cast<int64_t>(size);
    }
    const auto type = reader.number<uint32_t>("the type of a tensor");
    tensor.type = find_gguf_type(type);
    require(tensor.type != nullptr, what, "numbers of the unknown type {}", type);
    offsets.push_back(reader.number<uint64_t>("the offset of a tensor"));
    tensors_.push_back(tensor);
  }

  const uint64_t alignment = alignment_of(metadata), begin = aligned(reader.position(), alignment);
  for (uint64_t i = 0; i < tensors; ++i) {
    GgufTensor& tensor = tensors_[first + i];
    const std::string what = fmt::format("{}: tensor {}", where, quote(tensor.name));
    const uint64_t size = tensor_bytes(
        std::span(tensor.sizes).first(static_cast<size_t>(tensor.rank)), *tensor.type, what);
    require(offsets[i] % alignment == 0, what, "offset {} is not a multiple of the alignment {}",
            offsets[i], alignment);
    const uint64_t room = begin <= bytes.size() ? bytes.size() - begin : 0;
    require(offsets[i] <= room && size <= room - offsets[i], what,
            "{} bytes at offset {} leave the {} bytes of data (the file is incomplete, or damaged)",
            size, offsets[i], room);
    tensor.bytes = bytes.subspan(begin + offsets[i], size);
  }
  check_places(part, first);
  if (part == 0) metadata_ = std::move(metadata);
}

// No two tensors of a part share bytes.
void GgufFile::check_places(size_t part, size_t first_tensor) const {
  std::vector<uint32_t> order(tensors_.size() - first_tensor);
  std::iota(order.begin(), order.end(), uint32_t{0});
  const auto tensor = [&](uint32_t i) -> const GgufTensor& { return tensors_[first_tensor + i]; };
  std::ranges::sort(order, {}, [&](uint32_t i) { return tensor(i).bytes.data(); });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor &before = tensor(order[i - 1]), &after = tensor(order[i]);
    require(before.bytes.data() + before.bytes.size() <= after.bytes.data(), path_.string(),
            "tensors {} and {} of part {} overlap", quote(before.name), quote(after.name),
            part + 1);
  }
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(tensors_, name, {}, &GgufTensor::name);
  return found == tensors_.end() || found->name != name ? nullptr : &*found;
}

std::optional<std::filesystem::path> find_gguf(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) {
    if (ends_in(path, ".gguf")) return path;
    std::error_code code;
    if (!std::filesystem::is_regular_file(path, code)) return {};
    const MappedFile file(path);
    const bool magic = file.bytes().size() >= kMagic.size() &&
                       std::memcmp(file.bytes().data(), kMagic.data(), kMagic.size()) == 0;
    if (magic) return path;
    return {};
  }
  if (std::filesystem::exists(path / "config.json")) return {};
  std::set<std::filesystem::path> found;  // whole files, and the first parts of split ones
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(path, code)) {
    if (!ends_in(entry.path(), ".gguf")) continue;
    const auto split = split_name(entry.path().filename().string());
    found.insert(split ? path / part_name(*split, 1) : entry.path());
  }
  if (found.empty()) return {};
  if (found.size() > 1) {
    std::vector<std::string> names;
    for (const auto& file : found) names.push_back(file.filename().string());
    throw Error(path.string(), fmt::format("holds several models: {}", fmt::join(names, ", ")),
                "name one of the files");
  }
  return *found.begin();
}

void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                const std::vector<GgufTensorToWrite>& tensors) {
  write_whole(path, metadata, tensors, checked_sizes(tensors, path.string()));
}

std::vector<std::filesystem::path> write_split_gguf(const std::filesystem::path& path,
                                                    const GgufMetadata& metadata,
                                                    const std::vector<GgufTensorToWrite>& tensors,
                                                    uint64_t part_bytes) {
  const std::string where = path.string();
  const std::vector<uint64_t> sizes = checked_sizes(tensors, where);
  GgufMetadata first = metadata, others(where);
  if (const GgufValue* alignment = metadata.find(kAlignmentKey)) {
    others.set(kAlignmentKey, *alignment);
  }
  const auto set_place = [&](GgufMetadata& part, size_t number, size_t count) {
    part.set("split.no", GgufValue::u16(static_cast<uint16_t>(number)));
    part.set("split.count", GgufValue::u16(static_cast<uint16_t>(count)));
    part.set("split.tensors.count", GgufValue::i32(static_cast<int32_t>(tensors.size())));
  };
  for (GgufMetadata* part : {&first, &others}) set_place(*part, 0, 0);
  const std::vector<size_t> ends = ends_of_parts(first, others, tensors, sizes, part_bytes);
  const size_t count = ends.size();
  if (count == 1) {
    write_whole(path, metadata, tensors, sizes);
    return {path};
  }
  require(count <= kMostParts, where, "would be {} parts, more than {} (let them be larger)", count,
          kMostParts);
  require(!split_name(path.filename().string()), where,
          "is a name for one part, and there are {} (give the name that comes before)", count);
  std::vector<std::filesystem::path> paths;
  for (size_t i = 0; i < count; ++i) {
    paths.push_back(path.parent_path() / part_name({path.stem().string(), 0, count}, i + 1));
    require(!std::filesystem::exists(paths.back()), paths.back().string(),
            "is there already, perhaps of another model (remove it, or choose another name)");
  }
  std::deque<AtomicFile> files;
  size_t begin = 0;
  for (size_t i = 0; i < count; ++i) {
    GgufMetadata& part = i == 0 ? first : others;
    set_place(part, i, count);
    const size_t length = ends[i] - begin;
    files.emplace_back(paths[i]);
    write_to(files.back(), part, std::span(tensors).subspan(begin, length),
             std::span(sizes).subspan(begin, length), where);
    files.back().finish();
    begin = ends[i];
  }
  AtomicFile::commit_together(files);
  return paths;
}

}  // namespace pronghorn
