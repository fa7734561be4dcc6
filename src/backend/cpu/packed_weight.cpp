#include "backend/cpu/packed_weight.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "backend/cpu/block_panels.h"
#include "backend/cpu/cpu_features.h"
#include "backend/cpu/matmul_scratch.h"
#include "base/error.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

// Numbers that one piece of packing moves: about 10 microseconds.
constexpr int64_t kPackGrain = 1 << 15;
// Rows of a weight that are decoded at a time where packing needs whole rows; even.
constexpr int64_t kDecodeRows = 32;
// The largest block of an encoding.
constexpr int64_t kMaxBlock = 512;
constexpr size_t kMostBlockBytes = 256;  // of encodings of blocks with a layout

constexpr std::string_view format_name(Format format) {
  constexpr std::string_view kNames[] = {"f32", "f32 rounded", "bf16", "blocks", "none"};
  return kNames[static_cast<size_t>(format)];
}

// Panels of one weight for each side and format that was asked for.
struct CpuPackedWeight final : PackedWeight {
  struct Panels {
    std::shared_ptr<Storage> storage;
    uint64_t version = 0;
  };
  std::array<std::array<Panels, kPackedFormats>, 2> panels;

  Panels& at(PanelSide side, Format format) {
    return panels[static_cast<size_t>(side)][static_cast<size_t>(format)];
  }

  std::vector<WeightBytes> bytes() const override {
    std::vector<WeightBytes> all;
    for (const auto& side : panels) {
      for (size_t format = 0; format < kPackedFormats; ++format) {
        if (side[format].storage == nullptr) continue;
        all.push_back({fmt::format("packed {}", format_name(static_cast<Format>(format))),
                       static_cast<int64_t>(side[format].storage->bytes()), false});
      }
    }
    return all;
  }
};

CpuPackedWeight& packed_of(const Weight& weight) {
  if (weight.packed() == nullptr) weight.packed() = std::make_shared<CpuPackedWeight>();
  return static_cast<CpuPackedWeight&>(*weight.packed());
}

// What is kept of a weight for kernels that take `kernel`.
Format held_format(const Weight& weight, Format kernel) {
  if (weight.trainable().defined()) return kernel;
  const Encoding& encoding = weight.encoding();
  if (layout_of(encoding) != nullptr && kernel != Format::f32) return Format::blocks;
  if (encoding.block > 1) return Format::stored;
  return &encoding == &encodings::bf16 ? Format::pairs : kernel;
}

// Whether panels of this format hold the very numbers that the encoding holds.
bool keeps_all(const Encoding& encoding, Format format) {
  return format == Format::f32 || format == Format::blocks ||
         (format == Format::pairs && &encoding == &encodings::bf16);
}

BlockPanels block_panels(const Encoding& encoding, int64_t out, int64_t in) {
  return {layout_of(encoding), out, in};
}

size_t panel_bytes(Format format, int64_t columns, int64_t terms) {
  return static_cast<size_t>(panels_of(columns) * steps_of(format, terms) * kPanel) *
         sizeof(uint32_t);
}

// Bytes of what is held of the forward side.
int64_t held_bytes(const Weight& weight, Format held) {
  const Encoding& encoding = weight.encoding();
  if (held == Format::stored) return encoding.bytes(weight.in()) * weight.out();
  if (held == Format::blocks) return block_panels(encoding, weight.out(), weight.in()).bytes();
  return static_cast<int64_t>(panel_bytes(held, weight.out(), weight.in()));
}

// With the packer's mutex held. Panels are preferred to the pages of a file, which would take
// memory besides them.
WeightNumbers numbers_of(const Weight& weight) {
  WeightNumbers source{weight.out(),    weight.in(), &weight.encoding(),
                       weight.stored(), nullptr,     Format::f32};
  const bool mapped = source.stored.file != nullptr;
  if (!source.stored.bytes.empty() && !mapped) return source;
  for (const Format format : {Format::blocks, Format::pairs, Format::f32}) {
    if (!keeps_all(weight.encoding(), format)) continue;
    const CpuPackedWeight::Panels& panels = packed_of(weight).at(PanelSide::forward, format);
    if (panels.storage == nullptr || panels.version != weight.version()) continue;
    source.stored = {};
    source.panels = panels.storage;
    source.format = format;
    return source;
  }
  require(mapped || weight.size() == 0, "weight", "has no numbers yet");
  return source;
}

