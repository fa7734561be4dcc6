// Products with weights in panels of blocks, for every instruction set that Highway builds: whole
// numbers of 8 bits are multiplied and added up in 32 bits, and units of 32 in f32.
//
// For many rows a chunk of codes is unpacked once, into the first cache. For few rows codes go from
// the panel through registers into products, so that memory is read while numbers are multiplied.
#include "backend/cpu/block_panels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/block_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>

#include "backend/cpu/block_tiles_narrow-inl.h"
#include "backend/cpu/cpu_features.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

#if PRONGHORN_BLOCK_VECTORS && HWY_TARGET <= HWY_AVX3

// Rows whose sums stay in registers beside the codes of one vector, and of all vectors of a panel.
constexpr int kMostRows = 16, kFewRows = 4;

// sum + the products of a part: of each lane's bytes in K::kEach quads.
template <class K, bool kVnni>
HWY_INLINE IntVector Dot(IntVector sum, const IntVector* weights, const int8_t* quads) {
  if constexpr (kVnni) {
    for (int quad = 0; quad < K::kEach; ++quad) {
      // Inline assembly: the intrinsic needs the whole file to be compiled for AVX-512 VNNI.
      asm("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum.raw)
          : "v"(weights[quad].raw), "m"(*reinterpret_cast<const int32_t*>(quads + 4 * quad)));
    }
    return sum;
  }
  constexpr int kRun = RunOfQuads<K>();
  static_assert(K::kEach % kRun == 0);
  for (int quad = 0; quad < K::kEach; quad += kRun) {
    IntVector pairs = Pairs<K::kWide>(weights[quad], Quad(quads + 4 * quad));
    for (int i = quad + 1; i < quad + kRun; ++i) {
      pairs = AddPairs(pairs, Pairs<K::kWide>(weights[i], Quad(quads + 4 * i)));
    }
    sum = hn::Add(sum, AddNeighbours(pairs));
  }
  return sum;
}

// One vector's codes of a unit -> operands of Dot.
template <class K, bool kVnni, bool kPacked>
HWY_INLINE void LoadWeights(const uint8_t* from, const uint8_t* values,
                            IntVector (&weights)[kQuads]) {
  const ByteTag d;
  ByteVector quads[kQuads];
  LoadQuads<kPacked ? K::kBits : 8>(from, quads);
  for (int quad = 0; quad < kQuads; ++quad) {
    if constexpr (kPacked && K::kTable) {
      quads[quad] = hn::TableLookupBytes(hn::LoadDup128(d, values), quads[quad]);
    }
    if constexpr (K::kWide && !kVnni) quads[quad] = hn::Xor(quads[quad], hn::Set(d, 0x80));
    weights[quad] = hn::BitCast(IntTag(), quads[quad]);
  }
}

// R rows and kPass vectors of columns, of which the first is `first`. kPacked: blocks are read as
// the panel has them.
template <class K, int R, int kPass, bool kVnni, bool kPacked>
HWY_INLINE void RunColumns(const Tile& tile, int64_t first) {
  constexpr bool kSigned = K::kWide && !kVnni;
  constexpr int64_t kUnitBytes = (kPacked ? K::kBits : 8) * kUnitCodes / 8;
  constexpr int64_t kUnitScales = K::kParts * kPanel;
  constexpr int64_t kDistance = 4096;  // measured on Sapphire Rapids
  const Tag d;
  const IntTag di;
  const int64_t rows = tile.tile_rows, lane = first * kLanes;
  const int8_t* HWY_RESTRICT a = tile.codes;
  const float* HWY_RESTRICT a_scales = tile.scales;
  const int32_t* HWY_RESTRICT corrections = tile.corrections;
  const float* HWY_RESTRICT sums = tile.sums;
  float* const y = tile.y + lane;
  Vector total[R][kPass];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < kPass; ++v) {
      total[i][v] = tile.load ? hn::LoadU(d, y + i * tile.y_stride + v * kLanes) : hn::Zero(d);
    }
  }
  const auto unit = [&](const uint8_t* codes, const float* scales, const float* minima) HWY_ATTR {
    for (int v = 0; v < kPass; ++v) {
      IntVector weights[kQuads];
      LoadWeights<K, kVnni, kPacked>(codes + v * kLanes * 4, tile.values, weights);
      for (int i = 0; i < R; ++i) {
        const int8_t* const row = a + i * kUnitTerms;
        const Vector a_scale = hn::Set(d, a_scales[i]);
        for (int part = 0; part < K::kParts; ++part) {
          const int64_t at = part * kPanel + v * kLanes;
          const int quad = part * K::kEach;
          const IntVector sum =
              Dot<K, kVnni>(kSigned ? hn::Zero(di) : hn::Set(di, corrections[part * rows + i]),
                            weights + quad, row + 4 * quad);
          total[i][v] = hn::MulAdd(hn::ConvertTo(d, sum),
                                   hn::Mul(hn::LoadU(d, scales + at), a_scale), total[i][v]);
          if constexpr (K::kMinimum) {
            total[i][v] = hn::MulAdd(hn::LoadU(d, minima + at), hn::Set(d, sums[part * rows + i]),
                                     total[i][v]);
          }
        }
      }
    }
    a += rows * kUnitTerms;
    a_scales += rows;
    corrections += K::kParts * rows;
    sums += K::kParts * rows;
  };
  if constexpr (kPacked) {
    const uint8_t* HWY_RESTRICT from = tile.packed;
    alignas(64) float scales[K::kGroups * kPanel], minima[K::kMinimum ? K::kGroups * kPanel : 1];
    for (int64_t u = 0; u < tile.units; u += K::kUnits) {
      UnpackScales<K, kPass>(from, scales, minima);
      from += K::kScaleBytes;
      for (int64_t i = 0; i < K::kUnits; ++i, from += kUnitBytes) {
        Ahead<kUnitBytes + K::kScaleBytes / K::kUnits>(from + kDistance);
        unit(from, scales + i * kUnitScales, minima + (K::kMinimum ? i * kUnitScales : 0));
      }
    }
  } else {
    const Chunk& chunk = *tile.chunk;
    for (int64_t u = 0; u < tile.units; ++u) {
      unit(chunk.codes.data() + u * kUnitBytes + lane * 4,
           chunk.scales.data() + u * kUnitScales + lane,
           chunk.minima.data() + u * kUnitScales + lane);
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < kPass; ++v) {
      hn::StoreU(total[i][v], d, y + i * tile.y_stride + v * kLanes);
    }
  }
}

