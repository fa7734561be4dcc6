#include "backend/cpu/block_panels.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/threads.h"

namespace pronghorn {
namespace {

constexpr int64_t kQuad = 4, kQuads = kUnitTerms / kQuad;
constexpr int64_t kVector = kQuad * kPanel;  // bytes of one quad of all rows

using Unit = std::array<uint8_t, kUnitCodes>;  // [quad][row][number]

// Adds bits `from` and following of each code of a quad, to be bits `to` and following of a vector.
void put_bits(const Unit& unit, int64_t quad, int from, int mask, int to, uint8_t* vector) {
  const uint8_t* codes = unit.data() + quad * kVector;
  for (int64_t i = 0; i < kVector; ++i) {
    vector[i] = static_cast<uint8_t>(vector[i] | (codes[i] >> from & mask) << to);
  }
}

// A unit's codes -> vectors of the panel.
void pack_unit(int bits, const Unit& unit, uint8_t* to) {
  if (bits == 8) {
    std::memcpy(to, unit.data(), unit.size());
    return;
  }
  std::fill_n(to, bits * kUnitCodes / 8, uint8_t{0});
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    const int place = static_cast<int>(quad);
    if (bits < 4) {
      put_bits(unit, quad, 0, 3, 2 * (place % 4), to + quad / 4 * kVector);
      if (bits == 3) put_bits(unit, quad, 2, 1, place, to + 2 * kVector);
      continue;
    }
    put_bits(unit, quad, 0, 15, 4 * (place % 2), to + quad / 2 * kVector);
    if (bits == 5) put_bits(unit, quad, 4, 1, place, to + 4 * kVector);
    if (bits == 6) put_bits(unit, quad, 4, 3, 2 * (place % 4), to + (4 + quad / 4) * kVector);
  }
}

// The codes of one row in a unit.
void unpack_row(int bits, const uint8_t* from, int64_t row, uint8_t* codes) {
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    for (int64_t k = 0; k < kQuad; ++k) {
      const auto at = [&](int64_t vector) -> int {
        return from[vector * kVector + row * kQuad + k];
      };
      int code = 0;
      if (bits == 8) {
        code = at(quad);
      } else if (bits < 4) {
        code = at(quad / 4) >> 2 * (quad % 4) & 3;
        if (bits == 3) code |= (at(2) >> quad & 1) << 2;
      } else {
        code = at(quad / 2) >> 4 * (quad % 2) & 15;
        if (bits == 5) code |= (at(4) >> quad & 1) << 4;
        if (bits == 6) code |= (at(4 + quad / 4) >> 2 * (quad % 4) & 3) << 4;
      }
      codes[quad * kQuad + k] = static_cast<uint8_t>(code);
    }
  }
}

void put16(uint16_t value, uint8_t* to) { std::memcpy(to, &value, sizeof(value)); }

uint16_t get16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// The scales of one row in those of a block.
void pack_scales(const BlockPanels& shape, const BlockParts& parts, int64_t row, uint8_t* to) {
  put16(parts.scale, to + 2 * row);
  to += 2 * kPanel;
  if (shape.layout->has_minimum) {
    put16(parts.minimum, to + 2 * row);
    to += 2 * kPanel;
  }
  for (int64_t g = 0; shape.layout->has_factors && g < shape.layout->groups(); ++g) {
    const int factor = parts.factors[static_cast<size_t>(g)];
    const int minimum = -parts.minimum_factors[static_cast<size_t>(g)];
    to[row] = static_cast<uint8_t>(shape.nibble_factors() ? factor | minimum << 4 : factor);
    to += kPanel;
    if (shape.group_bytes() == 1) continue;
    to[row] = static_cast<uint8_t>(minimum);
    to += kPanel;
  }
}

void unpack_scales(const BlockPanels& shape, const uint8_t* from, int64_t row, BlockParts& parts) {
  parts.scale = get16(from + 2 * row);
  from += 2 * kPanel;
  if (shape.layout->has_minimum) {
    parts.minimum = get16(from + 2 * row);
    from += 2 * kPanel;
  }
  for (int64_t g = 0; shape.layout->has_factors && g < shape.layout->groups(); ++g) {
    int factor = static_cast<int8_t>(from[row]), minimum = 0;
    from += kPanel;
    if (shape.nibble_factors()) {
      minimum = factor >> 4 & 15;
      factor &= 15;
    } else if (shape.layout->has_minimum) {
      minimum = from[row];
      from += kPanel;
    }
    parts.factors[static_cast<size_t>(g)] = static_cast<int8_t>(factor);
    parts.minimum_factors[static_cast<size_t>(g)] = static_cast<int8_t>(-minimum);
  }
}

void pack_panel(const BlockPanels& shape, int64_t stored_bytes, const std::byte* rows,
                int64_t count, uint8_t* panel) {
  const BlockLayout& layout = *shape.layout;
  const int64_t units = layout.block / kUnitTerms, row_bytes = shape.blocks() * stored_bytes;
  std::array<Unit, kMostInBlock / kUnitTerms> codes{};
  BlockParts parts;
  for (int64_t b = 0; b < shape.blocks(); ++b, panel += shape.block_bytes()) {
    for (int64_t row = 0; row < count; ++row) {
      layout.take_apart(rows + row * row_bytes + b * stored_bytes, parts);
      pack_scales(shape, parts, row, panel);
      for (int64_t quad = 0; quad < units * kQuads; ++quad) {
        std::memcpy(codes[static_cast<size_t>(quad / kQuads)].data() + quad % kQuads * kVector +
                        row * kQuad,
                    parts.codes.data() + quad * kQuad, kQuad);
      }
    }
    for (int64_t u = 0; u < units; ++u) {
      pack_unit(layout.bits, codes[static_cast<size_t>(u)],
                panel + shape.scale_bytes() + u * shape.unit_bytes());
    }
  }
}

}  // namespace

void pack_block_panels(const BlockPanels& shape, int64_t stored_bytes, const std::byte* stored,
                       int64_t first, int64_t end_panel, uint8_t* panels) {
  const int64_t row_bytes = shape.blocks() * stored_bytes, panel = shape.panel_bytes();
  constexpr int64_t kGrainBytes = 1 << 15;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, panel));
  parallel_for(end_panel - first, grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = first + begin; p < first + end; ++p) {
      uint8_t* to = panels + p * panel;
      const int64_t rows = std::min(kPanel, shape.out - p * kPanel);
      // Rows past the end have scales of 0.
      if (rows < kPanel) std::fill_n(to, panel, uint8_t{0});
      pack_panel(shape, stored_bytes, stored + p * kPanel * row_bytes, rows, to);
    }
  });
}

void unpack_blocks(const BlockPanels& shape, int64_t stored_bytes, const uint8_t* panels,
                   int64_t row, int64_t first, int64_t count, std::byte* to) {
  const BlockLayout& layout = *shape.layout;
  const int64_t units = layout.block / kUnitTerms;
  const uint8_t* block = panels + row / kPanel * shape.panel_bytes() + first * shape.block_bytes();
  BlockParts parts;
  for (int64_t b = 0; b < count; ++b, block += shape.block_bytes(), to += stored_bytes) {
    unpack_scales(shape, block, row % kPanel, parts);
    for (int64_t u = 0; u < units; ++u) {
      unpack_row(layout.bits, block + shape.scale_bytes() + u * shape.unit_bytes(), row % kPanel,
                 parts.codes.data() + u * kUnitTerms);
    }
    layout.put_together(parts, to);
  }
}

}  // namespace pronghorn
