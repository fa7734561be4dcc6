// Weights in and out of a model, as plain numbers.
#include <algorithm>

#include "api/parts.h"
#include "base/error.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

const Parameter& find(const Model& model, std::string_view name) {
  const std::vector<Parameter>& all = model.parameters();
  const auto found = std::find_if(
      all.begin(), all.end(), [&](const Parameter& parameter) { return parameter.name == name; });
  if (found == all.end()) {
    throw UsageError("parameter", fmt::format("the model has none of the name {}", quote(name)),
                     "LanguageModel::parameters() lists them");
  }
  return *found;
}

std::vector<float> numbers_of(const Parameter& parameter) {
  const Stored stored = parameter.stored();
  std::vector<float> numbers(static_cast<size_t>(parameter.size()));
  stored.encoding->decode(stored.bytes.data(), parameter.size(), numbers.data());
  return numbers;
}

}  // namespace

std::vector<ParameterInfo> LanguageModel::parameters() const {
  std::vector<ParameterInfo> all;
  for (const Parameter& parameter : parts_->model->parameters()) {
    all.push_back({parameter.name, parameter.shape.to_vector()});
  }
  return all;
}

std::vector<float> LanguageModel::parameter(std::string_view name) const {
  return numbers_of(find(*parts_->model, name));
}

LanguageModel LanguageModel::with_parameters(
    const std::map<std::string, std::vector<float>>& changed) const {
  for (const auto& [name, numbers] : changed) {
    const int64_t wanted = find(*parts_->model, name).size();
    if (std::ssize(numbers) != wanted) {
      throw UsageError("parameter", fmt::format("{} has {} numbers", quote(name), numbers.size()),
                       fmt::format("give it {}", wanted));
    }
  }
  std::unique_ptr<Model> model = Model::outline(parts_->model->config());
  const std::vector<Parameter>& all = parts_->model->parameters();
  for (size_t i = 0; i < all.size(); ++i) {
    const auto found = changed.find(all[i].name);
    model->assign(i, stored_f32(found == changed.end() ? numbers_of(all[i]) : found->second));
  }
  auto parts = std::make_shared<Parts>();
  parts->model = std::move(model);
  parts->tokenizer = parts_->tokenizer;
  parts->format = parts_->format;
  parts->end_tokens = parts_->end_tokens;
  parts->grammars = parts_->grammars;
  return LanguageModel(std::move(parts));
}

}  // namespace pronghorn
