// Attention transfer (LoLCATs, arXiv 2410.10254, section 3.2): new mixers learn to give what the
// attention that they replace gives of the same input, each layer by itself.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/model.h"
#include "train/data_source.h"
#include "train/train_config.h"

namespace pronghorn {

struct AttentionTransfer {
  TrainConfig config;  // its rate and schedule are those of the transfer
  int64_t steps = 0;
  std::vector<int64_t> layers;  // of `student`, whose mixers learn
  // After each step: the loss before it, a mean over the layers. May be empty.
  std::function<void(int64_t step, double loss)> on_step = {};
};

// Teaches the mixers of `student` in these layers what those of `teacher` there give: the squares
// of the difference over those of what is to be given. Inputs are teacher's, so that no layer waits
// for another. Nothing else of the student changes. Returns the losses of the last step, layer by
// layer. Throws Error if one is not finite.
std::vector<double> transfer_attention(const Model& teacher, const Model& student,
                                       DataSource& source, const AttentionTransfer& transfer);

}  // namespace pronghorn
