// Keys that a published config.json may have besides those that its family reads.
#pragma once

#include "formats/json.h"

namespace pronghorn {

// Ends the reading of such a file, or of an object in it, after all getters. Of the keys that none
// of them has named,
// - what changes nothing in a forward (of other tools, training, generation), a null, an empty
// value
//   and what switches a feature off are passed over in silence;
// - what is known to change the computation throws Error with the key, its value, and the values
//   that are supported;
// - all others are passed over with one warning that lists them.
// So a family reads what it supports, and says nothing of the rest.
void finish_published(const ConfigReader& reader);

}  // namespace pronghorn
