#include "formats/scaled_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "base/quote.h"
#include "base/threads.h"

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

// Numbers that share a scale along an axis of `size` with `scales` of them; 0: they do not fit.
int64_t block_size(int64_t size, int64_t scales) {
  constexpr int64_t kUsual = 128;
  if (scales == 1) return std::max<int64_t>(1, size);
  if (scales == (size + kUsual - 1) / kUsual) return kUsual;
  return scales > 0 && size % scales == 0 ? size / scales : 0;
}

// The scale of each number of a tensor.
class Scales {
 public:
  Scales(const SafetensorsEntry& tensor, const SafetensorsEntry* scale, const std::string& where) {
    if (scale == nullptr) return;
    numbers_.resize(static_cast<size_t>(scale->elements()));
    to_f32(*scale, numbers_.data(), where);
    if (numbers_.size() == 1) return;
    bool fits = scale->shape.size() == tensor.shape.size() && tensor.shape.size() >= 2;
    for (size_t axis = 0; fits && axis < tensor.shape.size(); ++axis) {
      blocks_.push_back(block_size(tensor.shape[axis], scale->shape[axis]));
      fits = blocks_.back() > 0;
    }
    require(fits, where, "scales [{}] do not fit a tensor [{}]", fmt::join(scale->shape, ", "),
            fmt::join(tensor.shape, ", "));
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
  static constexpr float kOne = 1;
  std::vector<float> numbers_;
  std::vector<int64_t> blocks_, shape_, scales_;
};

SafetensorsEntry decoded(const SafetensorsEntry& tensor, const SafetensorsEntry* scale,
                         const std::string& where) {
  const Scales scales(tensor, scale, where);
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

void unite_f8(Entries& entries, const std::string& where) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries) {
    if (entry.dtype == "F8_E4M3") names.push_back(name);
  }
  for (const std::string& name : names) {
    const SafetensorsEntry* scale = nullptr;
    for (const char* end : {"_scale_inv", "_scale"}) {
      if (const auto found = entries.find(name + end); found != entries.end()) {
        scale = &found->second;
        break;
      }
    }
    SafetensorsEntry whole =
        decoded(entries.at(name), scale, fmt::format("{}: {}", where, quote(name)));
    entries[name] = std::move(whole);
    for (const char* end : {"_scale_inv", "_scale"}) entries.erase(name + end);
    if (!name.ends_with(kWeight)) continue;
    entries.erase(name.substr(0, name.size() - kWeight.size()) + ".input_scale");
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

void unite_scaled_tensors(Entries& entries, const std::string& where) {
  unite_f8(entries, where);
  unite_mxfp4(entries, where);
}

}  // namespace pronghorn
