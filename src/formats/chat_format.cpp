#include "formats/chat_format.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/files.h"
#include "base/quote.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "formats/json.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr uint64_t kMostBytes = uint64_t{1} << 26;
constexpr const char* kDefault = "default";
constexpr const char* kTemplateFile = "chat_template.jinja";
constexpr const char* kTemplateFolder = "additional_chat_templates";
constexpr const char* kTemplateKey = "tokenizer.chat_template";  // of GGUF files

// What a text of a token may be written as: "<s>", or {"content": "<s>", ...}.
std::optional<std::string> token_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return {};
}

// The token of a name; kinds of tokenizers that know no names have it among the added tokens.
std::optional<int32_t> token_of(const Tokenizer& tokenizer, std::string_view name) {
  if (const auto id = tokenizer.find_token(name)) return id;
  for (int32_t id = 0; id < static_cast<int32_t>(tokenizer.vocab_size()); ++id) {
    if (tokenizer.is_added(id) && tokenizer.token_bytes(id, true) == name) return id;
  }
  return {};
}

bool names_a_token(std::string_view key) { return key.ends_with("_token"); }

// End of the text, of a turn, of a message.
bool ends_a_text(std::string_view key) {
  return key == "eos_token" || key == "eot_token" || key == "eom_token";
}

std::optional<json> read_optional(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return {};
  json parsed = parse_json(read_file(path, kMostBytes), path.string(), kMostBytes);
  require(parsed.is_object(), path.string(), "must be an object");
  return parsed;
}

}  // namespace

ChatFormat ChatFormat::load(const std::filesystem::path& path) {
  ChatFormat format;
  format.where_ = path.string();
  if (const auto gguf = find_gguf(path)) {
    format.read_gguf(*gguf);
  } else if (std::filesystem::is_directory(path)) {
    format.read_directory(path);
  } else if (is_torch_model(path)) {
    format.read_directory(std::filesystem::absolute(path).parent_path());
  } else {
    format.add_template(kDefault, read_file(path, kMostBytes), path.string());
  }
  return format;
}

void ChatFormat::add_template(const std::string& name, std::string_view source,
                              const std::string& where) {
  Template& added = templates_[name] = {.source = std::string(source), .parsed = {}, .error = {}};
  try {
    added.parsed = std::make_shared<const JinjaTemplate>(source, where);
  } catch (const Error&) {
    added.error = std::current_exception();
  }
}

void ChatFormat::add_templates(const json& value, const std::string& where) {
  if (value.is_string()) {
    add_template(kDefault, value.get_ref<const std::string&>(), where);
  } else if (value.is_array()) {
    for (const json& item : value) {
      require(item.is_object() && item.contains("name") && item["name"].is_string() &&
                  item.contains("template") && item["template"].is_string(),
              where, "an item of the list has no name or no template");
      add_template(item["name"].get<std::string>(), item["template"].get_ref<const std::string&>(),
                   where);
    }
  } else if (value.is_object()) {
    for (const auto& item : value.items()) {
      require(item.value().is_string(), where, "the template of a name must be a string");
      add_template(item.key(), item.value().get_ref<const std::string&>(), where);
    }
  } else {
    require(value.is_null(), where, "must be a string or a list");
  }
}

bool ChatFormat::mentions(std::string_view text) const {
  return std::ranges::any_of(templates_, [&](const auto& named) {
    return named.second.source.find(text) != std::string::npos;
  });
}

void ChatFormat::save(const std::filesystem::path& directory) const {
  for (const auto& [name, chat] : templates_) {
    if (name == kDefault) {
      write_file(directory / kTemplateFile, chat.source);
      continue;
    }
    // The name becomes that of a file.
    require(name.find_first_of("/\\") == name.npos && !name.starts_with('.'), where_,
            "{} is no name for a chat template", quote(name));
    make_directories(directory / kTemplateFolder);
    write_file(directory / kTemplateFolder / (name + ".jinja"), chat.source);
  }
}

void ChatFormat::write(GgufMetadata& metadata) const {
  for (const auto& [name, chat] : templates_) {
    const std::string key = name == kDefault ? kTemplateKey : kTemplateKey + ("." + name);
    metadata.set(key, GgufValue::text(chat.source));
  }
}

void ChatFormat::add_end_ids(const json& value) {
  if (value.is_array()) {
    for (const json& item : value) add_end_ids(item);
  } else if (value.is_number_integer()) {
    end_ids_.push_back(value.get<int64_t>());
  }
}

void ChatFormat::read_named_tokens(const json& config) {
  for (const auto& [key, value] : config.items()) {
    if (key == "additional_special_tokens" && value.is_array()) {
      nlohmann::ordered_json texts = nlohmann::ordered_json::array();
      for (const json& item : value) {
        if (const auto text = token_text(item)) texts.push_back(*text);
      }
      special_[key] = texts;
    }
    if (!names_a_token(key)) continue;
    const auto text = token_text(value);
    if (!text) continue;
    special_[key] = *text;
    if (ends_a_text(key)) end_names_.push_back(*text);
  }
}

