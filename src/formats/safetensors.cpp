#include "formats/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/float16.h"
#include "base/quote.h"
#include "base/threads.h"
#include "formats/json.h"

namespace pronghorn {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "formats are little endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the format's own library
constexpr size_t kMaxDimensions = 32;
constexpr size_t kHeaderAlignment = 8;

struct Dtype {
  std::string_view name;
  int64_t bytes;
};
constexpr Dtype kDtypes[] = {{"F64", 8},     {"I64", 8},     {"U64", 8},  {"F32", 4}, {"I32", 4},
                             {"U32", 4},     {"F16", 2},     {"BF16", 2}, {"I16", 2}, {"U16", 2},
                             {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I8", 1},   {"U8", 1},  {"BOOL", 1}};

template <typename From, typename Convert>
void convert(const SafetensorsEntry& entry, float* out, Convert&& one) {
  constexpr int64_t kGrain = 1 << 16;
  parallel_for(entry.elements(), kGrain, [&](int64_t begin, int64_t end) {
    const std::byte* from = entry.bytes.data() + begin * static_cast<int64_t>(sizeof(From));
    for (int64_t i = begin; i < end; ++i, from += sizeof(From)) {
      From value;
      std::memcpy(&value, from, sizeof(From));
      out[i] = one(value);
    }
  });
}

// The value as a size, or Error.
uint64_t to_size(const json& value, std::string_view where, std::string_view what) {
  require(value.is_number_unsigned(), where, "{} must be a whole number, is {}", what,
          value.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 60));
  return value.get<uint64_t>();
}

// Bytes of a tensor, or Error if the product overflows.
uint64_t shape_bytes(const std::vector<int64_t>& shape, int64_t element, std::string_view where) {
  int64_t total = element;
  bool overflow = false, empty = false;
  for (const int64_t size : shape) {
    empty = empty || size == 0;
    overflow = overflow || size < 0 || __builtin_mul_overflow(total, size, &total);
  }
  // A product that overflows before a zero is still refused: no writer means it.
  require(!overflow, where, "impossible shape [{}]", fmt::join(shape, ", "));
  return empty ? 0 : static_cast<uint64_t>(total);
}

SafetensorsEntry parse_entry(const json& item, std::span<const std::byte> data,
                             const std::string& where) {
  require(item.is_object(), where, "must be described by an object");
  const auto dtype = item.find("dtype"), shape = item.find("shape"),
             offsets = item.find("data_offsets");
  require(dtype != item.end() && dtype->is_string(), where, "no dtype");
  require(shape != item.end() && shape->is_array(), where, "no shape");
  require(offsets != item.end() && offsets->is_array() && offsets->size() == 2, where,
          "data_offsets must be [begin, end]");

  SafetensorsEntry entry;
  entry.dtype = dtype->get<std::string>();
  const int64_t element = safetensors_dtype_bytes(entry.dtype);
  require(element != 0, where, "unknown dtype {}", quote(entry.dtype));
  require(shape->size() <= kMaxDimensions, where, "{} dimensions, more than {}", shape->size(),
          kMaxDimensions);
  for (const json& size : *shape) {
    const uint64_t value = to_size(size, where, "a size of the shape");
    require(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), where,
            "impossible size {}", value);
    entry.shape.push_back(static_cast<int64_t>(value));
  }
  const uint64_t begin = to_size((*offsets)[0], where, "data_offsets[0]");
  const uint64_t end = to_size((*offsets)[1], where, "data_offsets[1]");
  require(begin <= end && end <= data.size(), where,
          "data_offsets [{}, {}] leave the {} bytes of data", begin, end, data.size());
  const uint64_t bytes = shape_bytes(entry.shape, element, where);
  require(bytes == end - begin, where, "{} [{}] takes {} bytes, data_offsets [{}, {}] hold {}",
          entry.dtype, fmt::join(entry.shape, ", "), bytes, begin, end, end - begin);
  entry.bytes = data.subspan(begin, end - begin);
  return entry;
}

}  // namespace

int64_t safetensors_dtype_bytes(std::string_view dtype) {
  for (const Dtype& known : kDtypes) {
    if (known.name == dtype) return known.bytes;
  }
  return 0;
}

int64_t SafetensorsEntry::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

