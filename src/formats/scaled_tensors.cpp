#include "formats/scaled_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "base/quote.h"
#include "base/threads.h"
#include "formats/json.h"

namespace pronghorn {
namespace {

using Entries = std::map<std::string, SafetensorsEntry, std::less<>>;

constexpr std::string_view kBlocks = "_blocks", kScales = "_scales", kWeight = ".weight";
constexpr int64_t kGroup = 32, kGroupBytes = kGroup / 2, kBlockBytes = 1 + kGroupBytes;

// Of a sign, 4 bits of exponent (bias 7) and 3 of mantissa; no infinity, and NaN where all are 1.
float from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 0xF, mantissa = bits & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((bits & 0x7F) == 0x7F) value = std::numeric_limits<float>::quiet_NaN();
  return (bits & 0x80) != 0 ? -value : value;
}

const std::array<float, 256>& e4m3_numbers() {
  static const std::array<float, 256> numbers = [] {
    std::array<float, 256> all{};
    for (size_t i = 0; i < all.size(); ++i) all[i] = from_e4m3(static_cast<uint8_t>(i));
    return all;
  }();
  return numbers;
}

// A tensor whose bytes are yet to be written, at .first.
std::pair<std::byte*, SafetensorsEntry> new_entry(std::string dtype, std::vector<int64_t> shape,
                                                  int64_t bytes) {
  auto memory = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(bytes));
  std::byte* data = memory->data();
  const std::span<const std::byte> all(data, memory->size());
  return {data, {std::move(dtype), std::move(shape), all, nullptr, std::move(memory)}};
}

// What a configuration says of the matrices in F8_E4M3: rows and columns of a block that has a
// scale.
struct DeclaredBlocks {
  std::array<int64_t, 2> size{};
  std::string key;  // that says it
};

// Null where there is no such key.
const nlohmann::json& member(const nlohmann::json& value, const char* key) {
  static const nlohmann::json none;
  const auto found = value.find(key);
  return found == value.end() ? none : *found;
}

// Nothing if no configuration says it.
std::optional<DeclaredBlocks> declared_blocks(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "config.json";
  if (!std::filesystem::exists(file)) return {};
  const nlohmann::json config = read_config_json(file);
  const nlohmann::json& quantization = member(config, "quantization_config");
  std::string key = "quantization_config.weight_block_size";
  const nlohmann::json* size = &member(quantization, "weight_block_size");
  // The other way of saying it is that of compressed-tensors.
  for (const auto& group : member(quantization, "config_groups").items()) {
    const nlohmann::json& other = member(member(group.value(), "weights"), "block_structure");
    if (other.is_null()) continue;
    constexpr size_t kShown = 40;  // characters of a group's name
    const std::string other_key =
        fmt::format("quantization_config.config_groups.{}.weights.block_structure",
                    printable(group.key(), kShown));
    require(size->is_null() || *size == other, file.string(), "{} is {}, and {} is {}", key,
            shown_json(*size), other_key, shown_json(other));
    size = &other;
    key = other_key;
  }
  if (size->is_null()) return {};
  DeclaredBlocks blocks{{}, key};
  bool possible = size->is_array() && size->size() == blocks.size.size();
  for (size_t i = 0; possible && i < blocks.size.size(); ++i) {
    const nlohmann::json& number = (*size)[i];
    possible = number.is_number_unsigned() && number.get<uint64_t>() > 0 &&
               number.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
    if (possible) blocks.size[i] = number.get<int64_t>();
  }
  require(possible, fmt::format("{}: {}", file.string(), key),
          "{} where two whole numbers above 0 are wanted", shown_json(*size));
  return blocks;
}

int64_t divided_up(int64_t size, int64_t by) { return size / by + (size % by != 0 ? 1 : 0); }

// Numbers that share a scale along an axis of `size` with `scales` of them, where no configuration
// says it: if only one size is possible that, else 128 where equal shares of another size are not
// possible, too. 0: they do not fit; nothing: it is not certain.
std::optional<int64_t> certain_block(int64_t size, int64_t scales) {
  constexpr int64_t kUsual = 128;
  if (scales == 1) return std::max<int64_t>(1, size);
  if (scales < 1 || scales > size) return 0;
  const int64_t least = divided_up(size, scales), most = (size - 1) / (scales - 1);
  if (least > most) return 0;
  if (least == most) return least;
  const bool other_shares = size % scales == 0 && least != kUsual;
  if (least > kUsual || most < kUsual || other_shares) return {};
  return kUsual;
}

