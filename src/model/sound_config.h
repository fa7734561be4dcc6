// A model that writes down what is said in a sound: "sound" of a configuration.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/json.h"
#include "formats/log_mel.h"
#include "tensor/batch.h"

namespace pronghorn {

struct ModelConfig;

// Rows are frames of a log-mel spectrogram (formats/log_mel.h), `stack` neighbours at a time. The
// vocabulary is the blank of CTC (ops/ctc.h) and then the symbols of texts, which are characters.
struct SoundConfig {
  LogMelOptions mel;
  int64_t stack = 2;  // frames of a row
  // Rows see the whole sound; else only what is before them, and a state can carry a sound on.
  bool both_ways = true;
  // As in a diffusion model: passes of a scan with the same weights.
  bool shared_directions = false;
  std::vector<std::string> symbols;  // empty: decided with the texts

  // Numbers of a row.
  int64_t features() const { return mel.mels * stack; }
  // Rows of a sound of that many samples.
  int64_t rows(int64_t samples) const { return (samples / mel.hop + stack - 1) / stack; }
  double rows_per_second() const {
    return static_cast<double>(mel.sample_rate) / static_cast<double>(mel.hop * stack);
  }
};

// Throws Error for what ConfigReader refuses, and for what LogMel does.
SoundConfig read_sound(ConfigReader reader);
nlohmann::json write_sound(const SoundConfig& config);

// Throws Error for parts of a model that sounds have no use for. reader: of the model.
void check_sound(const ModelConfig& config, ConfigReader& reader);

// The characters of texts, sorted, each once. Throws Error that begins with `where` for bytes that
// are not UTF-8 and for too many characters.
std::vector<std::string> symbols_of(std::span<const std::string> texts, std::string_view where);

// Gives a model that is to be trained its symbols. Throws Error if its configuration says others.
void set_sound(ModelConfig& config, std::vector<std::string> symbols);

// The symbols of a text, as the model numbers them. Throws Error that begins with `where` for a
// character that is none.
std::vector<int32_t> encode_symbols(const SoundConfig& config, std::string_view text,
                                    std::string_view where);
std::string decode_symbols(const SoundConfig& config, std::span<const int32_t> symbols);

// The numbers of a sound's rows, [rows, features()], of its frames [frames, mels]: frames of a row
// one after another, the last frame repeated where the last row lacks some.
std::vector<float> stacked_rows(const SoundConfig& config, std::span<const float> frames);

// The batch with segments that see all of themselves. Throws Error for segments with a state, and
// for tokens.
CheckedBatch whole_sounds(const CheckedBatch& batch);

}  // namespace pronghorn