constexpr int64_t kChunk = 128;  // steps that are turned round at a time; even: pairs do not cross
using Chunk = std::array<uint32_t, kPanel * kChunk>;

// Rows of steps -> [steps][16].
void transpose(const Chunk& chunk, int64_t count, uint32_t* to) {
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t i = 0; i < kPanel; ++i) {
      to[s * kPanel + i] = chunk[static_cast<size_t>(i * kChunk + s)];
    }
  }
}

// Rows of bf16 as they are stored -> one panel of pairs. Bits are moved, not numbers: instructions
// that round to bf16 turn the smallest numbers into 0.
void pack_bf16(const std::byte* rows, int64_t count, int64_t in, uint32_t* panel) {
  Chunk chunk{};
  const auto number = static_cast<int64_t>(sizeof(bf16_t));
  for (int64_t begin = 0; begin < in; begin += 2 * kChunk) {
    const int64_t width = std::min(2 * kChunk, in - begin), steps = divide_up(width, 2);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t* to = chunk.data() + i * kChunk;
      to[steps - 1] = 0;
      std::memcpy(to, rows + (i * in + begin) * number, static_cast<size_t>(width * number));
    }
    transpose(chunk, steps, panel + begin / 2 * kPanel);
  }
}

// 16 or fewer rows of a weight -> one panel.
void pack_panel(Format format, const WeightNumbers& source, int64_t first, int64_t rows,
                uint32_t* panel) {
  const int64_t in = source.in;
  if (const float* data = source.f32()) {
    return pack_transposed(format, {data + first * in, in}, rows, in, panel);
  }
  if (format == Format::pairs && !source.stored.bytes.empty() &&
      source.stored.encoding == &encodings::bf16) {
    return pack_bf16(source.stored.bytes.data() + first * encodings::bf16.bytes(in), rows, in,
                     panel);
  }
  std::array<float, kPanel * kMaxBlock> chunk;
  for (int64_t begin = 0; begin < in; begin += kMaxBlock) {
    const int64_t count = std::min(kMaxBlock, in - begin);
    for (int64_t i = 0; i < rows; ++i) {
      source.read(first + i, begin, count, chunk.data() + i * kMaxBlock);
    }
    pack_transposed(format, {chunk.data(), kMaxBlock}, rows, count,
                    panel + begin / terms_of(format) * kPanel);
  }
}

void pack_forward(Format format, const WeightNumbers& source, int64_t out, uint32_t* to) {
  const int64_t panel = steps_of(format, source.in) * kPanel;
  const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, panel));
  parallel_for(panels_of(out), grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      pack_panel(format, source, p * kPanel, std::min(kPanel, out - p * kPanel), to + p * panel);
    }
  });
}

void pack_backward(Format format, const WeightNumbers& source, int64_t out, uint32_t* to) {
  const int64_t in = source.in, panel = steps_of(format, out) * kPanel;
  if (const float* data = source.f32()) {
    const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, panel));
    parallel_for(panels_of(in), grain, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        pack_rows(format, {data + p * kPanel, in}, out, std::min(kPanel, in - p * kPanel),
                  to + p * panel, panel);
      }
    });
    return;
  }
  parallel_for(divide_up(out, kDecodeRows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> chunk(static_cast<size_t>(kDecodeRows * in));
    for (int64_t first = begin * kDecodeRows; first < std::min(out, end * kDecodeRows);
         first += kDecodeRows) {
      const int64_t count = std::min(kDecodeRows, out - first);
      for (int64_t i = 0; i < count; ++i) source.read(first + i, 0, in, chunk.data() + i * in);
      pack_rows(format, {chunk.data(), in}, count, in, to + first / terms_of(format) * kPanel,
                panel);
    }
  });
}

}  // namespace

const float* WeightNumbers::f32() const {
  if (stored.bytes.empty() || stored.encoding != &encodings::f32) return nullptr;
  const std::byte* data = stored.bytes.data();
  return reinterpret_cast<uintptr_t>(data) % alignof(float) == 0
             ? reinterpret_cast<const float*>(data)
             : nullptr;
}