// The scale of each number of a tensor.
class Scales {
 public:
  // declared: null if no configuration says it.
  Scales(const SafetensorsEntry& tensor, const SafetensorsEntry* scale,
         const DeclaredBlocks* declared, const std::string& where) {
    if (scale == nullptr) return;
    numbers_.resize(static_cast<size_t>(scale->elements()));
    to_f32(*scale, numbers_.data(), where);
    // One number for the whole tensor is no block's.
    if (numbers_.size() == 1 && (declared == nullptr || scale->shape.size() < 2)) return;
    if (declared != nullptr) {
      set_declared(tensor.shape, scale->shape, *declared, where);
    } else {
      set_certain(tensor.shape, scale->shape, where);
    }
    shape_ = tensor.shape;
    scales_ = scale->shape;
  }

  // Of the first number of a row, and of how many after it the scale changes.
  const float* of_row(int64_t row) const {
    if (numbers_.empty() || blocks_.empty()) return numbers_.empty() ? &kOne : numbers_.data();
    int64_t place = 0, stride = scales_.back();
    for (size_t axis = shape_.size() - 1; axis-- > 0;) {
      place += row % shape_[axis] / blocks_[axis] * stride;
      row /= shape_[axis];
      stride *= scales_[axis];
    }
    return numbers_.data() + place;
  }
  int64_t block() const {
    return blocks_.empty() ? std::numeric_limits<int64_t>::max() : blocks_.back();
  }

 private:
  void set_declared(const std::vector<int64_t>& shape, const std::vector<int64_t>& scales,
                    const DeclaredBlocks& declared, const std::string& where) {
    const auto& [rows, columns] = declared.size;
    std::vector<int64_t> wanted = shape;
    if (shape.size() >= 2) {
      blocks_.assign(shape.size(), 1);
      blocks_[shape.size() - 2] = rows;
      blocks_.back() = columns;
      for (size_t axis = 0; axis < shape.size(); ++axis) {
        wanted[axis] = divided_up(shape[axis], blocks_[axis]);
      }
    }
    require(!blocks_.empty() && scales == wanted, where,
            "scales [{}] do not fit a tensor [{}] in blocks of {} x {}, which config.json says in "
            "{}: [{}] would",
            fmt::join(scales, ", "), fmt::join(shape, ", "), rows, columns, declared.key,
            fmt::join(wanted, ", "));
  }

  void set_certain(const std::vector<int64_t>& shape, const std::vector<int64_t>& scales,
                   const std::string& where) {
    bool fits = scales.size() == shape.size() && shape.size() >= 2, certain = true;
    for (size_t axis = 0; fits && axis < shape.size(); ++axis) {
      const std::optional<int64_t> block = certain_block(shape[axis], scales[axis]);
      certain = certain && block;
      blocks_.push_back(block.value_or(1));
      fits = blocks_.back() > 0;
    }
    require(fits, where, "scales [{}] do not fit a tensor [{}]", fmt::join(scales, ", "),
            fmt::join(shape, ", "));
    if (certain) return;
    throw Error(where,
                fmt::format("blocks of several sizes would have scales [{}] in a tensor [{}]",
                            fmt::join(scales, ", "), fmt::join(shape, ", ")),
                "say which, in quantization_config.weight_block_size of config.json");
  }

  static constexpr float kOne = 1;
  std::vector<float> numbers_;
  std::vector<int64_t> blocks_, shape_, scales_;
};

