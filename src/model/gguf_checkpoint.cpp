#include <exception>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/checkpoint_tensors.h"
#include "model/gguf_format.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

// The tensors of a file, before anything is written.
struct Plan {
  struct Tensors {
    BoundRule rule;
    Shapes shapes;
    bool matrices = true;          // all that they are made of are
    const Encoding* in = nullptr;  // of one of those matrices
    bool head = false;             // is an output head
  };
  GgufModel file;
  std::vector<Tensors> tensors;
};

Plan plan_for(const Family& family, const Model& model, const std::string& where) {
  std::map<std::string, std::vector<int64_t>, std::less<>> shapes;
  std::vector<Plan::Tensors> all;
  std::vector<BoundRule> rules = bound(
      family.gguf->tensors(model.config()), model.parameters(),
      fmt::format("{}: architecture {}", where, family.gguf->architecture_of(model.config())));
  for (BoundRule& rule : rules) {
    Plan::Tensors tensors{std::move(rule), {}};
    Shapes ours;
    for (const size_t place : tensors.rule.ours) {
      const Parameter& parameter = model.parameters()[place];
      ours.push_back(parameter.shape.to_vector());
      // A table of positions is small, and llama.cpp wants it plain.
      const bool matrix = parameter.matrix.defined() && parameter.name != "positions.weight";
      tensors.matrices = tensors.matrices && matrix;
      if (parameter.matrix.defined()) tensors.in = &parameter.matrix.encoding();
    }
    const size_t count = tensors.rule.published.size();
    tensors.shapes = naming(fmt::format("{}: {}", where, fmt::join(tensors.rule.published, ", ")),
                            [&] { return tensors.rule.transform.published_shapes(ours, count); });
    const std::string& first = model.parameters()[tensors.rule.ours.front()].name;
    tensors.head = first == "lm_head.weight" ||
                   (first == "embeddings.weight" && model.config().tie_embeddings);
    for (size_t i = 0; i < count; ++i) shapes[tensors.rule.published[i]] = tensors.shapes[i];
    all.push_back(std::move(tensors));
  }
  return {write_gguf_config(family, model.config(), std::move(shapes), where), std::move(all)};
}

// For the family that the model was read from, else the most widely understood one whose files say
// all that it computes. Throws what is in the way of the first.
Plan plan_for(const Model& model, const std::string& where) {
  std::vector<const Family*> candidates;
  for (const Family& family : families()) {
    if (family.gguf == nullptr || !expresses(family, model.config())) continue;
    const bool own = family.model_type == model.config().family;
    candidates.insert(own ? candidates.begin() : candidates.end(), &family);
  }
  std::exception_ptr reason;
  for (const Family* family : candidates) {
    try {
      return plan_for(*family, model, where);
    } catch (const Error&) {
      if (reason == nullptr) reason = std::current_exception();
    }
  }
  if (reason != nullptr) std::rethrow_exception(reason);
  throw Error(where, "no architecture of GGUF files can express this model",
              "name a directory, which can hold every model");
}

// What a matrix with rows of `row` numbers is written in where `asked` was asked for.
const Encoding& fitting(const Encoding& asked, int64_t row, bool head) {
  const bool four_bits = layout_of(asked) != nullptr && layout_of(asked)->bits == 4;
  const Encoding& wanted = head && four_bits ? encodings::q6_k : asked;
  if (row % wanted.block == 0) return wanted;
  return row % encodings::q8_0.block == 0 ? encodings::q8_0 : encodings::f16;
}

// general.file_type: what most matrices are in.
void set_file_type(GgufMetadata& metadata, const Encoding& encoding) {
  constexpr std::pair<const Encoding*, uint32_t> kTypes[] = {
      {&encodings::f32, 0},     {&encodings::f16, 1},     {&encodings::q4_0, 2},
      {&encodings::q4_1, 3},    {&encodings::q8_0, 7},    {&encodings::q5_0, 8},
      {&encodings::q5_1, 9},    {&encodings::q2_k, 10},   {&encodings::q3_k, 11},
      {&encodings::q4_k, 14},   {&encodings::q5_k, 16},   {&encodings::q6_k, 18},
      {&encodings::iq4_nl, 25}, {&encodings::iq4_xs, 30}, {&encodings::bf16, 32},
      {&encodings::mxfp4, 38}};
  for (const auto& [known, type] : kTypes) {
    if (known == &encoding) metadata.set("general.file_type", GgufValue::u32(type));
  }
  metadata.set("general.quantization_version", GgufValue::u32(2));
}

}  // namespace

std::vector<std::filesystem::path> save_gguf(const Model& model, const std::filesystem::path& path,
                                             const GgufMetadata& extra,
                                             const SaveOptions& options) {
  Plan plan = plan_for(model, path.string());
  GgufMetadata& metadata = plan.file.metadata;
  const Weight* most = nullptr;  // the largest matrix besides the embedding
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.matrix.defined() || parameter.name == "embeddings.weight") continue;
    if (most == nullptr || parameter.matrix.size() > most->size()) most = &parameter.matrix;
  }
  const Encoding& main = options.encoding != nullptr ? *options.encoding
                         : most != nullptr           ? most->encoding()
                                                     : encodings::f32;
  set_file_type(metadata, main);
  for (const auto& [key, value] : extra.all()) metadata.set(key, value);

  std::vector<GgufTensorToWrite> tensors;
  for (const auto& [name, table] : plan.file.tables) {
    const auto bytes = [&table = table] {
      return GgufTensorToWrite::Bytes{std::as_bytes(std::span(table)), nullptr};
    };
    tensors.push_back({name, find_gguf_type("F32"), {std::ssize(table)}, bytes});
  }
  for (const Plan::Tensors& each : plan.tensors) {
    for (size_t i = 0; i < each.shapes.size(); ++i) {
      const Encoding* to = &encodings::f32;
      if (each.matrices) {
        to = options.encoding == nullptr
                 ? each.in
                 : &fitting(*options.encoding, each.shapes[i].back(), each.head);
      }
      const auto bytes = [&model, &options, &path, &rule = each.rule, i, to] {
        StoredTensor tensor = published(model, rule, path.string()).at(i);
        note(options, rule.published[i], *to, tensor.shape);
        tensor = encoded(std::move(tensor), *to);
        return GgufTensorToWrite::Bytes{tensor.bytes, tensor.owner};
      };
      tensors.push_back(
          {each.rule.published[i], find_gguf_type(to->file_dtype), each.shapes[i], bytes});
    }
  }
  return write_split_gguf(path, metadata, tensors, options.part_bytes);
}

}  // namespace pronghorn
