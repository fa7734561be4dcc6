#include "model/config_checks.h"

#include <fmt/format.h>

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
