// pronghorn convert: a model from one format into another.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/quote.h"
#include "command.h"
#include "formats/chat_format.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "formats/gguf_vocabulary.h"
#include "formats/tokenizer.h"
#include "model/checkpoint.h"
#include "model/lora.h"
#include "model/upcycle.h"
#include "tensor/block_layouts.h"

namespace pronghorn::app {
namespace {

struct ConvertOptions : Common {
  std::filesystem::path in, out, adapter;
  std::string quantize, type;
  int64_t split = 0;  // bytes of a part; 0: one file
  UpcycleOptions upcycle{.experts = 0};
};

const Encoding& encoding_named(std::string_view name) {
  for (const Encoding* encoding : all_encodings()) {
    if (encoding->name == name) return *encoding;
  }
  throw UsageError("convert", fmt::format("no encoding '{}'", name));
}

// What a GGUF file says of its vocabulary and of where it comes from, but not of how it is stored.
void copy_descriptions(const GgufMetadata& from, GgufMetadata& to) {
  for (const auto& [key, value] : from.all()) {
    const bool stored = key == "general.architecture" || key == "general.alignment" ||
                        key == "general.file_type" || key == "general.quantization_version";
    const bool described = key.starts_with("general.") || key.starts_with("tokenizer.");
    if (described && !stored) to.set(key, value);
  }
}

// Tokens that end a text beyond the one that a tokenizer names, in keys of a GGUF file.
void add_ends(const std::vector<int32_t>& ends, GgufMetadata& metadata) {
  std::vector<std::string> keys = {"tokenizer.ggml.eom_token_id", "tokenizer.ggml.eot_token_id"};
  const std::string first = "tokenizer.ggml.eos_token_id";
  if (!metadata.has(first)) keys.push_back(first);
  for (const int32_t end : ends) {
    if (keys.empty()) return;
    if (metadata.has(first) && metadata.integer(first) == end) continue;
    metadata.set(keys.back(), GgufValue::u32(static_cast<uint32_t>(end)));
    keys.pop_back();
  }
}

// OUT is a directory: one that is not there, or that has nothing of a model in it.
void check_directory_to_write(const std::filesystem::path& out) {
  for (const char* ending : {".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".json", ".onnx"}) {
    if (ends_in(out, ending) && !std::filesystem::is_directory(out)) {
      throw UsageError("convert",
                       fmt::format("OUT {} is no directory, and {} files are not written alone",
                                   quote(out.string()), ending),
                       "name a directory, or a file that ends in .gguf");
    }
  }
  // Files of two models would lie in it, and be read as one.
  const auto refuse = [&](std::string_view what) {
    throw Error(out.string(), fmt::format("already holds {} of a model", what),
                "choose another OUT");
  };
  if (find_weights(out)) refuse("weights");
  for (const char* file : {"config.json", "tokenizer.json", "tokenizer.model"}) {
    if (std::filesystem::exists(out / file)) refuse(file);
  }
}

void run(const ConvertOptions& options) {
  const bool to_gguf = ends_in(options.out, ".gguf");
  if (options.out.empty()) {
    throw UsageError("convert", "OUT is empty", "name a file or a directory");
  }
  if (!options.quantize.empty() && !options.type.empty()) {
    throw UsageError("convert", "--quantize and --type exclude each other");
  }
  if (!options.quantize.empty() && !to_gguf) {
    throw UsageError("convert", "--quantize writes GGUF files: OUT must end in .gguf");
  }
  if (options.split > 0 && !to_gguf) {
    throw UsageError("convert", "--split is of GGUF files: OUT must end in .gguf");
  }
  SaveOptions save;
  if (options.split > 0) save.part_bytes = static_cast<uint64_t>(options.split);
  std::error_code none_there;
  if (std::filesystem::equivalent(options.in, options.out, none_there)) {
    throw UsageError("convert", "IN and OUT are the same");
  }
  if (!to_gguf) check_directory_to_write(options.out);
  std::unique_ptr<Model> model = load_model(options.in, options.adapter);
  merge_adapter(*model);
  if (options.upcycle.experts > 0) model = upcycle(*model, options.upcycle);
  const auto source = find_gguf(options.in);
  const ChatFormat chat = ChatFormat::load(options.in);

  const std::string& asked = options.quantize.empty() ? options.type : options.quantize;
  if (!asked.empty()) save.encoding = &encoding_named(asked);
  Progress progress("convert", static_cast<double>(model->parameter_count()), "numbers");
  double done = 0;
  std::map<std::string, int64_t> tensors;  // by encoding
  std::vector<std::string> others;         // matrices that are not in what was asked for
  save.on_tensor = [&](std::string_view name, const Encoding& in, int64_t numbers) {
    progress.update(done, name);
    done += static_cast<double>(numbers);
    ++tensors[std::string(in.name)];
    if (!options.quantize.empty() && &in != save.encoding && &in != &encodings::f32) {
      others.push_back(fmt::format("{} in {}", name, in.name));
    }
  };
  std::string family;
  std::vector<std::filesystem::path> files;  // of GGUF
  if (to_gguf) {
    GgufMetadata extra(options.out.string());
    std::optional<GgufFile> from;  // whose values are views of it
    if (source) {
      from.emplace(*source);
      copy_descriptions(from->metadata(), extra);
    } else {
      const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.in);
      add_gguf_vocabulary(tokenizer->files(), model->config().vocab_size, extra);
      add_ends(chat.end_tokens(*tokenizer, model->config().vocab_size), extra);
      const std::filesystem::path name = std::filesystem::weakly_canonical(options.in).filename();
      extra.set("general.name", GgufValue::text(name.stem().string()));
      chat.write(extra);
    }
    if (options.out.has_parent_path()) make_directories(options.out.parent_path());
    remove_abandoned_versions(options.out);
    files = save_gguf(*model, options.out, extra, save);
  } else {
    // First, so that nothing is written where there is none.
    const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.in);
    const Family& chosen = family_for(model->config());
    remove_abandoned_files(options.out, false);
    family = chosen.model_type;
    save_checkpoint(*model, options.out, chosen, {{"format", "pt"}}, save);
    tokenizer->save(options.out);
    chat.save(options.out);
    const std::vector<int32_t> ends = chat.end_tokens(*tokenizer, model->config().vocab_size);
    if (!ends.empty()) {
      write_file(options.out / "generation_config.json",
                 nlohmann::json({{"eos_token_id", ends}}).dump(2) + "\n");
    }
  }
  progress.finish();