template <class K, int R, bool kVnni, bool kPacked>
HWY_NOINLINE void RunTile(const Tile& tile) {
  if constexpr (kPacked) {
    RunColumns<K, R, kVectors, kVnni, kPacked>(tile, 0);
  } else {
    for (int v = 0; v < kVectors; ++v) RunColumns<K, R, 1, kVnni, kPacked>(tile, v);
  }
}

#elif PRONGHORN_BLOCK_VECTORS

constexpr int kFewRows = kMostRows;

template <class K, int R, bool kVnni, bool kPacked>
void RunTile(const Tile& tile) {
  static_assert(!kVnni);
  NarrowTile<K, R, kPacked>::Run(tile);
}

#else

constexpr int kMostRows = 1, kFewRows = 0;

// One number after another.
template <class K, int R, bool kVnni, bool kPacked>
HWY_NOINLINE void RunTile(const Tile& tile) {
  static_assert(R == 1 && !kVnni && !kPacked);
  const int64_t rows = tile.tile_rows;
  for (int64_t column = 0; column < kPanel; ++column) {
    float total = tile.load ? tile.y[column] : 0;
    for (int64_t u = 0; u < tile.units; ++u) {
      const uint8_t* weights = tile.chunk->codes.data() + u * kUnitCodes + 4 * column;
      const int8_t* a = tile.codes + u * rows * kUnitTerms;
      for (int64_t part = 0; part < K::kParts; ++part) {
        const int64_t place = u * K::kParts + part;
        const auto at = static_cast<size_t>(place * kPanel + column);
        int32_t sum = tile.corrections[place * rows];
        for (int64_t quad = part * K::kEach; quad < (part + 1) * K::kEach; ++quad) {
          for (int64_t k = 0; k < 4; ++k) sum += weights[quad * kQuadBytes + k] * a[4 * quad + k];
        }
        total += static_cast<float>(sum) * (tile.chunk->scales[at] * tile.scales[u * rows]);
        if constexpr (K::kMinimum) total += tile.chunk->minima[at] * tile.sums[place * rows];
      }
    }
    tile.y[column] = total;
  }
}

#endif

// Tiles of R rows while there are that many, then smaller ones.
template <class K, int R, bool kVnni, bool kPacked>
void RunRows(Tile tile, int64_t rows) {
  while (rows >= R) {
    RunTile<K, R, kVnni, kPacked>(tile);
    rows -= R;
    tile.codes += R * kUnitTerms;
    tile.scales += R;
    tile.corrections += R;
    tile.sums += R;
    tile.y += R * tile.y_stride;
  }
  if constexpr (R > 1) {
    if (rows > 0) RunRows<K, R / 2, kVnni, kPacked>(tile, rows);
  }
}

