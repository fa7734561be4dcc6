// pronghorn inspect: what a model or configuration is made of and what it will cost.
#include <fmt/ranges.h>
#include <unistd.h>

#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/terminal.h"
#include "command.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "formats/tokenizer.h"
#include "lab/importance.h"
#include "lab/surprise.h"
#include "lab/text.h"
#include "model/families.h"
#include "model/model.h"
#include "model/text_cost.h"
#include "model/trained_context.h"
#include "model/weight_bytes.h"

namespace pronghorn::app {
namespace {

struct InspectOptions : Common {
  std::filesystem::path model, text, html;
  CacheOptions cache;
  std::vector<int64_t> contexts = {512, 4096, 32768, 262144};
  Precision precision = Precision::f32;
};

// "mamba2: heads 2, state 8": a layer's settings, its type first.
std::string layer_text(const nlohmann::json& layer) {
  std::vector<std::string> settings;
  for (const auto& [key, value] : layer.items()) {
    if (key != "type") settings.push_back(fmt::format("{} {}", key, value.dump()));
  }
  return fmt::format("{}: {}", layer.at("type").get<std::string>(), fmt::join(settings, ", "));
}

// What the layers of each subsampled span cost. state: of a text that was read, to be compared.
lab::Table span_table(std::span<const SpanCost> spans, const SequenceState* state) {
  std::vector<lab::Column> columns = {
      {"span", lab::Align::kLeft}, {"blocks"}, {"tokens kept"}, {"forward FLOPs/token"}, {"state"}};
  if (state != nullptr) columns.push_back({"state measured"});
  lab::Table table(columns);
  constexpr size_t kShown = 40;  // --json has all of them
  for (const SpanCost& span : spans.first(std::min(kShown, spans.size()))) {
    std::vector<lab::Cell> row = {
        span.span < 0 ? "outside"
                      : fmt::format("{}({})", std::string(static_cast<size_t>(span.depth - 1), ' '),
                                    span.span + 1),
        std::to_string(span.blocks),
        span.blocks == 0 ? "-" : fmt::format("{:.1f}%", 100 * span.share),
        format_count(span.cost.matmul + span.cost.sequence),
        format_bytes(static_cast<double>(span.state_bytes))};
    if (state != nullptr) {
      row.push_back(format_bytes(static_cast<double>(state->bytes(span.span))));
    }
    table.add_row(row);
  }
  if (spans.size() > kShown) {
    std::vector<lab::Cell> row(columns.size(), lab::Cell(""));
    row.front() = fmt::format("and {} more", spans.size() - kShown);
    table.add_row(row);
  }
  return table;
}

nlohmann::json to_json(std::span<const SpanCost> spans, const SequenceState* state) {
  nlohmann::json json = nlohmann::json::array();
  for (const SpanCost& span : spans) {
    json.push_back({{"span", span.span},
                    {"depth", span.depth},
                    {"blocks", span.blocks},
                    {"share", span.share},
                    {"forward_flops_per_token", span.cost.matmul + span.cost.sequence},
                    {"state_bytes", span.state_bytes}});
    if (state != nullptr) json.back()["measured_state_bytes"] = state->bytes(span.span);
  }
  return json;
}

// "16 heads of 64 -> 128 -> 64 in 4 layers, 2.1 MB with their momentum"
std::string memories_text(const std::vector<LearningMemory>& memories) {
  int64_t numbers = 0;
  for (const LearningMemory& memory : memories) numbers += fast_weight_memory_size(memory.options);
  const FastWeightMemoryOptions& first = memories.front().options;
  std::string sizes = std::to_string(first.head_dim);
  for (int64_t layer = 1; layer < first.depth; ++layer) {
    sizes += fmt::format(" -> {}", first.hidden_dim);
  }
  return fmt::format("{} layers, each {} heads of {} -> {}: {} that learn while reading",
                     memories.size(), first.heads, sizes, first.head_dim,
                     format_bytes(static_cast<double>(numbers) * 4));
}

// Reads a text and shows how surprised the model's memories were by each of its tokens.
void inspect_surprise(const InspectOptions& options, const Model& model) {
  const std::vector<lab::TokenSurprise> tokens =
      lab::read_surprise(model, *load_tokenizer(options.model), read_file(options.text));
  lab::TokenView view = lab::surprise_view(tokens);
  view.title = options.text.filename().string();
  view.facts = {
      fmt::format("Read by {}, pattern {}", options.model.string(), model.config().pattern),
      "Memories: " + memories_text(lab::learning_memories(model))};
  if (!options.html.empty()) write_file(options.html, lab::html_page(view));
  if (options.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const lab::TokenSurprise& token : tokens) {
      list.push_back({{"id", token.id}, {"surprise", token.mean()}, {"memories", token.memories}});
    }
    return print_json({{"tokens", tokens.size()}, {"surprise", list}});
  }
  fmt::print("{}\n", lab::terminal_text(view, terminal_shows_styles(STDOUT_FILENO)));
  fmt::print("memories  {}\n", memories_text(lab::learning_memories(model)));
  if (!options.html.empty()) fmt::print("page      {}\n", options.html.string());
}

// Reads a text and shows how deep each of its tokens went, or how surprising it was.
void inspect_text(const InspectOptions& options) {
  const std::unique_ptr<Model> model = Model::load(options.model);
  require_reads_texts(model->config(), options.model.string());
  if (model->config().span_count() == 0) {
    require(!lab::learning_memories(*model).empty(), options.model.string(),
            "has no subsampled span and no memory that learns while it reads (--text shows what "
            "such models make of each token)");
    return inspect_surprise(options, *model);
  }
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  const lab::ReadText read = lab::read_importance(*model, *tokenizer, read_file(options.text));
  const std::vector<SpanCost> spans = model->span_costs(static_cast<double>(read.state.length()),
                                                        model->measured_shares(read.state));
  lab::TokenView view = lab::importance_view(read.tokens);
  view.title = options.text.filename().string();
  view.facts = {
      fmt::format("Read by {}, pattern {}", options.model.string(), model->config().pattern)};
  for (const SpanCost& span : spans) {
    if (span.span < 0 || span.blocks == 0) continue;
    view.facts.push_back(
        fmt::format("Span {} kept {:.1f}% of the tokens", span.span + 1, 100 * span.share));
  }
  if (!options.html.empty()) write_file(options.html, lab::html_page(view));
  if (options.json) {
    nlohmann::json tokens = nlohmann::json::array();
    for (const lab::TokenImportance& token : read.tokens) {
      tokens.push_back({{"id", token.id}, {"depth", token.depth}, {"scores", token.scores}});
    }
    return print_json({{"tokens", read.state.length()},
                       {"spans", to_json(spans, &read.state)},
                       {"importance", tokens}});
  }
  fmt::print("{}\n", lab::terminal_text(view, terminal_shows_styles(STDOUT_FILENO)));
  print_table(span_table(spans, &read.state));
  if (!options.html.empty()) fmt::print("\npage  {}\n", options.html.string());
}

// What a configuration is looked at with that is of images but does not say which: small grey ones.
void assume_images(ModelConfig& config) {
  constexpr int64_t kSide = 32;
  const int64_t patch = config.image->patch, side = (kSide + patch - 1) / patch * patch;
  std::vector<std::string> classes = config.image->classes;
  for (int digit = 0; digit < 10 && config.image->classes.empty(); ++digit) {
    classes.push_back(std::to_string(digit));
  }
  set_images(config, side, side, 1, std::move(classes));
}

// One of sound that does not say what is said in it: words of small letters.
void assume_letters(ModelConfig& config) {
  std::vector<std::string> symbols = {" "};
  for (char letter = 'a'; letter <= 'z'; ++letter) symbols.emplace_back(1, letter);
  set_sound(config, std::move(symbols));
}

// A configuration has no weights; a checkpoint's stay in their file.
std::unique_ptr<Model> load_or_outline(const std::filesystem::path& path) {
  if (find_gguf(path) || is_torch_model(path) ||
      (std::filesystem::is_directory(path) && find_weights(path))) {
    return Model::load(path);
  }
  ModelConfig config = load_config(path);
  if (config.image && !config.image->sized()) assume_images(config);
  if (config.sound && config.sound->symbols.empty()) assume_letters(config);
  if (config.vocab_size == 0) set_vocabulary(config, 256);
  return Model::outline(std::move(config));
}

// What the model is made of, line by line.
void print_parts(const ModelConfig& config) {
  fmt::print("pattern     {}   ({} blocks)\n", config.pattern, config.block_count());
  for (const auto& [name, block] : config.blocks) {
    for (const nlohmann::json& mixer : block.mixers)
      fmt::print("block {}     {}\n", name, layer_text(mixer));
    if (!block.feed_forward.is_null())
      fmt::print("            {}\n", layer_text(block.feed_forward));
  }
  fmt::print("width       {}   {} {}{}\n", config.hidden_size,
             config.image   ? "classes"
             : config.sound ? "symbols"
                            : "vocabulary",
             config.vocab_size, config.tie_embeddings ? ", tied head" : "");
  if (!config.subsample.widths.empty()) {
    fmt::print("in spans    {} wide\n", fmt::join(config.subsample.widths, ", "));
  }
  if (config.image) {
    fmt::print("images      {} x {} x {}, patches of {}: {} rows\n", config.image->width,
               config.image->height, config.image->channels, config.image->patch,
               config.image->rows());
  }
  if (config.sound) {
    fmt::print("sound       {} Hz, {} bands, {} frames a row: {:.1f} rows a second, {}\n",
               config.sound->mel.sample_rate, config.sound->mel.mels, config.sound->stack,
               config.sound->rows_per_second(),
               config.sound->both_ways ? "seen both ways" : "seen from the beginning on");
  }
  if (config.prefix_tokens > 0) {
    fmt::print("prefix      {} learned rows before every sequence\n", config.prefix_tokens);
  }
}

void inspect(const InspectOptions& options) {
  if (!options.text.empty()) return inspect_text(options);
  if (!options.html.empty()) throw UsageError("inspect --html", "needs --text");
  const std::unique_ptr<Model> loaded = load_or_outline(options.model);
  const Model& model = *loaded;
  const ModelConfig& config = model.config();
  const int64_t parameters = model.parameter_count();
  const int64_t active = model.active_parameter_count();
  const int64_t resident = resident_weight_bytes(model, options.precision);
  // An image is read whole.
  const std::vector<int64_t> all_contexts =
      config.image ? std::vector<int64_t>{config.image->rows()} : options.contexts;
  const int64_t read_per_token = weight_bytes_per_token(model, options.precision);

  nlohmann::json json = {{"config", write_pronghorn_config(config)},
                         {"family", family_for(config).model_type},
                         {"pattern", expanded_pattern(config.steps)},
                         {"parameters", parameters},
                         {"non_embedding_parameters", model.non_embedding_parameter_count()},
                         {"active_parameters", active},
                         {"precision", name_of(options.precision)},
                         {"weights", weights_json(weight_bytes(model))},
                         {"resident_bytes", resident},
                         {"trained_context",
                          {{"tokens", trained_context(config).tokens},
                           {"original", trained_context(config).original},
                           {"state_grows", state_grows(model)}}},
                         {"contexts", nlohmann::json::array()}};
  lab::Table contexts({{"context"},
                       {"forward FLOPs/token"},
                       {"training FLOPs/token"},
                       {"state"},
                       {"bytes read/token"}});
  for (const int64_t context : all_contexts) {
    const TokenCost cost = model.cost(static_cast<double>(context));
    const TokenCost prefix = prefix_cost(model, static_cast<double>(context));
    const double forward = cost.matmul + cost.sequence;
    const double training = 3 * (forward + prefix.matmul + prefix.sequence);
    const int64_t state = model.predicted_state_bytes(context, options.cache);
    const auto read = static_cast<double>(read_per_token + state);
    contexts.add_row({lab::format_context(context), format_count(forward), format_count(training),
                      format_bytes(static_cast<double>(state)), format_bytes(read)});
    json["contexts"].push_back(
        {{"context", context},
         {"forward_flops_per_token", forward},
         {"training_flops_per_token", training},
         {"state_bytes", state},
         {"bytes_read_per_token", read},
         {"spans", to_json(model.span_costs(double(context), {}, options.cache), nullptr)}});
  }
  if (options.json) return print_json(json);

  print_parts(config);
  fmt::print("parameters  {}   ({} without embeddings)\n",
             format_count(static_cast<double>(parameters)),
             format_count(static_cast<double>(model.non_embedding_parameter_count())));
  if (active < parameters) {
    fmt::print(
        "active      {}   (that a token meets: the others are of experts it is not given to)\n",
        format_count(static_cast<double>(active)));
  }
  fmt::print("trained for {}\n", trained_context_text(model));
  const std::string stored = weights_text(weight_bytes(model));
  fmt::print("weights     {}{} in memory to compute in {}\n", stored.empty() ? "" : stored + "; ",
             format_bytes(static_cast<double>(resident)), name_of(options.precision));
  const std::vector<LearningMemory> memories = lab::learning_memories(model);
  if (!memories.empty()) fmt::print("memories    {}\n", memories_text(memories));
  fmt::print("written as  {}\n\n", family_for(config).model_type);
  print_table(contexts);
  if (config.span_count() == 0) return;
  for (const int64_t context : all_contexts) {
    fmt::print("\nat {}, with the configured share kept\n", lab::format_context(context));
    print_table(
        span_table(model.span_costs(static_cast<double>(context), {}, options.cache), nullptr));
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "inspect", "Blocks, parameters, bytes, FLOPs a token, state bytes at chosen contexts");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("model", options->model, "checkpoint directory or configuration file")
      ->required();
  command->add_option("--contexts", options->contexts, "contexts to look at")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->transform(positive_integer())
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command->add_option(
      "--text", options->text,
      "read this file and show how deep into a subsampled model each token went, or "
      "how surprised a model with a memory that learns was by it");
  add_cache_options(*command, options->cache);
  command->add_option("--html", options->html, "with --text: write the same as a page");
  add_precision_option(*command, options->precision);
  add_common_options(*command, *options);
  command->callback([options] { inspect(*options); });
}

}  // namespace pronghorn::app
