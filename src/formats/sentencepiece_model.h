// What a SentencePiece model file holds, read without the library: the library trusts its input, so
// the file is checked here first. Field numbers: sentencepiece_model.proto of SentencePiece 0.1.97.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

enum class PieceType : int { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct SentencePieceModel {
  std::vector<PieceType> types;  // by id
};

// Checks the parts of a model that the library follows blindly: the pieces, and the two tables of
// precompiled normalisation rules. Throws Error.
SentencePieceModel check_sentencepiece_model(std::string_view bytes, const std::string& where);

}  // namespace pronghorn
