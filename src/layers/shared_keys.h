// Keys and values that layers of attention share (YOCO, arXiv 2405.05254, section 2; Hymba,
// 2411.13676, section 2.2): one layer lends its own, later ones read them and have none.
#pragma once

#include <cstdint>

#include "layers/fields.h"
#include "layers/layer.h"
#include "ops/attention.h"

namespace pronghorn {

struct SharedKeysConfig {
  int64_t keys_to = 0, keys_from = 0;

  void fields(ConfigFields& f);

  bool borrows() const { return keys_from > 0; }
  KeyOwner owner() const;
};

// Attention of q to this layer's keys and values, which it lends if the configuration says so.
// slot: of its journal.
Tensor attend_own(const LayerInput& input, const SharedKeysConfig& shared, const Tensor& q,
                  const Tensor& k, const Tensor& v, const AttentionOptions& options,
                  JournalSlot slot, const Tensor& sinks = {});

// The same to those of an earlier layer.
Tensor attend_borrowed(const LayerInput& input, const SharedKeysConfig& shared, const Tensor& q,
                       const AttentionOptions& options, const Tensor& sinks = {});

}  // namespace pronghorn
