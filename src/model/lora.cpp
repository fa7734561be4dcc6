#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "base/files.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "model/checkpoint_tensors.h"
#include "model/families.h"
#include "model/tensor_rules.h"

namespace pronghorn {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";
constexpr std::string_view kPrefix = "base_model.model.", kWeight = ".weight";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";
constexpr int64_t kMaxRank = 1 << 14;

// The matrices of one published module and how they lie in it.
struct Module {
  std::string name;  // "model.layers.0.self_attn.qkv_proj"
  std::vector<size_t> parameters;
  Transform transform;
  bool transposed = false;  // the published matrix is [in, out]

  // A change's [rank, in], theirs to ours and back.
  std::vector<float> input(std::vector<float> numbers, int64_t rank, bool to_ours) const;
};

// Of all matrices of blocks that one published tensor holds.
std::vector<Module> modules_of(const Model& model, const TensorRules& rules,
                               const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const Parameter& parameter : model.parameters()) names.push_back(parameter.name);
  std::vector<Module> modules;
  std::vector<BoundRule> bound =
      naming(directory.string(), [&] { return bind_rules(rules, names); });
  for (BoundRule& rule : bound) {
    const bool matrices = std::ranges::all_of(rule.ours, [&](size_t i) {
      return model.parameters()[i].matrix.defined() && names[i].starts_with("layers.");
    });
    if (!matrices || rule.published.size() != 1) continue;
    const std::string& published = rule.published.front();
    if (!published.ends_with(kWeight)) continue;
    Module module;
    module.name = published.substr(0, published.size() - kWeight.size());
    module.parameters = std::move(rule.ours);
    module.transform = std::move(rule.transform);
    if (module.transform.moves_columns()) {  // and nothing else
      modules.push_back(std::move(module));
      continue;
    }
    // What becomes of a number of columns that no matrix has.
    constexpr int64_t kProbe = (int64_t{1} << 40) + 1;
    Shapes probes;
    for (const size_t i : module.parameters) {
      probes.push_back({model.parameters()[i].matrix.out(), kProbe});
    }
    module.transposed = module.transform.published_shapes(probes, 1).front().front() == kProbe;
    modules.push_back(std::move(module));
  }
  return modules;
}

// "self_attn.q_proj": what follows the number of the layer.
std::string suffix_of(const std::string& module) {
  size_t begin = 0;
  for (size_t i = 0; i + 1 < module.size(); ++i) {
    if (module[i] != '.') continue;
    const size_t end = module.find('.', i + 1);
    const std::string part = module.substr(i + 1, end - i - 1);
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    if (number && end != std::string::npos) begin = end + 1;
  }
  return module.substr(begin);
}

StoredTensor matrix_of(const std::vector<float>& numbers, int64_t rows, int64_t columns) {
  const auto owner = std::make_shared<std::vector<float>>(numbers);
  return {"F32", {rows, columns}, std::as_bytes(std::span(*owner)), owner};
}

std::vector<float> numbers_of(const StoredTensor& tensor) {
  std::vector<float> numbers(tensor.bytes.size() / sizeof(float));
  std::memcpy(numbers.data(), tensor.bytes.data(), tensor.bytes.size());
  return numbers;
}

std::vector<float> Module::input(std::vector<float> numbers, int64_t rank, bool to_ours) const {
  if (!transform.moves_columns()) return numbers;
  const auto in = std::ssize(numbers) / rank;
  const StoredTensor matrix = matrix_of(numbers, rank, in);
  return numbers_of(
      (to_ours ? transform.forward({matrix}, {{rank, in}}) : transform.inverse({matrix}, 1))
          .front());
}

std::vector<float> transposed(const std::vector<float>& numbers, int64_t rows, int64_t columns) {
  std::vector<float> result(numbers.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      result[static_cast<size_t>(j * rows + i)] = numbers[static_cast<size_t>(i * columns + j)];
    }
  }
  return result;
}

std::vector<float> numbers_of(const Weight& weight) {
  if (weight.trainable().defined()) {
    const PooledVector<float> trained = weight.trainable().read();
    return {trained.begin(), trained.end()};
  }
  std::vector<float> numbers(static_cast<size_t>(weight.size()));
  for (int32_t row = 0; row < weight.out(); ++row) {
    backend().matmul().read_rows(weight, {&row, 1},
                                 {numbers.data() + row * weight.in(), weight.in()});
  }
  return numbers;
}

