// Where the kinds of blocks of a model stand in the file that it is read from.
#pragma once

#include <functional>
#include <string>

#include "formats/json.h"
#include "model/config.h"

namespace pronghorn {

// The place of a kind of block, a letter of the pattern, for messages: "config.json: blocks.a". A
// published file has no blocks, only layers: "config.json: layers[0-2,5]".
using BlockPlace = std::function<std::string(char block)>;

// read_pronghorn_config() of config.h for a configuration that was made from a file of another
// family; messages about its blocks name these places.
ModelConfig read_pronghorn_config(ConfigReader reader, const BlockPlace& place);

}  // namespace pronghorn
