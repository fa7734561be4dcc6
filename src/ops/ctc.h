// Connectionist temporal classification: a sequence of symbols from more rows than it has symbols
// (Graves et al., ICML 2006).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/cross_entropy.h"
#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

constexpr int32_t kCtcBlank = 0;  // the score that says: no symbol here

// Rows that these symbols need: one each, and a blank between two that are the same.
int64_t ctc_rows(std::span<const int32_t> symbols);

// For each segment the negative logarithm of the sum, over all ways to write a symbol or blank at
// each row that become `symbols` when runs of the same are made one and blanks are left out, of the
// products of the rows' softmax. Forward and backward sums (sections 4.1 and 4.2) are of
// logarithms, in float64. scores [rows, vocab_size], symbols: of each segment, none of them the
// blank.
//
// With a tape, records adding gradient_scale times the gradient of the sum over the segments to
// that of the scores. Returns the sum (nll), all symbols (count), and of these the ones that
// ctc_greedy() gets right (correct: those without its edit distance, none at least). Throws Error
// for symbols out of range and more of them than rows can say.
CrossEntropy ctc_loss(const Context& context, const Tensor& scores, const CheckedBatch& batch,
                      std::span<const std::vector<int32_t>> symbols, double gradient_scale);

// The symbols that the best score of each row says (section 3.2.1: best path decoding); of equal
// scores the first. scores: of one sequence, [rows, vocab_size].
std::vector<int32_t> ctc_greedy(std::span<const float> scores, int64_t vocab_size);

}  // namespace pronghorn