// Settings of a module, which patterns give it in place of the common one. The keys of patterns are
// ends of names.
double setting_of(const nlohmann::json& patterns, const std::string& module, double common,
                  const std::string& where) {
  require(patterns.is_null() || patterns.is_object(), where, "is not an object");
  for (const auto& [key, value] : patterns.items()) {
    if (module != key && !module.ends_with(fmt::format(".{}", key))) continue;
    require(value.is_number(), where, "{} of '{}' is not a number", value.dump(), key);
    return value.get<double>();
  }
  return common;
}

// What adapter_config.json says that we go by.
struct PeftConfig {
  int64_t rank = 0;
  double alpha = 0;
  bool root = false;  // divided by the root of the rank
  nlohmann::json rank_pattern, alpha_pattern;
  std::string where;
};

PeftConfig read_peft_config(const std::filesystem::path& file) {
  ConfigReader reader(parse_json(read_file(file, 16 << 20), file.string()), file.string());
  const std::string type = reader.string("peft_type", "LORA");
  require(type == "LORA", reader.path("peft_type"), "'{}' is not supported (LORA is)", type);
  for (const char* key : {"use_dora", "use_qalora"}) {
    require(!reader.boolean(key, false), reader.path(key), "true is not supported");
  }
  const std::string bias = reader.string("bias", "none");
  require(bias == "none", reader.path("bias"), "'{}' is not supported (none is)", bias);
  for (const char* key : {"modules_to_save", "trainable_token_indices", "target_parameters",
                          "layer_replication", "alora_invocation_tokens", "arrow_config",
                          "kasa_config", "velora_config", "monteclora_config", "use_bdlora"}) {
    const nlohmann::json& list = reader.raw(key);
    require(list.is_null() || list.empty() || list == false, reader.path(key),
            "{} is not supported", list.dump());
  }
  PeftConfig config;
  config.rank = reader.integer("r", 8, 1, kMaxRank);
  config.alpha = reader.number("lora_alpha", 8.0);
  config.root = reader.boolean("use_rslora", false);
  config.rank_pattern = reader.raw("rank_pattern");
  config.alpha_pattern = reader.raw("alpha_pattern");
  config.where = file.string();
  return config;
}

double scale_of(const PeftConfig& config, const std::string& module, int64_t rank) {
  const double alpha =
      setting_of(config.alpha_pattern, module, config.alpha, config.where + ": alpha_pattern");
  const auto r = static_cast<double>(rank);
  return config.root ? alpha / std::sqrt(r) : alpha / r;
}

}  // namespace

void Adapter::add(const Model& model, size_t parameter, int64_t rank, double scale) {
  const Weight& matrix = model.parameters()[parameter].matrix;
  const std::string& name = model.parameters()[parameter].name;
  const std::string stem = name.substr(0, name.size() - kWeight.size());
  const double bound = 1 / std::sqrt(static_cast<double>(matrix.in()));
  auto change = std::make_shared<LowRank>();
  change->a = store_.matrix(stem + std::string(kA), rank, matrix.in(),
                            initializers::uniform(-bound, bound));
  change->b = store_.matrix(stem + std::string(kB), matrix.out(), rank, initializers::constant(0));
  change->scale = static_cast<float>(scale);
  parts_.push_back({parameter, std::move(change)});
}

std::shared_ptr<Adapter> Adapter::fresh(const Model& model, const LoraConfig& config,
                                        uint64_t seed) {
  require(config.rank >= 1 && config.rank <= kMaxRank, "LoRA", "a rank of {}", config.rank);
  const double alpha = config.alpha > 0 ? config.alpha : 2 * static_cast<double>(config.rank);
  std::shared_ptr<Adapter> adapter(new Adapter(seed, true, Purpose::training));
  std::set<std::string> names, used;
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    const Parameter& parameter = model.parameters()[i];
    if (!parameter.matrix.defined() || !parameter.name.starts_with("layers.")) continue;
    const std::string stem = parameter.name.substr(0, parameter.name.size() - kWeight.size());
    const std::string name = stem.substr(stem.rfind('.') + 1);
    names.insert(name);
    if (!config.targets.empty() && std::ranges::count(config.targets, name) == 0) continue;
    used.insert(name);
    adapter->add(model, i, config.rank, alpha / static_cast<double>(config.rank));
  }
  for (const std::string& target : config.targets) {
    require(used.contains(target), "LoRA", "no matrix is called '{}' (there are {})", target,
            fmt::join(names, ", "));
  }
  return adapter;
}