void ChatFormat::read_directory(const std::filesystem::path& directory) {
  constexpr const char* kKey = "chat_template";
  if (const auto map = read_optional(directory / "special_tokens_map.json")) {
    read_named_tokens(*map);
  }
  if (const auto config = read_optional(directory / "chat_template.json")) {
    if (config->contains(kKey)) {
      add_templates((*config)[kKey], (directory / "chat_template.json").string());
    }
  }
  if (const auto config = read_optional(directory / "tokenizer_config.json")) {
    read_named_tokens(*config);
    if (config->contains(kKey)) {
      add_templates((*config)[kKey], (directory / "tokenizer_config.json").string() + ": " + kKey);
    }
  }
  if (const auto file = directory / kTemplateFile; std::filesystem::exists(file)) {
    add_template(kDefault, read_file(file, kMostBytes), file.string());
  }
  if (const auto more = directory / kTemplateFolder; std::filesystem::is_directory(more)) {
    for (const auto& entry : std::filesystem::directory_iterator(more)) {
      if (entry.path().extension() != ".jinja") continue;
      add_template(entry.path().stem().string(), read_file(entry.path(), kMostBytes),
                   entry.path().string());
    }
  }
  for (const char* name : {"generation_config.json", "config.json"}) {
    const auto config = read_optional(directory / name);
    if (!config) continue;
    if (config->contains("eos_token_id")) add_end_ids((*config)["eos_token_id"]);
    // Of a model that also sees or hears, the part that reads text.
    const auto text = config->find("text_config");
    if (text != config->end() && text->is_object() && text->contains("eos_token_id")) {
      add_end_ids((*text)["eos_token_id"]);
    }
  }
}

void ChatFormat::read_gguf(const std::filesystem::path& path) {
  const GgufFile file(path);
  const GgufMetadata& metadata = file.metadata();
  const std::string key = kTemplateKey;
  for (const auto& [name, value] : metadata.all()) {
    if (!name.starts_with(key)) continue;
    const auto text = value.as_text();
    const bool named = name.size() > key.size() + 1 && name[key.size()] == '.';
    if (text && (named || name.size() == key.size())) {
      add_template(named ? name.substr(key.size() + 1) : kDefault, *text, metadata.path(name));
    }
  }
  const std::vector<std::string_view> tokens = metadata.texts("tokenizer.ggml.tokens");
  // GGUF's names, and those of tokenizer_config.json.
  constexpr std::pair<const char*, const char*> kNames[] = {
      {"bos", "bos"},     {"eos", "eos"},       {"eot", "eot"}, {"eom", "eom"},  {"unknown", "unk"},
      {"padding", "pad"}, {"seperator", "sep"}, {"cls", "cls"}, {"mask", "mask"}};
  for (const auto& [gguf_name, name] : kNames) {
    const GgufValue* value = metadata.find(fmt::format("tokenizer.ggml.{}_token_id", gguf_name));
    const auto id = value == nullptr ? std::nullopt : value->as_integer();
    if (!id || *id < 0 || static_cast<uint64_t>(*id) >= tokens.size()) continue;
    const std::string token = fmt::format("{}_token", name);
    special_[token] = std::string(tokens[static_cast<size_t>(*id)]);
    if (ends_a_text(token)) end_ids_.push_back(*id);
  }
}

const JinjaTemplate& ChatFormat::parsed_template(bool with_tools) const {
  if (templates_.empty()) {
    throw Error(where_, "has no chat template",
                "name an instruction-tuned checkpoint, or give the text as a plain prompt");
  }
  auto found = templates_.find(kDefault);
  if (const auto special = templates_.find("tool_use");
      special != templates_.end() && (with_tools || found == templates_.end())) {
    found = special;
  }
  if (found == templates_.end()) found = templates_.begin();
  if (found->second.error != nullptr) std::rethrow_exception(found->second.error);
  return *found->second.parsed;
}

std::string ChatFormat::render(nlohmann::ordered_json variables,
                               std::optional<std::time_t> now) const {
  require(variables.is_object(), where_, "the variables of a template must be an object");
  const auto tools = variables.find("tools");
  const bool with_tools = tools != variables.end() && tools->is_array() && !tools->empty();
  const JinjaTemplate& chat = parsed_template(with_tools);
  for (const auto& [name, text] : special_.items()) {
    if (!variables.contains(name)) variables[name] = text;
  }
  return chat.render(variables, now);
}

std::vector<int32_t> ChatFormat::end_tokens(const Tokenizer& tokenizer, int64_t vocab_size) const {
  std::vector<int32_t> ids;
  if (const auto eos = tokenizer.eos()) ids.push_back(*eos);
  for (const int64_t id : end_ids_) {
    if (id >= 0 && id < vocab_size) ids.push_back(static_cast<int32_t>(id));
  }
  for (const std::string& name : end_names_) {
    if (const auto id = token_of(tokenizer, name)) ids.push_back(*id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace pronghorn
