#include "decode/speculation.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

// Seconds that one level of a draft takes, for `sequences` at once: the least of a few.
double time_level(Drafter& drafter, const Model& model, const Context& context, int64_t sequences) {
  constexpr int kRepeats = 4;
  constexpr int64_t kLevels = 4;
  // No token twice, or drafters that look for earlier text would answer in a stack.
  int32_t next = 0;
  const auto token = [&] { return next++ % static_cast<int32_t>(model.config().vocab_size); };
  std::vector<int32_t> text(kExactStep);
  std::generate(text.begin(), text.end(), token);
  const auto hidden = [&](int64_t rows) {
    return Tensor::zeros({rows, model.config().hidden_size});
  };
  SequenceState state = model.new_state();
  const SamplingOptions sampling;
  drafter.start(static_cast<size_t>(sequences));
  std::vector<DraftRequest> requests;
  for (size_t s = 0; s < static_cast<size_t>(sequences); ++s) {
    drafter.append(s, text);
    if (drafter.wants_hidden()) drafter.observe(s, hidden(kExactStep - 1));
    DraftRequest request;
    request.sequence = s;
    request.shape = DraftShape::chain(kLevels);
    request.sampling = &sampling;
    request.recent = text;
    request.position = kExactStep;
    request.state = &state;
    requests.push_back(std::move(request));
  }
  double best = 0;
  for (int i = 0; i <= kRepeats; ++i) {
    const double start = now_seconds();
    drafter.draft(context, requests);
    const double seconds = (now_seconds() - start) / static_cast<double>(kLevels);
    if (i > 0) best = best == 0 ? seconds : std::min(best, seconds);
    const int32_t more = token();
    for (const DraftRequest& request : requests) {
      if (drafter.wants_hidden()) drafter.observe(request.sequence, hidden(1));
      drafter.append(request.sequence, {&more, 1});
    }
  }
  return best;
}

constexpr std::string_view kExit = "early-exit";

// Sequences of the largest changing batch whose steps are measured before it begins.
constexpr int64_t kMostMeasured = 8;

std::vector<std::string> names_of(const std::string& text) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

void check_model_name(const std::string& name) {
  if (!std::filesystem::exists(name)) {
    throw UsageError("draft", fmt::format("there is no model {}", quote(name)),
                     "or ngram, suffix, early-exit:E, mtp; several with commas between");
  }
}

std::unique_ptr<Drafter> make_one(const std::string& text, const Model& model,
                                  const Tokenizer& tokenizer) {
  if (text == "ngram") return make_ngram_drafter();
  if (text == "suffix") return make_suffix_drafter();
  if (text == "mtp") return make_mtp_drafter(model);
  if (text.starts_with(kExit)) {
    const std::string_view rest = std::string_view(text).substr(kExit.size());
    int64_t layers = 0;
    if (rest.empty()) {
      const nlohmann::json& train = model.config().train;
      if (train.is_object() && train.contains("early_exit")) layers = train.at("early_exit");
      if (layers == 0) {
        throw UsageError("draft", "the model was not trained for an early exit",
                         "name the layers: early-exit:E");
      }
    } else {
      const char* end = rest.data() + rest.size();
      const auto result = std::from_chars(rest.data() + 1, end, layers);
      if (rest[0] != ':' || result.ec != std::errc() || result.ptr != end) {
        throw UsageError("draft", fmt::format("{} is not early-exit:LAYERS", quote(text)));
      }
    }
    return make_early_exit_drafter(model, layers);
  }
  check_model_name(text);
  const std::unique_ptr<Tokenizer> own = load_tokenizer(text);
  return make_model_drafter(Model::load(text), *own, model, tokenizer, text);
}

}  // namespace

Speculation::Speculation(std::unique_ptr<Drafter> drafter, const SpeculationOptions& options)
    : drafter_(std::move(drafter)),
      options_(options),
      controller_(drafter_->kinds(), drafter_->costly_kind(), options.control) {
  if (options.block && options.control.branches > 1) {
    throw UsageError("draft tree", "block verification judges chains only",
                     "use a chain, or no block verification");
  }
}

void Speculation::prepare(const Model& model, const Context& context, int64_t sequences,
                          bool changing) {
  std::string key =
      fmt::format("{} {} {} {} {}", static_cast<const void*>(&model),
                  static_cast<int>(context.precision), sequences, changing, thread_count());
  if (key == prepared_) return;
  if (changing) sequences = std::min(sequences, kMostMeasured);
  const double level =
      drafter_->costly_kind() < 0 ? 0 : time_level(*drafter_, model, context, sequences);
  StepCost cost(model, context, sequences);
  if (changing) cost.merge(StepCost(model, context, 1));
  controller_.set_costs(sequences, std::move(cost), level);
  prepared_ = std::move(key);
}

void check_drafters(const std::string& text) {
  for (const std::string& name : names_of(text)) {
    const bool known = name.empty() || name == "ngram" || name == "suffix" || name == "mtp" ||
                       name.starts_with(kExit);
    if (!known) check_model_name(name);
  }
}

std::unique_ptr<Drafter> make_drafter(const std::string& text, const Model& model,
                                      const Tokenizer& tokenizer) {
  std::vector<std::unique_ptr<Drafter>> all;
  for (const std::string& name : names_of(text)) all.push_back(make_one(name, model, tokenizer));
  return all.size() == 1 ? std::move(all.front()) : make_stacked_drafter(std::move(all));
}

}  // namespace pronghorn