void Adapter::save(const Model& model, const std::filesystem::path& directory,
                   const std::string& base) const {
  std::map<size_t, const LowRank*> changes;
  for (const Part& part : parts_) changes[part.parameter] = part.change.get();
  std::vector<std::vector<float>> kept;
  std::vector<TensorToWrite> tensors;
  std::set<std::string> targets;
  nlohmann::json ranks = nlohmann::json::object(), alphas = ranks;
  int64_t common_rank = 0;
  double common_alpha = 0;
  bool turned = false;
  const auto add = [&](const std::string& name, std::vector<float> numbers, int64_t rows,
                       int64_t columns) {
    tensors.push_back({name,
                       "F32",
                       {rows, columns},
                       nullptr,
                       static_cast<uint64_t>(numbers.size() * sizeof(float))});
    kept.push_back(std::move(numbers));
  };
  const Family& family = family_for(model.config());
  for (const Module& module : modules_of(model, family.tensors(model.config()), directory)) {
    int64_t rank = 0, in = 0;
    double scale = 0;
    for (const size_t i : module.parameters) {
      if (!changes.contains(i)) continue;
      rank += changes.at(i)->a.out();
      in = changes.at(i)->a.in();
      scale = static_cast<double>(changes.at(i)->scale);
    }
    if (rank == 0) continue;
    // The matrices of a module share one A: theirs, one below the other. B gives each its own.
    std::vector<float> a;
    StoredTensors parts;
    int64_t first = 0;
    for (const size_t i : module.parameters) {
      const int64_t out = model.parameters()[i].matrix.out();
      std::vector<float> b(static_cast<size_t>(out * rank), 0.0f);
      if (changes.contains(i)) {
        const LowRank& change = *changes.at(i);
        require(static_cast<double>(change.scale) == scale, module.name,
                "has matrices whose changes have different factors");
        const std::vector<float> own_a = numbers_of(change.a), own_b = numbers_of(change.b);
        a.insert(a.end(), own_a.begin(), own_a.end());
        const int64_t own = change.a.out();
        for (int64_t row = 0; row < out; ++row) {
          std::copy_n(own_b.begin() + row * own, own, b.begin() + row * rank + first);
        }
        first += own;
      }
      parts.push_back(matrix_of(b, out, rank));
    }
    const StoredTensor joined = module.transform.moves_columns()
                                    ? parts.front()
                                    : module.transform.inverse(std::move(parts), 1).front();
    a = module.input(std::move(a), rank, false);
    const int64_t out = joined.shape[module.transposed ? 1 : 0];
    std::vector<float> b = numbers_of(joined);
    if (module.transposed) b = transposed(b, rank, out);
    turned = turned || module.transposed;
    const std::string name = fmt::format("{}{}", kPrefix, module.name);
    add(name + std::string(kA), std::move(a), rank, in);
    add(name + std::string(kB), std::move(b), out, rank);
    const std::string suffix = suffix_of(module.name);
    const double alpha = scale * static_cast<double>(rank);
    if (common_rank == 0) {
      common_rank = rank;
      common_alpha = alpha;
    }
    targets.insert(suffix);
    if (rank != common_rank) ranks[suffix] = rank;
    if (alpha != common_alpha) alphas[suffix] = alpha;
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].data = kept[i].data();
  const nlohmann::json config = {{"peft_type", "LORA"},
                                 {"task_type", "CAUSAL_LM"},
                                 {"base_model_name_or_path", base},
                                 {"r", common_rank},
                                 {"lora_alpha", common_alpha},
                                 {"rank_pattern", ranks},
                                 {"alpha_pattern", alphas},
                                 {"target_modules", targets},
                                 {"lora_dropout", 0.0},
                                 {"fan_in_fan_out", turned},
                                 {"bias", "none"},
                                 {"use_rslora", false},
                                 {"use_dora", false},
                                 {"init_lora_weights", true},
                                 {"inference_mode", true}};
  make_directories(directory);
  write_safetensors(directory / kWeightsFile, std::move(tensors), {{"format", "pt"}});
  write_file(directory / kConfigFile, config.dump(2) + "\n");
}