SafetensorsEntry decoded(const SafetensorsEntry& tensor, const SafetensorsEntry* scale,
                         const DeclaredBlocks* declared, const std::string& where) {
  const Scales scales(tensor, scale, declared, where);
  const int64_t count = tensor.elements();
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  auto [data, result] =
      new_entry("BF16", tensor.shape, count * static_cast<int64_t>(sizeof(bf16_t)));
  const std::array<float, 256>& numbers = e4m3_numbers();
  parallel_for(row == 0 ? 0 : count / row, 1, [&, data = data](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* scale_of = scales.of_row(r);
      const std::byte* from = tensor.bytes.data() + r * row;
      std::byte* to = data + r * row * static_cast<int64_t>(sizeof(bf16_t));
      for (int64_t i = 0; i < row; ++i) {
        const float number = numbers[std::to_integer<size_t>(from[i])];
        const bf16_t value = to_bf16(number * scale_of[i / scales.block()]);
        std::memcpy(to + i * static_cast<int64_t>(sizeof(value)), &value, sizeof(value));
      }
    }
  });
  return result;
}

void unite_f8(Entries& entries, const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries) {
    if (entry.dtype == "F8_E4M3") names.push_back(name);
  }
  if (names.empty()) return;
  const std::optional<DeclaredBlocks> declared = declared_blocks(directory);
  for (const std::string& name : names) {
    const SafetensorsEntry* scale = nullptr;
    for (const char* end : {"_scale_inv", "_scale"}) {
      if (const auto found = entries.find(name + end); found != entries.end()) {
        scale = &found->second;
        break;
      }
    }
    SafetensorsEntry whole = decoded(entries.at(name), scale, declared ? &*declared : nullptr,
                                     fmt::format("{}: {}", directory.string(), quote(name)));
    entries[name] = std::move(whole);
    for (const char* end : {"_scale_inv", "_scale"}) entries.erase(name + end);
    if (!name.ends_with(kWeight)) continue;
    const std::string layer = name.substr(0, name.size() - kWeight.size());
    for (const char* end : {".input_scale", ".activation_scale"}) entries.erase(layer + end);
  }
}

// Number i of 32 is in half i / 16 of byte i % 16 of a block, and in half i % 2 of byte i / 2 here.
void reorder(const std::byte* from, std::byte scale, std::byte* to) {
  *to++ = scale;
  const auto number = [from](int64_t i) {
    return (from[i / 2] >> (i % 2 == 0 ? 0 : 4)) & std::byte{0xF};
  };
  for (int64_t i = 0; i < kGroupBytes; ++i) to[i] = number(i) | number(i + kGroupBytes) << 4;
}

SafetensorsEntry in_blocks(const SafetensorsEntry& blocks, const SafetensorsEntry& scales,
                           const std::string& where) {
  std::vector<int64_t> wanted = scales.shape;
  wanted.push_back(kGroupBytes);
  require(scales.dtype == "U8" && !scales.shape.empty() && blocks.shape == wanted, where,
          "blocks [{}] and {} scales [{}] are not those of MXFP4", fmt::join(blocks.shape, ", "),
          scales.dtype, fmt::join(scales.shape, ", "));
  std::vector<int64_t> shape = scales.shape;
  shape.back() *= kGroup;
  const int64_t count = scales.elements();
  auto [data, result] = new_entry("MXFP4", std::move(shape), count * kBlockBytes);
  constexpr int64_t kGrain = 1 << 12;
  parallel_for(count, kGrain, [&, data = data](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      reorder(blocks.bytes.data() + i * kGroupBytes, scales.bytes[static_cast<size_t>(i)],
              data + i * kBlockBytes);
    }
  });
  return result;
}

void unite_mxfp4(Entries& entries, const std::string& where) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const auto& [name, entry] : entries) {
    if (!name.ends_with(kBlocks) || entry.dtype != "U8") continue;
    std::string scales = name.substr(0, name.size() - kBlocks.size()) + std::string(kScales);
    if (entries.contains(scales)) pairs.emplace_back(name, std::move(scales));
  }
  for (const auto& [blocks, scales] : pairs) {
    entries[blocks] = in_blocks(entries.at(blocks), entries.at(scales),
                                fmt::format("{}: {}", where, quote(blocks)));
    entries.erase(scales);
  }
}

}  // namespace

void unite_scaled_tensors(Entries& entries, const std::filesystem::path& directory) {
  unite_f8(entries, directory);
  unite_mxfp4(entries, directory.string());
}

}  // namespace pronghorn