void to_f32(const SafetensorsEntry& entry, float* out, std::string_view where) {
  if (entry.dtype == "F32") {
    convert<float>(entry, out, [](float value) { return value; });
  } else if (entry.dtype == "BF16") {
    convert<bf16_t>(entry, out, from_bf16);
  } else if (entry.dtype == "F16") {
    convert<f16_t>(entry, out, from_f16);
  } else if (entry.dtype == "F64") {
    convert<double>(entry, out, [](double value) { return static_cast<float>(value); });
  } else {
    throw Error(where, fmt::format("dtype {} where F32, F16, BF16 or F64 is wanted", entry.dtype));
  }
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path), file_(std::make_shared<MappedFile>(path)) {
  const std::string where = path.string();
  const auto bytes = file_->bytes();
  require(bytes.size() >= kLengthBytes, where, "{} bytes are too few for a safetensors file",
          bytes.size());
  uint64_t length;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  const std::string_view whole(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (whole.starts_with("version https://git-lfs")) {
    throw Error(where, "is a pointer of Git LFS, not the file itself",
                "fetch it with git lfs pull, or download it");
  }
  const uint64_t rest = bytes.size() - kLengthBytes;
  require(length <= std::min(rest, kMaxHeader), where,
          "header length {} does not fit ({} bytes follow, at most {} allowed)", length, rest,
          kMaxHeader);
  const auto* text = reinterpret_cast<const char*>(bytes.data() + kLengthBytes);
  parse_header({text, length}, bytes.subspan(kLengthBytes + length));
}

void SafetensorsFile::parse_header(std::string_view header, std::span<const std::byte> data) {
  const std::string where = path_.string();
  require(header.starts_with('{'), where, "the header does not start with '{{'");
  const json parsed = parse_json(header, where + ": header", kMaxHeader);
  require(parsed.is_object(), where, "the header is not an object");
  for (const auto& item : parsed.items()) {
    if (item.key() == "__metadata__") {
      if (item.value().is_null()) continue;
      require(item.value().is_object(), where, "__metadata__ must be an object");
      // Texts, as the format wants; what else some writers put there is kept as JSON.
      for (const auto& pair : item.value().items()) {
        metadata_[pair.key()] =
            pair.value().is_string() ? pair.value().get<std::string>() : pair.value().dump();
      }
      continue;
    }
    SafetensorsEntry entry =
        parse_entry(item.value(), data, fmt::format("{}: tensor {}", where, quote(item.key())));
    entry.file = file_;
    entries_.emplace(item.key(), std::move(entry));
  }

  // In order of their place, each tensor must start where the one before ends.
  std::vector<std::pair<const std::string*, const Entry*>> placed;
  for (const auto& [name, entry] : entries_) placed.emplace_back(&name, &entry);
  std::sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->bytes.data(), a.second->bytes.size()) <
           std::pair(b.second->bytes.data(), b.second->bytes.size());
  });
  uint64_t filled = 0;
  for (const auto& [name, entry] : placed) {
    const auto begin = static_cast<uint64_t>(entry->bytes.data() - data.data());
    require(begin == filled, where, "tensor {} starts at byte {} of the data, {} at byte {}",
            quote(*name), begin,
            begin < filled ? "inside the one before, which ends" : "after a gap", filled);
    filled = begin + entry->bytes.size();
  }
  require(filled == data.size(), where, "{} bytes of data, of which tensors fill {}", data.size(),
          filled);
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& item : entries_) names.push_back(item.first);
  return names;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

void write_safetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string where = path.string();
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    const int64_t a_bytes = safetensors_dtype_bytes(a.dtype);
    const int64_t b_bytes = safetensors_dtype_bytes(b.dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> seen;
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::string what = fmt::format("{}: tensor {}", where, quote(tensor.name));
    const int64_t element = safetensors_dtype_bytes(tensor.dtype);
    require(element != 0, what, "unknown dtype '{}'", tensor.dtype);
    require(tensor.name != "__metadata__", what, "this name is reserved");
    require(seen.insert(tensor.name).second, what, "occurs twice");
    require(shape_bytes(tensor.shape, element, what) == tensor.bytes, what, "{} bytes for {} [{}]",
            tensor.bytes, tensor.dtype, fmt::join(tensor.shape, ", "));
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes}}};
    offset += tensor.bytes;
  }
  std::string text = header.dump();
  text.append((kHeaderAlignment - text.size() % kHeaderAlignment) % kHeaderAlignment, ' ');
  require(text.size() <= kMaxHeader, where, "too many tensors: a header of {} bytes", text.size());
  const uint64_t length = text.size();

  AtomicFile file(path);
  file.write(&length, sizeof(length));
  file.write(text);
  for (const TensorToWrite& tensor : tensors) {
    // In pieces, so that the file's buffer stays small.
    constexpr uint64_t kPiece = uint64_t{1} << 22;
    const auto* data = static_cast<const char*>(tensor.data);
    for (uint64_t done = 0; done < tensor.bytes; done += kPiece) {
      file.write(data + done, std::min(kPiece, tensor.bytes - done));
    }
  }
  file.commit();
}

}  // namespace pronghorn
