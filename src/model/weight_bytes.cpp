#include "model/weight_bytes.h"

#include <algorithm>
#include <cmath>

#include "backend/backend.h"

namespace pronghorn {
namespace {

int64_t value_bytes(const Parameter& parameter) {
  return parameter.size() * static_cast<int64_t>(sizeof(float));
}

void add(std::vector<WeightBytes>& all, const WeightBytes& part) {
  const auto found = std::find_if(all.begin(), all.end(), [&](const WeightBytes& known) {
    return known.what == part.what && known.mapped == part.mapped;
  });
  if (found == all.end()) {
    all.push_back(part);
  } else {
    found->bytes += part.bytes;
  }
}

}  // namespace

std::vector<WeightBytes> weight_bytes(const Model& model) {
  std::vector<WeightBytes> all;
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.matrix.defined()) {
      add(all, {"vectors f32", value_bytes(parameter), false});
      continue;
    }
    for (const WeightBytes& part : parameter.matrix.bytes()) add(all, part);
  }
  return all;
}

Precision stored_precision(const Model& model) {
  int64_t short_numbers = 0, all = 0;
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.matrix.defined()) continue;
    const Encoding& encoding = parameter.matrix.encoding();
    const bool is_short =
        &encoding == &encodings::bf16 || encoding.block_bytes < 2 * encoding.block;
    all += parameter.size();
    if (is_short) short_numbers += parameter.size();
  }
  return 2 * short_numbers > all ? Precision::bf16 : Precision::f32;
}

int64_t resident_weight_bytes(const Model& model, Precision precision) {
  int64_t bytes = 0;
  for (const Parameter& parameter : model.parameters()) {
    bytes += parameter.matrix.defined()
                 ? backend().matmul().resident_bytes(parameter.matrix, precision)
                 : value_bytes(parameter);
  }
  return bytes;
}

int64_t weight_bytes_per_token(const Model& model, Precision precision) {
  double bytes = 0;
  for (const Parameter& parameter : model.parameters()) {
    if (parameter.name.starts_with("mtp.") || parameter.name == "prefix.weight") continue;
    if (!parameter.matrix.defined()) {
      bytes += static_cast<double>(value_bytes(parameter));
    } else if (parameter.name == "embeddings.weight" && !model.config().tie_embeddings) {
      bytes += static_cast<double>(parameter.matrix.encoding().bytes(parameter.matrix.in()));
    } else {
      bytes += parameter.share *
               static_cast<double>(backend().matmul().bytes_read(parameter.matrix, precision));
    }
  }
  return std::llround(bytes);
}

}  // namespace pronghorn
