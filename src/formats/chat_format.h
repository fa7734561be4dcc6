// What a checkpoint says about conversations: its chat template, the names of special tokens that
// the template writes, and the tokens that end a text. Read from chat_template.jinja,
// chat_template.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and
// config.json of a directory, or from the metadata of a GGUF file.
#pragma once

#include <cstdint>
#include <ctime>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "formats/jinja.h"
#include "formats/tokenizer.h"

namespace pronghorn {

class ChatFormat {
 public:
  // path: a checkpoint directory, a .gguf file, or (without anything else) a .jinja file. What is
  // missing is omitted. Throws Error for files that are malformed.
  static ChatFormat load(const std::filesystem::path& path);

  bool has_template() const { return !templates_.empty(); }
  // Whether one of the templates has this text in it.
  bool mentions(std::string_view text) const;
  // Writes the templates, which need not parse, where load() finds them: chat_template.jinja and
  // additional_chat_templates of a directory, or keys tokenizer.chat_template of a GGUF file.
  // Throws Error.
  void save(const std::filesystem::path& directory) const;
  void write(GgufMetadata& metadata) const;

  // The text of a conversation. variables: "messages" and what else the template knows ("tools",
  // "add_generation_prompt", "enable_thinking"); the texts of special tokens are added where they
  // are not among them. Of several templates, "tool_use" is taken where there are tools, otherwise
  // "default". Throws Error if there is no template, and JinjaError.
  std::string render(nlohmann::ordered_json variables, std::optional<std::time_t> now = {}) const;

  // Throws Error if there is no template, and JinjaError for one that does not parse.
  void check_template() const { parsed_template(false); }

  // The tokens, of any of the files, that end a text; sorted. Ids outside the vocabulary of
  // `vocab_size` and names that the tokenizer does not know are omitted.
  std::vector<int32_t> end_tokens(const Tokenizer& tokenizer, int64_t vocab_size) const;

 private:
  const JinjaTemplate& parsed_template(bool with_tools) const;
  void read_directory(const std::filesystem::path& directory);
  void read_gguf(const std::filesystem::path& path);
  void read_named_tokens(const nlohmann::json& config);
  void add_templates(const nlohmann::json& value, const std::string& where);
  void add_end_ids(const nlohmann::json& value);

  // One that does not parse is kept as its error, until somebody wants it.
  struct Template {
    std::string source;
    std::shared_ptr<const JinjaTemplate> parsed;
    std::exception_ptr error;
  };
  void add_template(const std::string& name, std::string_view source, const std::string& where);

  std::string where_;
  std::map<std::string, Template> templates_;  // by name; "default" is the usual one
  nlohmann::ordered_json special_ = nlohmann::ordered_json::object();  // "bos_token": "<s>"
  std::vector<int64_t> end_ids_;
  std::vector<std::string> end_names_;
};

}  // namespace pronghorn