void WeightNumbers::read(int64_t row, int64_t begin, int64_t count, float* to) const {
  if (!stored.bytes.empty()) {
    const std::byte* from =
        stored.bytes.data() + row * encoding->bytes(in) + encoding->bytes(begin);
    return encoding->decode(from, count, to);
  }
  if (format == Format::blocks) {
    std::array<std::byte, kMostBlockBytes> block;
    const auto* from = reinterpret_cast<const uint8_t*>(panels->data());
    for (int64_t done = 0; done < count; done += encoding->block) {
      unpack_blocks(block_panels(*encoding, out, in), encoding->block_bytes, from, row,
                    (begin + done) / encoding->block, 1, block.data());
      encoding->decode(block.data(), encoding->block, to + done);
    }
    return;
  }
  const int64_t steps = steps_of(format, in);
  const auto* from = reinterpret_cast<const uint32_t*>(panels->data()) +
                     row / kPanel * steps * kPanel + row % kPanel;
  if (format == Format::f32) {
    for (int64_t t = 0; t < count; ++t) to[t] = std::bit_cast<float>(from[(begin + t) * kPanel]);
    return;
  }
  for (int64_t t = begin; t < begin + count; ++t) {
    const uint32_t pair = from[t / 2 * kPanel];
    *to++ = from_bf16(static_cast<bf16_t>(t % 2 == 0 ? pair : pair >> 16));
  }
}

void WeightNumbers::read_stored(int64_t row, std::byte* to) const {
  const int64_t bytes = encoding->bytes(in);
  if (!stored.bytes.empty()) {
    std::memcpy(to, stored.bytes.data() + row * bytes, static_cast<size_t>(bytes));
  } else if (format == Format::blocks) {
    unpack_blocks(block_panels(*encoding, out, in), encoding->block_bytes,
                  reinterpret_cast<const uint8_t*>(panels->data()), row, 0, in / encoding->block,
                  to);
  } else {
    std::vector<float> numbers(static_cast<size_t>(in));
    read(row, 0, in, numbers.data());
    encoding->encode(numbers.data(), in, to);
  }
}

Format kernel_format(Precision precision) {
  if (precision == Precision::f32) return Format::f32;
  return cpu_features().bf16 ? Format::pairs : Format::rounded;
}

void pack_rows(Format format, ConstMatrix x, int64_t rows, int64_t columns, uint32_t* panels,
               int64_t panel) {
  if (format == Format::pairs) {
    return pack_row_pairs_bf16(x.data, x.stride, rows, columns, panels, panel);
  }
  for (int64_t s = 0; s < rows; ++s) {
    const float* from = x.row(s);
    auto* to = reinterpret_cast<float*>(panels) + s * kPanel;
    for (int64_t column = 0; column < columns; column += kPanel, to += panel) {
      const int64_t width = std::min(kPanel, columns - column);
      if (width == kPanel) {
        std::memcpy(to, from + column, kPanel * sizeof(float));
      } else {
        std::copy_n(from + column, width, to);
        std::fill(to + width, to + kPanel, 0.0f);
      }
      if (format == Format::rounded) std::transform(to, to + width, to, rounded_to_bf16);
    }
  }
}

void pack_transposed(Format format, ConstMatrix x, int64_t rows, int64_t columns, uint32_t* panel) {
  Chunk chunk{};
  const int64_t steps = steps_of(format, columns), terms = terms_of(format);
  for (int64_t first = 0; first < steps; first += kChunk) {
    const int64_t count = std::min(kChunk, steps - first);
    const int64_t width = std::min(count * terms, columns - first * terms);
    const float* from = x.data + first * terms;
    if (format == Format::pairs) {
      pair_columns_bf16(from, x.stride, rows, width, chunk.data(), kChunk);
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        auto* to = reinterpret_cast<float*>(chunk.data() + i * kChunk);
        std::copy_n(from + i * x.stride, width, to);
        if (format == Format::rounded) std::transform(to, to + width, to, rounded_to_bf16);
      }
    }
    transpose(chunk, count, panel + first * kPanel);
  }
}

