// pronghorn tokenize: text to token ids and back.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <memory>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "command.h"
#include "formats/json.h"
#include "formats/tokenizer.h"

namespace pronghorn::app {
namespace {

struct TokenizeOptions : Common {
  std::filesystem::path model, file, save;
  bool no_special = false, decode = false, stats = false;
};

std::vector<int32_t> read_ids(const std::string& text, const std::string& where) {
  std::vector<int32_t> ids;
  std::istringstream in(text);
  int64_t id = 0;
  while (in >> id) {
    require(id >= 0 && id <= INT32_MAX, where, "{} is not a token id", id);
    ids.push_back(static_cast<int32_t>(id));
  }
  require(in.eof(), where, "holds something that is not a token id after {} ids", ids.size());
  return ids;
}

// Models may have more ids than their tokenizers; those stand for nothing. 0: nobody says.
int64_t model_vocabulary(const std::filesystem::path& model) {
  const std::filesystem::path path = model / "config.json";
  if (!std::filesystem::is_regular_file(path)) return 0;
  const nlohmann::json config = parse_json(read_file(path), path.string());
  const auto size = config.is_object() ? config.find("vocab_size") : config.end();
  return size != config.end() && size->is_number_integer() ? size->get<int64_t>() : 0;
}

void run(const TokenizeOptions& options) {
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  if (!options.save.empty()) tokenizer->save(options.save);
  if (options.file.empty()) return;
  const std::string input = read_file(options.file);
  if (options.decode) {
    const std::vector<int32_t> ids = read_ids(input, options.file.string());
    const int64_t size = std::max(tokenizer->vocab_size(), model_vocabulary(options.model));
    for (const int32_t id : ids) {
      require(id < size, options.file.string(), "{} is not in the vocabulary of {}", id, size);
    }
    const std::string text = tokenizer->decode(ids, !options.no_special);
    if (options.json) return print_json({{"text", text}});
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  const EncodeOptions as_part = {
      .add_special = false, .parse_special = false, .after = After::text};
  const std::clock_t begin = std::clock();  // of the processor: other programs do not count
  const std::vector<int32_t> ids =
      tokenizer->encode(input, options.no_special ? as_part : EncodeOptions{});
  const double taken = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  if (options.stats) {
    fmt::print(stderr, "{} bytes, {} tokens in {:.3f} s: {:.1f} MB/s on one core\n", input.size(),
               ids.size(), taken, static_cast<double>(input.size()) / 1e6 / std::max(1e-9, taken));
  }
  if (options.json) return print_json({{"tokens", ids}});
  fmt::print("{}\n", fmt::join(ids, " "));
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenize", "Token ids of a text, or the reverse");
  auto options = std::make_shared<TokenizeOptions>();
  command->add_option("model", options->model, "checkpoint directory")->required();
  CLI::Option* file = command->add_option("--file", options->file, "text, or ids with --decode");
  CLI::Option* save = command->add_option(
      "--save", options->save, "directory for the tokenizer's files, those of a GGUF file too");
  command->add_flag(
      "--no-special", options->no_special,
      "the text as a part of a longer one: add neither special tokens nor a space, and "
      "read the text of special tokens as plain text");
  command->add_flag("--decode", options->decode, "ids to text");
  command->add_flag("--stats", options->stats, "speed on stderr");
  add_common_options(*command, *options);
  command->callback([options, file, save] {
    if (file->empty() && save->empty()) throw CLI::RequiredError("--file or --save");
    run(*options);
  });
}

}  // namespace pronghorn::app
