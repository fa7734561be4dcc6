// What parts of a configuration must agree in that no part of it sees.
#pragma once

#include <cstdint>

#include "formats/json.h"
#include "model/block_place.h"
#include "model/config.h"

namespace pronghorn {

constexpr int64_t kMaxPrefix = 1 << 14;  // learned embeddings before a sequence

// Throws Error unless each layer with `keys_from` has one with that `keys_to` before it, of the
// same type, heads of keys and values, window and positions, and in the same subsampled span.
void check_shared_keys(const ModelConfig& config, const BlockPlace& place);

// Throws Error for rates of spans in spans that make too long a group of rows together. reader: of
// the model.
void check_rates(const ModelConfig& config, const ConfigReader& reader);

// Throws Error unless spans that merge patches end with the pattern, in a model of images. reader:
// of the model, before its blocks are read.
void check_merging(const ModelConfig& config, const ConfigReader& reader);

// Throws Error for a kind of block in rows of several widths.
void check_widths(const ModelConfig& config, const BlockPlace& place);

// Throws Error for parts that need rows of one width where spans have others. reader: of the model.
void check_width_parts(const ModelConfig& config, const ConfigReader& reader);

// Throws Error for prefix_tokens beside parts that go by rows or positions of their own. reader: of
// the model.
void check_prefix(const ModelConfig& config, const ConfigReader& reader);

}  // namespace pronghorn