int64_t RightOperand::granule() const {
  // In numbers: a block, and a pair of them for the formats that hold pairs on either side.
  const bool blocks =
      held == Format::blocks || (held == Format::stored && side == PanelSide::forward);
  const int64_t block = blocks ? std::max<int64_t>(2, numbers.encoding->block) : 2;
  return block / terms_of(kernel);
}

void RightOperand::unpack(int64_t first, int64_t count_panels, int64_t step, int64_t count,
                          uint32_t* to) const {
  if (held == Format::pairs) {
    const int64_t panel = steps_of(held, terms) * kPanel;
    for (int64_t p = 0; p < count_panels; ++p) {
      unpack_pairs(data() + (first + p) * panel + step / 2 * kPanel, count,
                   reinterpret_cast<float*>(to) + p * count * kPanel);
    }
    return;
  }
  if (held == Format::blocks) {
    const BlockPanels shape = block_panels(*numbers.encoding, columns, terms);
    const auto* from = reinterpret_cast<const uint8_t*>(panels->data());
    const int64_t unit = terms_of(kernel) * step / kUnitTerms;
    const int64_t units = terms_of(kernel) * count / kUnitTerms;
    for (int64_t p = 0; p < count_panels; ++p) {
      unpack_block_pairs(shape, from + (first + p) * shape.panel_bytes(), unit, units,
                         to + p * count * kPanel);
    }
    return;
  }
  if (side == PanelSide::backward) return unpack_backward(first, count_panels, step, count, to);
  const int64_t begin = step * terms_of(kernel);
  const int64_t width = std::min(count * terms_of(kernel), terms - begin);
  std::array<float, kPanel * kMaxBlock> rows;
  for (int64_t p = 0; p < count_panels; ++p) {
    const int64_t row = (first + p) * kPanel, height = std::min(kPanel, columns - row);
    for (int64_t done = 0; done < width; done += kMaxBlock) {
      const int64_t part = std::min(kMaxBlock, width - done);
      for (int64_t i = 0; i < height; ++i) {
        numbers.read(row + i, begin + done, part, rows.data() + i * kMaxBlock);
      }
      pack_transposed(kernel, {rows.data(), kMaxBlock}, height, part,
                      to + (p * count + done / terms_of(kernel)) * kPanel);
    }
  }
}

// Rows of the weight are steps, its columns the columns: whole blocks around them are decoded.
void RightOperand::unpack_backward(int64_t first, int64_t count_panels, int64_t step, int64_t count,
                                   uint32_t* to) const {
  const int64_t block = numbers.encoding->block;
  const int64_t begin = first * kPanel, end = std::min(columns, begin + count_panels * kPanel);
  const int64_t begin_block = begin / block * block, end_block = divide_up(end, block) * block;
  const int64_t row = step * terms_of(kernel);
  const int64_t rows = std::min(count * terms_of(kernel), terms - row);
  const int64_t width = end_block - begin_block;
  auto* const decoded =
      reinterpret_cast<float*>(matmul_scratch(MatmulBuffer::result, rows * width));
  for (int64_t i = 0; i < rows; ++i) {
    numbers.read(row + i, begin_block, width, decoded + i * width);
  }
  pack_rows(kernel, {decoded + begin - begin_block, width}, rows, end - begin, to, count * kPanel);
}

RightOperand WeightPacker::operand(const Weight& weight, PanelSide side, Precision precision) {
  const bool forward = side == PanelSide::forward;
  RightOperand result;
  result.kernel = kernel_format(precision);
  result.columns = forward ? weight.out() : weight.in();
  result.terms = forward ? weight.in() : weight.out();
  std::lock_guard<std::mutex> lock(mutex_);
  // Of blocks no other panels are kept: the backward side, and the forward side in f32, are made in
  // passing.
  const bool in_blocks = !weight.trainable().defined() && weight.encoding().block > 1;
  result.side = side;
  result.held = in_blocks ? Format::stored
                : forward ? held_format(weight, result.kernel)
                          : result.kernel;
  if (result.held == Format::stored) {
    result.numbers = numbers_of(weight);
    return result;
  }
  CpuPackedWeight::Panels& panels = packed_of(weight).at(side, result.held);
  if (panels.storage == nullptr || panels.version != weight.version()) {
    const WeightNumbers source = numbers_of(weight);
    if (panels.storage == nullptr) {
      panels.storage = std::make_shared<Storage>(
          panel_bytes(result.held, result.columns, result.terms), Lifetime::model);
    }
    auto* to = reinterpret_cast<uint32_t*>(panels.storage->data());
    if (forward) {
      pack_forward(result.held, source, weight.out(), to);
    } else {
      pack_backward(result.held, source, weight.out(), to);
    }
    panels.version = weight.version();
    weight.release_stored(forward && keeps_all(weight.encoding(), result.held));
  }
  result.panels = panels.storage;
  return result;
}

