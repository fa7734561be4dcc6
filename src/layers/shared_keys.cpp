#include "layers/shared_keys.h"

namespace pronghorn {

void SharedKeysConfig::fields(ConfigFields& f) {
  constexpr int64_t kMostNumber = 1 << 10;
  f.integer("keys_to", keys_to, 0, 0, kMostNumber,
            "a number under which later layers find its keys and values; 0: none do");
  f.integer(
      "keys_from", keys_from, 0, 0, kMostNumber,
      "reads the keys and values of the nearest earlier layer whose `keys_to` this is, and has "
      "no projections for them; 0: its own");
  f.check(keys_to == 0 || keys_from == 0, "keys_to",
          "{} beside keys_from {}: keys of another layer are not lent on", keys_to, keys_from);
}

KeyOwner SharedKeysConfig::owner() const {
  if (borrows()) return KeyOwner::borrowed;
  return keys_to > 0 ? KeyOwner::lent : KeyOwner::own;
}

Tensor attend_own(const LayerInput& input, const SharedKeysConfig& shared, const Tensor& q,
                  const Tensor& k, const Tensor& v, const AttentionOptions& options,
                  JournalSlot slot, const Tensor& sinks) {
  if (shared.keys_to > 0) input.carry.lend({shared.keys_to, k, v, slot});
  return attention(input.context, q, k, v, options, input.batch, slot, sinks);
}

Tensor attend_borrowed(const LayerInput& input, const SharedKeysConfig& shared, const Tensor& q,
                       const AttentionOptions& options, const Tensor& sinks) {
  // A copy: handles to the same numbers and gradients.
  const LentKeys lent = input.carry.borrow(shared.keys_from);
  return attention(input.context, q, lent.keys, lent.values, options, input.batch, lent.slot,
                   sinks);
}

}  // namespace pronghorn