std::shared_ptr<Adapter> Adapter::load(const Model& model, const std::filesystem::path& directory,
                                       Purpose purpose) {
  const PeftConfig config = read_peft_config(directory / kConfigFile);
  const SafetensorsFile file(directory / kWeightsFile);
  const std::string where = file.path().string();
  std::shared_ptr<Adapter> adapter(new Adapter(0, false, purpose));
  const Family& family = family_for(model.config());
  const TensorRules rules = family.tensors(model.config());
  std::set<std::string> used;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
    const SafetensorsEntry* entry = file.find(name);
    require(entry != nullptr, where, "has no tensor '{}'", name);
    const std::vector<int64_t> shape = {rows, columns};
    require(entry->shape == shape, where, "tensor '{}' has shape [{}] where [{}] was expected",
            name, fmt::join(entry->shape, ", "), fmt::join(shape, ", "));
    used.insert(name);
    std::vector<float> numbers(static_cast<size_t>(rows * columns));
    to_f32(*entry, numbers.data(), where);
    return numbers;
  };
  for (const Module& module : modules_of(model, rules, directory)) {
    std::vector<std::string> stems = {module.name};
    for (const std::string& other : other_names(rules, module.name + std::string(kWeight))) {
      stems.push_back(other.substr(0, other.size() - kWeight.size()));
    }
    std::string name;
    for (const std::string& stem : stems) {
      const std::string candidate = fmt::format("{}{}", kPrefix, stem);
      if (file.find(fmt::format("{}{}", candidate, kA)) != nullptr) name = candidate;
    }
    if (name.empty()) continue;
    const double asked =
        setting_of(config.rank_pattern, module.name, static_cast<double>(config.rank),
                   config.where + ": rank_pattern");
    require(asked >= 1 && asked <= kMaxRank, config.where + ": rank_pattern", "a rank of {}",
            asked);
    const auto rank = static_cast<int64_t>(asked);
    const int64_t in = model.parameters()[module.parameters.front()].matrix.in();
    Shapes ours;
    int64_t out = 0;
    for (const size_t i : module.parameters) {
      ours.push_back({model.parameters()[i].matrix.out(), rank});
      out += ours.back().front();
    }
    const std::vector<float> a = module.input(matrix(name + std::string(kA), rank, in), rank, true);
    std::vector<float> b = matrix(name + std::string(kB), out, rank);
    if (module.transposed) b = transposed(b, out, rank);
    StoredTensors parts = {module.transposed ? matrix_of(b, rank, out) : matrix_of(b, out, rank)};
    if (!module.transform.moves_columns()) parts = module.transform.forward(parts, ours);
    for (size_t i = 0; i < module.parameters.size(); ++i) {
      adapter->add(model, module.parameters[i], rank, scale_of(config, module.name, rank));
      const size_t first = adapter->parameters().size() - 2;
      adapter->store_.assign(first, stored_f32(a));
      adapter->store_.assign(first + 1, stored_f32(numbers_of(parts[i])));
    }
  }
  for (const std::string& name : file.names()) {
    require(used.contains(name), where, "holds a tensor '{}' that the model has no place for",
            name);
  }
  require(!adapter->parts_.empty(), where, "changes nothing of the model");
  return adapter;
}

void merge_adapter(Model& model) {
  if (model.adapter() == nullptr) return;
  const std::shared_ptr<const Adapter> adapter = model.adapter();
  model.set_adapter(nullptr);
  for (const Adapter::Part& part : adapter->parts()) {
    const Parameter& parameter = model.parameters()[part.parameter];
    const LowRank& change = *part.change;
    const int64_t out = parameter.matrix.out(), in = parameter.matrix.in(), rank = change.a.out();
    std::vector<float> numbers = numbers_of(parameter.matrix);
    const std::vector<float> a = numbers_of(change.a), b = numbers_of(change.b);
    for (int64_t i = 0; i < out; ++i) {
      float* row = numbers.data() + i * in;
      for (int64_t r = 0; r < rank; ++r) {
        const float factor = change.scale * b[static_cast<size_t>(i * rank + r)];
        const float* from = a.data() + r * in;
        for (int64_t j = 0; j < in; ++j) row[j] += factor * from[j];
      }
    }
    const Encoding& before = parameter.matrix.encoding();
    if (before.block == 1 && before.encode != nullptr && &before != &encodings::f32) {
      const auto bytes =
          std::make_shared<std::vector<std::byte>>(static_cast<size_t>(before.bytes(out * in)));
      before.encode(numbers.data(), out * in, bytes->data());
      model.assign(part.parameter, {&before, *bytes, bytes, nullptr});
    } else {
      model.assign(part.parameter, stored_f32(numbers));
    }
  }
}

}  // namespace pronghorn
