#include "model/sound_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "formats/utf8.h"
#include "model/config.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaxRate = 1 << 20;
constexpr int64_t kMaxMels = 512;
constexpr int64_t kMaxHop = 1 << 13;
constexpr int64_t kMaxStack = 64;
constexpr size_t kMaxSymbols = 1 << 12;
constexpr size_t kMaxSymbol = 4;  // bytes of a character

std::vector<std::string> read_symbols(const nlohmann::json& list, const std::string& where) {
  require(list.is_array() && !list.empty() && list.size() <= kMaxSymbols, where,
          "must be a list of 1 to {} characters", kMaxSymbols);
  std::vector<std::string> symbols;
  std::set<std::string> known;
  for (const nlohmann::json& symbol : list) {
    const bool one = symbol.is_string() && !symbol.get_ref<const std::string&>().empty() &&
                     utf8_character(symbol.get_ref<const std::string&>()) ==
                         symbol.get_ref<const std::string&>().size();
    require(one, where, "{} is no character", shown_json(symbol));
    symbols.push_back(symbol);
    require(known.insert(symbols.back()).second, where, "{} is there twice", quote(symbols.back()));
  }
  return symbols;
}

// The characters of a text one after another.
template <typename Function>
void for_each_character(std::string_view text, std::string_view where, const Function& function) {
  while (!text.empty()) {
    const size_t length = utf8_character(text);
    require(length > 0 && length <= kMaxSymbol, where, "{} is not UTF-8", quote(text));
    function(std::string(text.substr(0, length)));
    text.remove_prefix(length);
  }
}

}  // namespace

SoundConfig read_sound(ConfigReader reader) {
  SoundConfig config;
  LogMelOptions& mel = config.mel;
  mel.sample_rate = reader.integer("sample_rate", mel.sample_rate, 1, kMaxRate);
  mel.window = reader.integer("window", mel.window, 2, kMaxHop);
  mel.hop = reader.integer("hop", mel.hop, 1, kMaxHop);
  mel.mels = reader.integer("mels", mel.mels, 1, kMaxMels);
  mel.range = reader.number("range", mel.range, 0, 100);
  config.stack = reader.integer("stack", config.stack, 1, kMaxStack);
  config.both_ways = reader.boolean("both_ways", true);
  if (config.both_ways) {
    config.shared_directions = reader.boolean("shared_directions", false);
  }
  if (reader.has("symbols")) {
    config.symbols = read_symbols(reader.raw("symbols"), reader.path("symbols"));
  } else {
    reader.ignore("symbols");
  }
  reader.finish();
  const LogMel checked(mel);
  return config;
}

nlohmann::json write_sound(const SoundConfig& config) {
  nlohmann::json json = {{"sample_rate", config.mel.sample_rate},
                         {"window", config.mel.window},
                         {"hop", config.mel.hop},
                         {"mels", config.mel.mels},
                         {"range", config.mel.range},
                         {"stack", config.stack},
                         {"both_ways", config.both_ways}};
  if (config.both_ways) json["shared_directions"] = config.shared_directions;
  if (!config.symbols.empty()) json["symbols"] = config.symbols;
  return json;
}