bool WeightPacker::takes_blocks(const Weight& weight) {
  return !weight.trainable().defined() && layout_of(weight.encoding()) != nullptr;
}

RightOperand WeightPacker::block_pairs(const Weight& weight) {
  RightOperand result;
  result.kernel = Format::pairs;
  result.held = Format::blocks;
  result.columns = weight.out();
  result.terms = weight.in();
  result.panels = blocks(weight);
  result.numbers.encoding = &weight.encoding();
  return result;
}

std::shared_ptr<const Storage> WeightPacker::blocks(const Weight& weight) {
  std::lock_guard<std::mutex> lock(mutex_);
  CpuPackedWeight::Panels& panels = packed_of(weight).at(PanelSide::forward, Format::blocks);
  if (panels.storage == nullptr || panels.version != weight.version()) {
    const WeightNumbers source = numbers_of(weight);
    const BlockPanels shape = block_panels(weight.encoding(), weight.out(), weight.in());
    panels.storage = std::make_shared<Storage>(static_cast<size_t>(shape.bytes()), Lifetime::model);
    // In parts, each of which gives back its pages of a file: large matrices are not held twice.
    constexpr int64_t kPartBytes = int64_t{1} << 22;
    const int64_t panels_in_part =
        std::max<int64_t>(1, kPartBytes / std::max<int64_t>(1, shape.panel_bytes()));
    const std::span<const std::byte> stored = source.stored.bytes;
    const auto row = static_cast<size_t>(weight.encoding().bytes(weight.in()));
    for (int64_t first = 0; first < shape.panels(); first += panels_in_part) {
      const int64_t end = std::min(shape.panels(), first + panels_in_part);
      pack_block_panels(shape, weight.encoding().block_bytes, stored.data(), first, end,
                        reinterpret_cast<uint8_t*>(panels.storage->data()));
      if (source.stored.file == nullptr) continue;
      const auto begin_row = static_cast<size_t>(first * kPanel);
      const auto end_row = static_cast<size_t>(std::min(weight.out(), end * kPanel));
      source.stored.file->release(stored.subspan(begin_row * row, (end_row - begin_row) * row));
    }
    panels.version = weight.version();
    weight.release_stored(true);
  }
  return panels.storage;
}

void WeightPacker::read_rows(const Weight& weight, std::span<const int32_t> rows, Matrix to) {
  const WeightNumbers source = [&] {
    std::lock_guard<std::mutex> lock(mutex_);
    return numbers_of(weight);
  }();
  const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, weight.in()));
  parallel_for(static_cast<int64_t>(rows.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      source.read(rows[static_cast<size_t>(i)], 0, weight.in(), to.row(i));
    }
  });
}

void WeightPacker::read_stored(const Weight& weight, std::byte* to) {
  const WeightNumbers source = [&] {
    std::lock_guard<std::mutex> lock(mutex_);
    return numbers_of(weight);
  }();
  const int64_t bytes = weight.encoding().bytes(weight.in());
  const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, weight.in()));
  parallel_for(weight.out(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) source.read_stored(i, to + i * bytes);
  });
}

int64_t WeightPacker::resident_bytes(const Weight& weight, Precision precision) const {
  const Format held = held_format(weight, kernel_format(precision));
  const auto stored = weight.encoding().bytes(weight.in()) * weight.out();
  const bool mapped = weight.stored().file != nullptr;
  if (held == Format::stored) return mapped ? 0 : stored;
  return held_bytes(weight, held) + (mapped || keeps_all(weight.encoding(), held) ? 0 : stored);
}

int64_t WeightPacker::bytes_read(const Weight& weight, Precision precision) const {
  return held_bytes(weight, held_format(weight, kernel_format(precision)));
}

}  // namespace pronghorn
