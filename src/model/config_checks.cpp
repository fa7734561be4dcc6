#include "model/config_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

// A number of keys that a mixer has or asks for; mixers of other types have no such key.
int64_t number_of(const nlohmann::json& mixer, const char* key) {
  return mixer.value(key, int64_t{0});
}

// What a layer must have in common with the one whose keys it reads.
constexpr const char* kCommon[] = {"type", "kv_heads", "head_dim", "value_dim", "window", "rope"};

void check_borrower(const nlohmann::json& mixer, const nlohmann::json& lender,
                    const std::string& where) {
  for (const char* key : kCommon) {
    const nlohmann::json own = mixer.value(key, nlohmann::json());
    const nlohmann::json theirs = lender.value(key, nlohmann::json());
    require(own == theirs, where, "reads keys of a layer whose {} is {}, but has {}", key,
            theirs.dump(), own.dump());
  }
}

// Where no layer before can have lent anything.
void refuse(const nlohmann::json& mixer, const std::string& where) {
  for (const char* key : {"keys_to", "keys_from"}) {
    require(number_of(mixer, key) == 0, where + "." + key,
            "keys and values are shared by the mixers of blocks only");
  }
}

}  // namespace

void check_shared_keys(const ModelConfig& config, const BlockPlace& place_of) {
  using Lenders = std::map<int64_t, const nlohmann::json*>;
  std::vector<Lenders> lenders(1);  // of each open span, innermost last
  for (const PatternStep& step : config.steps) {
    if (step.kind == PatternStep::Kind::open) lenders.emplace_back();
    if (step.kind == PatternStep::Kind::close) lenders.pop_back();
    if (step.kind != PatternStep::Kind::block) continue;
    const BlockConfig& block = config.blocks.at(step.block);
    const std::string where = place_of(step.block);
    if (block.side) refuse(block.side->mixer, where + ".side.mixer");
    for (size_t i = 0; i < block.mixers.size(); ++i) {
      const nlohmann::json& mixer = block.mixers[i];
      const std::string place =
          block.mixers.size() == 1 ? where + ".mixer" : fmt::format("{}.mixers[{}]", where, i);
      if (const int64_t number = number_of(mixer, "keys_from")) {
        const auto found = lenders.back().find(number);
        if (found == lenders.back().end()) {
          throw Error(
              place + ".keys_from", fmt::format("no layer before it has keys_to {}", number),
              lenders.size() > 1 ? "in a subsampled span that layer must be in the same span"
                                 : "a layer that has it must come earlier in the pattern");
        }
        check_borrower(mixer, *found->second, place);
      }
      if (const int64_t number = number_of(mixer, "keys_to")) lenders.back()[number] = &mixer;
    }
  }
  if (config.mtp.heads == 0) return;
  const char name = config.mtp_block();
  for (const nlohmann::json& mixer : config.blocks.at(name).mixers) {
    require(number_of(mixer, "keys_from") == 0, place_of(name),
            "a head for multi-token prediction has no layer before it whose keys it could read");
  }
}

void check_rates(const ModelConfig& config, const ConfigReader& reader) {
  constexpr int64_t kMost = 1 << 12;
  std::vector<int64_t> groups = {1};  // rows that become one in the open spans, innermost last
  int64_t span = 0;
  for (const PatternStep& step : config.steps) {
    if (step.kind == PatternStep::Kind::close) groups.pop_back();
    if (step.kind != PatternStep::Kind::open) continue;
    groups.push_back(groups.back() * config.subsample.rate(span++));
    require(groups.back() <= kMost, reader.path("subsample"),
            "rates of {} together in spans within each other, more than {}", groups.back(), kMost);
  }
}

void check_merging(const ModelConfig& config, const ConfigReader& reader) {
  if (!config.subsample.merges()) return;
  if (!config.image) {
    throw Error(reader.path("subsample.type"), "merges patches, which only images have",
                "\"zipformer\" spans make a row of a few that follow one another");
  }
  require(config.image->pool == ImageConfig::Pool::mean, reader.path("image.pool"),
          "is a class token, which is at no place of the grid that merges (choose \"mean\")");
  bool ended = false;
  for (const PatternStep& step : config.steps) {
    ended |= step.kind == PatternStep::Kind::close;
    if (!ended || step.kind == PatternStep::Kind::close) continue;
    throw Error(reader.path("pattern"),
                fmt::format("{} goes on after a stage of merged patches", config.pattern),
                "each stage holds the next, as in \"2a(2b(4c(2d)))\"");
  }
}

void check_widths(const ModelConfig& config, const BlockPlace& place) {
  std::vector<int64_t> widths = {config.hidden_size};  // of the open spans, innermost last
  int64_t span = 0;
  for (const PatternStep& step : config.steps) {
    if (step.kind == PatternStep::Kind::close) widths.pop_back();
    if (step.kind == PatternStep::Kind::open) {
      widths.push_back(config.subsample.width(span++, widths.back()));
    }
    if (step.kind != PatternStep::Kind::block) continue;
    const int64_t width = config.block_width(step.block);
    if (width == widths.back()) continue;
    throw Error(place(step.block),
                fmt::format("stands in rows of {} and of {} columns", width, widths.back()),
                "give each width a kind of block of its own");
  }
}

void check_width_parts(const ModelConfig& config, const ConfigReader& reader) {
  const auto other = [&](int64_t width) { return width != config.hidden_size; };
  if (std::ranges::none_of(config.subsample.widths, other)) return;
  require(!config.has_sides(), reader.path("blocks"),
          "sides see embeddings of {} columns, in a model whose spans have other widths",
          config.hidden_size);
  if (config.mtp.heads == 0) return;
  const char block = config.mtp_block();
  require(!other(config.block_width(block)), reader.path("mtp.block"),
          "'{}' is of rows of {} columns, heads have {}", block, config.block_width(block),
          config.hidden_size);
}

void check_prefix(const ModelConfig& config, const ConfigReader& reader) {
  if (config.prefix_tokens == 0) return;
  const std::string where = reader.path("prefix_tokens");
  const auto refuse = [&](const char* what) {
    throw Error(where, fmt::format("{} beside {}", config.prefix_tokens, what),
                "leave out one of the two");
  };
  if (config.span_count() > 0) refuse("subsampled spans");
  if (config.mtp.heads > 0) refuse("heads for multi-token prediction");
  if (config.learned_positions > 0) refuse("learned positions");
  if (config.embedding_norm) refuse("a norm on embeddings");
}

}  // namespace pronghorn