void check_sound(const ModelConfig& config, ConfigReader& reader) {
  if (!config.sound) return;
  const auto refuse = [&](const std::string& key, const char* what) {
    throw Error(reader.path(key), fmt::format("{} in a model of sound", what),
                "leave out one of the two");
  };
  if (config.image) refuse("image", "images");
  if (config.vision) refuse("vision", "images before a text");
  if (config.mtp.heads > 0) refuse("mtp", "heads for multi-token prediction");
  if (config.prefix_tokens > 0) refuse("prefix_tokens", "learned rows before a text");
  if (config.diffusion) refuse("diffusion", "masked tokens");
  if (config.has_sides()) refuse("blocks", "sides, which see embeddings of tokens,");
  if (config.embedding_scale != 1) refuse("embedding_scale", "a factor on embeddings of tokens");
  if (reader.has("tie_embeddings") && reader.boolean("tie_embeddings", false)) {
    refuse("tie_embeddings", "embeddings of tokens");
  }
  if (config.span_count() > 0 && config.subsample.kind != SubsampleConfig::Kind::zipformer) {
    throw Error(reader.path("subsample.type"),
                "spans that choose rows, in a model that writes at every row",
                "\"zipformer\" spans give all rows back");
  }
  for (const auto& [name, block] : config.blocks) {
    for (const nlohmann::json& mixer : block.mixers) {
      if (mixer.value("convolution", "") != "grid") continue;
      throw Error(fmt::format("{}.{}", reader.path("blocks"), name),
                  "a convolution over a grid, in a model of sound", "choose \"causal\"");
    }
  }
  const auto symbols = std::ssize(config.sound->symbols);
  require(symbols == 0 || config.vocab_size == 0 || config.vocab_size == symbols + 1,
          reader.path("vocab_size"), "{} with {} symbols and the blank", config.vocab_size,
          symbols);
}

std::vector<std::string> symbols_of(std::span<const std::string> texts, std::string_view where) {
  std::set<std::string> symbols;
  for (const std::string& text : texts) {
    for_each_character(text, where, [&](std::string symbol) { symbols.insert(std::move(symbol)); });
    require(symbols.size() <= kMaxSymbols, where, "texts have more than {} characters",
            kMaxSymbols);
  }
  return {symbols.begin(), symbols.end()};
}

void set_sound(ModelConfig& config, std::vector<std::string> symbols) {
  require(config.sound.has_value(), "sound",
          "the configuration is of a model of {}: it has no object \"sound\"", config.subject());
  require(config.sound->symbols.empty() || config.sound->symbols == symbols, "sound",
          "texts of {} characters are not those of the model, which has {}", symbols.size(),
          config.sound->symbols.size());
  config.sound->symbols = std::move(symbols);
  config.vocab_size = std::ssize(config.sound->symbols) + 1;
}

std::vector<int32_t> encode_symbols(const SoundConfig& config, std::string_view text,
                                    std::string_view where) {
  std::vector<int32_t> encoded;
  for_each_character(text, where, [&](const std::string& symbol) {
    const auto found = std::ranges::find(config.symbols, symbol);
    if (found == config.symbols.end()) {
      throw Error(where,
                  fmt::format("{} is none of the {} characters of the model", quote(symbol),
                              config.symbols.size()),
                  "change the text, or learn from texts that have it");
    }
    encoded.push_back(1 + static_cast<int32_t>(found - config.symbols.begin()));
  });
  return encoded;
}

std::string decode_symbols(const SoundConfig& config, std::span<const int32_t> symbols) {
  std::string text;
  for (const int32_t symbol : symbols) {
    require(symbol >= 1 && symbol <= std::ssize(config.symbols), "sound",
            "symbol {} of a model with {}", symbol, config.symbols.size());
    text += config.symbols[static_cast<size_t>(symbol - 1)];
  }
  return text;
}

std::vector<float> stacked_rows(const SoundConfig& config, std::span<const float> frames) {
  const auto mels = static_cast<size_t>(config.mel.mels);
  require(!frames.empty() && frames.size() % mels == 0, "sound", "{} numbers are no frames of {}",
          frames.size(), mels);
  std::vector<float> rows(frames.begin(), frames.end());
  const auto width = static_cast<size_t>(config.features());
  while (rows.size() % width != 0) {
    rows.insert(rows.end(), frames.end() - config.mel.mels, frames.end());
  }
  return rows;
}

CheckedBatch whole_sounds(const CheckedBatch& batch) {
  constexpr const char* kWhere = "model of sound";
  Batch whole;
  whole.embeddings = batch.embeddings();
  whole.positions.assign(batch.positions().begin(), batch.positions().end());
  for (Segment segment : batch.segments()) {
    require(segment.state == nullptr, kWhere,
            "sees its sounds whole, so none is carried on with a state");
    segment.mask = Mask::full;
    whole.segments.push_back(std::move(segment));
  }
  return CheckedBatch(std::move(whole));
}

}  // namespace pronghorn
