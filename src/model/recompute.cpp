#include "model/recompute.h"

#include <utility>
#include <vector>

namespace pronghorn {
namespace {

// Everything that gradients pass through at one end of a block: the stream, what is carried, and
// the losses from number `first_loss` on.
std::vector<Tensor*> tensors_of(Stream& stream, Carry& carry, size_t first_loss) {
  std::vector<Tensor*> all = {&stream.sum};
  if (stream.delta.defined()) all.push_back(&stream.delta);
  for (Carry::Entry& entry : carry.entries()) all.push_back(&entry.tensor);
  for (LentKeys& lent : carry.lent()) {
    all.push_back(&lent.keys);
    all.push_back(&lent.values);
  }
  for (size_t i = first_loss; i < carry.losses().size(); ++i) {
    all.push_back(&carry.losses()[i].value);
  }
  return all;
}

// Replaces each tensor by a handle to its numbers with a gradient of its own. So a tensor that
// passes through the block unchanged, or leaves it twice, is not counted twice.
void detach_all(const std::vector<Tensor*>& tensors) {
  for (Tensor* tensor : tensors) {
    *tensor = tensor->detach();
    tensor->set_requires_grad(true);
  }
}

}  // namespace

Stream recomputed(const Block& block, const LayerInput& input, const Stream& stream) {
  const size_t losses = input.carry.losses().size();
  const Carry before = input.carry;
  // What is recorded is thrown away; but layers may do otherwise without a tape, in inference.
  Tape unused;
  Context first = input.context;
  first.tape = &unused;
  Stream out = block.forward({first, input.batch, input.carry}, stream);
  detach_all(tensors_of(out, input.carry, losses));

  // A copy of the batch: the rows of a subsampled span are gone when the backward pass comes.
  input.context.tape->record([context = input.context, batch = input.batch, &block,
                              stream = Stream(stream), before, losses, out,
                              after = input.carry]() mutable {
    Tape tape;
    context.tape = &tape;
    Stream in = stream;
    Carry carry = before;
    const std::vector<Tensor*> inputs = tensors_of(in, carry, losses);
    detach_all(inputs);
    // The forward replaces what is carried: the leaves are kept here.
    std::vector<Tensor> leaves;
    for (const Tensor* tensor : inputs) leaves.push_back(*tensor);

    Stream again = block.forward({context, batch, carry}, in);
    const std::vector<Tensor*> results = tensors_of(again, carry, losses);
    const std::vector<Tensor*> wanted = tensors_of(out, after, losses);
    for (size_t i = 0; i < results.size(); ++i) {
      if (wanted[i]->has_grad() && results[i]->requires_grad()) {
        results[i]->give_grad(wanted[i]->grad());
      }
    }
    tape.run_backward();
    Carry origin = before;
    const std::vector<Tensor*> origins = tensors_of(stream, origin, losses);
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (leaves[i].has_grad() && origins[i]->requires_grad()) {
        origins[i]->give_grad(leaves[i].grad());
      }
    }
  });
  return out;
}

}  // namespace pronghorn