// The blocks of `units` units -> a chunk.
template <class K>
void UnpackChunk(const uint8_t* from, const uint8_t* values, int64_t units, Chunk& chunk) {
  constexpr int64_t kBlockScales = K::kGroups * kPanel;
  uint8_t* codes = chunk.codes.data();
  for (int64_t block = 0; block < units / K::kUnits; ++block) {
    UnpackScales<K, kVectors>(from, chunk.scales.data() + block * kBlockScales,
                              chunk.minima.data() + block * kBlockScales);
    from += K::kScaleBytes;
    for (int64_t u = 0; u < K::kUnits; ++u, codes += kUnitCodes) {
      UnpackUnit<K::kBits>(from, codes);
      if constexpr (K::kTable) LookUp(values, kUnitCodes, codes);
      from += K::kBits * kUnitCodes / 8;
    }
  }
}

struct Kernels {
  void (*unpack)(const uint8_t* from, const uint8_t* values, int64_t units, Chunk& chunk) = nullptr;
  void (*unpacked)(Tile tile, int64_t rows) = nullptr;
  void (*packed)(Tile tile, int64_t rows) = nullptr;
};

template <class K, bool kVnni>
Kernels KernelsOf() {
  Kernels kernels{UnpackChunk<K>, RunRows<K, kMostRows, kVnni, false>};
  if constexpr (kFewRows > 0) kernels.packed = RunRows<K, kFewRows, kVnni, true>;
  return kernels;
}

Kernels ChooseKernels(const BlockLayout& layout) {
  return WithKind(layout, [](auto kind) {
    using K = decltype(kind);
#if HWY_TARGET <= HWY_AVX3
    if (cpu_features().vnni) return KernelsOf<K, true>();
#endif
    return KernelsOf<K, false>();
  });
}

void AddBias(const float* bias, int64_t rows, int64_t columns, float* y, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) y[i * stride + j] += bias[j];
  }
}

// Some units of a panel times tiles of rows.
void MultiplyUnits(const BlockProduct& product, const Kernels& kernels, Tile tile, int64_t panel,
                   int64_t unit, bool packed) {
  const QuantisedRows& x = product.x;
  const int64_t parts = x.halves ? 2 : 1;
  const int64_t column = panel * kPanel, columns = std::min(kPanel, product.shape.out - column);
  alignas(64) std::array<float, kRowTile * kPanel> edge;
  for (int64_t t = product.begin_tile; t < product.end_tile; ++t) {
    const int64_t rows = x.tile_rows(t), place = t * kRowTile * x.units + unit * rows;
    float* y = product.y.row(t * kRowTile) + column;
    tile.codes = x.codes + place * kUnitTerms;
    tile.scales = x.scales + place;
    tile.corrections = x.corrections + place * parts;
    tile.sums = x.sums + place * parts;
    tile.tile_rows = rows;
    tile.load = unit > 0 || product.y.accumulate;
    tile.y = y;
    tile.y_stride = product.y.stride;
    if (columns < kPanel) {
      edge.fill(0);
      for (int64_t i = 0; tile.load && i < rows; ++i) {
        std::copy_n(y + i * product.y.stride, columns, edge.data() + i * kPanel);
      }
      tile.y = edge.data();
      tile.y_stride = kPanel;
    }
    (packed ? kernels.packed : kernels.unpacked)(tile, rows);
    for (int64_t i = 0; columns < kPanel && i < rows; ++i) {
      std::copy_n(edge.data() + i * kPanel, columns, y + i * product.y.stride);
    }
    if (unit + tile.units >= x.units && product.bias != nullptr) {
      AddBias(product.bias + column, rows, columns, y, product.y.stride);
    }
  }
}

void MultiplyPanels(const BlockProduct& product) {
  // Rows up to which it is cheaper to take codes apart again than to store them.
  constexpr int64_t kPackedRows = 2 * kFewRows;
  const BlockPanels& shape = product.shape;
  const QuantisedRows& x = product.x;
  const Kernels kernels = ChooseKernels(*shape.layout);
  const bool packed =
      product.end_tile - product.begin_tile == 1 && x.tile_rows(product.begin_tile) <= kPackedRows;
  static thread_local Chunk chunk;
  Tile tile;
  tile.chunk = &chunk;
  tile.values = shape.layout->values;
  for (int64_t panel = product.first; panel < product.end; ++panel) {
    const uint8_t* blocks = product.panels + panel * shape.panel_bytes();
    if (packed) {
      tile.units = x.units;
      tile.packed = blocks;
      MultiplyUnits(product, kernels, tile, panel, 0, true);
      continue;
    }
    for (int64_t unit = 0; unit == 0 || unit < x.units; unit += kChunkUnits) {
      tile.units = std::min(kChunkUnits, x.units - unit);
      const uint8_t* from = blocks + unit * kUnitTerms / shape.layout->block * shape.block_bytes();
      kernels.unpack(from, tile.values, tile.units, chunk);
      MultiplyUnits(product, kernels, tile, panel, unit, false);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(MultiplyPanels);
void multiply_block_panels(const BlockProduct& product) {
  HWY_DYNAMIC_DISPATCH(MultiplyPanels)(product);
}

}  // namespace pronghorn
#endif
