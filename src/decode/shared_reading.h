// Prompts that several ranks read together. The first rank has the text: what the ranks have read
// is gathered in its state, and it goes on alone.
#pragma once

#include <cstdint>

#include "decode/session.h"
#include "model/model.h"
#include "tensor/sequence_shards.h"
#include "tensor/tape.h"

namespace pronghorn {

// Of a prompt of `length` tokens, those that so many ranks read together: a multiple of kExactStep,
// where states are kept, and without the last token, whose scores are wanted. 0: too few.
int64_t shared_tokens(int64_t length, int64_t ranks);

// On the first rank: lets all ranks read, in one forward, the beginning of what the model has not
// seen of a text. The session is then one that has read it, within the rounding of
// SequenceParallel. Returns how many tokens these are; 0, with nothing done, where there are too
// few or the text goes on from a state, which lies on one rank. Throws Error for a session whose
// cache is not the default one, and for models that cannot read pieces of sequences.
int64_t read_together(const Model& model, const Context& context, Session& session,
                      const SequenceSharing& sharing);

// On the other ranks: takes part in what the first one reads until that calls end_reading(). The
// model and the precision are those of the first.
void help_reading(const Model& model, const Context& context, const SequenceSharing& sharing);

// On the first rank: the others return from help_reading().
void end_reading(Ranks& ranks);

}  // namespace pronghorn