  int64_t bytes = 0;
  for (const auto& file : files) bytes += static_cast<int64_t>(std::filesystem::file_size(file));
  if (!to_gguf) {
    for (const auto& entry : std::filesystem::directory_iterator(options.out)) {
      if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
    }
  }
  if (options.json) {
    nlohmann::json json = {{"out", options.out.string()},
                           {"format", to_gguf ? "gguf" : "huggingface"},
                           {"bytes", bytes},
                           {"tensors", tensors},
                           {"other_encodings", others}};
    if (!family.empty()) json["family"] = family;
    for (const auto& file : files) json["files"].push_back(file.string());
    return print_json(json);
  }
  std::vector<std::string> parts;
  for (const auto& [name, count] : tensors) parts.push_back(fmt::format("{} in {}", count, name));
  const std::string name =
      files.size() > 1 ? fmt::format("{} and {} more", files.front().string(), files.size() - 1)
                       : options.out.string();
  fmt::print("{}: {}, tensors: {}\n", name, format_bytes(static_cast<double>(bytes)),
             fmt::join(parts, ", "));
  constexpr size_t kShown = 4;
  if (others.empty()) return;
  const size_t shown = std::min(kShown, others.size());
  fmt::print("not in {}, as heads and rows of other lengths are: {}{}\n", options.quantize,
             fmt::join(others.begin(), others.begin() + static_cast<ptrdiff_t>(shown), ", "),
             others.size() > shown ? fmt::format(" and {} more", others.size() - shown) : "");
}

}  // namespace

void add_convert(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "convert", "Write a model in another format: GGUF, or a Hugging Face directory");
  auto options = std::make_shared<ConvertOptions>();
  command->add_option("in", options->in, "checkpoint directory, GGUF file or .pth file of RWKV-7")
      ->required();
  command
      ->add_option("out", options->out,
                   "GGUF file if it ends in .gguf, else a directory to be written")
      ->required();
  command->add_option("--quantize", options->quantize, "what matrices are stored in")
      ->check(CLI::IsMember({"q8_0", "q4_0", "q4_k", "q6_k"}))
      ->option_text("q8_0|q6_k|q4_k|q4_0");
  command->add_option("--type", options->type, "the same, without blocks")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->option_text("bf16|f16|f32");
  command
      ->add_option("--split", options->split,
                   "write a GGUF file that would be larger in parts of at most that many bytes "
                   "(2G, 500M)")
      ->transform(positive_integer())
      ->option_text("SIZE");
  add_adapter_option(*command, options->adapter);
  CLI::Option* upcycle = command->add_option(
      "--upcycle", options->upcycle.experts,
      "make a mixture of that many experts of a dense model, each a copy of its feed-forward");
  upcycle->check(CLI::Range(int64_t{2}, int64_t{1024}))->option_text("N");
  command
      ->add_option("--top-k", options->upcycle.top_k,
                   "with --upcycle: experts that a token is given to (2)")
      ->check(CLI::Range(int64_t{1}, int64_t{1024}))
      ->needs(upcycle);
  command->add_option("--seed", options->upcycle.seed, "with --upcycle: of the routers")
      ->needs(upcycle);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
